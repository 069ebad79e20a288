"""The promises of every BlockDevice, as blockdev/device.py states them."""

import contextlib
import random

import pytest
import trio

from blockdev.device import BlockDevice
from blockdev.errors import ClosedError, OutOfRangeError

KIB = 1024
PAGE = 4096

OUTSIDE = [
    (-PAGE, PAGE),
    (0, -PAGE),
    (PAGE, -PAGE),
    (2**63, PAGE),
    (2**64, PAGE),
    (2**100, 2**100),
    (0, 2**64),
]


def pattern(length: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(length)


async def content(device: BlockDevice, offset: int, length: int) -> bytes:
    return bytes(memoryview(await device.read(offset, length)))


async def whole(device: BlockDevice) -> bytes:
    return await content(device, 0, device.size_bytes)


# Reading and writing


async def test_a_new_device_reads_as_zeroes(device: BlockDevice) -> None:
    assert await whole(device) == bytes(device.size_bytes)


@pytest.mark.parametrize("length", [PAGE, 3 * PAGE, 64 * KIB, 768 * KIB])
@pytest.mark.parametrize("offset", [0, PAGE, 13 * PAGE])
async def test_reads_return_written_data(device: BlockDevice, offset: int, length: int) -> None:
    data = pattern(length)
    await device.write(offset, data)
    expected = bytearray(device.size_bytes)
    expected[offset : offset + length] = data
    assert await whole(device) == expected


@pytest.mark.parametrize("flushed", [False, True])
async def test_the_medium_holds_what_was_written(device: BlockDevice, flushed: bool) -> None:
    """Goal: a read of the medium shows every write that returned, in any grain of the device."""
    expected = bytearray(device.size_bytes)
    unit, coin = device.block_bytes, random.Random(3)
    for seed in range(8):
        offset = coin.randrange(device.size_bytes // unit - 100) * unit
        data = pattern(coin.randint(1, 100) * unit, seed)
        await device.write(offset, data)
        expected[offset : offset + len(data)] = data
        if flushed:
            await device.flush()
        offset = max(offset - 3 * unit, 0)
        length = min(len(data) + 7 * unit, device.size_bytes - offset)
        found = bytes(memoryview(await device.read_medium(offset, length)))
        assert found == expected[offset : offset + length]
    assert bytes(memoryview(await device.read_medium(0, device.size_bytes))) == expected
    assert bytes(memoryview(await device.read_medium(unit, 0))) == b""
    with pytest.raises(OutOfRangeError):
        await device.read_medium(device.size_bytes - unit, 2 * unit)


async def test_writing_one_block_leaves_its_neighbors_unchanged(device: BlockDevice) -> None:
    unit = device.block_bytes
    await device.write(0, pattern(2 * PAGE))
    await device.write(PAGE - unit, b"\xaa" * unit)
    expected = bytearray(pattern(2 * PAGE))
    expected[PAGE - unit : PAGE] = b"\xaa" * unit
    assert await content(device, 0, 2 * PAGE) == expected
    assert await content(device, PAGE - unit, unit) == b"\xaa" * unit


async def test_the_last_block_can_be_written_and_read(device: BlockDevice) -> None:
    unit = device.block_bytes
    await device.write(device.size_bytes - unit, b"\xbb" * unit)
    assert await content(device, device.size_bytes - unit, unit) == b"\xbb" * unit


async def test_any_buffer_can_be_written(device: BlockDevice) -> None:
    data = pattern(2 * PAGE)
    await device.write(0, bytearray(data))
    await device.write(2 * PAGE, memoryview(data)[PAGE:])
    await device.write(3 * PAGE, memoryview(data).cast("I")[: PAGE // 4])
    assert await content(device, 0, 4 * PAGE) == data + data[PAGE:] + data[:PAGE]


async def test_the_caller_may_reuse_its_buffer(device: BlockDevice) -> None:
    data = bytearray(pattern(64 * KIB))
    await device.write(0, data)
    data[:] = bytes(len(data))
    await device.flush()
    assert await content(device, 0, 64 * KIB) == pattern(64 * KIB)


async def test_a_later_write_does_not_change_data_that_was_read(device: BlockDevice) -> None:
    await device.write(0, pattern(64 * KIB))
    before = memoryview(await device.read(0, 64 * KIB))
    quick = device.try_read(0, PAGE)
    await device.write(0, bytes(64 * KIB))
    assert before == pattern(64 * KIB)
    assert quick is None or memoryview(quick) == pattern(64 * KIB)[:PAGE]


async def test_empty_requests_do_nothing(device: BlockDevice) -> None:
    for offset in (0, PAGE, device.size_bytes):
        assert await content(device, offset, 0) == b""
        await device.write(offset, b"")
        await device.write(offset, b"", fua=True)
        await device.write_zeroes(offset, 0)
        await device.write_zeroes(offset, 0, no_hole=True, fua=True)
        await device.trim(offset, 0)
        await device.allocate(offset, 0)
        assert await device.extents(offset, 0) == []


# Ranges


@pytest.mark.parametrize(("offset", "length"), OUTSIDE)
async def test_ranges_outside_are_refused(device: BlockDevice, offset: int, length: int) -> None:
    with pytest.raises(OutOfRangeError):
        await device.read(offset, length)
    with pytest.raises(OutOfRangeError):
        await device.write_zeroes(offset, length)
    with pytest.raises(OutOfRangeError):
        await device.trim(offset, length)
    with pytest.raises(OutOfRangeError):
        await device.extents(offset, length)


async def test_ranges_past_the_end_change_nothing(device: BlockDevice) -> None:
    unit = device.block_bytes
    for offset in (device.size_bytes - unit, device.size_bytes, device.size_bytes + unit):
        with pytest.raises(OutOfRangeError):
            await device.write(offset, b"\xff" * 2 * unit)
        with pytest.raises(OutOfRangeError):
            await device.read(offset, 2 * unit)
        with pytest.raises(OutOfRangeError):
            await device.write_zeroes(offset, 2 * unit)
        with pytest.raises(OutOfRangeError):
            await device.trim(offset, 2 * unit)
    assert await whole(device) == bytes(device.size_bytes)


@pytest.mark.parametrize(("offset", "length"), OUTSIDE)
async def test_the_fast_paths_serve_no_range_outside(
    device: BlockDevice, offset: int, length: int
) -> None:
    """A fast path may raise OutOfRangeError, or decline."""
    with contextlib.suppress(OutOfRangeError):
        assert device.try_read(offset, length) is None
    with contextlib.suppress(OutOfRangeError):
        assert device.try_view(offset, length) is None
    with contextlib.suppress(OutOfRangeError):
        assert device.try_write(device.size_bytes, bytes(PAGE)) is False


async def test_partial_blocks_are_refused(device: BlockDevice) -> None:
    if device.block_bytes == 1:
        assert await content(device, 1, 1) == b"\0"
        return
    for offset, length in ((1, device.block_bytes), (0, 1), (device.block_bytes, 3)):
        with pytest.raises(OutOfRangeError):
            await device.read(offset, length)
        with pytest.raises(OutOfRangeError):
            await device.write(offset, bytes(length))


# Zeroes and trim


@pytest.mark.parametrize("no_hole", [False, True])
@pytest.mark.parametrize("fua", [False, True])
async def test_zeroes_cover_exactly_their_range(
    device: BlockDevice, no_hole: bool, fua: bool
) -> None:
    unit = device.block_bytes
    data = pattern(16 * PAGE)
    ranges = [(PAGE, PAGE), (3 * PAGE + unit, PAGE), (6 * PAGE - unit, 2 * unit), (8 * PAGE, 9)]
    await device.write(0, data)
    expected = bytearray(data)
    for offset, length in ranges:
        length = -(-length // unit) * unit
        await device.write_zeroes(offset, length, no_hole=no_hole, fua=fua)
        expected[offset : offset + length] = bytes(length)
    assert await content(device, 0, len(data)) == expected


async def test_zeroed_ranges_can_be_written_again(device: BlockDevice) -> None:
    await device.write(0, pattern(16 * PAGE))
    await device.write_zeroes(0, 16 * PAGE)
    await device.write(PAGE, pattern(PAGE))
    assert await content(device, 0, 3 * PAGE) == bytes(PAGE) + pattern(PAGE) + bytes(PAGE)


async def test_trim_leaves_old_bytes_or_zeroes_and_no_neighbor_changed(
    device: BlockDevice,
) -> None:
    unit = device.block_bytes
    data = pattern(16 * PAGE)
    for offset, length in ((0, PAGE), (2 * PAGE + unit, 3 * PAGE), (9 * PAGE, unit)):
        await device.write(0, data)
        await device.trim(offset, length)
        after = await content(device, 0, len(data))
        assert after[:offset] == data[:offset]
        assert after[offset + length :] == data[offset + length :]
        pairs = zip(after[offset : offset + length], data[offset : offset + length], strict=True)
        assert all(new in (0, old) for new, old in pairs)


async def test_allocation_changes_no_content(device: BlockDevice) -> None:
    await device.write(PAGE, pattern(PAGE))
    await device.allocate(0, 32 * PAGE)
    assert await content(device, 0, 3 * PAGE) == bytes(PAGE) + pattern(PAGE) + bytes(PAGE)


# Durability calls, closing


async def test_measuring_a_device_that_did_not_change_returns_its_size(device: BlockDevice) -> None:
    before = device.size_bytes
    assert await device.measure() == device.size_bytes == before


async def test_fua_writes_are_visible(device: BlockDevice) -> None:
    await device.write(0, pattern(PAGE), fua=True)
    await device.write_zeroes(PAGE, PAGE, fua=True)
    await device.trim(2 * PAGE, PAGE, fua=True)
    assert await content(device, 0, PAGE) == pattern(PAGE)


async def test_flushing_is_repeatable_and_changes_nothing(device: BlockDevice) -> None:
    await device.flush()
    await device.write(0, pattern(PAGE))
    await device.flush()
    await device.flush()
    assert await content(device, 0, PAGE) == pattern(PAGE)


async def test_a_closed_device_refuses_everything(device: BlockDevice) -> None:
    await device.write(0, pattern(PAGE))
    await device.close()
    await device.close()
    with pytest.raises(ClosedError):
        await device.read(0, PAGE)
    with pytest.raises(ClosedError):
        await device.write(0, bytes(PAGE))
    with pytest.raises(ClosedError):
        await device.write_zeroes(0, PAGE)
    with pytest.raises(ClosedError):
        await device.trim(0, PAGE)
    with pytest.raises(ClosedError):
        await device.flush()
    with contextlib.suppress(ClosedError):
        assert device.try_read(0, PAGE) is None
    with contextlib.suppress(ClosedError):
        assert device.try_view(0, PAGE) is None
    with contextlib.suppress(ClosedError):
        assert device.try_write(0, bytes(PAGE)) is False


async def test_the_fast_paths_agree_with_the_slow_ones(device: BlockDevice) -> None:
    data = pattern(4 * PAGE)
    if not device.try_write(PAGE, data):
        assert await content(device, PAGE, len(data)) == bytes(len(data))
        await device.write(PAGE, data)
    for quick in (device.try_read(PAGE, len(data)), device.try_view(PAGE, len(data))):
        assert quick is None or memoryview(quick) == data
    assert await content(device, PAGE, len(data)) == data


async def test_len_of_read_data_counts_bytes(device: BlockDevice) -> None:
    """The NBD server adds lengths up; `len` of an array would count its items."""
    await device.write(0, pattern(4 * PAGE))
    for offset, length in ((0, 4 * PAGE), (PAGE, PAGE)):
        found = await device.read(offset, length)
        for data in (found, device.try_read(offset, length), device.try_view(offset, length)):
            assert data is None or len(data) == length  # type: ignore[arg-type]


# Concurrency


async def test_requests_that_do_not_overlap_run_together(device: BlockDevice) -> None:
    piece = 16 * KIB

    async def write_and_check(index: int) -> None:
        for turn in range(3):
            data = pattern(piece, seed=index * 10 + turn)
            await device.write(index * piece, data, fua=turn == 1)
            assert await content(device, index * piece, piece) == data

    async with trio.open_nursery() as nursery:
        for index in range(32):
            nursery.start_soon(write_and_check, index)
        nursery.start_soon(device.flush)
    expected = b"".join(pattern(piece, seed=index * 10 + 2) for index in range(32))
    assert await content(device, 0, 32 * piece) == expected


async def test_a_cancelled_write_leaves_old_or_new_blocks(device: BlockDevice) -> None:
    old, new = pattern(64 * KIB, seed=1), pattern(64 * KIB, seed=2)
    await device.write(0, old)
    with trio.CancelScope() as scope:
        scope.cancel()
        await device.write(0, new)
    after = await content(device, 0, 64 * KIB)
    for at in range(0, 64 * KIB, 512):
        assert after[at : at + 512] in (old[at : at + 512], new[at : at + 512])
    await device.write(0, new)
    assert await content(device, 0, 64 * KIB) == new
