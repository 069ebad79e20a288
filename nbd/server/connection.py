"""A client's connection from accept to close: negotiation, one session, and cleanup."""

import logging
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import trio

from blockdev.device import BlockDevice
from blockdev.errors import DeviceError
from nbd.constants import BASE_ALLOCATION, ExportFlag, OptionReply
from nbd.errors import ProtocolError, TlsError, UnknownExportError
from nbd.server.access import Access, Peer
from nbd.server.handshake import (
    ContextRequest,
    Ended,
    ExportRequest,
    ListRequest,
    Need,
    ServerHandshake,
    StartTls,
)
from nbd.server.limits import Limits
from nbd.server.listeners import TlsTerms
from nbd.server.memory import Memory
from nbd.server.options import ExportInfo
from nbd.server.pace import Activity
from nbd.server.replies import ExtendedReplies, SimpleReplies, StructuredReplies
from nbd.server.session import Session
from nbd.server.terms import Counters, Terms
from nbd.stream import Stream, has_hung_up
from nbd.tls import TlsSocket

log = logging.getLogger("cenote.nbd")

HANDSHAKE_RECEIVE_BYTES = 16 << 10
"""Per `recv` while negotiating: options are small."""
PREFERRED_BYTES = 4096
"""The block size of volumes: a smaller write is a read, a merge and a write."""


class ExportSource(Protocol):
    """The exports of a server. The empty name means the default export."""

    def names(self) -> Sequence[str]:
        """Return the names to list."""

    async def open(self, name: str) -> BlockDevice:
        """Return a device handle for one connection, which closes it.

        Raises:
            UnknownExportError: there is no export of that name.
            DeviceError: the export cannot be opened now.
        """


@dataclass(slots=True)
class Client:
    """A connected client, for status displays; `since` is wall-clock time.

    `number` is unique while the server runs. `export` is None while the client negotiates.
    `size_bytes` is the size that the client was told; the export may have grown since.
    """

    number: int
    peer: Peer
    export: str | None = None
    size_bytes: int = 0
    read_only: bool = False
    since: float = field(default_factory=time.time)
    counters: Counters = field(default_factory=Counters)


@dataclass(frozen=True, slots=True)
class Service:
    """The parts that all connections of a server share.

    `describe` returns an export's description, shown to clients that ask. `access` returns
    the access of a client to an export.
    """

    exports: ExportSource
    limits: Limits
    describe: Callable[[str], str]
    access: Callable[[str, Peer], Access]
    activity: Activity
    memory: Memory
    settle: Callable[[str], Awaitable[None]]
    """Wait until no request of a client that left the export can still change it."""


