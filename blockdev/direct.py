"""Direct reads (O_DIRECT), which bypass the page cache, for worker threads.

The kernel first writes dirty pages of the range back, so a read returns all earlier writes. Pages
in the cache stay there, and none are added: reading a whole disk this way evicts nothing.
"""

import errno
import mmap
import os
import threading

from blockdev.rawio import read_exactly

ALIGN_BYTES = 4096
"""Alignment of offset, length and memory; logical blocks of disks are at most this large."""


class DirectReader:
    """Reads an open file or disk through a second descriptor with O_DIRECT, opened at the first
    read; where O_DIRECT does not work, through the page cache.
    """

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
                self._unable = True  # larger logical blocks, or O_DIRECT in name only
        return read_exactly(self._fd, offset, length)

    def close(self) -> None:
        """Close the second descriptor; no read may be in progress."""
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
                    self._unable = True  # no O_DIRECT here, or no /proc
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
