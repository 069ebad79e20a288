"""Decisions of a client in negotiation: options to send, checks of the answers. No I/O of its own.

The client asks for extended headers, then for structured replies if the server has no extended
headers, and uses simple replies if it has neither; it enters by GO, or by EXPORT_NAME where GO is
unknown. All that a server says is checked here once, so that other modules can rely on it.
"""

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from nbd.client.handshake import Answer
from nbd.constants import STRING_BYTES_MAX, ExportFlag, Info, Option, OptionReply
from nbd.errors import ProtocolError, RefusedError, TlsError, UnknownExportError

SIZE_BYTES_MAX = (1 << 63) - 1
"""Largest export: file offsets end there."""
BLOCK_BYTES_MAX = 64 << 10
"""Largest minimum block that a server may demand ("Size constraints")."""
PAYLOAD_BYTES_DEFAULT = 32 << 20
"""Longest payload that a server without a stated limit is expected to take."""
CONTEXTS_MAX = 256
"""Contexts that a server may select; it has a few."""
LISTED_CONTEXTS_MAX = 16 << 10
"""Contexts that a server may list: some have one for each of a thousand snapshots."""

_EXPORT = struct.Struct(">HQH")
_BLOCK_SIZE = struct.Struct(">HIII")
_WANTED = (Info.NAME, Info.DESCRIPTION, Info.BLOCK_SIZE)


class Mode(Enum):
    """The form of requests and replies."""

    SIMPLE = "simple"
    STRUCTURED = "structured"
    EXTENDED = "extended"


@dataclass(frozen=True, slots=True)
class RemoteExport:
    """A server's description of an export, checked.

    `block_bytes`: the grain of requests. `payload_bytes_max`: the longest READ or WRITE.
    `contexts`: the metadata contexts on offer; known only where they were asked for.
    """

    name: str
    size_bytes: int
    flags: ExportFlag
    description: str = ""
    block_bytes: int = 1
    preferred_bytes: int = 4096
    payload_bytes_max: int = PAYLOAD_BYTES_DEFAULT
    contexts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Agreement:
    """The outcome of a negotiation; `contexts`: the selected metadata contexts, by number."""

    export: RemoteExport
    mode: Mode
    contexts: Mapping[int, str] = field(default_factory=dict)


class Talk(Protocol):
    """A negotiation after the greeting, within TLS where that was asked for."""

    fixed: bool
    """Whether the server knows options besides EXPORT_NAME."""

    async def ask(self, option: Option, data: bytes = b"") -> Answer:
        """Send an option and return the answer. Raises ProtocolError, OSError."""

    async def ask_export_name(self, name: bytes) -> tuple[int, int]:
        """Send EXPORT_NAME and return size and flags. Raises ProtocolError, OSError."""


async def enter(
    talk: Talk, name: str, *, extended: bool, contexts: Sequence[str] = ()
) -> Agreement:
    """Negotiate the form of replies and enter an export.

    Raises:
        UnknownExportError: there is no such export.
        TlsError: the server demands TLS for it.
        RefusedError: the server refuses it.
        ProtocolError: an answer of the server is malformed or impossible.
    """
    if not talk.fixed:
        return await _enter_by_name(talk, name, Mode.SIMPLE, {})
    mode = await agree_on_mode(talk, extended=extended)
    selected: dict[int, str] = {}
    if mode is not Mode.SIMPLE and contexts:
        selected = await _select(talk, name, contexts)
    answer = await talk.ask(Option.GO, _info_request(name))
    if answer.final == OptionReply.ERR_UNSUP and mode is not Mode.EXTENDED:
        return await _enter_by_name(talk, name, mode, selected)
    check(answer, name)
    return Agreement(decode_export(name, answer), mode, selected)


async def agree_on_mode(talk: Talk, *, extended: bool) -> Mode:
    """Agree on the newest form of headers and replies that both sides know."""
    wanted = [(Option.EXTENDED_HEADERS, Mode.EXTENDED)] if extended else []
    for option, mode in [*wanted, (Option.STRUCTURED_REPLY, Mode.STRUCTURED)]:
        answer = await talk.ask(option)
        if answer.accepted:
            return mode
        if answer.final in (OptionReply.ERR_TLS_REQD, OptionReply.ERR_SHUTDOWN):
            check(answer, "")
    return Mode.SIMPLE


async def list_exports(talk: Talk) -> list[str]:
    """Return the names of all exports. Raises as `enter`."""
    answer = await talk.ask(Option.LIST)
    check(answer, "")
    names = []
    for kind, data in answer.replies:
        end = 4 + int.from_bytes(data[:4])
        if kind != OptionReply.SERVER or end > len(data):
            raise ProtocolError(f"bad entry in a list of exports: type={kind} bytes={len(data)}")
        names.append(_text(data[4:end], "export name"))
    return names


async def inspect(talk: Talk, name: str, *, contexts: bool) -> RemoteExport | None:
    """Ask about an export without entering it; None if the server cannot tell. Raises as `enter`.

    Args:
        contexts: also ask for its metadata contexts; needs structured replies.
    """
    answer = await talk.ask(Option.INFO, _info_request(name))
    if answer.final == OptionReply.ERR_UNSUP:
        return None
    check(answer, name)
    offered: Iterable[str] = ()
    if contexts:
        listed = await talk.ask(Option.LIST_META_CONTEXT, _context_request(name, ()))
        if listed.accepted:
            offered = _decode_contexts(listed, unique=False).values()
    return decode_export(name, answer, tuple(offered))


