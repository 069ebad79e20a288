"""The checkpoint: counts, catalogue and map pages of one commit, made durable (R8).

Order (R10): metadata written and flushed on all copies, then superblocks and their flush, and
only then is anything reused. Until the superblocks are written, nothing names what was
written before, so an attempt that fails is forgotten and made again.

Pages are taken in order, parents before children. For each the old version is read, the
pending changes are applied, what they displace is taken off the live counts, and
a delta or a new base is written.
"""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import trio

from blockdev.errors import DeviceError, NoSpaceError
from storage import pageblob, root
from storage.blockmap import BlockMap, Merged
from storage.catalogue import Catalogue
from storage.codec import digest_of
from storage.entry import KIND_MASK, RAW, SEGMENT_SHIFT, ZERO, Words, live_by_segment, unpack
from storage.layer import Layer
from storage.meta import MetaWriteError, MetaWriter
from storage.page import PendingPage, settle
from storage.pageblob import CHUNK_PAGES, CHUNK_SHIFT
from storage.root import LogPosition, Root
from storage.roster import Roster
from storage.segments import Segment, SegmentTable, State
from storage.store import Store, only_full
from storage.superblock import RootPointer, Superblock

log = logging.getLogger("cenote.storage")

DELTA_ENTRIES_MAX = 48
"""A page whose delta grows beyond this is written whole. About 1.12 bytes are then written
per byte of uniform random data at 1 TiB; the optimum is flat."""

DYING_PAGES = 4096
"""Pages of dropped layers given back per checkpoint, so that none takes long (about 0.4 s)."""

PAGES_PER_TURN = 8
"""Then others run: a page takes about 60 us."""

ATTEMPTS_MAX = 4


@dataclass
class Frozen:
    """The state of the pool at one commit, and what the checkpoint of it has staged."""

    position: LogPosition
    catalogue: bytes
    parents: dict[int, Layer | None]
    dying: set[int]
    layers: list[Layer]
    live: dict[int, int]
    losses: dict[int, int]
    delta: Counter[int] = field(default_factory=Counter)
    """Live bytes gained and lost by segment."""
    chunks: dict[tuple[int, int], Words] = field(default_factory=dict)
    """Changed directory chunks by (layer, chunk)."""
    located: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)


