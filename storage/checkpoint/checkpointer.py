"""Writes checkpoints: makes the counts, catalogue and map pages of one commit durable (R8).

Order (R10): metadata is written and flushed on all copies, then superblocks are written and
flushed, and only then is space reused. Until the superblocks are written, none of them names the
new metadata, so a failed attempt is forgotten and made again.

Pages are written in order, parents before children. For each page the old version is read, the
pending changes are applied, the blocks that they displace are taken off the live counts, and
a delta or a new base is written. Then the live pages of mostly dead metadata segments are written
again, so that these segments can be freed (`storage.checkpoint.relocate`).
"""

import logging
from collections.abc import Callable
from dataclasses import replace

import trio

from blockdev.errors import DeviceError, NoSpaceError
from storage.catalogue.catalogue import Catalogue
from storage.checkpoint.merge import Merger
from storage.checkpoint.metadata_writer import MetaWriteError, MetaWriter
from storage.checkpoint.relocate import Relocator
from storage.checkpoint.staging import Frozen, read_page, store_page
from storage.checkpoint.stock import Stock, take_stock
from storage.format import checkpoint_root
from storage.format.checkpoint_root import LogPosition, Root
from storage.format.codec import digest_of
from storage.format.entry import SEGMENT_SHIFT
from storage.format.superblock import RootPointer, Superblock
from storage.map.blockmap import BlockMap
from storage.map.layer import Layer
from storage.map.page import PendingPage
from storage.map.page_reader import Merged
from storage.map.usage import DELETED, Usage
from storage.members.roster import Roster
from storage.members.segment_io import SegmentIO, only_full
from storage.members.segments import Segment, SegmentTable, State

log = logging.getLogger("cenote.storage")

DELETED_PAGES = 4096
"""Pages of deleted layers given back or merged per checkpoint, so that no checkpoint takes long:
some 0.4 s when they are dropped, or 2 s when all of them have to be read and written anew."""

PAGES_PER_TURN = 8
"""Pages between two turns of other tasks: a page takes 0.1 to 1 ms, more with more changes."""

ATTEMPTS_MAX = 4


