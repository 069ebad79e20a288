"""What a device raised: what the client hears of it, and what the operator."""

import logging

import trio

from blockdev.errors import DeviceError, UnsupportedError
from nbd.constants import Command, CommandFlag, WireError, wire_error
from nbd.server.transmission import Request

log = logging.getLogger("cenote.nbd")

QUIET_S = 1.0
"""Failed requests are logged no more often than this: a full pool fails thousands a second."""


def answer_to_failure(request: Request, error: Exception) -> tuple[WireError, bool]:
    """Return what to answer when a device raised, and whether that is news for an operator."""
    if isinstance(error, UnsupportedError):
        # Not a failure: whoever asks for fast zeroes is prepared to hear that there are none.
        fast = request[1] & CommandFlag.FAST_ZERO
        return WireError.ENOTSUP if fast else WireError.EINVAL, False
    return wire_error(error.errno if isinstance(error, DeviceError | OSError) else None), True


def _describe(request: Request) -> str:
    """Name a request that a device was asked to carry out, for a log."""
    return f"type={Command(request[2]).name} offset={request[4]} length={request[5]}"


class FailureLog:
    """Tells the operator of failed requests of one client."""

    def __init__(self) -> None:
        self._quiet_until = 0.0

    def tell(self, request: Request, error: Exception, errors: int) -> None:
        """Log one, the how manyth it may be, unless one was logged a moment ago."""
        now = trio.current_time()
        if now < self._quiet_until:
            return
        self._quiet_until = now + QUIET_S
        log.error(
            "request failed: %s errors=%d error=%s",
            _describe(request),
            errors,
            str(error) or type(error).__name__,
            exc_info=None if isinstance(error, DeviceError | OSError) else error,
        )
