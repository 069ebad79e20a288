"""Encodes a sealed buffer as the bytes of a commit.

Encoding is pure work on an immutable buffer, done in a worker thread: the blocks of each
layer are sorted, all-zero blocks become zero ranges, adjacent blocks are compressed together in
extents of up to four blocks, and blocks that do not compress stay raw, one extent a block. The
location is not known yet; `place` adds it, which is cheap, and can be done again for another place
when a member fails.

Layout of a commit: header and record table, compressed extents aligned to 64 bytes, then raw
blocks aligned to 4 KiB, so that reading a raw block costs 4 KiB and not 8 KiB.
"""

from dataclasses import replace

import numpy as np

from storage.format import commit
from storage.format.codec import compress, digest_of
from storage.format.commit import HEADER_BYTES, CommitHeader, LayerExtents, Records
from storage.format.entry import (
    BLOCK_BYTES,
    KIND_MASK,
    LZ4,
    OFFSET_GRAIN_BYTES,
    RAW,
    SEGMENT_SHIFT,
)
from storage.format.superblock import Copy
from storage.log.buffer import WriteBuffer
from storage.log.encoded import EncodedCommit, EncodedLayer, PlacedCommit
from storage.map.overlay import Overlay

EXTENT_BLOCKS = 4
"""16 KiB: a random 4 KiB read decompresses 16 KiB (about 10 us), and lz4 gains little from more."""

GIVE_UP_AFTER = 8
RETRY_EVERY = 16
"""After eight extents in a row that did not compress, only every sixteenth is tried: lz4
costs 7 us a block, and encrypted or packed guest data comes in long runs."""

_ZERO_BLOCK = bytes(BLOCK_BYTES)
_PADDING = bytes(65536)


class Encoder:
    """Builds the payload of one commit."""

    def __init__(self) -> None:
        self.layers: list[EncodedLayer] = []
        self.packed: list[bytes | memoryview] = []
        self.packed_bytes = 0
        self.raw: list[memoryview] = []
        self._failures_in_a_row = 0
        self._skipped = 0

    def add_layer(self, number: int, part: Overlay) -> None:
        """Encode the blocks and zero ranges of one layer."""
        out = EncodedLayer(number)
        self.layers.append(out)
        out.zeroes.extend(part.zeroes)
        block_at = part.block
        run: list[memoryview] = []
        run_start = -1
        for block, place in sorted(part.index.items()):
            data = block_at(place)
            if data == _ZERO_BLOCK:
                if out.zeroes and out.zeroes[-1][1] == block:
                    out.zeroes[-1] = (out.zeroes[-1][0], block + 1)
                else:
                    out.zeroes.append((block, block + 1))
                continue
            if run and (block != run_start + len(run) or len(run) == EXTENT_BLOCKS):
                self._add_run(out, run_start, run)
                run = []
            if not run:
                run_start = block
            run.append(data)
        if run:
            self._add_run(out, run_start, run)

    def _add_run(self, out: EncodedLayer, block: int, run: list[memoryview]) -> None:
        packed = self._try_compress(run)
        if packed is not None:
            out.add(block, LZ4, self.packed_bytes, packed, len(run))
            padding = -len(packed) % OFFSET_GRAIN_BYTES
            self.packed += (packed, _PADDING[:padding])
            self.packed_bytes += len(packed) + padding
            return
        for i, data in enumerate(run):
            out.add(block + i, RAW, len(self.raw) * BLOCK_BYTES, data, 1)
            self.raw.append(data)

    def _try_compress(self, run: list[memoryview]) -> bytes | None:
        if self._failures_in_a_row >= GIVE_UP_AFTER:
            self._skipped += 1
            if self._skipped % RETRY_EVERY:
                return None
        data = run[0] if len(run) == 1 else b"".join(run)
        packed = compress(data, len(run) * BLOCK_BYTES)
        self._failures_in_a_row = 0 if packed is not None else self._failures_in_a_row + 1
        return packed


def encode(buffer: WriteBuffer) -> EncodedCommit:
    """Encode a sealed buffer. Runs in a worker thread; the buffer is not changed."""
    encoder = Encoder()
    for number, part in buffer.layers.items():
        encoder.add_layer(number, part)
    return EncodedCommit(
        encoder.layers, buffer.operations, encoder.packed, encoder.packed_bytes, encoder.raw,
        buffer.moves, buffer.placed,
    )  # fmt: skip


def place(
    encoded: EncodedCommit,
    header: CommitHeader,
    align: int,
    announced: tuple[tuple[int, tuple[Copy, ...]], ...] = (),
    magic: bytes = commit.MAGIC,
) -> PlacedCommit:
    """Give a commit its place in the log, or a batch of moved blocks its place in their segment.

    `header` lacks only the sizes, the digest and the checksum. Cost: one pass to join the payload,
    and a few numpy calls per layer.
    """
    records = Records(operations=encoded.operations, announced=list(announced))
    records.moves, records.placed = encoded.moves, encoded.placed
    for layer in encoded.layers:
        records.zeroes.extend((layer.layer, f, end - f) for f, end in layer.zeroes)
        if layer.blocks:
            records.extents.append(_unplaced(layer, header.segment))
    table_bytes = len(commit.encode_table(records))
    packed_at = _round_up(HEADER_BYTES + table_bytes, OFFSET_GRAIN_BYTES)
    raw_at = packed_at + encoded.packed_bytes
    if encoded.raw:
        raw_at = _round_up(raw_at, BLOCK_BYTES)
    for extents, layer in zip(
        records.extents, (la for la in encoded.layers if la.blocks), strict=True
    ):
        _settle(extents, layer, header.offset + packed_at, header.offset + raw_at)
    table = commit.encode_table(records)
    end = raw_at + len(encoded.raw) * BLOCK_BYTES
    total = _round_up(end, align)
    final = replace(
        header, total_bytes=total, table_bytes=table_bytes, table_digest=digest_of(table)
    )
    head, checksum = commit.encode_header(final, magic)
    data = bytearray().join(
        (
            head, table, _PADDING[: packed_at - HEADER_BYTES - table_bytes], *encoded.packed,
            _PADDING[: raw_at - packed_at - encoded.packed_bytes], *encoded.raw,
            _PADDING[: total - end],
        )
    )  # fmt: skip
    return PlacedCommit(replace(final, checksum=checksum), data, records)


def _unplaced(layer: EncodedLayer, segment: int) -> LayerExtents:
    kinds = np.array(layer.kinds, dtype=np.uint64)
    return LayerExtents(
        layer.layer,
        blocks=np.array(layer.blocks, dtype=np.uint64),
        a=kinds | np.uint64(segment << SEGMENT_SHIFT),
        b=np.array(layer.words_b, dtype=np.uint64),
        hash_tops=np.array(layer.hash_tops, dtype=np.uint64),
    )


def _settle(extents: LayerExtents, layer: EncodedLayer, packed_at: int, raw_at: int) -> None:
    offsets = np.array(layer.offsets, dtype=np.uint64)
    kinds = extents.a & np.uint64(KIND_MASK)
    offsets += np.where(kinds == RAW, raw_at, packed_at).astype(np.uint64)
    words = offsets // np.uint64(OFFSET_GRAIN_BYTES) << np.uint64(3)
    np.bitwise_or(extents.a, words, out=extents.a)


def _round_up(value: int, grain: int) -> int:
    return -(-value // grain) * grain
