"""Makes streams that a client might send, and broken forms of them, from a `random.Random`.

Hypothesis can play the random generator, or a seed: one generator serves both.
"""

import random
import struct
from collections.abc import Callable

from tests.fuzz.nbd_reading import (
    BASE,
    EXPORT_NAME,
    EXTENDED,
    GO,
    INFO,
    LIST,
    LIST_META,
    NAMES,
    SECRET,
    SET_META,
    STARTTLS,
    STRUCTURED,
)

EXTREMES = (0, 1, 2, 255, 4096, 65535, 65536, 1 << 20, 1 << 25, 1 << 31, (1 << 32) - 1)
SIZE_BYTES = 1 << 20
"""Size of the exports; offsets and lengths lie around it."""
PAYLOAD_MAX = 300_000
"""Longest payload that the modelled server takes; more than it receives at once."""
WORDS = (b"IHAVEOPT", b"NBDMAGIC", b"\x25\x60\x95\x13", b"\x21\xe4\x1c\x71", BASE, b"\xff" * 8)
QUERIES = (BASE, b"base:", b"base:nothing", b"x:y", b"", b"\xff\xfe", b"qemu:dirty-bitmap:b")


def option(number: int, data: bytes = b"") -> bytes:
    return b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data


THERE = struct.pack(">I", len(NAMES[1])) + NAMES[1]
GO_THERE = option(GO, THERE + b"\0\0")
SELECT = THERE + struct.pack(">II", 1, len(BASE)) + BASE


def some_name(rng: random.Random) -> bytes:
    if rng.random() < 0.7:
        return rng.choice(NAMES)
    return rng.choice((SECRET, b"nope", b"n" * 257, b"n" * 4096, b"n" * 4097, b"a\0b", b"\xff"))


def info_data(rng: random.Random) -> bytes:
    name, kinds = (
        some_name(rng),
        [rng.choice((0, 1, 2, 3, 4, 65535)) for _ in range(rng.choice((0, 1, 4)))],
    )
    return struct.pack(">I", len(name)) + name + struct.pack(f">H{len(kinds)}H", len(kinds), *kinds)


def meta_data(rng: random.Random) -> bytes:
    queries = [rng.choice(QUERIES) for _ in range(rng.choice((0, 1, 1, 3)))]
    name = some_name(rng)
    strings = b"".join(struct.pack(">I", len(one)) + one for one in queries)
    return struct.pack(">I", len(name)) + name + struct.pack(">I", len(queries)) + strings


_DATA: dict[int, Callable[[random.Random], bytes]] = {
    EXPORT_NAME: some_name,
    INFO: info_data,
    GO: info_data,
    LIST_META: meta_data,
    SET_META: meta_data,
}
_USUAL = (LIST, INFO, STRUCTURED, STRUCTURED, LIST_META, SET_META, SET_META, EXTENDED, STARTTLS)
_RARE = (*_DATA, 2, 0, 4, 12, 99, (1 << 32) - 1)


def some_option(rng: random.Random, number: int | None = None) -> bytes:
    """Return an option with data of its own kind, of another kind, or of no kind."""
    if number is None:
        number = rng.choice(_USUAL if rng.random() < 0.8 else _RARE)
    likely = rng.random()
    if likely < 0.8:
        make = _DATA.get(number)
        return option(number, make(rng) if make else b"")
    if likely < 0.9:
        return option(number, rng.choice(list(_DATA.values()))(rng))
    return option(number, rng.randbytes(rng.choice((1, 5, 6, 40))))


def haggling(rng: random.Random) -> list[bytes]:
    """Return flags and options, mostly up to an option that begins transmission."""
    flags = 3 if rng.random() < 0.9 else rng.choice((0, 1, 2, 4, 7, 1 << 31))
    messages = [flags.to_bytes(4)]
    messages += [some_option(rng) for _ in range(rng.choice((0, 1, 2, 3, 6)))]
    if rng.random() < 0.1:  # options whose effect must end when TLS begins
        return [*messages, option(STRUCTURED), option(SET_META, SELECT), option(STARTTLS), GO_THERE]
    if rng.random() < 0.8:
        messages.append(some_option(rng, rng.choice((GO, GO, GO, EXPORT_NAME))))
    return messages


