"""One connection in the transmission phase: many requests in flight, without a task for each.

Three tasks run a connection. The first sends: all requests queued since its last turn go out in
one `sendmsg`. The second receives, straight into the buffers of large reads, and wakes the
waiting tasks. The third fails the connection when a request takes too long.

On any failure, `failure` holds the error, and `on_failure` is called once; the owner then calls
`fail_pending`. The connection sends nothing after that.
"""

import socket
import struct
from collections.abc import Awaitable, Callable

import trio
from typing_extensions import Buffer

from nbd.client.negotiation import Agreement, Mode
from nbd.client.operation import Operation
from nbd.client.replies import ReplyParser
from nbd.constants import (
    EXTENDED_REQUEST_MAGIC,
    IOV_MAX,
    REQUEST_MAGIC,
    Command,
    CommandFlag,
    WireError,
)
from nbd.errors import ProtocolError, UnreachableError
from nbd.stream import Stream

RECEIVES_MAX = 16
"""Calls of `recv` before other tasks get their turn: a MiB, within a millisecond."""

_REQUEST = struct.Struct(">IHHQQI")
_EXTENDED = struct.Struct(">IHHQQQ")
_WRITE = int(Command.WRITE)
_PAYLOAD_LEN = int(CommandFlag.PAYLOAD_LEN)
_ABORT = struct.pack("@ii", 1, 0)  # socket(7): struct linger
assert _REQUEST.size == 28
assert _EXTENDED.size == 32