class Checkpointer:
    """Writes checkpoints, one at a time."""

    def __init__(
        self, blockmap: BlockMap, table: SegmentTable, store: Store, roster: Roster,
        meta: MetaWriter, durable: Catalogue,
    ):  # fmt: skip
        self.number = roster.superblock.root.checkpoint
        self.position: LogPosition | None = None
        """Where replay would start; None before the first checkpoint."""
        self.dying_left = False
        """Dropped layers still hold space: another checkpoint gives more of it back."""
        self.cooling: set[int] = {s.number for s in table.all() if s.state is State.FREED}
        self._map = blockmap
        self._table = table
        self._store = store
        self._roster = roster
        self._meta = meta
        self._durable = durable
        self._lock = trio.Lock()
        self._published = False
        """Superblocks of the attempt under way may be on members already."""

    async def run(
        self, position_now: Callable[[], LogPosition], *, clean: bool = False
    ) -> list[int]:
        """Write a checkpoint of the durable state; returns layers that are gone for good.

        Raises:
            NoSpaceError: even the reserve is used up.
            DeviceError: no member takes metadata any more.
        """
        async with self._lock:
            for attempt in range(ATTEMPTS_MAX):
                frozen = self._freeze(position_now())
                self._meta.commit = frozen.position.commit
                self._published = False
                try:
                    return await self._attempt(frozen, clean)
                except MetaWriteError as error:
                    self._give_up(error, attempt, position_now().commit)
                except BaseException:
                    self._map.thaw()
                    self._meta.abandon(maybe_named=self._published)
                    raise
            raise DeviceError("checkpoint failed again and again; see the log")

    def _give_up(self, error: MetaWriteError, attempt: int, durable: int) -> None:
        self._map.thaw()
        self._meta.abandon(maybe_named=False)
        log.warning("checkpoint attempt %d failed: %s", attempt + 1, error)
        if error.failures and only_full(error.failures):
            raise NoSpaceError("no space for metadata below a member") from error
        for failure in error.failures:
            self._roster.fail(failure.member, durable, failure.error)

    def _freeze(self, position: LogPosition) -> Frozen:
        self._map.freeze()
        layers = self._map.layers
        durable = self._durable
        return Frozen(
            position=position,
            catalogue=durable.pack(),
            parents={n: layer.parent for n, layer in layers.items()},
            dying={n for n, record in durable.layers.items() if record.dying},
            layers=[layers[n] for n in sorted(durable.layers)],
            live={s.number: s.live_bytes for s in self._table.all()},
            losses={m.index: m.losses for m in self._roster.in_sync()},
        )

    async def _attempt(self, frozen: Frozen, clean: bool) -> list[int]:
        await self._write_pages(frozen)
        await self._write_chunks(frozen)
        freed = self._dead_segments(frozen)
        pointer = await self._write_root(frozen, freed)
        await self._flush(frozen)
        self._published = True
        await self._roster.publish(lambda sb: _with_root(sb, pointer, frozen.position, clean))
        return self._settle(frozen, freed)

    # -- pages

    async def _write_pages(self, frozen: Frozen) -> None:
        turns = 0
        dying_left = DYING_PAGES
        for layer in frozen.layers:
            if layer.number in frozen.dying:
                dying_left -= await self._release_layer(frozen, layer, dying_left)
                continue
            for number in sorted(layer.frozen_pending):
                await self._write_page(frozen, layer, number, layer.frozen_pending[number])
                turns += 1
                if turns % PAGES_PER_TURN == 0:
                    await trio.lowlevel.checkpoint()

    async def _write_page(
        self, frozen: Frozen, layer: Layer, number: int, pending: PendingPage
    ) -> None:
        def row_of(up: Layer, page: int) -> list[int] | None:
            return _staged_row(frozen, up, page)

        def parent_of(up: Layer) -> Layer | None:
            return frozen.parents[up.number]

        merged = await self._map.read_merged(layer, number, row_of, parent_of, self._meta.fetch)
        old_row = row_of(layer, number) or [0, 0, 0, 0]
        _resolve(frozen, merged, pending, rootless=parent_of(layer) is None)
        new_row = await self._store_page(merged, old_row)
        for at in (0, 2):
            if old_row[at] != new_row[at] or old_row[at + 1] != new_row[at + 1]:
                _count(frozen, old_row[at], old_row[at + 1], -1)
                _count(frozen, new_row[at], new_row[at + 1], +1)
        _stage_row(frozen, layer, number, new_row)

    async def _store_page(self, merged: Merged, old_row: list[int]) -> list[int]:
        kinds = merged.entries[:, 0] & np.uint64(KIND_MASK)
        present = kinds.nonzero()[0]
        changed = merged.changed.nonzero()[0]
        if not len(present):
            return [0, 0, 0, 0]
        whole = len(changed) > DELTA_ENTRIES_MAX
        slots = present if whole else changed
        blob = pageblob.encode_page(slots, merged.entries[slots], merged.own[slots])
        a, b = await self._meta.append(blob)
        return [a, b, 0, 0] if whole else [old_row[0], old_row[1], a, b]

    async def _release_layer(self, frozen: Frozen, layer: Layer, budget: int) -> int:
        """Give back up to `budget` pages of a dropped layer; returns how many it was."""
        for pending in layer.frozen_pending.values():
            _release(frozen, pending.expand()[1])
        done = 0
        for number in list(layer.directory.pages()):
            if done >= budget:
                break
            row = layer.directory.get(number)
            assert row is not None
            _release(frozen, await self._map.own_entries(layer, number, row))
            _count(frozen, row[0], row[1], -1)
            _count(frozen, row[2], row[3], -1)
            _stage_row(frozen, layer, number, [0, 0, 0, 0])
            done += 1
            if done % PAGES_PER_TURN == 0:
                await trio.lowlevel.checkpoint()
        return done

    # -- directories, tables, root

    async def _write_chunks(self, frozen: Frozen) -> None:
        by_number = {layer.number: layer for layer in frozen.layers}
        for (layer_number, chunk_number), chunk in frozen.chunks.items():
            old = by_number[layer_number].directory.located.get(chunk_number, (0, 0))
            _count(frozen, *old, -1)
            if chunk.any():
                new = await self._meta.append(chunk.astype("<u8", copy=False).tobytes())
                _count(frozen, *new, +1)
                frozen.located[layer_number, chunk_number] = new

    def _dead_segments(self, frozen: Frozen) -> list[Segment]:
        return [
            s
            for s in self._table.all()
            if s.state is State.SEALED
            and s.last_commit <= frozen.position.commit
            and s.number != frozen.position.segment
            and s.number != frozen.position.announced
            and frozen.live.get(s.number, 0) + frozen.delta[s.number] == 0
            and s.live_bytes + frozen.delta[s.number] == 0
            and s is not self._meta.segment
        ]

    async def _write_root(self, frozen: Frozen, freed: list[Segment]) -> RootPointer:
        kept = [
            s
            for s in self._table.all()
            if s.number not in self.cooling and s.announced_in <= frozen.position.commit
        ]
        live = {s.number: frozen.live.get(s.number, 0) + frozen.delta[s.number] for s in kept}
        rows = self._table.rows(kept, live, {s.number for s in freed})
        append = self._meta.append_long
        catalogue = await append(frozen.catalogue)
        segments = await append(rows)
        directories = await append(root.pack_index(_index_rows(frozen)))
        listed = {s.number for s in kept} | self.cooling
        begun = {s.number for s in self._table.all() if not s.announced_in} - listed
        begun |= {a >> SEGMENT_SHIFT for a, _ in (*catalogue, *segments, *directories)}
        extra = [(number, self._table[number].copies) for number in sorted(begun)]
        number = self.number + 1
        made = Root(
            number, frozen.position, self._table.next_number, catalogue, segments,
            directories, extra,
        )  # fmt: skip
        packed = made.pack()
        if len(packed) > root.ROOT_BYTES_MAX:
            raise DeviceError(f"checkpoint root is too large: bytes={len(packed)}")
        a, b = await self._meta.append(packed)
        await self._meta.finish()
        assert self._meta.segment is not None
        return RootPointer(number, a, b, digest_of(packed), self._meta.segment.copies)

    async def _flush(self, frozen: Frozen) -> None:
        members = self._roster.in_sync()
        failures = await self._store.flush(members)
        if failures:
            raise MetaWriteError(failures)
        for member in members:
            if member.losses != frozen.losses.get(member.index, member.losses):
                # Another flush failed meanwhile, and with it maybe what was written here (R4).
                raise MetaWriteError([])

    # -- afterwards

    def _settle(self, frozen: Frozen, freed: list[Segment]) -> list[int]:
        self.number += 1
        self.position = frozen.position
        self._meta.keep()
        by_number = {layer.number: layer for layer in frozen.layers}
        for (layer_number, chunk_number), chunk in frozen.chunks.items():
            directory = by_number[layer_number].directory
            where = frozen.located.get((layer_number, chunk_number))
            if where is None:
                directory.chunks.pop(chunk_number, None)
                directory.located.pop(chunk_number, None)
            else:
                directory.chunks[chunk_number] = chunk
                directory.located[chunk_number] = where
        for layer in self._map.layers.values():
            layer.frozen_pending = {}
        self._map.generation += 1
        for number, change in frozen.delta.items():
            self._table[number].live_bytes += change
        self._forget_cooled(freed)
        return self._gone(frozen)

    def _forget_cooled(self, freed: list[Segment]) -> None:
        still_read = set()
        for number in self.cooling:
            segment = self._table[number]
            if segment.readers:
                still_read.add(number)
            else:
                self._table.forget(segment)
        for segment in freed:
            segment.state = State.FREED
        self.cooling = still_read | {segment.number for segment in freed}

    def _gone(self, frozen: Frozen) -> list[int]:
        gone = []
        self.dying_left = False
        for number in frozen.dying:
            layer = self._map.layers[number]
            if layer.directory.chunks or layer.pending:
                self.dying_left = True
            else:
                gone.append(number)
        return gone