class Connection:
    """One client; call `run` once. Owns the socket."""

    def __init__(
        self, sock: socket.socket, client: Client, service: Service, tls: TlsTerms
    ) -> None:
        self.client = client
        self.ended = trio.Event()
        """Set when device and socket are closed."""
        self._sock: Stream = sock
        self._plain = sock
        self._service = service
        self._tls = tls
        self._handshake = ServerHandshake(
            tls=tls.policy,
            option_bytes_max=service.limits.option_bytes_max,
            options_max=service.limits.options_max,
        )
        self._device: BlockDevice | None = None
        self._flags = ExportFlag(0)
        self._session: Session | None = None
        self._scope = trio.CancelScope()
        self._reason = ""
        self.began = trio.current_time()

    @property
    def negotiates(self) -> bool:
        """Whether the client has not entered an export yet, and may still do so."""
        return self._session is None and not self._reason

    def give_way(self) -> None:
        """End the negotiation at once, to make room for another client."""
        self._reason = "negotiates for long while others find no place"
        self._scope.cancel()

    def stop(self) -> None:
        """Refuse further options, or finish the requests in flight; `run` then returns."""
        self._handshake.shutting_down = True
        if self._session is not None:
            self._session.stop()

    async def disconnect(self, reason: str) -> None:
        """End the connection, after at most `grace_s` for requests in flight; return at its end."""
        self._reason = reason
        if self._session is None:
            self._scope.cancel()
        self.stop()
        with trio.move_on_after(self._service.limits.grace_s):
            await self.ended.wait()
            return
        self._scope.cancel()
        await self.ended.wait()

    async def settle(self) -> None:
        """If the client hung up, end the connection: finish its requests, within `grace_s`, if it
        sent DISC, else drop them."""
        session = self._session
        # The connection may have ended since the caller listed it.
        if session is None or self.ended.is_set() or not has_hung_up(self._plain):
            return
        if session.is_gone():
            session.drop("the client left without its answers")
        with trio.move_on_after(self._service.limits.grace_s):
            await self.ended.wait()
            return
        session.drop("the client left and does not take its answers")
        await self.ended.wait()

    async def run(self) -> None:
        """Serve the client until it leaves; failures are logged, never raised."""
        peer = self.client.peer.address
        try:
            with self._scope:
                await self._serve()
            if self._reason:
                log.info("client disconnected: peer=%s reason=%s", peer, self._reason)
        except (ProtocolError, TlsError) as error:
            log.warning("client dropped: peer=%s reason=%s", peer, error)
        except OSError as error:
            log.info("connection lost: peer=%s reason=%s", peer, error)
        except Exception:
            log.exception("connection failed: peer=%s", peer)
        finally:
            with trio.CancelScope(shield=True):
                if self._device is not None:
                    await self._close(self._device)
            self._sock.close()
            self.ended.set()

    async def _serve(self) -> None:
        limits = self._service.limits
        with trio.move_on_after(limits.handshake_s) as patience:
            await self._negotiate()
        if patience.cancelled_caught:
            raise ProtocolError(f"negotiation took too long: seconds={limits.handshake_s:g}")
        if self._device is None:
            return
        client, handshake = self.client, self._handshake
        mode = _mode(handshake)
        log.info(
            "client connected: peer=%s export=%r size=%d read_only=%s tls=%s replies=%s",
            client.peer.address,
            client.export,
            self._device.size_bytes,
            client.read_only,
            client.peer.secure,
            type(mode).__name__.removesuffix("Replies").lower(),
        )
        terms = Terms(
            self._flags, mode, handshake.extended, handshake.contexts, handshake.trailing()
        )
        self._session = Session(
            self._sock,
            self._device,
            terms,
            limits=limits,
            counters=client.counters,
            activity=self._service.activity,
            memory=self._service.memory,
        )
        if handshake.shutting_down:
            self._session.stop()
        try:
            await self._session.run()
        finally:
            counters = client.counters
            log.info(
                "client left: peer=%s export=%r requests=%d read=%d written=%d errors=%d",
                client.peer.address,
                client.export,
                counters.requests,
                counters.read_bytes,
                counters.written_bytes,
                counters.errors,
            )

    async def _negotiate(self) -> None:
        """Negotiate until the client enters an export (`_device` is set) or leaves."""
        handshake = self._handshake
        await self._send(handshake.data_to_send())
        while True:
            event = handshake.next_event()
            if isinstance(event, ListRequest):
                handshake.answer_list(self._names())
            elif isinstance(event, ExportRequest):
                await self._answer_export(event)
            elif isinstance(event, ContextRequest):
                await self._answer_contexts(event)
            await self._send(handshake.data_to_send())
            if isinstance(event, StartTls):
                await self._start_tls()
            if isinstance(event, Ended) or handshake.entered:
                return
            if event is Need.DATA:
                data = await self._receive()
                if not data:
                    if not handshake.greeted:
                        log.info(
                            "client left without a word of newstyle NBD: peer=%s",
                            self.client.peer.address,
                        )
                    return
                handshake.receive(data)

    async def _start_tls(self) -> None:
        context = self._tls.context
        assert context is not None
        secure = await TlsSocket.handshake(self._plain, context, server_side=True)
        self._sock = secure
        self._handshake.secured()
        peer = self.client.peer
        self.client.peer = replace(peer, names=tuple(secure.peer_names()), secure=True)

    def _names(self) -> list[str]:
        """Return the names of the exports that this client may use."""
        access, peer = self._service.access, self.client.peer
        return [
            name for name in self._service.exports.names() if access(name, peer) is not Access.NONE
        ]

    async def _answer_export(self, request: ExportRequest) -> None:
        if request.enter:
            await self._service.settle(request.name)
        device = await self._open(request.name)
        if device is None:
            return
        read_only = device.read_only or self._access(request.name) is not Access.WRITE
        try:
            info = export_info(
                request.name,
                device,
                read_only=read_only,
                description=self._service.describe(request.name),
                structured=self._handshake.structured,
                payload_bytes_max=self._service.limits.payload_bytes_max,
            )
            self._handshake.answer_export(info)
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._close(device)
            raise
        if request.enter:
            self._device, self._flags = device, info.flags
            self.client.export, self.client.read_only = request.name, read_only
            self.client.size_bytes = info.size_bytes
        else:
            with trio.CancelScope(shield=True):
                await self._close(device)

    async def _answer_contexts(self, request: ContextRequest) -> None:
        device = await self._open(request.export)
        if device is not None:
            contexts = list(device.contexts)
            with trio.CancelScope(shield=True):
                await self._close(device)
            self._handshake.answer_contexts(dict.fromkeys([BASE_ALLOCATION, *contexts]))

    def _access(self, name: str) -> Access:
        return self._service.access(name, self.client.peer)

    async def _open(self, name: str) -> BlockDevice | None:
        """Open an export; if that fails, refuse the request and return None."""
        handshake = self._handshake
        if self._access(name) is Access.NONE:
            log.warning("export refused: peer=%s export=%r", self.client.peer.address, name)
            handshake.refuse(
                OptionReply.ERR_POLICY, f"the server's rules keep this export from you: {name!r}"
            )
            return None
        try:
            return await self._service.exports.open(name)
        except UnknownExportError as error:
            handshake.refuse(
                OptionReply.ERR_UNKNOWN, str(error) or f"no such export: name={name!r}"
            )
        except (DeviceError, OSError) as error:
            log.error("export does not open: name=%r error=%s", name, error)
            handshake.refuse(OptionReply.ERR_POLICY, f"export does not open: {error}")
        return None

    async def _close(self, device: BlockDevice) -> None:
        try:
            await device.close()
        except Exception:
            log.exception("device does not close: peer=%s", self.client.peer.address)

    async def _receive(self) -> bytes:
        while True:
            try:
                return self._sock.recv(HANDSHAKE_RECEIVE_BYTES)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._sock)

    async def _send(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            try:
                left = left[self._sock.send(left) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._sock)


def _mode(handshake: ServerHandshake) -> SimpleReplies | StructuredReplies | ExtendedReplies:
    if handshake.extended:
        return ExtendedReplies()
    return StructuredReplies() if handshake.structured else SimpleReplies()


def export_info(
    name: str,
    device: BlockDevice,
    *,
    read_only: bool,
    description: str = "",
    structured: bool,
    payload_bytes_max: int,
) -> ExportInfo:
    """Return the information about a device for a client, with only the flags that work."""
    flags = (
        ExportFlag.HAS_FLAGS
        | ExportFlag.SEND_FLUSH
        | ExportFlag.SEND_FUA
        | ExportFlag.SEND_CACHE
        # All connections use one device, so a flush on any of them covers all.
        | ExportFlag.CAN_MULTI_CONN
    )
    if read_only:
        flags |= ExportFlag.READ_ONLY
    else:
        flags |= ExportFlag.SEND_TRIM | ExportFlag.SEND_WRITE_ZEROES | ExportFlag.SEND_FAST_ZERO
    if structured:
        flags |= ExportFlag.SEND_DF
    return ExportInfo(
        name=name,
        size_bytes=device.size_bytes,
        flags=flags,
        description=description,
        block_bytes_min=device.block_bytes,
        block_bytes_preferred=max(PREFERRED_BYTES, device.block_bytes),
        block_bytes_max=payload_bytes_max,
    )
