"""One client in transmission: the loop from socket to device and back.

The fast path does everything between two system calls in line: all whole
requests in the receive buffer go to the device's `try_` methods, and their
replies leave in one `sendmsg`. Only a request that must wait becomes a task.
trio's socket wrappers are bypassed because their checkpoint per call costs more
than the call; fairness is kept by yielding after a bounded amount of work.

What bounds memory: the reader takes no further request while replies are unsent
or while too much waits for the device, so a client that does not read stops
being read.
"""

import logging
import socket
from dataclasses import dataclass

import trio
from typing_extensions import Buffer

from blockdev.device import BlockDevice
from blockdev.errors import DeviceError
from nbd.constants import Command, CommandFlag, ExportFlag, WireError, wire_error
from nbd.errors import ProtocolError
from nbd.limits import PAYLOAD_BYTES_MAX, Limits
from nbd.pace import WORK_PER_LOOK, Activity, Pace
from nbd.sender import Sender
from nbd.transmission import (
    Request,
    RequestParser,
    data_chunk,
    error_chunk,
    none_chunk,
    refusal,
    simple_reply,
)

log = logging.getLogger("cenote.nbd")

BATCH_REQUESTS_MAX = 256
"""Replies leave after so many requests at the latest, before the client runs dry."""
BATCH_BYTES_MAX = 1 << 20
"""Replies are sent at this size: more would only grow memory."""
YIELD_WORK = 256
"""Requests, or 64 KiB of data, between two turns of other tasks: about 2 ms."""
QUIET_S = 1.0
"""Failed requests are logged no more often than this: a full pool fails thousands a second."""

_READ = int(Command.READ)
_WRITE = int(Command.WRITE)


@dataclass(slots=True)
class Counters:
    """What one client did so far."""

    requests: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    errors: int = 0


