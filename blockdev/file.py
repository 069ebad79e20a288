"""Block device on a local file or raw disk, through the page cache.

Reads that the page cache can answer finish in line (`try_read`); everything else
runs in worker threads. Large writes start their writeback at once, so that a flush
does not pay for old dirty pages: 32 writes of 4 MiB, 10 ms apart, then fdatasync:
0.25 ms instead of 55 ms (ext4, virtual NVMe disk), writes equally fast. Reads and
writes need no alignment; on a disk the kernel merges partial sectors in its cache.

An open device holds a flock: exclusive, or shared if read only. POSIX locks would
vanish when anything in the process closes the file. Disks are also opened with
O_EXCL, which mounted or otherwise used disks refuse.

Threads run to completion even if their caller is cancelled, and `close` waits for
them: a descriptor that is closed during a thread's call could be reused for another file.
"""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Self, TypeVar

import trio
from typing_extensions import Buffer

from blockdev import linux
from blockdev.device import BlockDevice, Extent, check_range
from blockdev.direct import DirectReader
from blockdev.errors import (
    ClosedError,
    DeviceError,
    NoSpaceError,
    ReadOnlyError,
    UnsupportedError,
)
from blockdev.openfile import OpenFile, create_file, open_file, open_size
from blockdev.rawio import data_runs, read_ahead, read_exactly, write_exactly, write_zeroes

T = TypeVar("T")

_KINDS: dict[int, type[DeviceError]] = {
    errno.ENOSPC: NoSpaceError,
    errno.EDQUOT: NoSpaceError,
    errno.ENOTSUP: UnsupportedError,
}

IO_THREADS_MAX = 16
"""Worker threads for all but flushes. Random 4 KiB reads gain nothing past 8 on a fast virtual
disk (7,700 a second, the interpreter being the limit); slower disks want a longer queue."""

FLUSH_THREADS_MAX = 2
"""Flushes have threads of their own so that a queue of reads cannot delay them; one flush runs,
and one more covers the writes that ended meanwhile."""

INLINE_BYTES_MAX = 256 * 1024
"""Longer reads go to a thread: no task runs while this much is copied, 10 to 60 us."""

CACHE_BYTES_MAX = 256 << 20
"""Most bytes that one `cache` reads: more would only evict other data from the page cache."""

WRITEBACK_BYTES_MIN = 256 * 1024
"""Shortest write that starts its writeback: each start is a disk request, so the kernel gathers
smaller writes."""


