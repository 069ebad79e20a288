"""Blocking reads and writes of exact ranges of a file descriptor, for worker threads.

All raise OSError. Short transfers are continued; a file that ends inside the range
is EIO, because the device had that size when it was opened.
"""

import errno
import os

from blockdev import linux
from blockdev.device import EXTENTS_MAX, Extent

_ZEROES = bytes(1 << 20)
"""Source of written zeroes; with a MiB the system calls cost little beside the copying."""

_READ_AHEAD_BYTES = 128 << 10
"""The kernel limits one call to the size of its own read-ahead, by default this."""


def read_exactly(fd: int, offset: int, length: int) -> bytearray:
    """Return `length` bytes from `offset`."""
    data = bytearray(length)
    view = memoryview(data)
    done = 0
    while done < length:
        got = os.preadv(fd, [view[done:]], offset + done)
        if got == 0:
            raise OSError(errno.EIO, f"it ends at byte {offset + done}, shorter than when opened")
        done += got
    return data


def write_exactly(fd: int, offset: int, view: memoryview, *, durable: bool = False) -> None:
    """Write all of `view`; with `durable`, return once it is on the disk."""
    flags = os.RWF_DSYNC if durable else 0
    done = 0
    while done < view.nbytes:
        try:
            done += os.pwritev(fd, [view[done:]], offset + done, flags)
        except OSError as error:
            if not flags or not linux.is_unsupported(error):
                raise
            flags = 0
    if durable and not flags:
        os.fdatasync(fd)


def write_zeroes(fd: int, offset: int, length: int) -> None:
    """Zero a range by writing zeroes, where the system has no quicker way."""
    zeroes = memoryview(_ZEROES)
    for start in range(0, length, len(_ZEROES)):
        write_exactly(fd, offset + start, zeroes[: length - start])


def data_runs(fd: int, offset: int, length: int) -> list[Extent]:
    """Return the first extents of a range of a file, at most EXTENTS_MAX. The parts that
    SEEK_DATA skips are holes that read as zeroes.
    """
    runs: list[Extent] = []
    end = offset + length
    at = offset
    while at < end and len(runs) < EXTENTS_MAX - 1:  # a round adds up to two
        data = _seek(fd, at, os.SEEK_DATA, end)
        if data > at:
            runs.append(Extent(data - at, hole=True, zero=True))
        hole = _seek(fd, data, os.SEEK_HOLE, end) if data < end else end
        if hole > data:
            runs.append(Extent(hole - data, hole=False, zero=False))
        at = hole
    return runs


def read_ahead(fd: int, offset: int, length: int) -> None:
    """Start to read a range into the page cache; does nothing where that is not possible."""
    for start in range(offset, offset + length, _READ_AHEAD_BYTES):
        size = min(_READ_AHEAD_BYTES, offset + length - start)
        try:
            os.posix_fadvise(fd, start, size, os.POSIX_FADV_WILLNEED)
        except OSError:
            return


def _seek(fd: int, offset: int, whence: int, end: int) -> int:
    """Return where the next data or hole starts, at most `end`."""
    try:
        return min(os.lseek(fd, offset, whence), end)
    except OSError as error:
        if error.errno != errno.ENXIO:  # ENXIO: no data follows
            raise
        return end