def check(answer: Answer, name: str) -> None:
    """Raise the error for a refused option; `name` is the export in question."""
    if answer.accepted:
        return
    if answer.final == OptionReply.ERR_UNKNOWN:
        raise UnknownExportError(f"server has no such export: name={name!r}")
    if answer.final == OptionReply.ERR_TLS_REQD:
        raise TlsError("server demands TLS; use nbds:// or nbds+unix://")
    raise RefusedError(f"server refuses: name={name!r} reason={answer.reason()}")


def decode_export(name: str, answer: Answer, contexts: tuple[str, ...] = ()) -> RemoteExport:
    """Decode the answer to INFO or GO. Raises ProtocolError."""
    size_and_flags: tuple[int, ...] = ()
    sizes: tuple[int, ...] = (1, 4096, PAYLOAD_BYTES_DEFAULT)
    texts = {Info.NAME: name, Info.DESCRIPTION: ""}
    for reply, data in answer.replies:
        if reply != OptionReply.INFO or len(data) < 2:
            raise ProtocolError(f"bad information about an export: type={reply}")
        kind = int.from_bytes(data[:2])
        if kind == Info.EXPORT:
            size_and_flags = _unpack(_EXPORT, data)[1:]
        elif kind == Info.BLOCK_SIZE:
            sizes = _unpack(_BLOCK_SIZE, data)[1:]
        elif kind in (Info.NAME, Info.DESCRIPTION):
            texts[Info(kind)] = _text(data[2:], "text about an export")
    if not size_and_flags:
        raise ProtocolError("server accepts an export without saying its size")
    size_bytes, flags = size_and_flags
    return _checked(texts[Info.NAME], size_bytes, flags, texts[Info.DESCRIPTION], sizes, contexts)


async def _enter_by_name(
    talk: Talk, name: str, mode: Mode, contexts: Mapping[int, str]
) -> Agreement:
    size_bytes, flags = await talk.ask_export_name(name.encode())
    sizes = (1, 4096, PAYLOAD_BYTES_DEFAULT)
    return Agreement(_checked(name, size_bytes, flags, "", sizes, ()), mode, contexts)


def _checked(
    name: str,
    size_bytes: int,
    flags: int,
    description: str,
    sizes: tuple[int, ...],
    contexts: tuple[str, ...],
) -> RemoteExport:
    minimum, preferred, longest = sizes
    if size_bytes > SIZE_BYTES_MAX:
        raise ProtocolError(f"export is impossibly large: size={size_bytes}")
    if not flags & ExportFlag.HAS_FLAGS:
        raise ProtocolError(f"flags of the export are not valid: flags={flags:#x}")
    if minimum & (minimum - 1) or not 1 <= minimum <= BLOCK_BYTES_MAX:
        raise ProtocolError(f"not a smallest block: bytes={minimum}")
    if longest < max(minimum, preferred):
        raise ProtocolError(f"longest payload is below a block: bytes={longest} block={preferred}")
    return RemoteExport(
        name,
        size_bytes,
        ExportFlag(flags & sum(ExportFlag)),
        description,
        minimum,
        max(preferred, minimum),
        longest,
        contexts,
    )


async def _select(talk: Talk, name: str, contexts: Sequence[str]) -> dict[int, str]:
    """Return the contexts that the server selected, by number; none if it refuses."""
    answer = await talk.ask(Option.SET_META_CONTEXT, _context_request(name, contexts))
    return _decode_contexts(answer, unique=True) if answer.accepted else {}


def _decode_contexts(answer: Answer, *, unique: bool) -> dict[int, str]:
    found: dict[int, str] = {}
    names = set[str]()
    for kind, data in answer.replies:
        number = int.from_bytes(data[:4])
        if kind != OptionReply.META_CONTEXT or len(data) < 5:
            raise ProtocolError(f"bad metadata context: type={kind} bytes={len(data)}")
        if len(found) >= (CONTEXTS_MAX if unique else LISTED_CONTEXTS_MAX):
            raise ProtocolError("too many metadata contexts")
        if not unique:
            number = len(found)  # a list needs no numbers, and may have all zeroes
        elif number in found:
            raise ProtocolError(f"two metadata contexts with one number: number={number}")
        context = _text(data[4:], "metadata context")
        if context in names:
            raise ProtocolError(f"metadata context is named twice: context={context!r}")
        names.add(context)
        found[number] = context
    return found


def _info_request(name: str) -> bytes:
    raw = name.encode()
    return struct.pack(f">I{len(raw)}sH{len(_WANTED)}H", len(raw), raw, len(_WANTED), *_WANTED)


def _context_request(name: str, queries: Sequence[str]) -> bytes:
    parts = [_string(name), len(queries).to_bytes(4), *(_string(query) for query in queries)]
    return b"".join(parts)


def _string(text: str) -> bytes:
    raw = text.encode()
    return len(raw).to_bytes(4) + raw


def _unpack(form: struct.Struct, data: bytes) -> tuple[int, ...]:
    if len(data) != form.size:
        raise ProtocolError(f"information has the wrong size: bytes={len(data)}")
    return form.unpack(data)


def _text(raw: bytes, what: str) -> str:
    if len(raw) > STRING_BYTES_MAX or b"\0" in raw:
        raise ProtocolError(f"{what} has a NUL, or over {STRING_BYTES_MAX} bytes")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise ProtocolError(f"{what} is not UTF-8") from None
