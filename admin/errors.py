"""Errors of commands and of the daemon, each with an exit status of its own.

Errors of the pool itself are `DeviceError`s (`blockdev.errors`, `storage.errors`).
`cenote help exit-codes` prints the first line of the docstring of each class that has a status.
"""

import errno as _errno
from typing import ClassVar


class AdminError(Exception):
    """An administrator has to act; the message says how. Base of the tree."""

    errno: ClassVar[int] = _errno.EINVAL
    exit_code: ClassVar[int] = 2


class UsageError(AdminError):
    """The command line is not understood; see --help."""


class DaemonNotRunningError(AdminError):
    """Nothing answers on the control socket; start the daemon."""

    errno = _errno.ECONNREFUSED
    exit_code = 3


class ConfigError(AdminError):
    """The configuration file is wrong; the message names the key and what is expected."""

    exit_code = 4


class AlreadyRunningError(AdminError):
    """A daemon already serves this home; use it, or stop it first."""

    errno = _errno.EBUSY
    exit_code = 5


class HomeError(AdminError):
    """The home directory or a socket in it cannot be used; choose another --home."""

    errno = _errno.EACCES
    exit_code = 6


class NotConfirmedError(AdminError):
    """Nothing was changed: the answer was no, or nobody could be asked and --yes was missing."""

    errno = _errno.ECANCELED
    exit_code = 7


class RefusedError(AdminError):
    """Creating the pool here might destroy data; the message says how to go on."""

    errno = _errno.EEXIST
    exit_code = 8


class InternalError(AdminError):
    """A mistake in Cenote, not in what was asked; please report it."""

    errno = _errno.EIO
    exit_code = 9


class ServerError(AdminError):
    """An NBD server cannot be used as asked; the message says why."""

    errno = _errno.ECONNREFUSED
    exit_code = 40


class WaitsError(AdminError):
    """It cannot be done now, and is done as soon as it can; the message says what it waits for."""

    errno = _errno.EAGAIN
    exit_code = 41


class RemoteError(AdminError):
    """The daemon refused or failed the request; carries the kind and numbers of its error."""

    def __init__(self, kind: str, message: str, errno: int, exit_code: int) -> None:
        super().__init__(message)
        self.kind = kind
        self.remote_errno = errno
        self.remote_exit_code = exit_code


def exit_code_of(error: BaseException) -> int:
    """The exit status for `error`; that of InternalError for an error of no tree of ours."""
    if isinstance(error, RemoteError):
        return error.remote_exit_code
    code = getattr(error, "exit_code", None)
    return code if isinstance(code, int) else InternalError.exit_code


def describe(error: BaseException) -> dict[str, object]:
    """`error` as the JSON object that the control API and `--json` send."""
    if isinstance(error, RemoteError):
        kind, number = error.kind, error.remote_errno
    else:
        kind = type(error).__name__
        number = getattr(error, "errno", None) or InternalError.errno
    return {
        "error": kind,
        "message": str(error),
        "errno": number,
        "exit_code": exit_code_of(error),
    }
