"""NBD negotiation, client side: bytes in, replies out, no I/O.

Source: NBD proto.md, "Fixed newstyle negotiation", "Option types", "Option reply
types". Big-endian; sizes in bytes; the tables of options and replies are in
`nbd.server.options`.

    greeting
    offset  size  field
         0     8  "NBDMAGIC"
         8     8  "IHAVEOPT"
        16     2  handshake flags

`nbd.client.negotiation` decides which options to send, and interprets the answers.
"""

import struct
from dataclasses import dataclass

from nbd.constants import (
    INIT_MAGIC,
    OPTION_HEADER,
    OPTION_MAGIC,
    OPTION_REPLY_MAGIC,
    HandshakeFlag,
    Option,
    OptionReply,
)
from nbd.errors import ProtocolError

REPLY_BYTES_MAX = 64 << 10
"""One option reply: a name of 4096 bytes and a description fit several times."""
ANSWER_BYTES_MAX = 16 << 20
"""All replies to one option: a list of some hundred thousand exports."""
ANSWER_REPLIES_MAX = 1 << 18
"""Replies to one option; each costs some hundred bytes of memory however short it is."""

_GREETING = struct.Struct(">QQH")
_REPLY_HEADER = struct.Struct(">QIII")
_OLDSTYLE_MAGIC = 0x00420281861253
_EXPORT_NAME_BYTES = 10
_ZEROES_BYTES = 124
_ERROR = 1 << 31
_KNOWN_FLAGS = int(HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES)
assert _GREETING.size == 18
assert _REPLY_HEADER.size == 20


@dataclass(frozen=True, slots=True)
class Answer:
    """The whole answer of a server to one option.

    `replies` are type and data of each reply before the final one; `final` is ACK or an error,
    and `text` the message of the error.
    """

    replies: tuple[tuple[int, bytes], ...]
    final: int
    text: str = ""

    @property
    def accepted(self) -> bool:
        """Whether the option succeeded."""
        return self.final == OptionReply.ACK

    def reason(self) -> str:
        """Return name and message of the error, for an option that failed."""
        try:
            name = OptionReply(self.final).name
        except ValueError:
            name = f"error {self.final:#x}"
        return f"{name}: {self.text}" if self.text else name


class ClientHandshake:
    """One negotiation: `receive` bytes, send `data_to_send`; one option at a time.

    The server greets first: wait for `greeted`, then `ask`, then wait for `answer`.
    """

    def __init__(self) -> None:
        self.fixed = False
        """Whether the server knows options besides EXPORT_NAME."""
        self._no_zeroes = False
        self._input = bytearray()
        self._output = bytearray()
        self._asked: Option | None = None
        self._replies: list[tuple[int, bytes]] = []
        self._answer_bytes = 0

    def receive(self, data: bytes) -> None:
        """Take bytes from the server."""
        self._input += data

    def data_to_send(self) -> bytes:
        """Return the bytes that must go to the server now; each is returned once."""
        data = bytes(self._output)
        self._output.clear()
        return data

    def trailing(self) -> bytes:
        """Return the bytes behind the last answer."""
        return bytes(self._input)

    def greeted(self) -> bool:
        """Return whether the greeting has arrived; it is answered then.

        Raises:
            ProtocolError: the bytes are no NBD greeting, or that of an oldstyle server.
        """
        if len(self._input) >= 8:
            (magic,) = struct.unpack_from(">Q", self._input)
            if magic != INIT_MAGIC:
                raise ProtocolError(f"not an NBD server: greeting={bytes(self._input[:8])!r}")
        if len(self._input) >= 16:
            (magic,) = struct.unpack_from(">Q", self._input, 8)
            if magic == _OLDSTYLE_MAGIC:
                raise ProtocolError("server speaks oldstyle NBD, which is too old; update it")
            if magic != OPTION_MAGIC:
                raise ProtocolError(f"bad greeting of the server: magic={magic:#x}")
        if len(self._input) < _GREETING.size:
            return False
        flags = _GREETING.unpack_from(self._input)[2]
        del self._input[: _GREETING.size]
        # Flags of newer protocols are not agreed to, and so change nothing.
        agreed = flags & _KNOWN_FLAGS
        self.fixed = bool(agreed & HandshakeFlag.FIXED_NEWSTYLE)
        self._no_zeroes = bool(agreed & HandshakeFlag.NO_ZEROES)
        self._output += agreed.to_bytes(4)
        return True

    def ask(self, option: Option, data: bytes = b"") -> None:
        """Queue an option to be sent."""
        assert self._asked is None
        self._asked = option
        self._output += OPTION_HEADER.pack(OPTION_MAGIC, option, len(data)) + data

    def answer(self) -> Answer | None:
        """Return the whole answer to the option, or None while more must be received.

        Raises:
            ProtocolError: the reply is to another option, malformed, or too long.
        """
        assert self._asked is not None
        assert self._asked != Option.EXPORT_NAME
        while True:
            reply = self._take_reply()
            if reply is None:
                return None
            kind, data = reply
            if kind != OptionReply.ACK and not kind & _ERROR:
                self._replies.append(reply)
                if len(self._replies) > ANSWER_REPLIES_MAX:
                    raise ProtocolError("answer has too many replies")
                continue
            if kind == OptionReply.ACK and data:
                raise ProtocolError(f"acknowledgement with data: bytes={len(data)}")
            answer = Answer(tuple(self._replies), kind, data.decode(errors="replace"))
            self._replies, self._answer_bytes, self._asked = [], 0, None
            return answer

    def export_answer(self) -> tuple[int, int] | None:
        """Return size and flags in answer to EXPORT_NAME, or None while more must be received."""
        assert self._asked == Option.EXPORT_NAME
        size = _EXPORT_NAME_BYTES + (0 if self._no_zeroes else _ZEROES_BYTES)
        if len(self._input) < size:
            return None
        size_bytes, flags = struct.unpack_from(">QH", self._input)
        del self._input[:size]
        self._asked = None
        return size_bytes, flags

    def _take_reply(self) -> tuple[int, bytes] | None:
        if len(self._input) < _REPLY_HEADER.size:
            return None
        magic, option, kind, length = _REPLY_HEADER.unpack_from(self._input)
        if magic != OPTION_REPLY_MAGIC:
            raise ProtocolError(f"bad magic of an option reply: magic={magic:#x}")
        if option != self._asked:
            raise ProtocolError(f"reply to another option: asked={self._asked} got={option}")
        if length > REPLY_BYTES_MAX or self._answer_bytes > ANSWER_BYTES_MAX:
            raise ProtocolError(f"answer is too long: option={option} bytes={length}")
        end = _REPLY_HEADER.size + length
        if len(self._input) < end:
            return None
        data = bytes(self._input[_REPLY_HEADER.size : end])
        del self._input[:end]
        self._answer_bytes += end
        return kind, data
