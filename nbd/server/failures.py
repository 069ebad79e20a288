"""Errors of a device: the wire error for the client, and the log entry for the operator."""

import logging

import trio

from blockdev.errors import DeviceError, UnsupportedError
from nbd.constants import Command, CommandFlag, WireError, wire_error
from nbd.server.transmission import Request

log = logging.getLogger("cenote.nbd")

QUIET_S = 1.0
"""Least time between logged failures of a client: a full pool fails thousands a second."""


def answer_to_failure(request: Request, error: Exception) -> tuple[WireError, bool]:
    """Return the wire error for an error of the device, and whether to log it as a failure."""
    if isinstance(error, UnsupportedError):
        # Not a failure: a client that asks for fast zeroes is prepared for ENOTSUP.
        fast = request[1] & CommandFlag.FAST_ZERO
        return WireError.ENOTSUP if fast else WireError.EINVAL, False
    return wire_error(error.errno if isinstance(error, DeviceError | OSError) else None), True


def _describe(request: Request) -> str:
    """Return type, offset and length of a request, for the log."""
    return f"type={Command(request[2]).name} offset={request[4]} length={request[5]}"


class FailureLog:
    """Logs failed requests of one client."""

    def __init__(self) -> None:
        self._quiet_until = 0.0

    def tell(self, request: Request, error: Exception, errors: int) -> None:
        """Log a failure, unless another was logged within QUIET_S; `errors` counts all so far."""
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