class Session:
    """Serves one device to one client; call `run` once.

    Args:
        sock: non-blocking; the caller closes it.
        device: the caller closes it, after `run` ended.
        flags: what was advertised.
        structured: whether READ is answered in structured replies.
        activity: shared by the sessions of one server.
        early: what the client sent behind its last option.
    """

    def __init__(
        self,
        sock: socket.socket,
        device: BlockDevice,
        *,
        flags: ExportFlag,
        structured: bool,
        limits: Limits,
        counters: Counters,
        activity: Activity,
        early: bytes = b"",
    ) -> None:
        self._sock = sock
        self._device = device
        self._flags = flags
        self._structured = structured
        self._limits = limits
        self._counters = counters
        self._parser = RequestParser(payload_bytes_max=PAYLOAD_BYTES_MAX, early=early)
        self._sender = Sender(sock)
        self._pace = Pace(activity)
        self._slow_requests = 0
        self._slow_bytes = 0
        self._stopping = False
        self._disconnecting = False
        self._quiet_until = 0.0
        self._reading = trio.CancelScope()
        self._nursery: trio.Nursery | None = None

    def stop(self) -> None:
        """Take no more requests, finish those in flight; `run` then returns."""
        self._stopping = True
        self._reading.cancel()

    async def run(self) -> None:
        """Serve until the client leaves; no request of it is underway on return.

        Raises:
            ProtocolError: the stream is not at a request.
            OSError: the connection broke.
        """
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._sender.on_failure = nursery.cancel_scope.cancel
            try:
                with self._reading:
                    await self._serve()
                if self._stopping:
                    self._serve_last()
                    await self._sender.drain()
            except (ProtocolError, OSError) as error:
                failure = error
            if not (self._disconnecting or self._stopping):
                # Nobody waits for the answers, and a write must not land after
                # newer ones that the client sends over its next connection.
                nursery.cancel_scope.cancel()
        failure = failure or self._sender.failure
        if failure is not None:
            raise failure
        await self._sender.drain()

    async def _serve(self) -> None:
        """Read and serve until the client says goodbye or is gone."""
        sock, parser, sender, pace = self._sock, self._parser, self._sender, self._pace
        counters = self._counters
        work = 0
        served_before = counters.requests
        woken = False
        more = True  # early bytes may hold requests
        while True:
            while more:
                more = self._serve_batch()
                if sender.replies:
                    await sender.drain()
                if self._disconnecting or sender.failure:
                    return
                if sender.replies or self._is_full():
                    await self._wait_for_room()
            served = counters.requests - served_before
            served_before = counters.requests
            work += served
            if work >= YIELD_WORK:
                await trio.lowlevel.checkpoint()
                work = 0
            looks = 1 if woken else pace.looks(served, self._slow_requests)
            count = self._look(looks)
            pace.looked(looks, found=count is not None)
            if count is None:
                await trio.lowlevel.wait_readable(sock)
                woken, work = True, 0
                continue
            woken = False
            if not count:
                return
            if looks > 1:
                work += WORK_PER_LOOK
            work += count >> 16
            parser.received(count)
            more = True

    def _look(self, looks: int) -> int | None:
        """Receive what is there, trying so many times; return None when nothing came."""
        recv_into, room = self._sock.recv_into, self._parser.room()
        for _ in range(looks):
            try:
                return recv_into(room)
            except BlockingIOError:
                pass
        return None

    def _serve_batch(self) -> bool:
        """Serve what was received; return whether it stopped early for a limit."""
        parser, device, replies = self._parser, self._device, self._sender.replies
        try_read, try_write = device.try_read, device.try_write
        size_bytes = device.size_bytes
        grain_mask = device.block_bytes - 1
        writable = not self._flags & ExportFlag.READ_ONLY
        structured = self._structured
        stopping = self._stopping
        served = read_bytes = written_bytes = 0
        more = False
        for request in parser.requests():
            served += 1
            _, flags, kind, cookie, offset, length = request
            try:
                if (
                    flags
                    or not length
                    or offset + length > size_bytes
                    or (offset | length) & grain_mask
                    or length > PAYLOAD_BYTES_MAX
                    or stopping
                ):
                    self._serve_unusual(request)
                elif kind == _READ:
                    data = try_read(offset, length)
                    if data is not None:
                        if structured:
                            replies.append(data_chunk(cookie, offset, length))
                        else:
                            replies.append(simple_reply(cookie))
                        replies.append(data)
                        read_bytes += length
                        if read_bytes < BATCH_BYTES_MAX and served < BATCH_REQUESTS_MAX:
                            continue
                    else:
                        self._serve_later(request)
                elif kind == _WRITE and writable:
                    if try_write(offset, parser.payload):
                        replies.append(simple_reply(cookie))
                        written_bytes += length
                        if served < BATCH_REQUESTS_MAX:
                            continue
                    else:
                        self._serve_later(request)
                else:
                    self._serve_unusual(request)
            except Exception as error:
                self._fail(request, error)
            if (
                read_bytes >= BATCH_BYTES_MAX
                or served >= BATCH_REQUESTS_MAX
                or self._disconnecting
                or self._is_full()
            ):
                more = True
                break
        counters = self._counters
        counters.requests += served
        counters.read_bytes += read_bytes
        counters.written_bytes += written_bytes
        return more

    def _serve_unusual(self, request: Request) -> None:
        """Serve what the fast path does not: other commands, flags, errors."""
        kind, length = request[2], request[5]
        if kind == Command.DISC:
            self._disconnecting = True
            return
        error = refusal(
            request,
            flags=self._flags,
            size_bytes=self._device.size_bytes,
            grain_bytes=self._device.block_bytes,
            payload_max=PAYLOAD_BYTES_MAX,
        )
        if self._stopping:
            error = WireError.ESHUTDOWN
        if error is not None:
            self._answer_error(request, error, error.name)
        elif not length and kind != Command.FLUSH:
            self._answer(request, b"")
        else:
            self._serve_later(request)

    def _serve_later(self, request: Request) -> None:
        """Start a task for a request that must wait."""
        assert self._nursery is not None
        payload: Buffer = b""
        if request[2] == _WRITE:
            payload = self._parser.keep_payload()
        self._slow_requests += 1
        self._slow_bytes += _data_bytes(request)
        self._nursery.start_soon(self._serve_slowly, request, payload)

    async def _serve_slowly(self, request: Request, payload: Buffer) -> None:
        data: Buffer = b""
        try:
            data = await self._ask_device(request, payload)
        except Exception as error:
            self._fail(request, error)
        else:
            self._answer(request, data)
        finally:
            self._slow_requests -= 1
            self._slow_bytes -= _data_bytes(request)
        await self._sender.drain_together(alone=not self._slow_requests)

    async def _ask_device(self, request: Request, payload: Buffer) -> Buffer:
        _, flags, kind, _, offset, length = request
        device = self._device
        fua = bool(flags & CommandFlag.FUA)
        if kind == Command.READ:
            return await device.read(offset, length)
        if kind == Command.WRITE:
            await device.write(offset, payload, fua=fua)
        elif kind == Command.FLUSH:
            await device.flush()
        elif kind == Command.TRIM:
            await device.trim(offset, length, fua=fua)
        else:
            assert kind == Command.WRITE_ZEROES
            no_hole = bool(flags & CommandFlag.NO_HOLE)
            await device.write_zeroes(offset, length, fua=fua, no_hole=no_hole)
        return b""

    def _answer(self, request: Request, data: Buffer) -> None:
        """Queue the answer to a request that succeeded."""
        _, _, kind, cookie, offset, length = request
        replies = self._sender.replies
        if kind != Command.READ:
            replies.append(simple_reply(cookie))
            if kind == Command.WRITE:
                self._counters.written_bytes += length
        elif not length:
            replies.append(none_chunk(cookie) if self._structured else simple_reply(cookie))
        else:
            head = data_chunk(cookie, offset, length) if self._structured else simple_reply(cookie)
            replies += (head, data)
            self._counters.read_bytes += length

    def _answer_error(self, request: Request, error: WireError, message: str) -> None:
        _, _, kind, cookie, _, _ = request
        self._counters.errors += 1
        if self._structured and kind == Command.READ:
            self._sender.replies.append(error_chunk(cookie, error, message))
        else:
            self._sender.replies.append(simple_reply(cookie, error))

    def _fail(self, request: Request, error: Exception) -> None:
        """Answer what a device raised, and tell the operator."""
        number = error.errno if isinstance(error, DeviceError | OSError) else None
        _, _, kind, _, offset, length = request
        now = trio.current_time()
        if now >= self._quiet_until:
            self._quiet_until = now + QUIET_S
            log.error(
                "request failed: type=%s offset=%d length=%d errors=%d error=%s",
                Command(kind).name,
                offset,
                length,
                self._counters.errors + 1,
                str(error) or type(error).__name__,
                exc_info=error if number is None else None,
            )
        self._answer_error(request, wire_error(number), str(error))

    def _serve_last(self) -> None:
        """While stopping: refuse what the client had already sent."""
        try:
            count = self._sock.recv_into(self._parser.room())
        except BlockingIOError:
            count = 0
        self._parser.received(count)
        while self._serve_batch() and not self._disconnecting:
            pass

    def _is_full(self) -> bool:
        return (
            self._slow_requests >= self._limits.requests_in_flight_max
            or self._slow_bytes >= self._limits.bytes_in_flight_max
        )

    async def _wait_for_room(self) -> None:
        """Wait until replies left and requests finished; the socket fills up meanwhile."""
        while (self._sender.replies or self._is_full()) and not self._sender.failure:
            await self._sender.progress.park()


def _data_bytes(request: Request) -> int:
    """Return how much memory a waiting request holds."""
    return request[5] if request[2] <= _WRITE else 0
