"""Reads blocks of a layer: overlays first, then the map, then the members.

`try_read` answers without suspending when everything is in memory or in the kernel's page cache.
`read` waits for missing pages and bytes. Both work on the same plan: pieces in order, each of them
bytes in memory, zeroes, a run of raw blocks that lie next to each other, or part of a compressed
extent.
"""

from collections import OrderedDict

import trio
from typing_extensions import Buffer

from blockdev.errors import ChecksumError
from storage.errors import DamagedError
from storage.format import codec
from storage.format.codec import digest_of
from storage.format.entry import (
    BLOCK_BYTES,
    BLOCK_SHIFT,
    CHECK_MASK,
    CHECK_SHIFT,
    EXTENT_BLOCKS_MAX,
    INDEX_STEP,
    KIND_MASK,
    LZ4,
    OFFSET_GRAIN_BYTES,
    OFFSET_MASK,
    RAW,
    SEGMENT_SHIFT,
    ZERO,
)
from storage.format.pages import PAGE_SHIFT
from storage.map.blockmap import BlockMap
from storage.map.layer import Layer
from storage.map.overlay import Overlay
from storage.members.segment_io import SegmentIO

SLOT_MASK = (1 << PAGE_SHIFT) - 1
ATTEMPTS_MAX = 3
PARALLEL_READS = 16
"""Pieces of one request read at once; a large request over scattered blocks fills a disk queue."""

_ZEROES = bytes(64 << 10)
_ZERO_BLOCK = bytes(BLOCK_BYTES)


class ExtentCache:
    """Decompressed extents by (segment, offset): never stale, as places are never reused."""

    def __init__(self, capacity_bytes: int):
        self._capacity_bytes = capacity_bytes
        self._held_bytes = 0
        self._items: OrderedDict[int, bytes] = OrderedDict()

    def get(self, a: int) -> bytes | None:
        """The extent at word A, or None."""
        data = self._items.get(a)
        if data is not None:
            self._items.move_to_end(a)
        return data

    def put(self, a: int, data: bytes) -> None:
        """Keep an extent; past the capacity, the least recently used ones are dropped."""
        if a not in self._items:
            self._items[a] = data
            self._held_bytes += len(data) + 150
        while self._held_bytes > self._capacity_bytes:
            _, old = self._items.popitem(last=False)
            self._held_bytes -= len(old) + 150


class RawRun:
    """Raw blocks next to each other in one segment; `checks` has one item per block."""

    __slots__ = ("checks", "offset", "segment")

    def __init__(self, segment: int, offset: int, check: int):
        self.segment = segment
        self.offset = offset
        self.checks = [check]


class PackedPart:
    """Blocks [first, first + count) of the compressed extent at words A and B."""

    __slots__ = ("a", "b", "count", "first")

    def __init__(self, a: int, b: int, first: int):
        self.a = a
        self.b = b
        self.first = first
        self.count = 1


Piece = memoryview | RawRun | PackedPart | int
"""Bytes in memory, blocks on a member, or a number of zero blocks."""


