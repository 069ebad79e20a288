"""The transmission phase of one client: the loop from socket to device and back.

The fast path does everything between two system calls in line: all whole
requests in the receive buffer go to the device's `try_` methods, and their
replies leave in one `sendmsg`. Only a request that must wait becomes a task.
trio's socket wrappers are bypassed because their checkpoint per call costs more
than the call; fairness is kept by yielding after a bounded amount of work.
A client that waits for each answer is served on a shorter path (`nbd.server.quick`).

Memory is bounded: the session takes no further request while replies are unsent,
while too much waits for the device, or while the whole server holds too much, so
the server stops reading from a client that does not read.
"""

import trio
from typing_extensions import Buffer

from blockdev.device import BlockDevice
from nbd.constants import Command, WireError
from nbd.errors import ProtocolError
from nbd.server.answers import Answers
from nbd.server.backlog import Backlog
from nbd.server.failures import FailureLog, answer_to_failure
from nbd.server.limits import Limits
from nbd.server.memory import Memory
from nbd.server.pace import LOOKS, WORK_PER_LOOK, Activity, Pace
from nbd.server.quick import BATCH_BYTES_MAX, BATCH_REQUESTS_MAX, QuickLane
from nbd.server.receiver import Receiver
from nbd.server.sender import Sender
from nbd.server.terms import Counters, Terms
from nbd.server.transmission import (
    Request,
    RequestParser,
    held_bytes,
    is_goodbye,
    narrow,
    refusal,
)
from nbd.stream import Stream, has_hung_up, unread

GULP_BYTES = 64 << 10
"""Long payloads are received in pieces of this size, while the client goes on sending."""
YIELD_WORK = 256
"""Requests, or pieces of 64 KiB, served between two turns of other tasks: about 2 ms."""

_READ = int(Command.READ)
_WRITE = int(Command.WRITE)
_FLUSH = int(Command.FLUSH)
_DISC = int(Command.DISC)
_BLOCK_STATUS = int(Command.BLOCK_STATUS)


