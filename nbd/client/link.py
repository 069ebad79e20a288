"""The connections to one export: opened together, lost together, and opened again.

A server whose connections share one cache (CAN_MULTI_CONN) gets several. When one of them
ends, all are ended: the state of the server's cache is in doubt then, and one rule for every
case is easier to trust (R4). Requests in flight end as lost; `nbd.client.requests` decides
whether to send them again.

A limit of the protocol: a server that lives on may still carry out a write of a connection
that ended, and the client cannot forbid it. Bytes that have not left this machine are
discarded (TCP is reset), but a write that the server has received when the network breaks
can land after newer ones. `nbd.server` ends the connections of clients that it saw hang up
before it lets a client enter the export.
"""

import logging
from collections.abc import Awaitable, Callable
from random import Random

import trio

from blockdev.errors import ClosedError, DeviceError
from nbd.client.connection import Connection
from nbd.client.dial import Dialed
from nbd.client.ledger import Ledger
from nbd.client.negotiation import Agreement
from nbd.client.operation import Operation
from nbd.client.options import ClientOptions
from nbd.constants import ExportFlag
from nbd.errors import NbdError, UnreachableError

log = logging.getLogger("cenote.nbd.client")

_ABILITIES = (
    ExportFlag.SEND_FLUSH
    | ExportFlag.SEND_FUA
    | ExportFlag.SEND_TRIM
    | ExportFlag.SEND_WRITE_ZEROES
    | ExportFlag.SEND_FAST_ZERO
    | ExportFlag.SEND_CACHE
)


