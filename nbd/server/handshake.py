"""NBD negotiation, server side: bytes in, events out, no I/O.

Source: NBD proto.md, "Fixed newstyle negotiation". The server greets, the client
answers with 4 bytes of flags, then options follow until one enters transmission.

    feed `receive` -> `next_event`:
        Need.DATA          wait for more bytes
        ListRequest        answer with `answer_list` or `refuse`
        ExportRequest      answer with `answer_export` or `refuse`
        ContextRequest     answer with `answer_contexts` or `refuse`
        StartTls           send, set up TLS, then `secured`
        Ended              the client sent ABORT
    after each event send `data_to_send`; `entered` is set once transmission begins.

An option that is not in `_handlers` is refused and its data skipped, so the stream
stays in step with any option.
"""

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum

from nbd.constants import (
    INIT_MAGIC,
    OPTION_HEADER,
    OPTION_MAGIC,
    REQUEST_MAGIC,
    HandshakeFlag,
    Option,
    OptionReply,
)
from nbd.errors import ProtocolError
from nbd.server.contexts import ContextQuery, decode_query, encode_context, listed, selected
from nbd.server.options import (
    ExportInfo,
    OptionError,
    decode_info_request,
    decode_name,
    encode_error,
    encode_export_name_reply,
    encode_infos,
    encode_reply,
    encode_server,
)

OPTION_BYTES_MAX = 64 << 10
"""A GO with a 4096-byte name and thousands of information requests fits; no client needs more."""
CONTEXTS_MAX = 64
"""Contexts that a client may select: each BLOCK_STATUS is answered for all of them."""
OPTIONS_MAX = 1024
"""INFO for every export of a large pool fits; an endless negotiation does not."""

_BEFORE_TLS = {Option.STARTTLS, Option.ABORT}
_GREETING = struct.Struct(">QQH").pack(
    INIT_MAGIC, OPTION_MAGIC, HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES
)
_CLIENT_FLAGS_BYTES = 4
# A plain int: `~` of an IntFlag has only the bits that have names.
_KNOWN_FLAGS = int(HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES)


class Tls(Enum):
    """Whether a listener speaks TLS."""

    OFF = "off"
    ALLOW = "allow"
    REQUIRE = "require"


class Need(Enum):
    """An event that says what the parser waits for."""

    DATA = "data"


@dataclass(frozen=True, slots=True)
class ListRequest:
    """The client wants the names of all exports."""


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """The client wants to know about an export or, with `enter`, to use it."""

    name: str
    enter: bool


@dataclass(frozen=True, slots=True)
class ContextRequest:
    """The client wants to know which contexts an export has or, with `select`, to use some."""

    export: str
    select: bool


@dataclass(frozen=True, slots=True)
class StartTls:
    """The client begins TLS as soon as it has our answer."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The client ended the negotiation; send the remaining data and close."""


Event = ListRequest | ExportRequest | ContextRequest | StartTls | Ended | Need


@dataclass(slots=True)
class _Pending:
    """The option that waits for the caller's answer."""

    option: int
    kinds: frozenset[int] = frozenset()
    query: ContextQuery | None = None


