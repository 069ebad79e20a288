"""Linux system calls that Python's os module lacks, as functions that raise OSError.

Sources: fallocate(2), sync_file_range(2), <linux/falloc.h>, <linux/fs.h>.
Every call blocks and releases the interpreter lock while it does.
"""

import ctypes
import errno
import fcntl
import os
import struct

FALLOC_KEEP_SIZE = 0x01
FALLOC_PUNCH_HOLE = 0x02
FALLOC_ZERO_RANGE = 0x10

_SYNC_FILE_RANGE_WRITE = 2
_BLKGETSIZE64 = 0x80081272
_BLKPBSZGET = 0x127B
_BLKDISCARD = 0x1277

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


def is_unsupported(error: OSError) -> bool:
    """Whether the error means that the kernel or the file system lacks the call."""
    return error.errno in (errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Call fallocate(2). Unlike posix_fallocate(3) it never falls back to writing zeroes."""
    while _libc.fallocate(fd, mode, offset, length) != 0:
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))


def start_writeback(fd: int, offset: int, length: int) -> None:
    """Start writing a range of dirty pages to the disk without waiting; makes nothing durable.

    Does nothing where the system lacks the call. Raises OSError for errors of the disk.
    """
    if _libc.sync_file_range(fd, offset, length, _SYNC_FILE_RANGE_WRITE) != 0:
        code = ctypes.get_errno()
        if code not in (errno.EINTR, errno.ESPIPE, errno.ENOSYS):
            raise OSError(code, os.strerror(code))


def discard(fd: int, offset: int, length: int) -> None:
    """Discard a range of whole logical blocks of a raw disk; its content is then undefined."""
    fcntl.ioctl(fd, _BLKDISCARD, struct.pack("QQ", offset, length))


def disk_bytes(fd: int) -> int:
    """Return the size of a raw disk in bytes."""
    answer = fcntl.ioctl(fd, _BLKGETSIZE64, bytes(8))
    return int(struct.unpack("Q", answer)[0])


def disk_physical_bytes(fd: int) -> int:
    """Return the physical block size of a raw disk in bytes."""
    answer = fcntl.ioctl(fd, _BLKPBSZGET, bytes(4))
    return int(struct.unpack("I", answer)[0])