class Link:
    """All connections to an export; start `run`, then use `connection`.

    Args:
        dial: opens one connection; raises NbdError.
        random: spreads out attempts to reconnect.
        ledger: notes a loss when the server may have forgotten its cache.
        on_done: called for every request that ends, before its waiter wakes.
        on_up: called with the agreement whenever a connection was opened.
    """

    def __init__(
        self,
        dial: Callable[[], Awaitable[Dialed]],
        options: ClientOptions,
        random: Random,
        ledger: Ledger,
        *,
        on_done: Callable[[Operation], None],
        on_up: Callable[[Agreement], None],
    ) -> None:
        self.connections: list[Connection] = []
        """Connections that can take requests; none while the server is away."""
        self.reconnects = 0
        """Number of times that the server was reached again."""
        self._dial = dial
        self._options = options
        self._random = random
        self._ledger = ledger
        self._on_done = on_done
        self._on_up = on_up
        self._agreed: Agreement | None = None
        self._failure: Exception | None = None  # once the device has failed for good
        self._changed = trio.lowlevel.ParkingLot()
        # Shielded, so that a cancelled owner can still send DISC; `close` ends it.
        self._scope = trio.CancelScope(shield=True)
        self._nursery: trio.Nursery | None = None
        self._closing = False
        self._ended = trio.Event()

    async def run(
        self, first: Dialed, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Keep connections from `first` on until `close`, which must be called; never raises."""
        try:
            with self._scope:
                async with trio.open_nursery() as self._nursery:
                    self._begin(first)
                    task_status.started()
                    await trio.sleep_forever()
        finally:
            self._closing = True
            self._give_up(ClosedError("device is closed"))
            self._ended.set()

    async def connection(self) -> Connection:
        """Return the connection with the fewest requests; waits while the server is away.

        Raises:
            DeviceError: the server stayed away too long, or its export became less.
            ClosedError: the link was closed.
        """
        while not self.connections:
            if self._failure is not None:
                raise self._failure
            await self._changed.park()
        if len(self.connections) == 1:
            return self.connections[0]
        return min(self.connections, key=lambda one: len(one.pending))

    async def close(self) -> None:
        """Finish requests in flight and send DISC, within `close_s`. Closing twice is harmless."""
        if not self._closing:
            self._closing = True
            self._failure = self._failure or ClosedError("device is closed")
            self._changed.unpark_all()
            with trio.move_on_after(self._options.close_s):
                while any(one.pending for one in self.connections):
                    await self._changed.park()
                async with trio.open_nursery() as nursery:
                    for connection in self.connections:
                        nursery.start_soon(connection.close)
        self._scope.cancel()
        if self._nursery is not None:
            await self._ended.wait()

    def fail(self, failure: Exception) -> None:
        """Give up for good: every request in flight and to come fails."""
        if self._failure is None:
            log.error("remote device has failed: %s", failure)
            self._give_up(failure)

    def _give_up(self, failure: Exception) -> None:
        self._failure = self._failure or failure
        ending, self.connections = self.connections, []
        for connection in ending:
            connection.fail(UnreachableError("connection is closed"))
            connection.fail_pending()
        self._changed.unpark_all()

    def _begin(self, first: Dialed) -> None:
        """Use the first connection to a server, and open more if its connections share a cache."""
        assert self._nursery is not None
        self._agreed = first.agreement
        self._add(first)
        self._on_up(first.agreement)
        self._changed.unpark_all()
        wanted = self._options.connections
        if wanted > 1 and first.agreement.export.flags & ExportFlag.CAN_MULTI_CONN:
            self._nursery.start_soon(self._add_more, self.connections[0], wanted - 1)

    def _add(self, dialed: Dialed) -> None:
        assert self._nursery is not None
        connection = Connection(
            dialed.stream,
            dialed.sock,
            dialed.agreement,
            request_s=self._options.request_s,
            on_done=self._end,
            on_failure=self._lose,
        )
        self.connections.append(connection)
        self._nursery.start_soon(connection.run)

    async def _add_more(self, first: Connection, count: int) -> None:
        """Open more connections, as long as the first one lives. A failure is no error: some
        servers accept one client only.
        """
        for _ in range(count):
            try:
                dialed = await self._dial()
            except NbdError as error:
                log.info("no further connection: connections=%d error=%s",
                         len(self.connections), error)  # fmt: skip
                return
            if not _same(first.agreement, dialed.agreement) or first not in self.connections:
                dialed.stream.close()
                return
            self._add(dialed)
            self._on_up(first.agreement)

    def _end(self, operation: Operation) -> None:
        self._on_done(operation)
        if self._closing:
            self._changed.unpark_all()

    def _lose(self, connection: Connection) -> None:
        """End all connections, as one failed, and start to reconnect."""
        if connection not in self.connections:
            return  # this link ended it
        assert connection.failure is not None
        assert self._nursery is not None
        reason = connection.failure
        ending, self.connections = self.connections, []
        if self._closing:
            ending.remove(connection)
            self.connections = ending
            connection.fail_pending()
            self._changed.unpark_all()
            return
        log.warning("connection lost: error=%s requests=%d", reason,
                    sum(len(one.pending) for one in ending))  # fmt: skip
        self._ledger.lose(str(reason))
        for one in ending:
            if one is not connection:
                one.fail(UnreachableError(f"another connection was lost: {reason}"))
        for one in ending:
            one.fail_pending()
        if self._options.reconnect_s <= 0:
            self.fail(DeviceError(str(reason)))
        else:
            self._nursery.start_soon(self._reconnect, reason)

    async def _reconnect(self, reason: Exception) -> None:
        """Reach the server again, or give up for good."""
        assert self._agreed is not None
        options = self._options
        pause_s = options.backoff_s
        last = reason
        with trio.move_on_after(options.reconnect_s):
            while True:
                await trio.sleep(pause_s * (1 - self._random.random() / 2))
                pause_s = min(2 * pause_s, options.backoff_max_s)
                try:
                    dialed = await self._dial()
                except NbdError as error:
                    log.info("server is not back: error=%s", error)
                    last = error
                    continue
                problem = _worse(self._agreed, dialed.agreement)
                if problem:
                    dialed.stream.close()
                    self.fail(DeviceError(f"export is not what it was: {problem}"))
                else:
                    self.reconnects += 1
                    log.info("server is back: reconnects=%d", self.reconnects)
                    self._begin(dialed)
                return
        self.fail(
            DeviceError(
                f"server did not come back: seconds={options.reconnect_s:g} "
                f"lost={str(reason)!r} last={str(last)!r}"
            )
        )


def _same(one: Agreement, other: Agreement) -> bool:
    """Whether requests can go over either of two connections."""
    return (
        one.export == other.export
        and one.mode is other.mode
        and set(one.contexts.values()) == set(other.contexts.values())
    )


def _worse(before: Agreement, after: Agreement) -> str:
    """Return in which way an export became less than it was, empty if in none."""
    old, new = before.export, after.export
    missing = old.flags & ~new.flags & _ABILITIES
    if new.size_bytes < old.size_bytes:
        return f"it shrank: before={old.size_bytes} now={new.size_bytes}"
    if new.flags & ~old.flags & ExportFlag.READ_ONLY:
        return "it became read-only"
    if missing:
        return f"it lost abilities: {missing!r}"
    if new.block_bytes > old.block_bytes or new.payload_bytes_max < old.payload_bytes_max:
        return f"its limits are tighter: block={new.block_bytes} payload={new.payload_bytes_max}"
    if after.mode is not before.mode:
        return f"its server speaks another form of the protocol: {after.mode.value}"
    if not set(before.contexts.values()) <= set(after.contexts.values()):
        return "it lost metadata contexts"
    return ""