class ServerHandshake:
    """One negotiation; see the module for the order of calls.

    Args:
        tls: whether the client may or must begin TLS.
        option_bytes_max: longer options end the connection.
        options_max: more options end the connection.
    """

    def __init__(
        self,
        *,
        tls: Tls = Tls.OFF,
        option_bytes_max: int = OPTION_BYTES_MAX,
        options_max: int = OPTIONS_MAX,
    ) -> None:
        self.structured = False
        """Whether the client can take structured replies."""
        self.extended = False
        """Whether requests and replies have extended headers; then also `structured`."""
        self.contexts: dict[int, str] = {}
        """Contexts that the client selected for the export that it entered, by number."""
        self.greeted = False
        """Whether the client sent its flags: before that, it may not be speaking NBD at all."""
        self.entered = False
        """Whether an export was entered; requests follow on the wire."""
        self.shutting_down = False
        """Set this to refuse every option from now on."""
        self._tls = tls
        self._is_secure = False
        self._contexts_of = ""  # the export that `contexts` were selected for
        self._option_bytes_max = option_bytes_max
        self._options_left = options_max
        self._input = bytearray()
        self._output = bytearray(_GREETING)
        self._no_zeroes: bool | None = None  # None until the client flags arrived
        self._pending: _Pending | None = None
        self._ended = False
        self._handlers: dict[int, Callable[[bytes], Event | None]] = {
            Option.EXPORT_NAME: self._on_export_name,
            Option.ABORT: self._on_abort,
            Option.LIST: self._on_list,
            Option.INFO: lambda data: self._on_info(Option.INFO, data),
            Option.GO: lambda data: self._on_info(Option.GO, data),
            Option.STRUCTURED_REPLY: self._on_structured_reply,
            Option.EXTENDED_HEADERS: self._on_extended_headers,
            Option.LIST_META_CONTEXT: lambda data: self._on_contexts(data, select=False),
            Option.SET_META_CONTEXT: lambda data: self._on_contexts(data, select=True),
        }
        if tls is not Tls.OFF:
            self._handlers[Option.STARTTLS] = self._on_starttls

    def receive(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes from the client."""
        self._input += data

    def data_to_send(self) -> bytes:
        """Return the bytes that must go to the client now; each is returned once."""
        data = bytes(self._output)
        self._output.clear()
        return data

    def trailing(self) -> bytes:
        """Return the bytes behind the client's last option: the start of transmission."""
        assert self.entered
        return bytes(self._input)

    def next_event(self) -> Event:
        """Return the next event; the last one must have been answered.

        Raises:
            ProtocolError: bad magic, unknown client flags, a limit passed, or a request
                that the protocol can only answer by closing.
        """
        assert self._pending is None
        if self._no_zeroes is None and not self._take_client_flags():
            return Need.DATA
        while not (self._ended or self.entered):
            option_and_data = self._take_option()
            if option_and_data is None:
                return Need.DATA
            event = self._dispatch(*option_and_data)
            if event is not None:
                return event
        return Ended() if self._ended else Need.DATA

    def answer_list(self, names: Iterable[str]) -> None:
        """Answer a ListRequest."""
        option = self._take_pending().option
        for name in names:
            self._output += encode_server(option, name)
        self._output += encode_reply(option, OptionReply.ACK)

    def answer_export(self, info: ExportInfo) -> None:
        """Answer an ExportRequest; sets `entered` if the request was to enter."""
        pending = self._take_pending()
        if self._contexts_of != info.name and pending.option != Option.INFO:
            self.contexts = {}
        if pending.option == Option.EXPORT_NAME:
            self._output += encode_export_name_reply(info, no_zeroes=bool(self._no_zeroes))
        else:
            self._output += encode_infos(pending.option, info, pending.kinds)
            self._output += encode_reply(pending.option, OptionReply.ACK)
        self.entered = pending.option != Option.INFO

    def answer_contexts(self, offered: Iterable[str]) -> None:
        """Answer a ContextRequest; `offered` names the contexts of the export, each once."""
        pending = self._take_pending()
        query = pending.query
        assert query is not None
        # A context's number is its place in the offer, so it is unique for any query.
        numbers = {name: number for number, name in enumerate(offered)}
        if pending.option == Option.SET_META_CONTEXT:
            chosen = selected(query.queries, numbers)
            if len(chosen) > CONTEXTS_MAX:
                message = f"too many contexts at once: contexts={len(chosen)} max={CONTEXTS_MAX}"
                self._output += encode_error(pending.option, OptionReply.ERR_TOO_BIG, message)
                return
            self.contexts = {numbers[name]: name for name in chosen}
            self._contexts_of = query.export
        else:
            chosen = listed(query.queries, numbers)
        for name in chosen:
            self._output += encode_context(pending.option, numbers[name], name)
        self._output += encode_reply(pending.option, OptionReply.ACK)

    def secured(self) -> None:
        """Note that TLS is set up: agreements made in plain text no longer count."""
        self._is_secure = True
        self.structured = self.extended = False
        self.contexts = {}

    def refuse(self, reply: OptionReply, message: str) -> None:
        """Refuse the pending request; negotiation goes on.

        Raises:
            ProtocolError: the request was EXPORT_NAME, which is refused only by closing.
        """
        option = self._take_pending().option
        if option == Option.EXPORT_NAME:
            raise ProtocolError(message)
        self._output += encode_error(option, reply, message)

    def _take_pending(self) -> _Pending:
        pending, self._pending = self._pending, None
        assert pending is not None
        return pending

    def _take_client_flags(self) -> bool:
        if len(self._input) < _CLIENT_FLAGS_BYTES:
            return False
        flags = int.from_bytes(self._input[:_CLIENT_FLAGS_BYTES])
        del self._input[:_CLIENT_FLAGS_BYTES]
        if flags == REQUEST_MAGIC:
            raise ProtocolError("client speaks oldstyle NBD, which is not served; update it")
        if flags & ~_KNOWN_FLAGS:
            raise ProtocolError(f"unknown client flags: flags={flags:#x}")
        self._no_zeroes = bool(flags & HandshakeFlag.NO_ZEROES)
        self.greeted = True
        return True

    def _take_option(self) -> tuple[int, bytes] | None:
        if len(self._input) < OPTION_HEADER.size:
            return None
        magic, option, length = OPTION_HEADER.unpack_from(self._input)
        if magic != OPTION_MAGIC:
            raise ProtocolError(f"bad option magic: magic={magic:#x}")
        if length > self._option_bytes_max:
            raise ProtocolError(f"option is too long: option={option} bytes={length}")
        if not self._options_left:
            raise ProtocolError("too many options")
        end = OPTION_HEADER.size + length
        if len(self._input) < end:
            return None
        self._options_left -= 1
        data = bytes(self._input[OPTION_HEADER.size : end])
        del self._input[:end]
        return option, data

    def _dispatch(self, option: int, data: bytes) -> Event | None:
        handler = self._handlers.get(option)
        try:
            if self.shutting_down and option != Option.ABORT:
                raise OptionError(OptionReply.ERR_SHUTDOWN, "server is shutting down")
            if self._tls is Tls.REQUIRE and not self._is_secure and option not in _BEFORE_TLS:
                raise OptionError(OptionReply.ERR_TLS_REQD, "begin TLS first")
            if handler is None:
                raise OptionError(OptionReply.ERR_UNSUP, f"unsupported option: option={option}")
            return handler(data)
        except OptionError as refusal:
            if option == Option.EXPORT_NAME:
                raise ProtocolError(str(refusal)) from None
            self._output += encode_error(option, refusal.reply, str(refusal))
            return None

    def _on_export_name(self, data: bytes) -> Event:
        if self.extended:
            raise ProtocolError("EXPORT_NAME after extended headers; use GO")
        name = decode_name(data)
        self._pending = _Pending(Option.EXPORT_NAME)
        return ExportRequest(name, enter=True)

    def _on_abort(self, _: bytes) -> Event:
        self._output += encode_reply(Option.ABORT, OptionReply.ACK)
        self._ended = True
        return Ended()

    def _on_list(self, data: bytes) -> Event:
        if data:
            raise OptionError(OptionReply.ERR_INVALID, "LIST takes no data")
        self._pending = _Pending(Option.LIST)
        return ListRequest()

    def _on_info(self, option: Option, data: bytes) -> Event:
        name, kinds = decode_info_request(data)
        self._pending = _Pending(option, kinds)
        return ExportRequest(name, enter=option == Option.GO)

    def _on_structured_reply(self, data: bytes) -> None:
        if data:
            raise OptionError(OptionReply.ERR_INVALID, "STRUCTURED_REPLY takes no data")
        if self.extended:
            raise OptionError(
                OptionReply.ERR_EXT_HEADER_REQD, "extended headers were agreed, with their replies"
            )
        self.structured = True
        self._output += encode_reply(Option.STRUCTURED_REPLY, OptionReply.ACK)

    def _on_extended_headers(self, data: bytes) -> None:
        if data:
            raise OptionError(OptionReply.ERR_INVALID, "EXTENDED_HEADERS takes no data")
        if self.extended:
            raise OptionError(OptionReply.ERR_INVALID, "extended headers were agreed before")
        self.structured = self.extended = True
        self._output += encode_reply(Option.EXTENDED_HEADERS, OptionReply.ACK)

    def _on_contexts(self, data: bytes, *, select: bool) -> Event:
        if select:
            self.contexts = {}  # also when the new selection fails
        if not self.structured:
            raise OptionError(OptionReply.ERR_INVALID, "ask for structured replies first")
        query = decode_query(data)
        option = Option.SET_META_CONTEXT if select else Option.LIST_META_CONTEXT
        self._pending = _Pending(option, query=query)
        return ContextRequest(query.export, select)

    def _on_starttls(self, data: bytes) -> Event:
        if data:
            raise OptionError(OptionReply.ERR_INVALID, "STARTTLS takes no data")
        if self._is_secure:
            raise OptionError(OptionReply.ERR_INVALID, "TLS was begun before")
        if self._input:
            # An attacker between client and server could have put it there (CVE-2021-3716).
            raise ProtocolError("data in plain text behind STARTTLS")
        self._output += encode_reply(Option.STARTTLS, OptionReply.ACK)
        return StartTls()
