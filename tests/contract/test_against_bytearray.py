"""Random sequences of operations on every device, compared with a plain bytearray."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blockdev.device import BlockDevice
from tests.contract.devices import SIZE_BYTES, Factory

UNIT = 512  # a multiple of every device's block size

_UNITS = SIZE_BYTES // UNIT
_NUMBERS = itertools.count()

steps = st.lists(
    st.tuples(
        st.sampled_from(["write", "write", "write", "read", "zeroes", "trim", "flush", "extents"]),
        st.integers(0, _UNITS - 1),
        # Mostly small and close together, so that ranges overlap; sometimes large.
        st.one_of(st.integers(0, 20), st.integers(0, _UNITS)),
        st.integers(1, 255),
        st.booleans(),
    ),
    max_size=30,
)


class Checked:
    """A device and its expected content; after a trim, the content that the device chose."""

    def __init__(self, device: BlockDevice) -> None:
        self.device = device
        self.expected = bytearray(device.size_bytes)

    async def step(self, kind: str, offset: int, length: int, fill: int, flag: bool) -> None:
        end = offset + length
        match kind:
            case "write":
                await self.device.write(offset, bytes([fill]) * length, fua=flag)
                self.expected[offset:end] = bytes([fill]) * length
            case "zeroes":
                await self.device.write_zeroes(offset, length, no_hole=flag)
                self.expected[offset:end] = bytes(length)
            case "trim":
                await self.trim(offset, length)
            case "flush":
                await self.device.flush()
            case "read":
                assert await self.content(offset, length) == self.expected[offset:end]
                quick = self.device.try_read(offset, length)
                assert quick is None or memoryview(quick) == self.expected[offset:end]
            case "extents":
                await self.check_extents(offset, length)

    async def trim(self, offset: int, length: int) -> None:
        await self.device.trim(offset, length)
        after = await self.content(offset, length)
        pairs = zip(after, self.expected[offset : offset + length], strict=True)
        assert all(new in (0, old) for new, old in pairs)
        self.expected[offset : offset + length] = after

    async def check_extents(self, offset: int, length: int) -> None:
        at, end = offset, offset + length
        while at < end:
            for extent in await self.device.extents(at, end - at):
                if extent.zero:
                    assert not any(self.expected[at : at + extent.length_bytes])
                at += extent.length_bytes
        assert at == end
        for extent in self.device.try_extents(offset, length) or ():
            assert not (extent.zero and any(self.expected[offset : offset + extent.length_bytes]))
            offset += extent.length_bytes

    async def content(self, offset: int, length: int) -> bytes:
        return bytes(memoryview(await self.device.read(offset, length)))


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=steps)
def test_a_device_behaves_like_an_array(
    make_device: Factory, tmp_path_factory: pytest.TempPathFactory, steps: list[Any]
) -> None:
    """Goal: after any sequence of operations the device reads like an array of bytes."""
    directory = tmp_path_factory.getbasetemp() / f"array-{next(_NUMBERS)}"
    directory.mkdir()
    trio.run(_run, make_device, directory, steps)


async def _run(make_device: Factory, directory: Path, steps: list[Any]) -> None:
    async with make_device(directory) as device:
        checked = Checked(device)
        for kind, unit, units, fill, flag in steps:
            units = min(units, _UNITS - unit)
            await checked.step(kind, unit * UNIT, units * UNIT, fill, flag)
        assert await checked.content(0, device.size_bytes) == checked.expected
