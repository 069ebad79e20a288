"""Errors of block devices: one tree, with a class for each reaction of the caller.

NBD and FUSE send `errno`; the command line exits with `exit_code`, and `cenote help exit-codes`
prints the first line of the docstring of each class.
Messages are lowercase, with facts last: `checksum mismatch: segment=42 offset=8192`.
"""

import errno as _errno
from typing import ClassVar


class DeviceError(Exception):
    """The device failed this request; nothing is promised about retrying. Base of the tree."""

    errno: ClassVar[int] = _errno.EIO
    exit_code: ClassVar[int] = 10


class NoSpaceError(DeviceError):
    """The pool or the file system below is full; free space or grow it, then retry."""

    errno = _errno.ENOSPC
    exit_code = 11


class OutOfRangeError(DeviceError):
    """The range is not inside the device, or not in its block grain; fix the request."""

    errno = _errno.EINVAL
    exit_code = 12


class ReadOnlyError(DeviceError):
    """The device takes no writes; write elsewhere (a clone, for a snapshot)."""

    errno = _errno.EPERM
    exit_code = 13


class ClosedError(DeviceError):
    """The device is closed or shutting down; open it again."""

    errno = _errno.ESHUTDOWN
    exit_code = 14


class ChecksumError(DeviceError):
    """No good copy of the data is left; restore it from elsewhere."""

    exit_code = 15


class CacheLostError(DeviceError):
    """Writes since the last good flush are lost; write them again, then flush."""

    exit_code = 16


class UnsupportedError(DeviceError):
    """The device cannot do this; use another way."""

    errno = _errno.ENOTSUP
    exit_code = 17


class BusyError(DeviceError):
    """Somebody else uses the device; stop them first."""

    errno = _errno.EBUSY
    exit_code = 18


class TakenError(DeviceError):
    """Another daemon holds the device by now; stop at once, and retry nothing."""

    errno = _errno.ESTALE
    exit_code = 19