class Reader:
    """The read path of one pool."""

    def __init__(self, blockmap: BlockMap, segment_io: SegmentIO, cache: ExtentCache):
        self._map = blockmap
        self._segment_io = segment_io
        self._cache = cache

    # -- fast path

    def try_read(self, layer: Layer, block: int, count: int) -> Buffer | None:
        """Read whole blocks without suspending; None when a page or a member has to be waited for,
        or a checksum is wrong.

        Cost of one raw block: two dictionary look-ups, one preadv, one hash.
        """
        if count == 1 and not layer.inherited:
            return self._try_block(layer, block)
        pieces = self._plan(layer, block, count)
        return None if pieces is None else self._try_pieces(pieces, count)

    def _try_block(self, layer: Layer, block: int) -> Buffer | None:
        held = _in_overlays(layer.overlays, block)
        if held is not None:
            return held or _ZERO_BLOCK
        page = layer.pages.get(block >> PAGE_SHIFT)
        if page is None:
            return None
        page.hot = True
        at = (block & SLOT_MASK) << 1
        a = page.words[at]
        kind = a & KIND_MASK
        if kind <= ZERO:
            return _ZERO_BLOCK
        b = page.words[at + 1]
        if kind != RAW:
            return self._try_packed(PackedPart(a, b & ~(0xF << 16), b >> 16 & 0xF))
        offset = (a >> 3 & OFFSET_MASK) * OFFSET_GRAIN_BYTES
        data = self._segment_io.try_read(a >> SEGMENT_SHIFT, offset, BLOCK_BYTES)
        if data is None or digest_of(data) & CHECK_MASK != b >> CHECK_SHIFT:
            return None
        return data

    def _try_pieces(self, pieces: list[Piece], count: int) -> Buffer | None:
        parts: list[Buffer] = []
        for piece in pieces:
            part: Buffer | None
            if isinstance(piece, RawRun):
                part = self._try_raw(piece)
            elif isinstance(piece, PackedPart):
                part = self._try_packed(piece)
            else:
                part = _zeroes(piece) if isinstance(piece, int) else piece
            if part is None:
                return None
            parts.append(part)
        return _joined(parts)

    def _try_raw(self, run: RawRun) -> memoryview | None:
        data = self._segment_io.try_read(run.segment, run.offset, len(run.checks) << BLOCK_SHIFT)
        if data is None or not _is_good(data, run.checks):
            return None
        return data

    def _try_packed(self, part: PackedPart) -> memoryview | None:
        extent = self._cache.get(part.a)
        if extent is None:
            b = part.b
            stored = self._segment_io.try_read(
                part.a >> SEGMENT_SHIFT,
                (part.a >> 3 & OFFSET_MASK) * OFFSET_GRAIN_BYTES,
                (b & 0xFFFF) + 1,
            )
            if stored is None or digest_of(stored) & CHECK_MASK != b >> CHECK_SHIFT:
                return None
            extent = self._expand(part, stored)
        return _cut(extent, part)

    def _expand(self, part: PackedPart, stored: Buffer) -> bytes:
        if part.a & KIND_MASK != LZ4:
            raise DamagedError(f"map names an unknown kind of extent: word={part.a:#x}")
        blocks = (part.b >> 20 & 0xF) + 1
        extent = codec.expand(LZ4, stored, EXTENT_BLOCKS_MAX * BLOCK_BYTES)
        if len(extent) != blocks * BLOCK_BYTES:
            raise ChecksumError(f"extent has the wrong size: word={part.a:#x}")
        self._cache.put(part.a, extent)
        return extent

    # -- waiting path

    async def read(self, layer: Layer, block: int, count: int) -> Buffer:
        """Read whole blocks, waiting for pages and members.

        Raises:
            ChecksumError: no good copy is left.
            DeviceError: no copy can be read.
        """
        for _ in range(ATTEMPTS_MAX - 1):
            try:
                return await self._read(layer, block, count)
            except DamagedError:
                # A planned block may have been overwritten or moved, and its place freed, since.
                end = (block + count - 1 >> PAGE_SHIFT) + 1
                self._map.drop_stale(layer, block >> PAGE_SHIFT, end)
        return await self._read(layer, block, count)

    async def _read(self, layer: Layer, block: int, count: int) -> Buffer:
        pieces = self._plan(layer, block, count)
        while pieces is None:
            for number in range(block >> PAGE_SHIFT, (block + count - 1 >> PAGE_SHIFT) + 1):
                await self._map.page(layer, number)
            pieces = self._plan(layer, block, count)
        waiting = [i for i, piece in enumerate(pieces) if type(piece) in (RawRun, PackedPart)]
        parts: list[Buffer] = [b""] * len(pieces)
        for i, piece in enumerate(pieces):
            if type(piece) is int:
                parts[i] = _zeroes(piece)
            elif isinstance(piece, memoryview):
                parts[i] = piece
        if len(waiting) == 1:
            parts[waiting[0]] = await self._fetch(pieces[waiting[0]])
        elif waiting:
            await self._fetch_all(pieces, waiting, parts)
        return _joined(parts)

    async def _fetch_all(
        self, pieces: list[Piece], waiting: list[int], parts: list[Buffer]
    ) -> None:
        left = iter(waiting)
        failures: list[Exception] = []

        async def fetch_some() -> None:
            for i in left:
                try:
                    parts[i] = await self._fetch(pieces[i])
                except Exception as error:
                    failures.append(error)
                    return

        async with trio.open_nursery() as nursery:
            for _ in range(min(PARALLEL_READS, len(waiting))):
                nursery.start_soon(fetch_some)
        if failures:
            raise failures[0]

    async def _fetch(self, piece: Piece) -> Buffer:
        if isinstance(piece, RawRun):
            return self._try_raw(piece) or await self._fetch_raw(piece)
        assert isinstance(piece, PackedPart)
        part = self._try_packed(piece)
        if part is not None:
            return part
        a, b = piece.a, piece.b
        offset = (a >> 3 & OFFSET_MASK) * OFFSET_GRAIN_BYTES
        stored = await self._segment_io.read(
            a >> SEGMENT_SHIFT, offset, (b & 0xFFFF) + 1, b >> CHECK_SHIFT
        )
        return _cut(self._expand(piece, stored), piece)

    async def _fetch_raw(self, run: RawRun) -> Buffer:
        data = await self._segment_io.read_run(
            run.segment, run.offset, len(run.checks) << BLOCK_SHIFT
        )
        if data is not None and _is_good(data, run.checks):
            return data
        # Some block of the run is bad: read each from any copy of it that is good.
        parts = [
            await self._segment_io.read(
                run.segment, run.offset + i * BLOCK_BYTES, BLOCK_BYTES, check
            )
            for i, check in enumerate(run.checks)
        ]
        return b"".join(parts)

    # -- planning

    def _plan(self, layer: Layer, block: int, count: int) -> list[Piece] | None:
        """The pieces of a range, or None when a page is not in memory. Never suspends."""
        overlays = layer.drained_overlays() if layer.overlays or layer.inherited else ()
        pieces: list[Piece] = []
        last: Piece | None = None
        end = block + count
        while block < end:
            page = self._map.try_page(layer, block >> PAGE_SHIFT)
            if page is None:
                return None
            stop = min(end, (block | SLOT_MASK) + 1)
            first = (block & SLOT_MASK) << 1
            words = page.words[first : first + (stop - block << 1)].tolist()
            for i in range(0, len(words), 2):
                held = _in_overlays(overlays, block + (i >> 1)) if overlays else None
                a = words[i]
                if held is not None:
                    if held:
                        last = None
                        pieces.append(held)
                        continue
                    a = ZERO
                if not _extends(last, a, words[i + 1]):
                    last = _piece(a, words[i + 1])
                    pieces.append(last)
                elif type(last) is int:
                    last += 1
                    pieces[-1] = last
            block = stop
        return pieces