class FileDevice(BlockDevice):
    """One open file or disk; made by `create` or `open`.

    Raises, from every operation: ClosedError after `close`, NoSpaceError when the
    file system is full, ReadOnlyError for a change to a read-only device, and
    DeviceError with path, operation and cause for any other failure.
    """

    def __init__(self, file: OpenFile) -> None:
        self.path = file.path
        self.size_bytes = file.size_bytes
        self.physical_bytes = file.physical_bytes
        self.read_only = file.read_only
        self._fd = file.fd
        self._direct = DirectReader(file.fd)
        self._is_disk = file.is_disk
        # Reads that end at or before this offset may finish in line. It is -1 where
        # none may: the file system lacks RWF_NOWAIT, or the device is closed.
        self._inline_bytes = file.size_bytes if file.reads_inline else -1
        self._io = trio.CapacityLimiter(IO_THREADS_MAX)
        self._flushing = trio.CapacityLimiter(FLUSH_THREADS_MAX)
        self._closed = False
        self._users = 0
        self._idle = trio.Event()

    @classmethod
    def create(cls, path: str | os.PathLike[str], size_bytes: int) -> Self:
        """Create a sparse file and open it. Blocks; for start-up.

        Raises:
            DeviceError: the file exists already, or cannot be made; no partial file is left.
        """
        return cls(create_file(Path(path), size_bytes))

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], *, exclusive: bool = True, read_only: bool = False
    ) -> Self:
        """Open a file or a raw disk. Blocks; for start-up.

        Args:
            exclusive: take the flock, shared if `read_only`; False takes none, to look on
                beside an owner.

        Raises:
            BusyError: another process or device object has it open.
            DeviceError: it cannot be opened, or is neither a file nor a disk.
        """
        return cls(open_file(Path(path), exclusive=exclusive, read_only=read_only))

    def try_read(self, offset: int, length: int) -> bytearray | None:
        """Return the range if the page cache holds all of it, else None. I/O errors are left for
        `read` to report.
        """
        if not 0 <= offset <= offset + length <= self._inline_bytes:
            if self._inline_bytes >= 0 or self._closed:
                self._check(offset, length)
            return None
        if length > INLINE_BYTES_MAX:
            return None
        data = bytearray(length)
        try:
            # A short result: the rest is not in memory.
            got = os.preadv(self._fd, [data], offset, os.RWF_NOWAIT)
        except OSError:
            return None
        return data if got == length else None

    async def read(self, offset: int, length: int) -> bytearray:
        """Return a copy of the range, at once if the page cache has it."""
        self._check(offset, length)
        data = self.try_read(offset, length)
        if data is not None:
            return data
        return await self._run("read", offset, length, read_exactly, self._fd, offset, length)

    async def read_medium(self, offset: int, length: int) -> Buffer:
        """Read past the page cache, which does not change; through it where the file system has
        no O_DIRECT.
        """
        self._check(offset, length)
        if not length:
            return b""
        return await self._run("read", offset, length, self._direct.read, offset, length)

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        """Write into the page cache, with `fua` also through it to the disk."""
        view = memoryview(data).cast("B")
        self._check_change(offset, view.nbytes)
        await self._run("write", offset, view.nbytes, self._write, offset, view, fua)

    async def write_zeroes(
        self,
        offset: int,
        length: int,
        *,
        fua: bool = False,
        no_hole: bool = False,
        fast: bool = False,
    ) -> None:
        """Punch a hole, or with `no_hole` zero the range in place. Where the system supports
        neither, write zeroes, unless `fast`.
        """
        self._check_change(offset, length)
        await self._run(
            "write zeroes", offset, length, self._zero, offset, length, fua, no_hole, fast
        )

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        """Punch a hole in a file, discard whole physical blocks of a disk; does nothing where
        that is unsupported.
        """
        self._check_change(offset, length)
        await self._run("trim", offset, length, self._trim, offset, length, fua)

    async def flush(self) -> None:
        """Call fdatasync; see the interface for what a failure means."""
        self._check(0, 0)
        if not self.read_only:
            await self._run("flush", 0, 0, os.fdatasync, self._fd, limiter=self._flushing)

    async def allocate(self, offset: int, length: int) -> None:
        """Reserve blocks in the file system; does nothing on a disk or where unsupported."""
        self._check_change(offset, length)
        if length and not self._is_disk:
            await self._run("allocate", offset, length, self._allocate, offset, length)

    async def extents(self, offset: int, length: int) -> list[Extent]:
        """Find data by SEEK_DATA; reserved but unwritten space counts as a hole too. A disk is
        all data.
        """
        self._check(offset, length)
        if self._is_disk or not length:
            return await super().extents(offset, length)
        return await self._run("extents", offset, length, data_runs, self._fd, offset, length)

    async def measure(self) -> int:
        """Read the size from the file system or the disk, and adopt it if it has grown."""
        self._check(0, 0)
        size_bytes = await self._run("measure", 0, 0, open_size, self._fd)
        if size_bytes > self.size_bytes:
            self.size_bytes = size_bytes
            if self._inline_bytes >= 0:
                self._inline_bytes = size_bytes
        return self.size_bytes

    async def cache(self, offset: int, length: int) -> None:
        """Start read-ahead of the first CACHE_BYTES_MAX of the range into the page cache."""
        self._check(offset, length)
        length = min(length, CACHE_BYTES_MAX)
        await self._run("cache", offset, length, read_ahead, self._fd, offset, length)

    def read_ahead(self, offset: int, length: int) -> bool:
        """Start the kernel's read-ahead: 10 us if the page cache has it all, else 90 us for each
        128 KiB.
        """
        if not 0 <= offset <= offset + length <= self._inline_bytes:
            return False
        read_ahead(self._fd, offset, length)
        return True

    async def close(self) -> None:
        """Wait for worker threads, then close and unlock, even if the caller is cancelled."""
        first = not self._closed
        self._closed = True
        self._inline_bytes = -1
        if first and not self._users:
            self._finish()
        with trio.CancelScope(shield=True):
            await self._idle.wait()

    # Internals

    def _check(self, offset: int, length: int) -> None:
        if self._closed:
            raise ClosedError(f"device is closed: path={self.path}")
        check_range(self, offset, length)

    def _check_change(self, offset: int, length: int) -> None:
        self._check(offset, length)
        if self.read_only:
            raise ReadOnlyError(f"device is open for reading only: path={self.path}")

    async def _run(
        self,
        operation: str,
        offset: int,
        length: int,
        function: Callable[..., T],
        *args: object,
        limiter: trio.CapacityLimiter | None = None,
    ) -> T:
        """Run `function` in a thread and translate its OSError."""
        self._users += 1
        try:
            return await trio.to_thread.run_sync(function, *args, limiter=limiter or self._io)
        except OSError as error:
            where = f"path={self.path} offset={offset} length={length}"
            kind = _KINDS.get(error.errno or 0, DeviceError)
            raise kind(f"{operation} failed: {error.strerror}: {where}") from error
        finally:
            self._users -= 1
            if self._closed and not self._users:
                self._finish()

    def _finish(self) -> None:
        self._direct.close()
        os.close(self._fd)  # also drops the flock
        self._fd = -1
        self._idle.set()

    # In worker threads

    def _write(self, offset: int, view: memoryview, fua: bool) -> None:
        write_exactly(self._fd, offset, view, durable=fua)
        if not fua and view.nbytes >= WRITEBACK_BYTES_MIN:
            linux.start_writeback(self._fd, offset, view.nbytes)

    def _zero(self, offset: int, length: int, fua: bool, no_hole: bool, fast: bool) -> None:
        kind = linux.FALLOC_ZERO_RANGE if no_hole else linux.FALLOC_PUNCH_HOLE
        try:
            self._fallocate(kind | linux.FALLOC_KEEP_SIZE, offset, length)
        except OSError as error:
            # A disk also refuses (EINVAL) a range that is not in whole sectors.
            if not linux.is_unsupported(error) and not self._is_disk:
                raise
            if fast:
                raise OSError(errno.ENOTSUP, "zeroing is no faster than writing") from None
            write_zeroes(self._fd, offset, length)
        if fua:
            os.fdatasync(self._fd)

    def _trim(self, offset: int, length: int, fua: bool) -> None:
        try:
            if self._is_disk:
                first = -(-offset // self.physical_bytes) * self.physical_bytes
                last = (offset + length) // self.physical_bytes * self.physical_bytes
                if first < last:
                    linux.discard(self._fd, first, last - first)
            else:
                self._fallocate(linux.FALLOC_PUNCH_HOLE | linux.FALLOC_KEEP_SIZE, offset, length)
        except OSError as error:
            if not linux.is_unsupported(error):
                raise
        if fua:
            os.fdatasync(self._fd)

    def _allocate(self, offset: int, length: int) -> None:
        try:
            self._fallocate(linux.FALLOC_KEEP_SIZE, offset, length)
        except OSError as error:
            if not linux.is_unsupported(error):
                raise

    def _fallocate(self, mode: int, offset: int, length: int) -> None:
        if length:  # fallocate refuses 0
            linux.fallocate(self._fd, mode, offset, length)
