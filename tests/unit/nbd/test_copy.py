"""Copies between devices in memory: right bytes, few requests, bounded requests in flight."""

import random
from collections.abc import Iterator

import pytest
import trio
import trio.testing
from typing_extensions import Buffer

from blockdev.device import BlockDevice, Extent
from blockdev.errors import NoSpaceError, UnsupportedError
from blockdev.memory import MemoryDevice
from nbd.copy import GRAIN_BYTES, ZERO_RUN_BYTES, Copy, CopySettings, Piece, Planner, runs

KIB, MIB = 1 << 10, 1 << 20


class Told(MemoryDevice):
    """Reports the extents that a test sets, a few at a time, and counts requests."""

    def __init__(self, size_bytes: int, zero: list[tuple[int, int]] | None = None) -> None:
        super().__init__(size_bytes)
        self.zero = zero or []
        self.requests: list[tuple[str, int, int]] = []
        self.flying = self.flying_max = self.flushes = 0
        self.fails: Exception | None = None
        self.plain = False
        self.delay_s = 0.0

    def put(self, offset: int, data: bytes) -> None:
        super().try_write(offset, data)

    async def extents(self, offset: int, length: int) -> list[Extent]:
        found, end = list[Extent](), offset + length
        marks = sorted({edge for run in self.zero for edge in run} | {end})
        for mark in marks:
            if offset < mark <= end:
                zero = any(start <= offset < stop for start, stop in self.zero)
                found.append(Extent(mark - offset, hole=zero, zero=zero))
                offset = mark
        return found[:3]

    async def read(self, offset: int, length: int) -> bytes:
        self.requests.append(("read", offset, length))
        self.flying += 1
        self.flying_max = max(self.flying_max, self.flying)
        await trio.sleep(self.delay_s)
        self.flying -= 1
        return await super().read(offset, length)

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        self.requests.append(("write", offset, memoryview(data).nbytes))
        if self.fails is not None:
            raise self.fails
        await super().write(offset, data, fua=fua)

    async def write_zeroes(self, offset: int, length: int, **how: bool) -> None:
        self.requests.append(("zeroes", offset, length))
        if self.plain:
            raise UnsupportedError("no zeroes here")
        await super().write_zeroes(offset, length, **how)

    async def flush(self) -> None:
        self.flushes += 1

    def did(self, what: str) -> list[tuple[int, int]]:
        return sorted((offset, length) for kind, offset, length in self.requests if kind == what)


async def content(device: BlockDevice) -> bytes:
    return bytes(await device.read(0, device.size_bytes))


def pieces(source: BlockDevice, slot: int) -> list[Piece]:
    planned: list[Piece] = []

    async def hand_out(piece: Piece) -> None:
        planned.append(piece)

    trio.run(Planner(source, source.size_bytes, slot).plan, hand_out)
    return planned


def test_slots_and_zeroes_are_cut_apart() -> None:
    zero = [(0, 10), (10, 17), (30, 34), (36, 100)]
    assert pieces(Told(100, zero), 8) == [
        Piece(0, 16, zero=True),
        Piece(16, 8, zero=False),
        Piece(24, 8, zero=False),
        Piece(32, 8, zero=False),
        Piece(40, 60, zero=True),
    ]
    assert pieces(Told(20), 8) == [Piece(0, 8, False), Piece(8, 8, False), Piece(16, 4, False)]
    assert pieces(Told(0), 8) == []
    assert pieces(Told(5, [(0, 5)]), 8) == [Piece(0, 5, zero=True)]


@pytest.mark.parametrize("seed", range(20))
def test_pieces_cover_the_source_once_and_in_order(seed: int) -> None:
    rng = random.Random(seed)
    edges = sorted(rng.sample(range(1000), 20))
    zero = list(zip(edges[::2], edges[1::2], strict=True))
    position = 0
    for piece in pieces(Told(1000, zero), 16):
        assert piece.offset == position
        position += piece.length
        covered = range(piece.offset, position)
        if piece.zero:
            assert all(any(a <= at < b for a, b in zero) for at in covered)
        else:
            assert piece.length == 16 or position == 1000
    assert position == 1000


def test_long_runs_of_zeroes_are_split() -> None:
    size = 3 * ZERO_RUN_BYTES + MIB

    class Endless(Told):
        def __init__(self) -> None:
            super().__init__(0, [(0, size)])
            self.size_bytes = size

    lengths = [piece.length for piece in pieces(Endless(), 256 * KIB)]
    assert lengths == [ZERO_RUN_BYTES] * 3 + [MIB]


def cut(data: bytes) -> list[tuple[int, int, bool]]:
    return list(runs(memoryview(data)))


