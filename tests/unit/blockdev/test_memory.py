"""MemoryDevice: copies and views, sparse memory, and checks of the fast paths."""

import pytest

from blockdev.errors import ClosedError, OutOfRangeError
from blockdev.memory import MemoryDevice

MIB = 1 << 20


async def test_reads_are_copies() -> None:
    device = MemoryDevice(MIB)
    before = device.try_read(0, MIB)
    assert device.try_write(0, b"x" * MIB)
    assert before == bytes(MIB)


async def test_a_huge_device_costs_only_what_is_written() -> None:
    device = MemoryDevice(1 << 42)
    await device.write((1 << 42) - 4, b"tail")
    assert await device.read((1 << 42) - 6, 6) == b"\0\0tail"
    await device.write_zeroes(0, 1 << 42)
    assert await device.read((1 << 42) - 6, 6) == bytes(6)
    await device.close()


async def test_zeroing_unaligned_ranges_across_pages() -> None:
    device = MemoryDevice(5 * 4096)
    await device.write(0, b"x" * 5 * 4096)
    await device.write_zeroes(4000, 3 * 4096)
    assert await device.read(0, 5 * 4096) == (
        b"x" * 4000 + bytes(3 * 4096) + b"x" * (2 * 4096 - 4000)
    )


async def test_an_empty_device_takes_empty_requests_only() -> None:
    device = MemoryDevice(0)
    assert await device.read(0, 0) == b""
    with pytest.raises(OutOfRangeError):
        await device.read(0, 1)


async def test_fast_paths_refuse_the_same_requests_as_the_slow_ones() -> None:
    device = MemoryDevice(MIB, block_bytes=512)
    with pytest.raises(OutOfRangeError, match=r"whole blocks: offset=1 length=512"):
        device.try_read(1, 512)
    with pytest.raises(OutOfRangeError, match=r"outside the device"):
        device.try_write(MIB, bytes(512))
    await device.close()
    with pytest.raises(ClosedError):
        device.try_read(0, 512)
    with pytest.raises(ClosedError):
        device.try_write(0, bytes(512))
    with pytest.raises(ClosedError):
        await device.allocate(0, 512)


async def test_a_view_is_the_memory_itself_and_outlives_the_device() -> None:
    """A server may still be sending the view to a client when the device is closed."""
    device = MemoryDevice(MIB)
    view = memoryview(device.try_view(4096, 4096))
    device.try_write(4096, b"n" * 4096)
    assert view == b"n" * 4096
    assert view.readonly
    await device.close()
    assert view == b"n" * 4096
    with pytest.raises(ClosedError):
        device.try_view(0, 512)
