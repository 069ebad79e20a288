"""Huge sparse volumes, and reads that fail in the middle. Numbers in docstrings: docs/nbd.md."""

import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from blockdev.device import BlockDevice
from blockdev.errors import DeviceError
from blockdev.memory import MemoryDevice
from storage.map.blockmap import BlockMap
from storage.map.layer import Layer
from storage.pool import MemberDevice, create_pool, open_pool
from tests.unit.nbd.devices import serving
from tests.unit.nbd.mock_clock import REAL_TIME
from tests.unit.nbd.server.test_status import DATA, DONE, ERROR, KIB, Patchy, selecting
from tests.unit.nbd.wire import (
    DF,
    EIO,
    FLUSH,
    MIB,
    READ,
    REQ_ONE,
    STATUS,
    TRIM,
    ZEROES,
    Exports,
    RawClient,
    Running,
    extended_request,
    request,
    running,
    write,
)

HUGE_BYTES = 1 << 50
PAGES_LOOKED_AT_MAX = 20
"""Pages of the map that the requests of one test look at: at most 9 when this was written. A walk
over 4 GiB looks at 1024 pages, and a walk over a petabyte at 268 million."""

pytestmark = REAL_TIME  # a pool uses threads


@contextmanager
def few_pages() -> Iterator[None]:
    """Goal: the cost of the requests depends on the data there is, not on the length of the range.

    Method: count the pages of the map that are looked up or changed.
    """
    looked_at: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("find_page", "page", "_pending"):
            right = getattr(BlockMap, name)

            def counted(self: BlockMap, layer: Layer, number: int, right: Any = right) -> Any:
                looked_at.append(number)
                return right(self, layer, number)

            patch.setattr(BlockMap, name, counted)
        yield
    assert len(looked_at) <= PAGES_LOOKED_AT_MAX


@asynccontextmanager
async def huge(folder: Path) -> AsyncIterator[Running]:
    """Serve a volume of a petabyte with two blocks of data, far from each other."""
    member = MemberDevice(MemoryDevice(256 * MIB), "member", "host")
    await create_pool([member], copies=1, segment_bytes=MIB)
    async with open_pool([member]) as pool:
        await pool.management.create_volume("huge", HUGE_BYTES)

        def device() -> BlockDevice:
            return pool.open_export("huge")

        async with running(folder, Exports({"": device})) as run:
            client = await run.entered()
            for at in (1 << 32, HUGE_BYTES - 4096):
                await client.send(write(at, b"d" * 4096))
                assert await client.simple() == (7, 0, b"")
            yield run


async def told(client: RawClient, offset: int, length: int, flags: int = 0) -> list[int]:
    """Ask for block status with extended headers; return lengths and states in turns."""
    await client.send(extended_request(STATUS, offset, length, flags=flags))
    payload = (await client.extended_chunk())[4]
    return list(struct.unpack(f">{(len(payload) - 8) // 8}Q", payload[8:]))


async def test_a_petabyte_is_described_at_once(tmp_path: Path) -> None:
    """47, 48, 60: exact, in one answer, with lengths beyond 32 bits."""
    async with huge(tmp_path) as run:
        client = await selecting(run, extended=True)
        with few_pages():
            expected = [1 << 32, 3, 4096, 0, HUGE_BYTES - (1 << 32) - 8192, 3, 4096, 0]
            assert await told(client, 0, HUGE_BYTES) == expected
            assert await told(client, 0, HUGE_BYTES, REQ_ONE) == expected[:2]
            assert await told(client, 4097, 1 << 40, REQ_ONE) == [(1 << 32) - 4097, 3]


@pytest.mark.parametrize("length", [2**32 - 1, 2**32 - 512, 2**32 - 4096])
async def test_lengths_near_four_gibibytes(tmp_path: Path, length: int) -> None:
    """48, CVE-2025-47711: lengths in compact answers do not wrap, and are right."""
    async with huge(tmp_path) as run:
        client = await selecting(run)
        with few_pages():
            for offset, expected in (
                (0, [length, 3]),
                ((1 << 32) + 4096, [length, 3]),
                (4096, [(1 << 32) - 4096, 3, length + 4096 - (1 << 32), 0]),
            ):
                wanted = expected if expected[0] < length else [length, 3]
                await client.send(request(STATUS, offset, length))
                cookie, flags, _, payload = await client.chunk()
                assert (cookie, flags) == (7, DONE)
                assert list(struct.unpack(f">{(len(payload) - 4) // 4}I", payload[4:])) == wanted


async def test_zeroes_and_trims_of_four_gibibytes_are_quick(tmp_path: Path) -> None:
    """51: and longer ones, with extended headers."""
    async with huge(tmp_path) as run:
        client = await run.entered()
        with few_pages():
            assert await client.ask(TRIM, 1 << 30, 2**32 - 1) == 0
            assert await client.ask(FLUSH) == 0, "the trim is in the map"
            assert await client.read((1 << 32), 4096) == bytes(4096)
            assert await client.ask(ZEROES, 1 << 30, 2**32 - 1) == 0
            modern = await selecting(run, extended=True)
            await modern.send(extended_request(ZEROES, 0, HUGE_BYTES))
            assert (await modern.extended_chunk())[1:3] == (DONE, 0)
            assert await told(modern, 0, HUGE_BYTES) == [HUGE_BYTES, 3]
            assert await client.ask(FLUSH) == 0


class Damaged(Patchy):
    """Serves no read at once, and fails reads past 256 KiB."""

    def try_read(self, offset: int, length: int) -> bytes:
        return None  # type: ignore[return-value]

    try_view = try_read

    async def read(self, offset: int, length: int) -> bytes:
        if offset + length > 256 * KIB:
            raise DeviceError("damaged")
        return super().try_read(offset, length)


@pytest.mark.parametrize("flags", [0, DF])
async def test_a_read_that_fails_in_the_middle_is_one_error(tmp_path: Path, flags: int) -> None:
    """34: no chunk of data is sent before all of the data is read."""
    async with running(tmp_path, serving(Damaged)) as run:
        client = await selecting(run)
        await client.send(request(READ, 0, 384 * KIB, flags=flags))
        cookie, chunk_flags, kind, payload = await client.chunk()
        assert (cookie, chunk_flags, kind) == (7, DONE, ERROR)
        assert int.from_bytes(payload[:4]) == EIO
        await client.send(request(READ, 0, 4 * KIB))
        assert (await client.chunk())[2] == DATA
        simple = await run.entered()
        assert await simple.read(0, 384 * KIB, flags=0) == EIO
        assert await simple.read(0, 4 * KIB) == b"d" * (4 * KIB)