class Session:
    """Serves one device to one client; call `run` once.

    Args:
        sock: non-blocking; the caller closes it.
        device: the caller closes it, after `run` ended.
        activity: shared by the sessions of one server.
        memory: likewise.
    """

    def __init__(
        self,
        sock: Stream,
        device: BlockDevice,
        terms: Terms,
        *,
        limits: Limits,
        counters: Counters,
        activity: Activity,
        memory: Memory,
    ) -> None:
        self.held_bytes = 0
        """Bytes of the server's memory that the client holds."""
        self._sock = sock
        self._device = device
        self._flags = int(terms.flags)
        self._replies = terms.replies
        self._extended = terms.extended
        self._contexts = terms.contexts
        self._answers = Answers(device, terms.replies, terms.contexts)
        self._payload_max = limits.payload_bytes_max
        self._counters = counters
        self._memory = memory
        self._parser = RequestParser(
            payload_bytes_max=limits.payload_bytes_max,
            memory=memory,
            extended=terms.extended,
            early=terms.early,
        )
        self._receiver = Receiver(sock)
        self._sender = Sender(sock)
        self._sender.on_failure = self._drop_unawaited
        self._backlog = Backlog(self, self.is_gone, self._sender, memory, limits)
        self._quick = QuickLane(
            device, terms, self._parser, self._receiver, self._sender, counters,
            limits.payload_bytes_max,
        )  # fmt: skip
        self._pace = Pace(activity)
        self._stopping = False
        self._disconnecting = False
        self._dropped = ""
        self._failures = FailureLog()
        self._scope = trio.CancelScope()
        self._reading = trio.CancelScope()
        self._nursery: trio.Nursery | None = None

    def stop(self) -> None:
        """Take no more requests, finish those in flight; `run` then returns."""
        self._stopping = True
        self._reading.cancel()

    def drop(self, reason: str) -> None:
        """Close the connection without finishing anything; `run` then raises."""
        self._dropped = self._dropped or reason
        self._scope.cancel()

    def moved_bytes(self) -> int:
        """Bytes received and sent so far."""
        return self._receiver.received_bytes + self._sender.sent_bytes

    def is_awaited(self) -> bool:
        """Whether the client must send the rest of a request, or take its replies."""
        is_receiving = self._backlog.payload is not None and self._parser.needs_more()
        return bool(self._sender.replies) or is_receiving

    def is_gone(self) -> bool:
        """Whether the client hung up without sending DISC."""
        return has_hung_up(self._sock) and not (
            self._disconnecting or is_goodbye(self._parser.end() + unread(self._sock))
        )

    async def run(self) -> None:
        """Serve until the client leaves; no request of the client is in flight on return.

        Raises:
            ProtocolError: bytes that are no request, or `drop` was called.
            OSError: the connection broke.
        """
        failure: Exception | None = None
        try:
            with self._scope:
                failure = await self._run()
                if failure is None:
                    await self._sender.drain()
        finally:
            self._backlog.close()
        if self._dropped:
            raise ProtocolError(self._dropped)
        failure = failure or self._sender.failure
        if failure is not None:
            raise failure

    def _drop_unawaited(self) -> None:
        """Cancel requests in flight when sending has failed; after a DISC they are finished."""
        if self._nursery is not None and not self._disconnecting:
            self._nursery.cancel_scope.cancel()

    async def _run(self) -> Exception | None:
        """Serve; return the failure that ended the session, if any."""
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                with self._reading:
                    await self._serve()
                if self._stopping:
                    self._refuse_received()
                    await self._sender.drain()
            except (ProtocolError, OSError) as error:
                failure = error
            if not (self._disconnecting or self._stopping):
                # No client waits for the answers, and a write must not land after
                # newer ones that the client sends over its next connection.
                nursery.cancel_scope.cancel()
        return failure

    async def _serve(self) -> None:
        """Receive and serve until the client sends DISC or is gone."""
        parser, sender, pace, receiver = self._parser, self._sender, self._pace, self._receiver
        counters, backlog = self._counters, self._backlog
        work = 0
        served_before = counters.requests
        sent_before = 0
        woken = False
        more = True  # early bytes may hold requests
        while not more or await self._serve_received():
            if parser.large is not None:
                await backlog.receiving(parser.large)
            served = counters.requests - served_before
            served_before = counters.requests
            work += served + (sender.sent_bytes - sent_before >> 16)
            sent_before = sender.sent_bytes
            if work >= YIELD_WORK:
                await trio.lowlevel.checkpoint()
                work = 0
            looks = 1 if woken else pace.looks(served, backlog.requests)
            if looks == LOOKS and served == 1 and self._may_serve_singles():
                turn = -(-(YIELD_WORK - work) // WORK_PER_LOOK)
                singles, count, more = self._quick.serve_singles(turn)
                work += singles * WORK_PER_LOOK
                # `pace` gets only the last batch: requests served one by one came at queue depth 1.
                served_before += max(singles - 1, 0) if count is None else singles
                pace.looked(found=singles, missed=count is None and singles < turn)
                if sender.replies:
                    await sender.drain()
                if sender.failure:
                    return
                if singles == turn:
                    continue
            else:
                room = parser.room()
                enough = self._quick.enough if parser.large is None else min(len(room), GULP_BYTES)
                count = receiver.look(room, looks, enough=enough)
                if looks == LOOKS:
                    pace.looked(found=int(count is not None), missed=count is None)
                more = count is not None and parser.received(count)
            if count is None:
                await trio.lowlevel.wait_readable(self._sock)
                woken, work, more = True, 0, False
                continue
            woken = False
            if not count:
                return
            if looks > 1:
                work += WORK_PER_LOOK
            work += count >> 16

    async def _serve_received(self) -> bool:
        """Serve all received requests; return whether to go on."""
        parser, sender, backlog = self._parser, self._sender, self._backlog
        more = True
        while more:
            if sender.replies or backlog.is_full():
                await backlog.wait_for_room()
            more = self._serve_batch()
            if backlog.payload is not None:
                backlog.received(parser.large)
            if sender.replies:
                if not sender.drain_now():
                    await sender.drain()
                backlog.sent()
            if self._disconnecting or sender.failure:
                return False
        return True

    def _may_serve_singles(self) -> bool:
        """Whether no request is half received and the socket has no TLS, so that requests can be
        served one by one; False while the session stops."""
        return not (self._stopping or self._receiver.decrypts) and self._parser.is_empty()

    def _serve_batch(self) -> bool:
        """Serve received requests; return whether a limit or DISC ended the batch early."""
        parser, counters = self._parser, self._counters
        requests_max = counters.requests + BATCH_REQUESTS_MAX
        read_bytes_max = counters.read_bytes + BATCH_BYTES_MAX
        while True:
            if not self._stopping:
                if not self._quick.serve_received():
                    return False
                if self._quick.limited:
                    return True
            request = parser.next_request()
            if request is None:
                return False
            counters.requests += 1
            try:
                self._serve_one(request)
            except Exception as error:
                self._fail(request, error)
            if (
                counters.requests >= requests_max
                or counters.read_bytes >= read_bytes_max
                or self._disconnecting
                or self._backlog.is_full()
            ):
                return True

    def _serve_one(self, request: Request) -> None:
        """Serve a request that the quick lane left: long, unusual or wrong, or one that waits."""
        kind = request[2]
        if kind == _DISC:
            self._disconnecting = True
            return
        only: tuple[int, ...] | None = None
        if kind == _BLOCK_STATUS:
            payload = self._parser.payload if self._extended else None
            narrowed = narrow(request, payload, self._contexts)
            if narrowed is None:
                message = "no such context; select one when connecting"
                self._answer_error(request, WireError.EINVAL, message)
                return
            request, only = narrowed
        error = refusal(
            request,
            flags=self._flags,
            size_bytes=self._device.size_bytes,
            grain_bytes=self._device.block_bytes,
            payload_max=self._payload_max,
        )
        if self._stopping:
            error = WireError.ESHUTDOWN
        if error is not None:
            self._answer_error(request, error, error.name)
        elif not request[5] and kind != _FLUSH:
            self._sender.replies.append(self._replies.done(kind, request[3], request[4]))
        elif not self._serve_long(request):
            self._serve_later(request, only)

    def _serve_long(self, request: Request) -> bool:
        """Serve a long READ or WRITE if the device can at once; return whether it did."""
        _, flags, kind, cookie, offset, length = request
        if flags or length <= self._quick.longest_bytes:
            return False
        if kind == _READ:
            if self._replies.chunked and self._answers.has_zeroes(offset, length):
                return False
            data = self._device.try_view(offset, length)
            if data is None:
                return False
            self._sender.replies += (self._replies.data(cookie, offset, length), data)
        elif kind == _WRITE and self._device.try_write(offset, self._parser.payload):
            self._sender.replies.append(self._replies.done(kind, cookie, offset))
        else:
            return False
        self._count(request)
        self._quick.expect_another(written=kind == _WRITE)
        return True

    def _serve_later(self, request: Request, only: tuple[int, ...] | None = None) -> None:
        """Start a task for a request that must wait."""
        assert self._nursery is not None
        payload: Buffer = b""
        if request[2] == _WRITE:
            payload = self._parser.keep_payload()
        self._backlog.begin(held_bytes(request))
        self._nursery.start_soon(self._serve_slowly, request, payload, only)

    async def _serve_slowly(
        self, request: Request, payload: Buffer, only: tuple[int, ...] | None
    ) -> None:
        try:
            answer = await self._answers.to(request, payload, only)
        except Exception as error:
            self._fail(request, error)
        else:
            self._sender.replies += answer
            self._count(request)
            self._memory.recycle(payload)
        finally:
            self._backlog.finish(held_bytes(request))
        await self._sender.drain_together(alone=not self._backlog.requests)
        self._backlog.sent()

    def _count(self, request: Request) -> None:
        if request[2] == _WRITE:
            self._counters.written_bytes += request[5]
        elif request[2] == _READ:
            self._counters.read_bytes += request[5]

    def _answer_error(self, request: Request, error: WireError, message: str) -> None:
        _, _, kind, cookie, offset, _ = request
        self._counters.errors += 1
        self._sender.replies.append(self._replies.error(kind, cookie, offset, error, message))

    def _fail(self, request: Request, error: Exception) -> None:
        """Answer an error of the device, and log it."""
        answer, is_failure = answer_to_failure(request, error)
        if is_failure:
            self._failures.tell(request, error, self._counters.errors + 1)
        self._answer_error(request, answer, str(error))

    def _refuse_received(self) -> None:
        """While stopping: refuse the requests that the client had already sent."""
        self._parser.received(self._receiver.look(self._parser.room(), 1) or 0)
        while self._serve_batch() and not self._disconnecting:
            pass
