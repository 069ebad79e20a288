"""Extents, fast zeroes and hints of every BlockDevice."""

import contextlib

import pytest

from blockdev.device import EXTENTS_MAX, BlockDevice, Extent
from blockdev.errors import ClosedError, DeviceError, OutOfRangeError, UnsupportedError
from tests.contract.test_block_device import OUTSIDE, PAGE, content, pattern, whole


async def fill(device: BlockDevice) -> None:
    """Write data and zeroes, so that data, holes and zeroes of many lengths result."""
    await device.write(2 * PAGE, pattern(PAGE))
    await device.write(40 * PAGE, pattern(30 * PAGE))
    await device.write_zeroes(50 * PAGE, 4 * PAGE)
    for page in range(128, 192, 2):
        await device.write(page * PAGE, pattern(PAGE))


def ranges(device: BlockDevice) -> list[tuple[int, int]]:
    unit = device.block_bytes
    return [
        (0, device.size_bytes),
        (unit, 3 * PAGE),
        (2 * PAGE, PAGE),
        (41 * PAGE + unit, 20 * PAGE),
        (100 * PAGE, unit),
        (129 * PAGE - unit, 33 * PAGE),
        (device.size_bytes - unit, unit),
    ]


async def check(device: BlockDevice, offset: int, extents: list[Extent]) -> None:
    for extent in extents:
        assert extent.length_bytes > 0
        if extent.zero:
            data = await content(device, offset, extent.length_bytes)
            assert data == bytes(extent.length_bytes)
        offset += extent.length_bytes


def length_of(extents: list[Extent]) -> int:
    return sum(extent.length_bytes for extent in extents)


async def test_extents_may_stop_early_and_go_on_from_there(device: BlockDevice) -> None:
    await fill(device)
    for offset, length in ranges(device):
        end = offset + length
        while offset < end:
            extents = await device.extents(offset, end - offset)
            assert 1 <= len(extents) <= EXTENTS_MAX
            await check(device, offset, extents)
            offset += length_of(extents)
        assert offset == end


async def test_try_extents_describes_the_whole_range_rightly_or_returns_none(
    device: BlockDevice,
) -> None:
    await fill(device)
    for offset, length in ranges(device):
        await device.extents(offset, length)  # its metadata is in memory now
        quick = device.try_extents(offset, length)
        if quick is not None:
            assert length_of(quick) == length
            await check(device, offset, quick)
            slow = await device.extents(offset, length)
            assert length_of(slow) < length or slow == quick
    for offset, length in OUTSIDE:
        with contextlib.suppress(OutOfRangeError):
            assert device.try_extents(offset, length) is None


async def test_zeroes_are_fast_or_refused_with_nothing_changed(device: BlockDevice) -> None:
    data = pattern(16 * PAGE)
    await device.write(0, data)
    unit = device.block_bytes
    offset, length = PAGE + unit, 6 * PAGE
    try:
        await device.write_zeroes(offset, length, fast=True)
    except UnsupportedError:
        assert await content(device, 0, len(data)) == data
        return
    zeroed = data[:offset] + bytes(length) + data[offset + length :]
    assert await content(device, 0, len(data)) == zeroed
    # Fast zeroes that work once work always: a server advertises them before any request.
    await device.write_zeroes(0, 2 * PAGE, fast=True, no_hole=True, fua=True)
    await device.write_zeroes(device.size_bytes - unit, unit, fast=True)


async def test_hints_change_nothing(device: BlockDevice) -> None:
    await fill(device)
    before = await whole(device)
    for offset, length in ranges(device):
        await device.cache(offset, length)
        await device.cache(offset, 0)
    assert await whole(device) == before
    for offset, length in OUTSIDE:
        with pytest.raises(OutOfRangeError):
            await device.cache(offset, length)


async def test_a_closed_device_describes_nothing(device: BlockDevice) -> None:
    await device.close()
    with pytest.raises(ClosedError):
        await device.extents(0, PAGE)
    with contextlib.suppress(DeviceError):
        assert device.try_extents(0, PAGE) is None
