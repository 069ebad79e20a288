"""Opens files and disks: locks, size, physical blocks, and abilities of the file system."""

import errno
import fcntl
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from blockdev import linux
from blockdev.errors import BusyError, DeviceError

FILE_PHYSICAL_BYTES = 4096
"""Usual block size of file systems; a file does not tell the physical blocks of its disk."""


@dataclass(frozen=True, slots=True)
class OpenFile:
    """An open, locked file or disk. `reads_inline`: RWF_NOWAIT works here."""

    path: Path
    fd: int
    size_bytes: int
    physical_bytes: int
    is_disk: bool
    read_only: bool
    reads_inline: bool


def create_file(path: Path, size_bytes: int) -> OpenFile:
    """Create a sparse file with a durable name. Raises DeviceError, and then leaves no file."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _failure("create", path, error) from error
    try:
        _lock(fd, path, shared=False)
        os.ftruncate(fd, size_bytes)
        os.fsync(fd)
        _sync_directory(path.parent)
        return _describe(fd, path, read_only=False)
    except BaseException as error:
        os.close(fd)
        path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _failure("create", path, error) from error
        raise


def open_file(path: Path, *, exclusive: bool, read_only: bool) -> OpenFile:
    """Open a file or disk, lock it if `exclusive`; raises BusyError, DeviceError."""
    flags = os.O_CLOEXEC | (os.O_RDONLY if read_only else os.O_RDWR)
    try:
        if stat.S_ISBLK(os.stat(path).st_mode) and exclusive and not read_only:
            flags |= os.O_EXCL  # refused while mounted, or used by md, LVM or a swap
        # Without O_NONBLOCK the open of a FIFO would wait for its other end.
        fd = os.open(path, flags | os.O_NONBLOCK)
    except OSError as error:
        raise _failure("open", path, error) from error
    try:
        if exclusive:
            _lock(fd, path, shared=read_only)
        return _describe(fd, path, read_only=read_only)
    except BaseException as error:
        os.close(fd)
        if isinstance(error, OSError):
            raise _failure("open", path, error) from error
        raise


def open_size(fd: int) -> int:
    """Return the current size in bytes of an open file or disk. Raises OSError."""
    status = os.fstat(fd)
    return linux.disk_bytes(fd) if stat.S_ISBLK(status.st_mode) else status.st_size


def _describe(fd: int, path: Path, *, read_only: bool) -> OpenFile:
    status = os.fstat(fd)
    is_disk = stat.S_ISBLK(status.st_mode)
    if not is_disk and not stat.S_ISREG(status.st_mode):
        raise DeviceError(f"neither a file nor a disk: path={path}")
    return OpenFile(
        path=path,
        fd=fd,
        size_bytes=open_size(fd),
        physical_bytes=linux.disk_physical_bytes(fd) if is_disk else FILE_PHYSICAL_BYTES,
        is_disk=is_disk,
        read_only=read_only,
        reads_inline=_reads_inline(fd),
    )


def _reads_inline(fd: int) -> bool:
    """Whether RWF_NOWAIT works on a file: tmpfs, for one, refuses it."""
    try:
        os.preadv(fd, [bytearray(1)], 0, os.RWF_NOWAIT)
    except OSError as error:
        return error.errno == errno.EAGAIN
    return True


def _lock(fd: int, path: Path, *, shared: bool) -> None:
    """Lock a file against other daemons and tools (R16). Raises BusyError."""
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BusyError(
            "device is already in use; stop the daemon or tool that has it open "
            f"(`fuser -v {path}` names it), or use another path: path={path}"
        ) from error


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _failure(operation: str, path: Path, error: OSError) -> DeviceError:
    if error.errno in (errno.EBUSY, errno.ETXTBSY):
        return BusyError(
            "disk is mounted or in use; unmount or release it first "
            f"(`lsblk {path}` shows what holds it), or use another path: path={path}"
        )
    return DeviceError(f"{operation} failed: {error.strerror}: path={path}")
