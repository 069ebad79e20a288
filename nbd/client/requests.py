"""Sends the requests of one device and waits for them.

A request whose connection ended is sent again, unless that could hide a loss: a read always, a
change or a flush only while no write is lost. The caller of a change still waits then, so no
newer write can have touched its range.

Cancellation: a request that was not sent yet is taken back. A sent request goes on, and its
answer is dropped when it comes; until then requests that overlap a change wait, so that a
cancelled write never lands on a newer one. The caller may reuse its buffer at once.
"""

from collections.abc import Iterable, Iterator

import trio

from blockdev.errors import (
    DeviceError,
    NoSpaceError,
    OutOfRangeError,
    ReadOnlyError,
    UnsupportedError,
)
from nbd.client.ledger import Ledger
from nbd.client.link import Link
from nbd.client.operation import Operation
from nbd.client.options import ClientOptions
from nbd.client.window import Window
from nbd.constants import Command, WireError
from nbd.errors import ProtocolError

ATTEMPTS_MAX = 3
"""Times that a request is sent; a request that ends three connections is likely the reason."""
GROUP_MAX = 64
"""Pieces of one request in flight at once; more would only wait, and cost memory."""

_ERRORS: dict[int, type[DeviceError]] = {
    WireError.EPERM: ReadOnlyError,
    WireError.EINVAL: OutOfRangeError,
    WireError.ENOSPC: NoSpaceError,
    WireError.EOVERFLOW: OutOfRangeError,
    WireError.ENOTSUP: UnsupportedError,
}


class Requests:
    """All requests of a device; `attach` the link before the first."""

    def __init__(self, options: ClientOptions, ledger: Ledger) -> None:
        self._requests_max = options.requests_max
        self._ledger = ledger
        self._window = Window(options.requests_max, options.bytes_in_flight_max)
        self._link: Link | None = None
        self._abandoned: set[Operation] = set()
        """Cancelled changes that are still in flight."""
        self._settled = trio.lowlevel.ParkingLot()

    def attach(self, link: Link) -> None:
        """Set the link whose connections carry the requests."""
        self._link = link

    @property
    def connections(self) -> int:
        """Number of connections now."""
        return len(self._link.connections) if self._link is not None else 0

    @property
    def reconnects(self) -> int:
        """Number of times that the server was reached again."""
        return self._link.reconnects if self._link is not None else 0

    def connections_changed(self) -> None:
        """Adapt the window to the number of connections."""
        assert self._link is not None
        self._window.widen(self._requests_max * max(len(self._link.connections), 1))

    def ended(self, operation: Operation) -> None:
        """Note that a request has ended, even a cancelled one."""
        self._window.release(operation.cost_bytes())
        answered = not operation.lost and not operation.error
        if answered and operation.changes and not operation.durable:
            self._ledger.answered(operation.offset, operation.length)
        if self._abandoned:
            self._abandoned.discard(operation)
            self._settled.unpark_all()

    async def close(self) -> None:
        """Finish requests in flight and send DISC, in bounded time."""
        if self._link is not None:
            await self._link.close()

    async def run(self, operations: list[Operation]) -> None:
        """Send requests and wait for all of them.

        Raises:
            CacheLostError: a change or flush was in flight when a write was lost.
            DeviceError: the server failed a request, broke the protocol, or did not come back.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        left = operations
        for _ in range(ATTEMPTS_MAX):
            sent: list[Operation] = []
            try:
                for operation in left:
                    await self._submit(operation)
                    sent.append(operation)
                for operation in left:
                    await operation.wait()
            except BaseException:
                for operation in sent:
                    self._abandon(operation)
                raise
            for operation in left:
                if operation.error:
                    raise _explained(operation)
            left = [operation for operation in left if operation.lost is not None]
            if not left:
                return
            self._check_again(left[0])
            for operation in left:
                operation.reset()
        raise DeviceError(f"request was interrupted too often: attempts={ATTEMPTS_MAX}")

    async def _submit(self, operation: Operation) -> None:
        assert self._link is not None
        while self._abandoned and any(map(operation.overlaps, self._abandoned)):
            await self._settled.park()
        size = operation.cost_bytes()
        await self._window.acquire(size)
        try:
            connection = await self._link.connection()
        except BaseException:
            self._window.release(size)
            raise
        connection.submit(operation)

    def _abandon(self, operation: Operation) -> None:
        assert self._link is not None
        if operation.done:
            return
        for connection in self._link.connections:
            if connection.pending.get(operation.cookie) is operation:
                if not connection.abandon(operation) and operation.changes:
                    self._abandoned.add(operation)
                return

    def _check_again(self, operation: Operation) -> None:
        """Raise unless a request whose connection ended may be sent again."""
        if operation.changes or operation.kind == Command.FLUSH:
            self._ledger.check()
        if isinstance(operation.lost, ProtocolError):
            raise DeviceError(str(operation.lost))


def _explained(operation: Operation) -> DeviceError:
    """Return the exception for a request that the server answered with an error."""
    error = operation.error
    name = WireError(error).name if error in set(WireError) else f"error {error}"
    text = f"server says {name}: command={Command(operation.kind).name}"
    text += f" offset={operation.offset} length={operation.length}"
    return _ERRORS.get(error, DeviceError)(
        f"{text} text={operation.message!r}" if operation.message else text
    )


def in_groups(pieces: Iterable[Operation]) -> Iterator[list[Operation]]:
    """Yield the pieces in lists of at most GROUP_MAX."""
    group: list[Operation] = []
    for piece in pieces:
        group.append(piece)
        if len(group) == GROUP_MAX:
            yield group
            group = []
    if group:
        yield group
