"""Block status, holes in reads, extended headers. Numbers in docstrings: docs/nbd.md."""

import struct
from pathlib import Path

import pytest

from blockdev.device import Extent
from blockdev.errors import UnsupportedError
from blockdev.memory import MemoryDevice
from tests.unit.nbd.devices import serving
from tests.unit.nbd.wire import (
    ACK,
    CACHE,
    DF,
    EINVAL,
    ENOTSUP,
    ERR_EXT_HEADER_REQD,
    ERR_INVALID,
    ERR_UNKNOWN,
    FAST_ZERO,
    FLUSH,
    META_CONTEXT,
    MIB,
    PAYLOAD_LEN,
    READ,
    REQ_ONE,
    STATUS,
    WRITE,
    ZEROES,
    RawClient,
    Running,
    extended_request,
    info_data,
    request,
    running,
    write,
)

KIB = 1 << 10
BASE = b"base:allocation"
DONE, NONE, DATA, HOLE, BLOCKS, BLOCKS_EXT, ERROR = 1, 0, 1, 2, 5, 6, 1 << 15 | 1


class Patchy(MemoryDevice):
    """Data and holes in turns of 64 KiB, reported at once."""

    def __init__(self, size_bytes: int = MIB) -> None:
        super().__init__(size_bytes)
        for at in range(0, size_bytes, 128 * KIB):
            super().try_write(at, b"d" * (64 * KIB))

    def try_extents(self, offset: int, length: int) -> list[Extent]:
        extents = []
        while length:
            run = min(length, 64 * KIB - offset % (64 * KIB))
            hole = bool(offset // (64 * KIB) % 2)
            extents.append(Extent(run, hole=hole, zero=hole))
            offset, length = offset + run, length - run
        return extents

    async def extents(self, offset: int, length: int) -> list[Extent]:
        return self.try_extents(offset, length)[:5]

    async def write_zeroes(self, offset: int, length: int, **how: bool) -> None:
        if how["fast"]:
            raise UnsupportedError("not fast")
        await super().write_zeroes(offset, length, **how)


def query(*queries: bytes, export: bytes = b"") -> bytes:
    strings = [struct.pack(">I", len(one)) + one for one in queries]
    head = struct.pack(">I", len(export)) + export + struct.pack(">I", len(queries))
    return head + b"".join(strings)


async def selecting(run: Running, *, extended: bool = False) -> RawClient:
    """Enter with structured replies or extended headers, and base:allocation selected."""
    client = await run.connect()
    await client.greet()
    assert await client.option(11 if extended else 8) == [(ACK, b"")]
    assert await client.option(10, query(BASE)) == [(META_CONTEXT, bytes(4) + BASE), (ACK, b"")]
    assert (await client.option(7, info_data(b"")))[-1] == (ACK, b"")
    return client


async def test_contexts_are_listed_and_selected(tmp_path: Path) -> None:
    """19 to 21."""
    async with running(tmp_path) as run:
        client = await run.connect()
        await client.greet()
        assert (await client.option(10, query(BASE)))[0][0] == ERR_INVALID  # not structured yet
        await client.option(8)
        found = [(META_CONTEXT, bytes(4) + BASE), (ACK, b"")]
        assert await client.option(9, query()) == found
        assert await client.option(9, query(b"base:")) == found
        assert await client.option(9, query(b"x:y", BASE, BASE, b"\xff")) == found
        assert await client.option(9, query(b"base:alloc")) == [(ACK, b"")]
        assert await client.option(10, query(BASE, b"qemu:dirty-bitmap:b")) == found
        assert await client.option(10, query(b"base:")) == [(ACK, b"")]
        assert await client.option(10, query()) == [(ACK, b"")]
        assert (await client.option(9, query(export=b"nope")))[0][0] == ERR_UNKNOWN
        for bad in (
            b"",
            query(BASE) + b"x",
            query(BASE)[:-1],
            struct.pack(">III", 0, 1, 2**32 - 1),
            struct.pack(">II", 2**32 - 1, 0),
            struct.pack(">II", 0, 2**32 - 1),
        ):
            assert (await client.option(10, bad))[0][0] == ERR_INVALID
            assert (await client.option(9, bad))[0][0] == ERR_INVALID


@pytest.mark.parametrize("spoil", [query(), query(BASE)[:-1], query(BASE, export=b"nope")])
async def test_a_failed_selection_selects_nothing(tmp_path: Path, spoil: bytes) -> None:
    """19, 49."""
    async with running(tmp_path) as run:
        client = await run.connect()
        await client.greet()
        await client.option(8)
        await client.option(10, query(BASE))
        await client.option(10, spoil)
        assert (await client.option(7, info_data(b"")))[-1] == (ACK, b"")
        await client.send(request(STATUS, 0, 4096))
        cookie, flags, kind, payload = await client.chunk()
        assert (cookie, flags, kind, int.from_bytes(payload[:4])) == (7, DONE, ERROR, EINVAL)
        await client.send(request(READ, 0, 16))
        assert (await client.chunk())[2] == DATA


async def test_status(tmp_path: Path) -> None:
    """47."""
    async with running(tmp_path, serving(Patchy)) as run:
        client = await selecting(run)
        await client.send(request(STATUS, 4096, 128 * KIB))
        cookie, flags, kind, payload = await client.chunk()
        assert (cookie, flags, kind) == (7, DONE, BLOCKS)
        assert struct.unpack(">I6I", payload) == (0, 60 * KIB, 0, 64 * KIB, 3, 4 * KIB, 0)
        await client.send(request(STATUS, 4096, 128 * KIB, flags=REQ_ONE))
        assert struct.unpack(">I2I", (await client.chunk())[3]) == (0, 60 * KIB, 0)
        await client.send(request(STATUS, 0, MIB))  # the device describes only the beginning
        assert len((await client.chunk())[3]) == 4 + 5 * 8
        await client.send(request(STATUS, 0, MIB + 1))
        assert (await client.chunk())[2] == ERROR


async def test_sparse_reads(tmp_path: Path) -> None:
    """32, 33, 35: holes are sent as such, unless the client wants one piece (DF)."""
    async with running(tmp_path, serving(Patchy)) as run:
        client = await selecting(run)
        await client.send(request(READ, 32 * KIB, 128 * KIB))
        at = 32 * KIB
        for last, (kind, size) in enumerate([(DATA, 32 * KIB), (HOLE, 64 * KIB), (DATA, 32 * KIB)]):
            cookie, flags, got, payload = await client.chunk()
            assert (cookie, flags, got) == (7, int(last == 2), kind)
            assert int.from_bytes(payload[:8]) == at
            if kind == HOLE:
                assert (len(payload), int.from_bytes(payload[8:])) == (12, size)
            else:
                assert payload[8:] == b"d" * size
            at += size
        await client.send(request(READ, 0, 128 * KIB, flags=DF))
        _, flags, kind, payload = await client.chunk()
        assert (flags, kind, len(payload)) == (DONE, DATA, 8 + 128 * KIB)
        await client.send(request(READ, 64 * KIB, 32 * KIB))
        assert (await client.chunk())[1:3] == (DONE, HOLE)
        await client.send(request(READ, 64 * KIB, 4 * KIB))  # too short for holes to pay
        assert (await client.chunk())[1:3] == (DONE, DATA)
        assert run.server.clients()[0].counters.read_bytes == (128 + 128 + 32 + 4) * KIB


async def test_fast_zeroes_and_cache(tmp_path: Path) -> None:
    """44, 46."""
    async with running(tmp_path, serving(Patchy)) as run:
        client = await run.entered()
        assert await client.ask(ZEROES, 0, 4096, flags=FAST_ZERO) == ENOTSUP
        assert await client.read(0, 4096) == b"d" * 4096
        assert await client.ask(ZEROES, 0, 4096) == 0
        assert await client.ask(CACHE, 0, MIB) == 0
        assert await client.read(0, 4096) == bytes(4096)


async def test_extended_headers(tmp_path: Path) -> None:
    """57 to 61."""
    async with running(tmp_path, serving(Patchy)) as run:
        client = await selecting(run, extended=True)
        await client.send(extended_request(WRITE, 0, 4, flags=PAYLOAD_LEN) + b"abcd")
        assert await client.extended_chunk() == (7, DONE, NONE, 0, b"")
        await client.send(extended_request(READ, 2, 4))
        assert await client.extended_chunk() == (
            7, DONE, DATA, 2, (2).to_bytes(8) + b"cddd",
        )  # fmt: skip
        await client.send(extended_request(FLUSH))
        assert await client.extended_chunk() == (7, DONE, NONE, 0, b"")
        # A payload that should not be there, and one that should.
        await client.send(extended_request(READ, 8, 4, flags=PAYLOAD_LEN) + b"junk")
        cookie, _, kind, offset, payload = await client.extended_chunk()
        assert (cookie, kind, offset, int.from_bytes(payload[:4])) == (7, ERROR, 8, EINVAL)
        await client.send(extended_request(WRITE, 0, 4))
        assert (await client.extended_chunk())[2] == ERROR
        await client.send(extended_request(ZEROES, 1 << 62, 1 << 62))
        assert (await client.extended_chunk())[2] == ERROR
        await client.send(extended_request(STATUS, 0, 128 * KIB))
        _, _, kind, _, payload = await client.extended_chunk()
        assert kind == BLOCKS_EXT
        assert struct.unpack(">II4Q", payload) == (0, 2, 64 * KIB, 0, 64 * KIB, 3)


async def test_status_with_a_filter(tmp_path: Path) -> None:
    """61."""
    async with running(tmp_path, serving(Patchy)) as run:
        client = await selecting(run, extended=True)

        async def ask(payload: bytes) -> tuple[int, bytes]:
            await client.send(extended_request(STATUS, 0, len(payload), flags=PAYLOAD_LEN))
            await client.send(payload)
            _, flags, kind, _, body = await client.extended_chunk()
            assert flags == DONE
            return kind, body

        length = (64 * KIB).to_bytes(8)
        assert await ask(length + bytes(4)) == (BLOCKS_EXT, struct.pack(">IIQQ", 0, 1, 64 * KIB, 0))
        assert await ask(length) == (NONE, b"")
        for bad in (length + (9).to_bytes(4), length + b"x", b"", bytes(100_000)):
            assert (await ask(bad))[0] == ERROR


async def test_extended_headers_change_the_negotiation(tmp_path: Path) -> None:
    """57, 59."""
    async with running(tmp_path) as run:
        client = await run.connect()
        await client.greet()
        assert (await client.option(11, b"x"))[0][0] == ERR_INVALID
        assert await client.option(11) == [(ACK, b"")]
        assert (await client.option(11))[0][0] == ERR_INVALID
        assert (await client.option(8))[0][0] == ERR_EXT_HEADER_REQD
        await client.send(b"IHAVEOPT" + struct.pack(">II", 1, 0))
        assert await client.ended()


async def test_a_compact_request_after_extended_headers_ends_the_connection(tmp_path: Path) -> None:
    """57."""
    async with running(tmp_path) as run:
        client = await selecting(run, extended=True)
        await client.send(write(0, b"0123456789"))
        assert await client.ended()
        await run.idle()