KINDS = (0, 0, 0, 1, 1, 1, 2, 3, 4, 5, 6, 7, 7)
LENGTHS = (0, 1, 512, 4096, 9000, 70_000, SIZE_BYTES)
OFFSETS = (0, 1, 4096, SIZE_BYTES // 2, SIZE_BYTES - 4096, SIZE_BYTES, 1 << 63, (1 << 64) - 1)


def some_request(rng: random.Random, extended: bool) -> bytes:
    """Return a request that may be refused, with the payload that it announces."""
    kind = rng.choice(KINDS) if rng.random() < 0.95 else rng.getrandbits(16)
    flags = 0 if rng.random() < 0.6 else rng.choice((1, 2, 4, 8, 16, 32, rng.getrandbits(16)))
    if extended and kind == 1 and rng.random() < 0.9:
        flags |= 32
    length, payload = rng.choice((*LENGTHS, rng.choice(EXTREMES))), b""
    if (flags & 32 if extended else kind == 1) and rng.random() < 0.95:
        length = rng.choice((0, 1, 12, 512, 4096, 5000, 70_000))
        payload = some_payload(rng, kind, length)
    elif extended and rng.random() < 0.05:
        length = rng.choice((1 << 32, 1 << 40, (1 << 64) - 1))
    form, magic = (">IHHQQQ", 0x21E41C71) if extended else (">IHHQQI", 0x25609513)
    cookie, offset = rng.getrandbits(64), rng.choice(OFFSETS)
    return struct.pack(form, magic, flags, kind, cookie, offset, length) + payload


def some_payload(rng: random.Random, kind: int, length: int) -> bytes:
    if kind == 7 and length == 12:
        return struct.pack(">QI", rng.choice((4096, SIZE_BYTES, 1 << 63)), rng.choice((0, 0, 1, 7)))
    return bytes([rng.getrandbits(8)]) * length


def requests(rng: random.Random, extended: bool) -> list[bytes]:
    """Return a few requests; seldom more than a buffer holds, or one with a payload too long."""
    seldom = rng.random()
    if seldom < 0.01:
        return [some_request(rng, extended) for _ in range(50)]
    found = [some_request(rng, extended) for _ in range(rng.choice((1, 2, 4, 9)))]
    if seldom < 0.02 and not extended:
        length = rng.choice((PAYLOAD_MAX, PAYLOAD_MAX + 1, PAYLOAD_MAX + 70_000))
        head = struct.pack(">IHHQQI", 0x25609513, 0, 1, rng.getrandbits(64), 0, length)
        found.insert(rng.randint(0, len(found)), head + bytes(length))
    return found


def conversation(rng: random.Random) -> list[bytes]:
    """Return the messages of a whole conversation, mostly one that reaches transmission."""
    if rng.random() < 0.5:
        return haggling(rng) + requests(rng, rng.random() < 0.2)
    extended = rng.random() < 0.5
    messages = [b"\0\0\0\3"]
    if rng.random() < 0.8:
        messages += [option(EXTENDED if extended else STRUCTURED), option(SET_META, SELECT)]
    messages.append(GO_THERE)
    return messages + requests(rng, extended)


# -- breaking


def spoil(rng: random.Random, messages: list[bytes]) -> bytes:
    """Break a conversation in a few places, or now and then leave it right; return its bytes."""
    messages = list(messages)
    for _ in range(rng.choice((0, 1, 1, 2))):
        if messages:
            rng.choice(_MESSAGE_TRICKS)(rng, messages)
    stream = bytearray(b"".join(messages))
    for _ in range(rng.choice((0, 0, 1, 1, 3))):
        if stream:
            rng.choice(_BYTE_TRICKS)(rng, stream)
    return bytes(stream)


def _place(rng: random.Random, items: list[bytes] | bytearray) -> int:
    return rng.randrange(len(items))


def _drop(rng: random.Random, messages: list[bytes]) -> None:
    del messages[_place(rng, messages)]


def _double(rng: random.Random, messages: list[bytes]) -> None:
    at = _place(rng, messages)
    messages[at:at] = [messages[at]] * rng.choice((1, 1, 30))


def _swap(rng: random.Random, messages: list[bytes]) -> None:
    one, two = _place(rng, messages), _place(rng, messages)
    messages[one], messages[two] = messages[two], messages[one]


def _cut_within(rng: random.Random, messages: list[bytes]) -> None:
    at = _place(rng, messages)
    messages[at] = messages[at][: rng.randint(0, len(messages[at]))]


def _insert(rng: random.Random, messages: list[bytes]) -> None:
    maker: Callable[[random.Random], bytes] = rng.choice(
        (
            some_option,
            lambda rng: some_request(rng, False),
            lambda rng: some_request(rng, True),
            lambda rng: rng.randbytes(rng.choice((1, 16, 28, 200))),
            lambda rng: b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        )
    )
    messages.insert(rng.randint(0, len(messages)), maker(rng))


def _lie_about_length(rng: random.Random, messages: list[bytes]) -> None:
    """Change a length field: options and requests have one near the end of their head."""
    at = _place(rng, messages)
    message = bytearray(messages[at])
    where = rng.choice((12, 16, 20, 24, 28))
    if len(message) >= where + 4:
        message[where : where + 4] = rng.choice(EXTREMES).to_bytes(4)
        messages[at] = bytes(message)


def _flip(rng: random.Random, stream: bytearray) -> None:
    stream[_place(rng, stream)] ^= 1 << rng.randrange(8)


def _overwrite(rng: random.Random, stream: bytearray) -> None:
    at, word = _place(rng, stream), rng.choice((*WORDS, rng.randbytes(4)))
    stream[at : at + len(word)] = word


def _remove(rng: random.Random, stream: bytearray) -> None:
    at = _place(rng, stream)
    del stream[at : at + rng.choice((1, 1, 4, 8, 50))]


def _truncate(rng: random.Random, stream: bytearray) -> None:
    del stream[_place(rng, stream) :]


def _append(rng: random.Random, stream: bytearray) -> None:
    stream += rng.choice((*WORDS, rng.randbytes(60)))


_MESSAGE_TRICKS = (_drop, _double, _swap, _cut_within, _insert, _lie_about_length)
_BYTE_TRICKS = (_flip, _overwrite, _remove, _truncate, _append)


def pieces(rng: random.Random, stream: bytes) -> list[bytes]:
    """Cut a stream into pieces as a network might."""
    likely = rng.random()
    if likely < 0.3:
        return [stream]
    if likely < 0.5:  # as a client that waits for each answer
        return [b"IHAVEOPT" * bool(n) + one for n, one in enumerate(stream.split(b"IHAVEOPT"))]
    size = (
        rng.choice((1, 3, 16, 28, 100, 5000)) if len(stream) < 3000 else rng.choice((1000, 30_000))
    )
    return [stream[at : at + size] for at in range(0, len(stream), size)]