def _with_root(
    sb: Superblock, pointer: RootPointer, position: LogPosition, clean: bool
) -> Superblock:
    jumps = tuple(
        j
        for j in sb.jumps
        if j.after_commit > position.commit
        or (j.after_commit == position.commit and j.segment != position.segment)
    )
    durable = max(sb.durable_commit, position.commit)
    return replace(sb, root=pointer, jumps=jumps, durable_commit=durable, clean=clean)


def _staged_row(frozen: Frozen, layer: Layer, number: int) -> list[int] | None:
    chunk = frozen.chunks.get((layer.number, number >> CHUNK_SHIFT))
    if chunk is None:
        return layer.directory.get(number)
    row: list[int] = chunk[number & (CHUNK_PAGES - 1)].tolist()
    return row if row[0] or row[2] else None


def _stage_row(frozen: Frozen, layer: Layer, number: int, row: list[int]) -> None:
    key = (layer.number, number >> CHUNK_SHIFT)
    chunk = frozen.chunks.get(key)
    if chunk is None:
        old = layer.directory.chunks.get(key[1])
        chunk = np.zeros((CHUNK_PAGES, 4), dtype=np.uint64) if old is None else old.copy()
        frozen.chunks[key] = chunk
    chunk[number & (CHUNK_PAGES - 1)] = row


def _index_rows(frozen: Frozen) -> list[tuple[int, int, int, int]]:
    rows = []
    for layer in frozen.layers:
        located = dict(layer.directory.located)
        for (number, chunk), where in frozen.located.items():
            if number == layer.number:
                located[chunk] = where
        for number, chunk in frozen.chunks:
            if number == layer.number and (number, chunk) not in frozen.located:
                located.pop(chunk, None)
        rows += [(layer.number, chunk, a, b) for chunk, (a, b) in located.items()]
    return rows


def _resolve(frozen: Frozen, merged: Merged, pending: PendingPage, *, rootless: bool) -> None:
    """Apply pending changes to a page and take what they displace off the counts (R6, R7)."""
    slots, entries = pending.expand()
    last = settle(slots)
    _release(frozen, entries[~last])
    slots, entries = slots[last], entries[last]
    mine = merged.own[slots]
    _release(frozen, merged.entries[slots[mine]])
    merged.entries[slots] = entries
    merged.own[slots] = True
    merged.changed[slots] = True
    if rootless:
        # Nothing lies below: a zero block is an absent one, and takes no entry.
        zero = (merged.entries[:, 0] & np.uint64(KIND_MASK)) == ZERO
        merged.entries[zero] = 0
        merged.own[zero] = False


def _release(frozen: Frozen, entries: Words) -> None:
    for segment, stored in live_by_segment(entries[:, 0], entries[:, 1]).items():
        frozen.delta[segment] -= stored


def _count(frozen: Frozen, a: int, b: int, sign: int) -> None:
    if a & KIND_MASK >= RAW:
        at = unpack(a, b)
        frozen.delta[at.segment] += sign * at.stored_bytes
