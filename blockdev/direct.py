"""Reads around the page cache (O_DIRECT), for worker threads.

The kernel writes dirty pages of the range first, so what was written before is read. Pages
in the cache stay there, and none are added: who reads a whole disk this way takes no memory from
others.
"""

import errno
import mmap
import os
import threading

from blockdev.rawio import read_exactly

ALIGN_BYTES = 4096
"""Of offset, length and memory; the logical blocks of disks are this or less."""


class DirectReader:
    """A second descriptor of an open file or disk, made when it is first used."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._direct: int | None = None
        self._unable = False
        self._lock = threading.Lock()

    def read(self, offset: int, length: int) -> memoryview | bytearray:
        """Read a range that lies inside the file. Raises OSError."""
        fd = self._open()
        if fd is not None:
            try:
                return _read_aligned(fd, offset, length)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._unable = True  # larger blocks, or a file system that only pretends
        return read_exactly(self._fd, offset, length)

    def close(self) -> None:
        """Close what was opened; nothing may be reading."""
        if self._direct is not None:
            os.close(self._direct)
        self._direct, self._unable = None, True

    def _open(self) -> int | None:
        with self._lock:
            if self._direct is None and not self._unable:
                flags = os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC
                try:
                    self._direct = os.open(f"/proc/self/fd/{self._fd}", flags)
                except OSError:
                    self._unable = True  # no such mode here, or no /proc
            return None if self._unable else self._direct


def _read_aligned(fd: int, offset: int, length: int) -> memoryview:
    start = offset // ALIGN_BYTES * ALIGN_BYTES
    span = -(-(offset + length - start) // ALIGN_BYTES) * ALIGN_BYTES
    view = memoryview(mmap.mmap(-1, span))
    wanted = offset + length - start
    done = 0
    while done < wanted:
        got = os.preadv(fd, [view[done:]], start + done)
        if got == 0 or (got % ALIGN_BYTES and done + got < wanted):
            raise OSError(errno.EIO, f"it ends at byte {start + done + got}")
        done += got
    return view[offset - start : offset - start + length]