def test_runs_of_zeroes_are_noticed_in_grains() -> None:
    g = GRAIN_BYTES
    assert cut(b"") == []
    assert cut(bytes(3 * g)) == [(0, 3 * g, True)]
    assert cut(bytes(g) + b"x" + bytes(2 * g)) == [
        (0, g, True),
        (g, 2 * g, False),
        (2 * g, 3 * g + 1, True),
    ]
    assert cut(b"x" * g + bytes(5)) == [(0, g, False), (g, g + 5, True)]
    assert cut(bytes(g - 2) + b"x" + b"\0") == [(0, g, False)]


def sources() -> Iterator[tuple[str, Told]]:
    rng = random.Random(5)
    sparse = Told(3 * MIB + 4096, [(MIB, 2 * MIB), (2 * MIB + 512 * KIB, 3 * MIB)])
    sparse.put(0, rng.randbytes(MIB))
    sparse.put(2 * MIB, rng.randbytes(512 * KIB))
    sparse.put(3 * MIB, rng.randbytes(4096))
    silent = Told(2 * MIB)  # reports no zeroes
    silent.put(MIB - 5, rng.randbytes(4 * KIB))
    yield "sparse", sparse
    yield "silent", silent
    yield "empty", Told(0)
    yield "zero", Told(MIB, [(0, MIB)])
    yield "odd", Told(4096 + 512)


@pytest.mark.parametrize(("name", "source"), list(sources()))
@pytest.mark.parametrize("clean", [False, True])
@pytest.mark.parametrize("plain", [False, True])
async def test_a_copy_equals_its_source(name: str, source: Told, clean: bool, plain: bool) -> None:
    target = Told(source.size_bytes + 8192)
    target.put(0, b"\xff" * target.size_bytes)
    if clean:
        target.put(0, bytes(target.size_bytes))
    target.plain = plain
    seen: list[tuple[int, int]] = []
    settings = CopySettings(
        requests_max=3, request_bytes=64 * KIB, destination_is_zero=clean, digests=True
    )
    copy = Copy(source, target, settings, lambda done, total: seen.append((done, total)))
    counts = await copy.run()
    expected = await content(source)
    copied = await content(target)
    assert copied[: len(expected)] == expected
    assert copied[len(expected) :] == (b"\0" if clean else b"\xff") * 8192, "beyond the source"
    assert target.flushes == 1
    assert (counts.zeroed_bytes if clean else counts.skipped_bytes) == 0
    total = counts.copied_bytes + counts.zeroed_bytes + counts.skipped_bytes
    assert total == source.size_bytes
    assert seen[0] == (0, source.size_bytes)
    assert seen[-1] == (source.size_bytes, source.size_bytes)
    assert await copy.verify() == []
    if expected:
        target.put(len(expected) - 1, bytes([copied[len(expected) - 1] ^ 1]))
        (where,) = await copy.verify()
        assert where <= len(expected) - 1


async def test_zeroes_that_the_source_names_are_never_read() -> None:
    source, target = Told(4 * MIB, [(MIB, 4 * MIB)]), Told(4 * MIB)
    source.put(0, b"x" * MIB)
    counts = await Copy(source, target, CopySettings(request_bytes=512 * KIB)).run()
    assert source.did("read") == [(0, 512 * KIB), (512 * KIB, 512 * KIB)]
    assert target.did("zeroes") == [(MIB, 3 * MIB)]
    assert (counts.copied_bytes, counts.zeroed_bytes) == (MIB, 3 * MIB)


async def test_zeroes_that_the_destination_holds_already_are_skipped() -> None:
    source, target = Told(4 * MIB, [(0, 4 * MIB)]), Told(4 * MIB, [(0, 4 * MIB)])
    counts = await Copy(source, target, CopySettings()).run()
    assert target.requests == []
    assert counts.skipped_bytes == 4 * MIB


async def test_requests_in_flight_are_bounded(autojump_clock: trio.testing.MockClock) -> None:
    source, target = Told(8 * MIB), Told(8 * MIB)
    source.put(0, b"x" * source.size_bytes)
    source.delay_s = 0.01
    await Copy(source, target, CopySettings(requests_max=6, request_bytes=64 * KIB)).run()
    assert source.flying_max == 6
    assert await content(target) == b"x" * (8 * MIB)


async def test_a_device_error_ends_the_copy_and_is_raised_unchanged() -> None:
    source, target = Told(8 * MIB), Told(8 * MIB)
    source.put(0, b"x" * source.size_bytes)
    target.fails = NoSpaceError("full")
    with pytest.raises(NoSpaceError, match="full"):
        await Copy(source, target, CopySettings()).run()
    assert target.flushes == 0