class Checkpointer:
    """Writes checkpoints, one at a time."""

    def __init__(
        self, blockmap: BlockMap, table: SegmentTable, segment_io: SegmentIO, roster: Roster,
        meta: MetaWriter, durable: Catalogue, usage: Usage, stock: Stock,
    ):  # fmt: skip
        self.number = roster.superblock.root.checkpoint
        self.position: LogPosition | None = None
        """The log position where replay would start; None before the first checkpoint."""
        self.layers_left = bool(durable.merging()) or any(r.dying for r in durable.layers.values())
        """Whether deleted layers still hold space: another checkpoint gives more of it back."""
        self.usage = usage
        """Blocks and bytes of each layer, as of the last checkpoint."""
        self.stock = stock
        """How full the segments were at the last checkpoint."""
        self.cooling: set[int] = {s.number for s in table.all() if s.state is State.FREED}
        """Freed segments, whose slots the next checkpoint makes reusable (R10)."""
        self.whole: set[int] = set()
        """Layers each of whose pages is to get a base, see `storage.volumes.flatten`."""
        self.rewrite: set[tuple[int, int]] = set()
        """(layer, chunk) of directories without a good copy; the next checkpoint rewrites them."""
        self._map = blockmap
        self._table = table
        self._segment_io = segment_io
        self._roster = roster
        self._meta = meta
        self._durable = durable
        self._merger = Merger(blockmap, meta)
        self.relocator = Relocator(blockmap, table, meta)
        self._lock = trio.Lock()
        self._published = False
        """Whether superblocks of the attempt under way may be on members already."""

    @property
    def has_more_to_free(self) -> bool:
        """Whether another checkpoint gives space back even if nothing is written until then."""
        return bool(self.cooling) or self.layers_left

    async def run(
        self, position_now: Callable[[], LogPosition], *, clean: bool = False
    ) -> dict[int, int | None]:
        """Write a checkpoint of the durable state. Returns the layers that are gone for good, each
        with the layer that it was merged into, or None.

        On error or cancellation the changes are pending again, for the next checkpoint; the
        superblocks name the last checkpoint, or maybe the new one.

        Raises:
            NoSpaceError: even the reserve is used up.
            DeviceError: no member takes metadata any more, or a page of the map cannot be read.
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
            merging=durable.merging(),
            whole={n for n in self.whole if n in durable.layers and not durable.layers[n].dying},
            layers=[layers[n] for n in sorted(durable.layers)],
            live={s.number: s.live_bytes for s in self._table.all()},
            losses={m.index: m.losses for m in self._roster.in_sync()},
            usage=self.usage.copy(),
        )

    async def _attempt(self, frozen: Frozen, clean: bool) -> dict[int, int | None]:
        before = self._meta.bytes_written
        await self._write_pages(frozen)
        await self.relocator.relocate(frozen, self._meta.bytes_written - before)
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
        budget = DELETED_PAGES
        for layer in frozen.layers:
            if layer.number in frozen.dying:
                budget -= await self._release_layer(frozen, layer, budget)
                continue
            for number in sorted(layer.frozen_pending):
                await self._write_page(frozen, layer, number, layer.frozen_pending[number])
                turns += 1
                if turns % PAGES_PER_TURN == 0:
                    await trio.lowlevel.checkpoint()
            frozen.settle(layer.number)
        for number in sorted(frozen.whole):
            budget -= await self._write_whole(frozen, self._map.layers[number], budget)
        for number in sorted(frozen.merging):
            budget -= await self._merger.merge(frozen, self._map.layers[number], budget)

    async def _write_page(
        self, frozen: Frozen, layer: Layer, number: int, pending: PendingPage
    ) -> None:
        merged = await self._read(frozen, layer, number)
        rootless = frozen.parents[layer.number] is None
        if frozen.resolve(layer.number, merged, pending, rootless=rootless):
            await self._put_page(frozen, layer, number, merged)

    async def _write_whole(self, frozen: Frozen, layer: Layer, budget: int) -> int:
        """Write a base for up to `budget` pages of a layer that have none; returns the number of
        pages written."""
        done = 0
        for number in layer.directory.without_base():
            if done >= budget:
                break
            row = frozen.row(layer, number)
            if row is not None and not row[0]:  # else this checkpoint has written it already
                await self._put_page(frozen, layer, number, await self._read(frozen, layer, number))
                done += 1
                if done % PAGES_PER_TURN == 0:
                    await trio.lowlevel.checkpoint()
        return done

    async def _read(self, frozen: Frozen, layer: Layer, number: int) -> Merged:
        return await read_page(self._map, self._meta, frozen, layer, number)

    async def _put_page(self, frozen: Frozen, layer: Layer, number: int, merged: Merged) -> None:
        old_row = frozen.row(layer, number) or [0, 0, 0, 0]
        whole = layer.number in frozen.whole
        new_row = await store_page(self._meta, merged, old_row, whole=whole)
        frozen.replace_blobs([old_row], new_row)
        frozen.stage(layer, number, new_row)

    async def _release_layer(self, frozen: Frozen, layer: Layer, budget: int) -> int:
        """Give back up to `budget` pages of a dropped layer; returns their number."""
        frozen.usage.move(layer.number, DELETED)
        for pending in layer.frozen_pending.values():
            frozen.release(pending.named())
        done = 0
        for number in list(layer.directory.pages()):
            if done >= budget:
                break
            row = layer.directory.get(number)
            assert row is not None
            frozen.displace(DELETED, await self._map.own_entries(row, number))
            frozen.count(row[0], row[1], -1)
            frozen.count(row[2], row[3], -1)
            frozen.stage(layer, number, [0, 0, 0, 0])
            done += 1
            if done % PAGES_PER_TURN == 0:
                await trio.lowlevel.checkpoint()
        return done

    # -- directories, tables, root

    async def _write_chunks(self, frozen: Frozen) -> None:
        for owner in frozen.layers:
            for lost in [chunk for number, chunk in self.rewrite if number == owner.number]:
                if lost in owner.directory.located:
                    frozen.chunk(owner, lost)
        for layer in frozen.layers:
            located = frozen.located[layer.number] = {}
            for number, chunk in frozen.chunks.get(layer.number, {}).items():
                frozen.count(*layer.directory.located.get(number, (0, 0)), -1)
                if chunk.any():
                    new = await self._meta.append(chunk.astype("<u8", copy=False).tobytes())
                    frozen.count(*new, +1)
                    located[number] = new

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
        directories = await append(checkpoint_root.pack_index(frozen.index_rows()))
        usage = await append(frozen.usage.pack())
        listed = {s.number for s in kept} | self.cooling
        begun = {s.number for s in self._table.all() if not s.announced_in} - listed
        begun |= {a >> SEGMENT_SHIFT for a, _ in (*catalogue, *segments, *directories, *usage)}
        extra = [(number, self._table[number].copies) for number in sorted(begun)]
        number = self.number + 1
        made = Root(
            number, frozen.position, self._table.next_number, catalogue, segments,
            directories, usage, frozen.usage.map_bytes, extra,
        )  # fmt: skip
        packed = made.pack()
        if len(packed) > checkpoint_root.ROOT_BYTES_MAX:
            raise DeviceError(f"checkpoint root is too large: bytes={len(packed)}")
        a, b = await self._meta.append(packed)
        await self._meta.finish()
        assert self._meta.segment is not None
        return RootPointer(number, a, b, digest_of(packed), self._meta.segment.copies)

    async def _flush(self, frozen: Frozen) -> None:
        members = self._roster.in_sync()
        failures = await self._segment_io.flush(members)
        if failures:
            raise MetaWriteError(failures)
        for member in members:
            if member.losses != frozen.losses.get(member.index, member.losses):
                # Another flush failed meanwhile, and may have lost this metadata (R4).
                raise MetaWriteError([])
        if any(self._table.is_degraded(segment) for segment in self._meta.written):
            # A member failed meanwhile. It may be recorded stale since the very commit of this
            # checkpoint, and then would not be known to miss this metadata when it comes back (R5).
            raise MetaWriteError([])

    # -- afterwards

    def _settle(self, frozen: Frozen, freed: list[Segment]) -> dict[int, int | None]:
        self.number += 1
        self.position = frozen.position
        self.rewrite -= {(n, c) for n, chunks in frozen.chunks.items() for c in chunks}
        self._meta.keep()
        self.usage = frozen.usage
        for layer in frozen.layers:
            located = frozen.located[layer.number]
            for number, chunk in frozen.chunks.get(layer.number, {}).items():
                if number in located:
                    layer.directory.put(number, chunk, located[number])
                else:
                    layer.directory.drop(number)
        for layer in self._map.layers.values():
            layer.frozen_pending = {}
            layer.frozen_gained = 0
        self._map.generation += 1
        for layer, number, exact in frozen.merged:
            self._map.keep_only(layer, number, exact)
        for number, change in frozen.delta.items():
            self._table.add_live(number, change)
        self._forget_cooled(freed)
        self.stock = self._take_stock(frozen)
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

    def _take_stock(self, frozen: Frozen) -> Stock:
        def live_bytes(segment: Segment) -> int:
            return frozen.live.get(segment.number, 0) + frozen.delta[segment.number]

        meta = self._meta.segment
        end = (meta.number, self._meta.offset) if meta is not None else None
        return take_stock(self._table.all(), live_bytes, frozen.position, end)

    def _gone(self, frozen: Frozen) -> dict[int, int | None]:
        gone: dict[int, int | None] = {}
        for number in (*frozen.dying, *frozen.merging):
            layer = self._map.layers[number]
            if not (layer.directory or layer.pending or layer.overlays):
                gone[number] = frozen.merging.get(number)
        self.layers_left = len(gone) < len(frozen.dying) + len(frozen.merging)
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
