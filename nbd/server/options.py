"""Negotiation payloads: decoding of options, encoding of their replies. No state.

Source: NBD proto.md, "Option types" and "Option reply types". Big-endian; sizes in bytes.

    option                        reply
    offset  size  field           offset  size  field
         0     8  magic                0     8  magic
         8     4  option               8     4  option, echoed
        12     4  data length         12     4  type
        16     -  data                16     4  data length
                                      20     -  data
"""

import struct
from dataclasses import dataclass

from nbd.constants import (
    OPTION_HEADER,
    OPTION_REPLY_MAGIC,
    STRING_BYTES_MAX,
    ExportFlag,
    Info,
    OptionReply,
)

_REPLY_HEADER = struct.Struct(">QIII")
_INFO_EXPORT = struct.Struct(">HQH")
_INFO_BLOCK_SIZE = struct.Struct(">HIII")
_EXPORT_NAME_REPLY = struct.Struct(">QH")
_ZEROES = bytes(124)
assert OPTION_HEADER.size == 16
assert _REPLY_HEADER.size == 20
assert _INFO_EXPORT.size == 12


class OptionError(Exception):
    """An option cannot be answered as asked; negotiation goes on."""

    def __init__(self, reply: OptionReply, message: str) -> None:
        super().__init__(message)
        self.reply = reply


@dataclass(frozen=True, slots=True)
class ExportInfo:
    """Information about an export, for clients.

    `block_bytes_*`: the smallest request, the preferred one, and the longest payload.
    """

    name: str
    size_bytes: int
    flags: ExportFlag
    description: str = ""
    block_bytes_min: int = 1
    block_bytes_preferred: int = 4096
    block_bytes_max: int = 32 << 20

    def __post_init__(self) -> None:
        minimum = self.block_bytes_min
        assert minimum & (minimum - 1) == 0
        assert 1 <= minimum <= 1 << 16
        assert max(minimum, 512) <= self.block_bytes_preferred <= self.block_bytes_max


def decode_name(raw: bytes) -> str:
    """Decode an export name. Raises OptionError."""
    if len(raw) > STRING_BYTES_MAX:
        raise OptionError(OptionReply.ERR_TOO_BIG, f"export name is too long: bytes={len(raw)}")
    if b"\0" in raw:
        raise OptionError(OptionReply.ERR_INVALID, "export name contains NUL")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise OptionError(OptionReply.ERR_INVALID, "export name is not UTF-8") from None


def decode_info_request(data: bytes) -> tuple[str, frozenset[int]]:
    """Return the name and the information asked for by INFO or GO. Raises OptionError."""
    if len(data) < 6:
        raise OptionError(OptionReply.ERR_INVALID, f"option is too short: bytes={len(data)}")
    name_bytes = int.from_bytes(data[:4])
    if name_bytes > len(data) - 6:
        raise OptionError(
            OptionReply.ERR_INVALID, f"name overruns the option: name_bytes={name_bytes}"
        )
    kinds_at = 4 + name_bytes
    count = int.from_bytes(data[kinds_at : kinds_at + 2])
    if kinds_at + 2 + 2 * count != len(data):
        raise OptionError(
            OptionReply.ERR_INVALID, f"information requests do not fit the option: count={count}"
        )
    kinds = struct.unpack_from(f">{count}H", data, kinds_at + 2)
    return decode_name(data[4:kinds_at]), frozenset(kinds)


def encode_reply(option: int, reply: OptionReply, data: bytes = b"") -> bytes:
    """Return one option reply."""
    return _REPLY_HEADER.pack(OPTION_REPLY_MAGIC, option, reply, len(data)) + data


def encode_error(option: int, reply: OptionReply, message: str) -> bytes:
    """Return an error reply; the text is cut to the length that a peer must accept."""
    return encode_reply(option, reply, _text(message))


def encode_server(option: int, name: str) -> bytes:
    """Return one entry of a LIST answer."""
    raw = name.encode()
    return encode_reply(option, OptionReply.SERVER, len(raw).to_bytes(4) + raw)


def encode_infos(option: int, info: ExportInfo, kinds: frozenset[int]) -> bytes:
    """Return the INFO replies for INFO or GO: EXPORT always, the others as asked."""
    payloads = [_INFO_EXPORT.pack(Info.EXPORT, info.size_bytes, info.flags)]
    if Info.NAME in kinds:
        payloads.append(Info.NAME.to_bytes(2) + info.name.encode())
    if Info.DESCRIPTION in kinds and info.description:
        payloads.append(Info.DESCRIPTION.to_bytes(2) + _text(info.description))
    # Sent even when not asked for, as the protocol allows: many clients never ask.
    payloads.append(
        _INFO_BLOCK_SIZE.pack(
            Info.BLOCK_SIZE,
            info.block_bytes_min,
            info.block_bytes_preferred,
            info.block_bytes_max,
        )
    )
    return b"".join(encode_reply(option, OptionReply.INFO, payload) for payload in payloads)


def encode_export_name_reply(info: ExportInfo, *, no_zeroes: bool) -> bytes:
    """Return the answer to EXPORT_NAME: 10 bytes, or 134 for clients that want the zeroes."""
    reply = _EXPORT_NAME_REPLY.pack(info.size_bytes, info.flags)
    return reply if no_zeroes else reply + _ZEROES


def _text(message: str) -> bytes:
    raw = message.replace("\0", "?").encode(errors="replace")
    # The cut may fall inside a character: decoding and encoding again drops that character.
    return raw[:STRING_BYTES_MAX].decode(errors="ignore").encode()
