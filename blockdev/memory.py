"""Block device in memory, the reference model for tests of other devices.

The bytes live in one anonymous private mapping, so a large device costs only the
pages that were written. Nothing is durable and `flush` has nothing to do.

Reads return a copy (`bytes`), which no later write changes. Only `try_view` returns
the memory itself: half the work for a server (1 MiB: 60 us less).
"""

import mmap

from typing_extensions import Buffer

from blockdev.device import BlockDevice, Extent, check_range
from blockdev.errors import ClosedError

_MAP_NORESERVE = 0x4000
"""Linux, from <asm-generic/mman.h>; Python's mmap module does not name it everywhere."""


class MemoryDevice(BlockDevice):
    """Bytes in memory; every operation finishes at once and none suspends.

    Args:
        size_bytes: content starts as zeroes.
        block_bytes: requests must be multiples of it, as on a disk with sectors.
        physical_bytes: the value to report; writes here never tear.
    """

    def __init__(
        self, size_bytes: int, *, block_bytes: int = 1, physical_bytes: int = 4096
    ) -> None:
        assert size_bytes >= 0
        assert size_bytes % block_bytes == 0
        self.size_bytes = size_bytes
        self.block_bytes = block_bytes
        self.physical_bytes = physical_bytes
        self._memory = mmap.mmap(
            -1,
            max(size_bytes, 1),  # mmap refuses an empty mapping
            flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE,
        )
        self._view = memoryview(self._memory).toreadonly()
        self._closed = False
        # Requests that end at or before this offset need no further check. It is -1
        # where more must be checked: whole blocks, or a closed device.
        self._unchecked_bytes = size_bytes if block_bytes == 1 else -1

    def try_read(self, offset: int, length: int) -> bytes:
        """Return a copy of the range; always succeeds at once. Raises as `read`."""
        end = offset + length
        if not 0 <= offset <= end <= self._unchecked_bytes:
            self._check(offset, length)
        return self._memory[offset:end]

    def try_view(self, offset: int, length: int) -> Buffer:
        """Return the range itself; always succeeds at once. Raises as `read`."""
        end = offset + length
        if not 0 <= offset <= end <= self._unchecked_bytes:
            self._check(offset, length)
        return self._view[offset:end]

    def try_write(self, offset: int, data: Buffer) -> bool:
        """Copy `data` in and return True; always succeeds at once. Raises as `write`."""
        length = memoryview(data).nbytes
        end = offset + length
        if not 0 <= offset <= end <= self._unchecked_bytes:
            self._check(offset, length)
        self._memory[offset:end] = data
        return True

    async def read(self, offset: int, length: int) -> bytes:
        """Return a copy of the range. Raises OutOfRangeError, ClosedError."""
        return self.try_read(offset, length)

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        """Copy `data` in. Raises OutOfRangeError, ClosedError."""
        self.try_write(offset, data)

    async def write_zeroes(
        self,
        offset: int,
        length: int,
        *,
        fua: bool = False,
        no_hole: bool = False,
        fast: bool = False,
    ) -> None:
        """Zero the range and give whole pages back to the system. Raises as `write`."""
        self._check(offset, length)
        page = mmap.PAGESIZE
        first = -(-offset // page) * page
        last = (offset + length) // page * page
        if first >= last:
            self._memory[offset : offset + length] = bytes(length)
            return
        self._memory[offset:first] = bytes(first - offset)
        self._memory[last : offset + length] = bytes(offset + length - last)
        # A private anonymous page reads as zeroes after this, and is freed.
        self._memory.madvise(mmap.MADV_DONTNEED, first, last - first)

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        """Zero the range, as `write_zeroes`."""
        await self.write_zeroes(offset, length)

    async def flush(self) -> None:
        """Do nothing: memory is never durable. Raises ClosedError."""
        self._check(0, 0)

    async def extents(self, offset: int, length: int) -> list[Extent]:
        """Report all as data. Raises OutOfRangeError, ClosedError."""
        self._check(offset, length)
        return await super().extents(offset, length)

    async def cache(self, offset: int, length: int) -> None:
        """Do nothing: all data is in memory. Raises OutOfRangeError, ClosedError."""
        self._check(offset, length)

    async def allocate(self, offset: int, length: int) -> None:
        """Do nothing: pages come with the first write. Raises OutOfRangeError, ClosedError."""
        self._check(offset, length)

    async def close(self) -> None:
        """Release the memory, which is freed with its last view; every later call but `close`
        raises ClosedError.
        """
        if not self._closed:
            self._closed = True
            self._unchecked_bytes = -1
            # Closing the mapping would fail while a view of it is being sent.
            self._memory = mmap.mmap(-1, 1)
            self._view = memoryview(b"")

    def _check(self, offset: int, length: int) -> None:
        if self._closed:
            raise ClosedError("memory device is closed")
        check_range(self, offset, length)