class Connection:
    """A negotiated connection; start `run`, then `submit`. Owns the stream.

    Args:
        sock: the plain socket of the stream, or the stream itself.
        agreement: the outcome of the negotiation.
        request_s: how long a request may take before the server counts as gone.
        on_done: called for every request that ends, even abandoned ones, before its waiter wakes.
        on_failure: called once, when the connection fails or closes.
    """

    def __init__(
        self,
        stream: Stream,
        sock: socket.socket,
        agreement: Agreement,
        *,
        request_s: float,
        on_done: Callable[[Operation], None],
        on_failure: Callable[["Connection"], None],
    ) -> None:
        self.agreement = agreement
        self.pending: dict[int, Operation] = {}
        """Requests in flight by cookie, oldest first."""
        self.failure: Exception | None = None
        """The error that ended the connection."""
        self._stream = stream
        self._sock = sock
        self._request_s = request_s
        self._on_done = on_done
        self._on_failure = on_failure
        self._extended = agreement.mode is Mode.EXTENDED
        self._parser = ReplyParser(agreement.mode, self.pending, agreement.contexts)
        self._cookie = 0
        self._queue: list[Operation] = []
        self._batch: list[Operation] = []  # requests being sent
        self._buffers: list[Buffer] = []  # their unsent bytes
        self._idle_sender: trio.lowlevel.Task | None = None
        self._scope = trio.CancelScope()
        self._leaving = False
        self._ended = trio.Event()

    def submit(self, operation: Operation) -> None:
        """Queue a request; it goes out soon."""
        assert self.failure is None
        self._cookie += 1
        operation.cookie = self._cookie
        operation.since = trio.current_time()
        self.pending[self._cookie] = operation
        self._queue.append(operation)
        self._wake_sender()

    def abandon(self, operation: Operation) -> bool:
        """Stop waiting for a request; the caller may change its payload on return.

        Returns True if the request was never sent and has ended, False if its reply is still due.
        """
        if operation in self._queue:
            self._queue.remove(operation)
            del self.pending[operation.cookie]
            operation.lose(UnreachableError("the request was taken back"))
            self._end(operation)
            return True
        if operation in self._batch:
            # Copy the unsent bytes as they are now: TLS must be given the same bytes again.
            self._buffers = [
                buffer if isinstance(buffer, bytes) else bytes(buffer) for buffer in self._buffers
            ]
        return False

    async def run(self) -> None:
        """Send and receive until `close` or a failure; raises only when cancelled."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._guard, self._send)
                    nursery.start_soon(self._guard, self._receive)
                    nursery.start_soon(self._guard, self._watch)
        finally:
            if self.failure is None:
                self.fail(UnreachableError("connection is closed"))
            self._ended.set()

    async def close(self) -> None:
        """Send DISC and wait until the server hangs up, after it has finished all requests; the
        caller bounds the wait.
        """
        if self.failure is None:
            self._leaving = True
            self._wake_sender()
            await self._ended.wait()

    def fail(self, failure: Exception) -> None:
        """End the connection now; the kernel discards unsent bytes, unless DISC is on its way."""
        if self.failure is not None:
            return
        self.failure = failure
        self._scope.cancel()
        if self._stream.fileno() >= 0:
            if not self._leaving:
                # A write must not reach the server later, after the write that replaced it.
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
            trio.lowlevel.notify_closing(self._stream)
            self._stream.close()
        self._on_failure(self)

    def fail_pending(self) -> None:
        """End all requests in flight as lost."""
        assert self.failure is not None
        self._queue.clear()
        self._batch.clear()
        self._buffers.clear()
        pending = list(self.pending.values())
        self.pending.clear()
        for operation in pending:
            operation.lose(self.failure)
            self._end(operation)

    def _end(self, operation: Operation) -> None:
        self._on_done(operation)
        operation.finish()

    async def _guard(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except trio.ClosedResourceError:
            assert self.failure is not None  # another task failed first, and closed the socket
        except ProtocolError as error:
            self.fail(ProtocolError(f"server broke the protocol: {error}"))
        except (OSError, UnreachableError) as error:
            self.fail(UnreachableError(f"connection lost: {error}"))

    # Sending

    def _wake_sender(self) -> None:
        if self._idle_sender is not None:
            task, self._idle_sender = self._idle_sender, None
            trio.lowlevel.reschedule(task)

    async def _wait_for_work(self) -> None:
        self._idle_sender = trio.lowlevel.current_task()

        def stop(_: object) -> trio.lowlevel.Abort:
            self._idle_sender = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(stop)

    async def _send(self) -> None:
        while True:
            if not self._queue:
                if self._leaving:
                    self._buffers = [self._head(Operation(Command.DISC))]
                    await self._send_buffers()
                    return
                await self._wait_for_work()
                continue
            self._batch, self._queue = self._queue, []
            for operation in self._batch:
                self._buffers.append(self._head(operation))
                if operation.kind == _WRITE:
                    self._buffers.append(operation.payload)
            await self._send_buffers()
            self._batch = []

    async def _send_buffers(self) -> None:
        while self._buffers:
            try:
                sent = self._stream.sendmsg(self._buffers[:IOV_MAX])
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._stream)
                continue
            self._forget(sent)
            if self._buffers:
                await trio.lowlevel.checkpoint()

    def _forget(self, sent: int) -> None:
        """Drop the first `sent` bytes of `_buffers`."""
        for index, buffer in enumerate(self._buffers):
            size = memoryview(buffer).nbytes
            if sent < size:
                del self._buffers[:index]
                self._buffers[0] = memoryview(buffer)[sent:]
                return
            sent -= size
        self._buffers.clear()

    def _head(self, operation: Operation) -> bytes:
        flags, kind = operation.flags, operation.kind
        if self._extended:
            if kind == _WRITE:
                flags |= _PAYLOAD_LEN
            return _EXTENDED.pack(
                EXTENDED_REQUEST_MAGIC, flags, kind,
                operation.cookie, operation.offset, operation.length,
            )  # fmt: skip
        return _REQUEST.pack(
            REQUEST_MAGIC, flags, kind, operation.cookie, operation.offset, operation.length
        )

    # Receiving

    async def _receive(self) -> None:
        stream, parser = self._stream, self._parser
        turns = 0
        while True:
            try:
                count = stream.recv_into(parser.room())
            except BlockingIOError:
                turns = 0
                await trio.lowlevel.wait_readable(stream)
                continue
            if not count:
                if self._leaving and not self.pending:
                    raise UnreachableError("closed")
                where = "" if parser.is_between_replies() else " in the middle of a reply"
                raise UnreachableError(f"server hung up{where}")
            parser.received(count)
            for operation in parser.finished():
                if operation.error == WireError.ESHUTDOWN:
                    self._lose_to_shutdown(operation)
                self._end(operation)
            turns += 1
            if turns == RECEIVES_MAX:
                turns = 0
                await trio.lowlevel.checkpoint()

    def _lose_to_shutdown(self, operation: Operation) -> None:
        """End a request as lost, to be sent again once the server is back, and raise."""
        failure = UnreachableError("server is shutting down")
        operation.lose(failure)
        self._end(operation)
        raise failure

    # Timeout

    async def _watch(self) -> None:
        """Fail when the oldest request is too old; wakes rarely, not for each request."""
        while True:
            oldest = next(iter(self.pending.values()), None)
            due = (trio.current_time() if oldest is None else oldest.since) + self._request_s
            if due <= trio.current_time():
                assert oldest is not None
                raise UnreachableError(
                    f"no answer to a request: command={oldest.kind} seconds={self._request_s:g}"
                )
            await trio.sleep_until(due)