def _in_overlays(overlays: list[Overlay] | tuple[()], block: int) -> memoryview | None:
    """The block from memory: bytes, an empty view for zeroes, or None when not held."""
    for part in overlays:
        place = part.index.get(block)
        if place is not None:
            # Copied: the block may be written again while a sender still uses these bytes.
            return memoryview(bytes(part.block(place)))
        if part.zeroes and part.covers_with_zero(block):
            return memoryview(b"")
    return None


def _piece(a: int, b: int) -> Piece:
    kind = a & KIND_MASK
    if kind <= ZERO:
        return 1
    if kind == RAW:
        offset = (a >> 3 & OFFSET_MASK) * OFFSET_GRAIN_BYTES
        return RawRun(a >> SEGMENT_SHIFT, offset, b >> CHECK_SHIFT)
    return PackedPart(a, b & ~(0xF << 16), b >> 16 & 0xF)


def _extends(last: Piece | None, a: int, b: int) -> bool:
    """Whether an entry continues the last piece; a raw run or a packed part then grows by it."""
    kind = a & KIND_MASK
    if type(last) is int:
        return kind <= ZERO
    if type(last) is RawRun and kind == RAW:
        offset = (a >> 3 & OFFSET_MASK) * OFFSET_GRAIN_BYTES
        joined = a >> SEGMENT_SHIFT == last.segment and offset == last.offset + (
            len(last.checks) << BLOCK_SHIFT
        )
        if joined:
            last.checks.append(b >> CHECK_SHIFT)
        return joined
    if type(last) is PackedPart and a == last.a:
        joined = b == last.b + (last.first + last.count) * INDEX_STEP
        if joined:
            last.count += 1
        return joined
    return False


def _is_good(data: memoryview, checks: list[int]) -> bool:
    if len(checks) == 1:
        return digest_of(data) & CHECK_MASK == checks[0]
    start = 0
    for check in checks:
        if digest_of(data[start : start + BLOCK_BYTES]) & CHECK_MASK != check:
            return False
        start += BLOCK_BYTES
    return True


def _cut(extent: bytes, part: PackedPart) -> memoryview:
    start = part.first << BLOCK_SHIFT
    return memoryview(extent)[start : start + (part.count << BLOCK_SHIFT)]


def _zeroes(blocks: int) -> Buffer:
    length = blocks << BLOCK_SHIFT
    return memoryview(_ZEROES)[:length] if length <= len(_ZEROES) else bytes(length)


def _joined(parts: list[Buffer]) -> Buffer:
    return parts[0] if len(parts) == 1 else b"".join(parts)
