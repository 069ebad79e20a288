"""A second parser of clients' bytes, written from the protocol, not from `nbd`.

A `Haggle` reads options and says which kinds of replies are due, `read_requests` reads requests.
Both note malformed input (`wrong`; `closed` and `cut`), so that a fuzzer can count it honestly.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from nbd.server.handshake import Tls

EXPORT_NAME, ABORT, LIST, STARTTLS, INFO, GO, STRUCTURED, LIST_META, SET_META, EXTENDED = (
    1, 2, 3, 5, 6, 7, 8, 9, 10, 11,
)  # fmt: skip
ACK, SERVER, INFO_REPLY, META_CONTEXT = 1, 2, 3, 4
UNSUP, POLICY, INVALID, TLS_REQD, UNKNOWN, SHUTDOWN, TOO_BIG, EXT_REQD = (
    1 << 31 | code for code in (1, 2, 3, 5, 6, 7, 9, 10)
)
BASE = b"base:allocation"
NAMES = (b"", b"vm", "naïve".encode())
"""Exports of the modelled server; its rules deny one more export, `SECRET`, to every client."""
SECRET = b"secret"
OPTION_BYTES_MAX, OPTIONS_MAX, NAME_BYTES_MAX = 64 << 10, 1024, 4096


class End(Enum):
    """The state in which a negotiation ended."""

    OPEN = "waits for more"
    CLOSED = "only closing answers this"
    ABORTED = "goodbye"
    ENTERED = "requests follow"


class WrongError(Exception):
    """An option deserves this error."""

    def __init__(self, code: int) -> None:
        self.code = code


class CloseError(Exception):
    """The server can only answer this input by closing."""


@dataclass
class Haggle:
    """Reads the bytes of a client's negotiation, in the pieces in which they arrive.

    `replies` are the options and kinds of replies due so far; the answer to EXPORT_NAME, which is
    no option reply, has kind 0.
    """

    policy: Tls = Tls.OFF
    shutting_down: bool = False
    secure: bool = False
    structured: bool = False
    extended: bool = False
    selected: bytes | None = None
    """The export for which base:allocation was selected."""
    entered: bytes = b""
    end: End = End.OPEN
    wrong: bool = False
    replies: list[tuple[int, int]] = field(default_factory=list)
    rest: bytes = b""
    _greeted: bool = False
    _options: int = 0

    def receive(self, data: bytes) -> bool:
        """Read a piece; return whether TLS begins here, which needs `begin_tls`."""
        self.rest += data
        try:
            if not self._greeted:
                if len(self.rest) < 4:
                    return False
                if int.from_bytes(self.rest[:4]) > 3:
                    raise CloseError
                self._greeted, self.rest = True, self.rest[4:]
            while self.end is End.OPEN and (option := self._next()) is not None:
                if self._answer(*option):
                    return True
        except CloseError:
            self.wrong, self.end = True, End.CLOSED
        return False

    def begin_tls(self) -> None:
        self.secure, self.structured, self.extended, self.selected = True, False, False, None

    def contexts(self) -> bool:
        """Whether the client may ask for block status."""
        return self.end is End.ENTERED and self.selected == self.entered

    def _next(self) -> tuple[int, bytes] | None:
        if len(self.rest) < 16:
            return None
        magic, number, length = struct.unpack(">8sII", self.rest[:16])
        if magic != b"IHAVEOPT" or length > OPTION_BYTES_MAX or self._options == OPTIONS_MAX:
            raise CloseError
        if len(self.rest) < 16 + length:
            return None
        self._options += 1
        data, self.rest = self.rest[16 : 16 + length], self.rest[16 + length :]
        return number, data

    def _answer(self, number: int, data: bytes) -> bool:
        try:
            if self.shutting_down and number != ABORT:
                raise WrongError(SHUTDOWN)
            if self.policy is Tls.REQUIRE and not self.secure and number not in (STARTTLS, ABORT):
                raise WrongError(TLS_REQD)
            if number == STARTTLS:
                return self._starttls(data)
            handlers: dict[int, Callable[[bytes], list[int]]] = {
                EXPORT_NAME: self._export_name,
                ABORT: self._abort,
                LIST: self._list,
                INFO: lambda data: self._info(data, enter=False),
                GO: lambda data: self._info(data, enter=True),
                STRUCTURED: self._structured,
                EXTENDED: self._extended,
                LIST_META: lambda data: self._meta(data, select=False),
                SET_META: lambda data: self._meta(data, select=True),
            }
            if number not in handlers:
                raise WrongError(UNSUP)
            self.replies += [(number, kind) for kind in handlers[number](data)]
        except WrongError as error:
            self.wrong = True
            if number == EXPORT_NAME:
                raise CloseError from None
            self.replies.append((number, error.code))
        return False

    def _export(self, name: bytes) -> bytes:
        if len(name) > NAME_BYTES_MAX:
            raise WrongError(TOO_BIG)
        try:
            if "\0" in name.decode():
                raise WrongError(INVALID)
        except UnicodeDecodeError:
            raise WrongError(INVALID) from None
        return name

    def _known(self, name: bytes) -> bytes:
        if name == SECRET:
            raise WrongError(POLICY)
        if name not in NAMES:
            raise WrongError(UNKNOWN)
        return name

    def _enter(self, name: bytes) -> None:
        self.entered, self.end = name, End.ENTERED

    def _export_name(self, data: bytes) -> list[int]:
        if self.extended:
            raise CloseError
        self._enter(self._known(self._export(data)))
        return [0]

    def _abort(self, _: bytes) -> list[int]:
        self.end = End.ABORTED
        return [ACK]

    def _list(self, data: bytes) -> list[int]:
        if data:
            raise WrongError(INVALID)
        return [SERVER] * len(NAMES) + [ACK]

    def _info(self, data: bytes, *, enter: bool) -> list[int]:
        length = int.from_bytes(data[:4])
        if len(data) < 6 or 4 + length + 2 > len(data):
            raise WrongError(INVALID)
        name, kinds = data[4 : 4 + length], data[4 + length :]
        if len(kinds) != 2 + 2 * int.from_bytes(kinds[:2]):
            raise WrongError(INVALID)
        asked = {int.from_bytes(kinds[at : at + 2]) for at in range(2, len(kinds), 2)}
        known = self._known(self._export(name))
        if enter:
            self._enter(known)
        # EXPORT and BLOCK_SIZE come always, name and description when asked for.
        return [INFO_REPLY] * (2 + len(asked & {1, 2})) + [ACK]

    def _structured(self, data: bytes) -> list[int]:
        if data:
            raise WrongError(INVALID)
        if self.extended:
            raise WrongError(EXT_REQD)
        self.structured = True
        return [ACK]

    def _extended(self, data: bytes) -> list[int]:
        if data or self.extended:
            raise WrongError(INVALID)
        self.structured = self.extended = True
        return [ACK]

    def _meta(self, data: bytes, *, select: bool) -> list[int]:
        if select:
            self.selected = None
        if not self.structured:
            raise WrongError(INVALID)
        strings: list[bytes] = []
        count, at = 1, 0
        while len(strings) < count:
            length = int.from_bytes(data[at : at + 4])
            if at + 4 + length > len(data):
                raise WrongError(INVALID)
            strings.append(data[at + 4 : at + 4 + length])
            at += 4 + length
            if len(strings) == 1:
                self._export(strings[0])
                if at + 4 > len(data):
                    raise WrongError(INVALID)
                count += int.from_bytes(data[at : at + 4])
                at += 4
        if at != len(data):
            raise WrongError(INVALID)
        name, queries = self._known(strings[0]), strings[1:]
        found = BASE in queries or (not select and (not queries or b"base:" in queries))
        if select and found:
            self.selected = name
        return [META_CONTEXT] * found + [ACK]

    def _starttls(self, data: bytes) -> bool:
        if self.policy is Tls.OFF:
            raise WrongError(UNSUP)
        if data or self.secure:
            raise WrongError(INVALID)
        if self.rest:
            raise CloseError
        self.replies.append((STARTTLS, ACK))
        return True


@dataclass(frozen=True)
class Asked:
    """A whole request; `payload` is None where it was too long to keep."""

    flags: int
    kind: int
    cookie: int
    offset: int
    length: int
    payload: bytes | None = b""


@dataclass
class Requests:
    """The requests in a stream; `closed` when the server can only answer it by closing."""

    whole: list[Asked] = field(default_factory=list)
    closed: bool = False
    cut: bool = False
    """Whether the stream ends within a request."""


def read_requests(stream: bytes, *, extended: bool, payload_max: int) -> Requests:
    """Read a stream of requests from its beginning."""
    form, expected = (">IHHQQQ", 0x21E41C71) if extended else (">IHHQQI", 0x25609513)
    size, at, found = struct.calcsize(form), 0, Requests()
    while len(stream) - at >= size:
        magic, flags, kind, cookie, offset, length = struct.unpack_from(form, stream, at)
        if magic != expected:
            found.closed = True
            return found
        at += size
        payload: bytes | None = b""
        if flags & 32 if extended else kind == 1:
            if length > payload_max and extended:
                found.closed = True
                return found
            if len(stream) - at < length:
                found.cut = True
                return found
            payload = stream[at : at + length] if length <= payload_max else None
            at += length
        found.whole.append(Asked(flags, kind, cookie, offset, length, payload))
    found.cut = at < len(stream)
    return found
