"""One client from accept to close: negotiation, one session, and cleanup whatever happens."""

import logging
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import trio

from blockdev.device import BlockDevice
from blockdev.errors import DeviceError
from nbd.constants import ExportFlag, OptionReply
from nbd.errors import ProtocolError, UnknownExportError
from nbd.handshake import Ended, ExportRequest, ListRequest, Need, ServerHandshake
from nbd.limits import PAYLOAD_BYTES_MAX, Limits
from nbd.options import ExportInfo
from nbd.pace import Activity
from nbd.session import Counters, Session

log = logging.getLogger("cenote.nbd")

HANDSHAKE_RECEIVE_BYTES = 16 << 10
"""Per `recv` while negotiating: options are small."""
PREFERRED_BYTES = 4096
"""The grain of volumes: smaller requests are read, merged and written."""


class ExportSource(Protocol):
    """What a server offers. The empty name asks for the default export."""

    def names(self) -> Sequence[str]:
        """Return the names to list."""

    async def open(self, name: str) -> BlockDevice:
        """Return a handle of its own for one connection, which closes it.

        Raises:
            UnknownExportError: there is no export of that name.
            DeviceError: it cannot be opened now.
        """


@dataclass(slots=True)
class Client:
    """A connected client, for status displays; `since` is wall-clock time.

    `export` is None while the client negotiates.
    """

    peer: str
    export: str | None = None
    since: float = field(default_factory=time.time)
    counters: Counters = field(default_factory=Counters)


class Connection:
    """One client; call `run` once. Owns the socket.

    Args:
        describe: returns an export's description, shown to clients that ask.
        activity: shared by the connections of one server.
    """

    def __init__(
        self,
        sock: socket.socket,
        peer: str,
        exports: ExportSource,
        limits: Limits,
        describe: Callable[[str], str],
        activity: Activity,
    ) -> None:
        self.client = Client(peer)
        self._sock = sock
        self._exports = exports
        self._limits = limits
        self._describe = describe
        self._activity = activity
        self._handshake = ServerHandshake(
            option_bytes_max=limits.option_bytes_max, options_max=limits.options_max
        )
        self._device: BlockDevice | None = None
        self._flags = ExportFlag(0)
        self._session: Session | None = None

    def stop(self) -> None:
        """Refuse further options, or finish the requests in flight; `run` then returns."""
        self._handshake.shutting_down = True
        if self._session is not None:
            self._session.stop()

    async def run(self) -> None:
        """Serve the client until it leaves; failures are logged, never raised."""
        peer = self.client.peer
        try:
            await self._serve()
        except ProtocolError as error:
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

    async def _serve(self) -> None:
        with trio.move_on_after(self._limits.handshake_s) as patience:
            await self._negotiate()
        if patience.cancelled_caught:
            raise ProtocolError(f"negotiation took too long: seconds={self._limits.handshake_s:g}")
        if self._device is None:
            return
        client, handshake = self.client, self._handshake
        log.info(
            "client connected: peer=%s export=%r size=%d structured=%s",
            client.peer,
            client.export,
            self._device.size_bytes,
            handshake.structured,
        )
        self._session = Session(
            self._sock,
            self._device,
            flags=self._flags,
            structured=handshake.structured,
            limits=self._limits,
            counters=client.counters,
            activity=self._activity,
            early=handshake.trailing(),
        )
        if handshake.shutting_down:
            self._session.stop()
        try:
            await self._session.run()
        finally:
            counters = client.counters
            log.info(
                "client left: peer=%s export=%r requests=%d read=%d written=%d errors=%d",
                client.peer,
                client.export,
                counters.requests,
                counters.read_bytes,
                counters.written_bytes,
                counters.errors,
            )

    async def _negotiate(self) -> None:
        """Haggle until the client enters an export (`_device` is set) or leaves."""
        handshake = self._handshake
        await self._send(handshake.data_to_send())
        while True:
            event = handshake.next_event()
            if isinstance(event, ListRequest):
                handshake.answer_list(self._exports.names())
            elif isinstance(event, ExportRequest):
                await self._answer_export(event)
            await self._send(handshake.data_to_send())
            if isinstance(event, Ended) or handshake.entered:
                return
            if event is Need.DATA:
                data = await self._receive()
                if not data:
                    return
                handshake.receive(data)

    async def _answer_export(self, request: ExportRequest) -> None:
        handshake = self._handshake
        try:
            device = await self._exports.open(request.name)
        except UnknownExportError as error:
            handshake.refuse(
                OptionReply.ERR_UNKNOWN, str(error) or f"no such export: name={request.name!r}"
            )
            return
        except (DeviceError, OSError) as error:
            log.error("export does not open: name=%r error=%s", request.name, error)
            handshake.refuse(OptionReply.ERR_POLICY, f"export does not open: {error}")
            return
        try:
            info = export_info(
                request.name,
                device,
                description=self._describe(request.name),
                structured=handshake.structured,
            )
            handshake.answer_export(info)
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._close(device)
            raise
        if request.enter:
            self._device, self._flags = device, info.flags
            self.client.export = request.name
        else:
            with trio.CancelScope(shield=True):
                await self._close(device)

    async def _close(self, device: BlockDevice) -> None:
        try:
            await device.close()
        except Exception:
            log.exception("device does not close: peer=%s", self.client.peer)

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


def export_info(
    name: str, device: BlockDevice, *, description: str = "", structured: bool
) -> ExportInfo:
    """Return what to tell a client about a device: only what works."""
    flags = (
        ExportFlag.HAS_FLAGS
        | ExportFlag.SEND_FLUSH
        | ExportFlag.SEND_FUA
        # All connections meet one device, so a flush on any of them covers all.
        | ExportFlag.CAN_MULTI_CONN
    )
    if device.read_only:
        flags |= ExportFlag.READ_ONLY
    else:
        flags |= ExportFlag.SEND_TRIM | ExportFlag.SEND_WRITE_ZEROES
    if structured:
        flags |= ExportFlag.SEND_DF
    return ExportInfo(
        name=name,
        size_bytes=device.size_bytes,
        flags=flags,
        description=description,
        block_bytes_min=device.block_bytes,
        block_bytes_preferred=max(PREFERRED_BYTES, device.block_bytes),
        block_bytes_max=PAYLOAD_BYTES_MAX,
    )
