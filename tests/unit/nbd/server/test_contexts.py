"""Metadata contexts of a device besides base:allocation: listed, selected, answered, bounded."""

import struct
from pathlib import Path

import pytest

from blockdev.device import EXTENTS_MAX, Extent
from blockdev.errors import UnsupportedError
from blockdev.memory import MemoryDevice
from nbd.server import handshake
from tests.unit.nbd.devices import serving
from tests.unit.nbd.server.test_status import BASE, BLOCKS, BLOCKS_EXT, DONE, ERROR, KIB, query
from tests.unit.nbd.wire import (
    ACK,
    ERR_TOO_BIG,
    META_CONTEXT,
    MIB,
    PAYLOAD_LEN,
    REQ_ONE,
    STATUS,
    RawClient,
    Running,
    extended_request,
    info_data,
    request,
    running,
)

DEPTH = b"qemu:allocation-depth"
BITMAP = b"qemu:dirty-bitmap:"
BIG = 0xFFFFFFFF


class Telling(MemoryDevice):
    """Reports depths in runs of 64 KiB and more, a bitmap in runs of 512 bytes, and fails for
    another bitmap."""

    contexts = ("qemu:allocation-depth", "qemu:dirty-bitmap:a", "qemu:dirty-bitmap:b")

    async def status(self, context: str, offset: int, length: int) -> list[tuple[int, int]]:
        if context.endswith("depth"):
            return [(64 * KIB, 2), (64 * KIB, 2), (128 * KIB, BIG), (MIB, 1)]
        if context.endswith(":a"):
            return [(512, at % 2) for at in range(length // 512)]
        raise UnsupportedError("gone")

    async def extents(self, offset: int, length: int) -> list[Extent]:
        return [Extent(length, hole=False, zero=False)]


def told(*numbers_and_names: tuple[int, bytes]) -> list[tuple[int, bytes]]:
    replies = [(META_CONTEXT, number.to_bytes(4) + name) for number, name in numbers_and_names]
    return [*replies, (ACK, b"")]


async def negotiating(run: Running, *, extended: bool = False) -> RawClient:
    client = await run.connect()
    await client.greet()
    assert await client.option(11 if extended else 8) == [(ACK, b"")]
    return client


async def go(client: RawClient) -> None:
    assert (await client.option(7, info_data(b"")))[-1] == (ACK, b"")


ALL = ((0, BASE), (1, DEPTH), (2, BITMAP + b"a"), (3, BITMAP + b"b"))


@pytest.mark.parametrize(
    ("queries", "found"),
    [
        ([], ALL),
        ([b"qemu:"], ALL[1:]),
        ([BITMAP], ALL[2:]),
        ([BITMAP, b"base:"], (ALL[0], *ALL[2:])),
        ([BITMAP + b"b", DEPTH, DEPTH], (ALL[1], ALL[3])),
        ([b"qemu", b"qemu:dirty-bitmap", b"qemu:dirty-bitmap:a:", b":", b""], ()),
    ],
)
async def test_lists_take_wildcards_and_selections_whole_names(
    tmp_path: Path, queries: list[bytes], found: tuple[tuple[int, bytes], ...]
) -> None:
    """As in qemu-nbd, a query for a list may be a namespace, or all bitmaps."""
    async with running(tmp_path, serving(lambda: Telling(MIB))) as run:
        client = await negotiating(run)
        assert await client.option(9, query(*queries)) == told(*found)
        exact = [each for each in ALL if each[1] in queries]
        assert await client.option(10, query(*queries)) == told(*exact)


async def test_several_contexts_are_answered_at_once(tmp_path: Path) -> None:
    """Each context gets one chunk, cut off at the end of the range, with equal neighbors joined."""
    async with running(tmp_path, serving(lambda: Telling(MIB))) as run:
        client = await negotiating(run)
        chosen = await client.option(10, query(BITMAP + b"a", DEPTH, BASE))
        assert chosen == told(*ALL[:3])
        await go(client)
        await client.send(request(STATUS, 0, 160 * KIB))
        chunks = [await client.chunk() for _ in range(3)]
        assert [(flags, kind) for _, flags, kind, _ in chunks] == [
            (0, BLOCKS), (0, BLOCKS), (DONE, BLOCKS),
        ]  # fmt: skip
        assert struct.unpack(">I2I", chunks[0][3]) == (0, 160 * KIB, 0)
        assert struct.unpack(">I4I", chunks[1][3]) == (1, 128 * KIB, 2, 32 * KIB, BIG)
        assert struct.unpack(">I", chunks[2][3][:4]) == (2,)
        assert len(chunks[2][3]) == 4 + 8 * 160 * 2
        await client.send(request(STATUS, 0, 160 * KIB, flags=REQ_ONE))
        runs = [struct.unpack(">I2I", (await client.chunk())[3]) for _ in range(3)]
        assert runs == [(0, 160 * KIB, 0), (1, 128 * KIB, 2), (2, 512, 0)]


async def test_several_contexts_in_64_bits_and_filtered(tmp_path: Path) -> None:
    async with running(tmp_path, serving(lambda: Telling(1 << 40))) as run:
        client = await negotiating(run, extended=True)
        await client.option(10, query(DEPTH, BASE))
        await go(client)
        await client.send(extended_request(STATUS, 0, 1 << 40))
        chunks = [await client.extended_chunk() for _ in range(2)]
        assert [(flags, kind) for _, flags, kind, _, _ in chunks] == [
            (0, BLOCKS_EXT), (DONE, BLOCKS_EXT),
        ]  # fmt: skip
        assert struct.unpack(">IIQQ", chunks[0][4]) == (0, 1, 1 << 40, 0)
        expected = (1, 3, 128 * KIB, 2, 128 * KIB, BIG, MIB, 1)
        assert struct.unpack(">II6Q", chunks[1][4]) == expected
        only = (4096).to_bytes(8) + (1).to_bytes(4)
        await client.send(extended_request(STATUS, 0, len(only), flags=PAYLOAD_LEN) + only)
        _, flags, _, _, payload = await client.extended_chunk()
        assert (flags, struct.unpack(">II2Q", payload)) == (DONE, (1, 1, 4096, 2))


async def test_a_context_that_fails_fails_the_request(tmp_path: Path) -> None:
    async with running(tmp_path, serving(lambda: Telling(MIB))) as run:
        client = await negotiating(run)
        await client.option(10, query(BASE, BITMAP + b"b"))
        await go(client)
        await client.send(request(STATUS, 0, 4096))
        _, flags, kind, _ = await client.chunk()
        assert (flags, kind) == (DONE, ERROR)
        assert run.server.clients()[0].counters.errors == 1


async def test_selected_contexts_and_their_extents_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handshake, "CONTEXTS_MAX", 2)
    async with running(tmp_path, serving(lambda: Telling(1 << 30))) as run:
        client = await negotiating(run)
        assert (await client.option(10, query(*(name for _, name in ALL))))[0][0] == ERR_TOO_BIG
        await client.option(10, query(BASE, BITMAP + b"a"))
        await go(client)
        await client.send(request(STATUS, 0, 64 * MIB))
        await client.chunk()
        assert len((await client.chunk())[3]) == 4 + 8 * EXTENTS_MAX // 2
