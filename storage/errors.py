"""Errors of the pool, named by what the caller does next. See `blockdev.errors` for the base."""

import errno as _errno

from blockdev.errors import DeviceError


class PoolError(DeviceError):
    """The pool cannot be opened or go on; the message says what to do."""

    exit_code = 20


class NotAMemberError(PoolError):
    """The device carries no Cenote superblock; check the path."""

    exit_code = 21


class DamagedError(PoolError):
    """Metadata is damaged on every copy; restore a member or a backup."""

    exit_code = 22


class ForeignMemberError(PoolError):
    """The device belongs to another pool, or twice to this one; remove it from the config."""

    exit_code = 23


class MissingMemberError(PoolError):
    """A member that the others count on is not there; attach it, or open without it by name."""

    exit_code = 24


class FormatVersionError(PoolError):
    """Made by a newer Cenote; upgrade this one."""

    exit_code = 25


class FencedError(PoolError):
    """Another daemon took the pool; stop this one."""

    exit_code = 26


class MemberTooSmallError(PoolError):
    """The device has no room for even a few segments; use a larger one."""

    exit_code = 27


class InvalidArgumentError(DeviceError):
    """A name, size or setting is not acceptable; the message says what is."""

    errno = _errno.EINVAL
    exit_code = 30


class NotFoundError(DeviceError):
    """No volume, snapshot or member has that name."""

    errno = _errno.ENOENT
    exit_code = 31


class ExistsError(DeviceError):
    """The name is taken; choose another."""

    errno = _errno.EEXIST
    exit_code = 32


class InUseError(DeviceError):
    """The volume has clients, or the snapshot has clones; remove those first."""

    errno = _errno.EBUSY
    exit_code = 33


class StreamError(DeviceError):
    """A stream of `cenote send` is damaged, cut short, or none; resume it, or send it again."""

    errno = _errno.EBADMSG
    exit_code = 34


class BaseMissingError(DeviceError):
    """The snapshot that a stream is the difference to is not here; send that one first, or all."""

    errno = _errno.ENOENT
    exit_code = 35
