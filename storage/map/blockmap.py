"""The block map: maps (layer, block) to the place where the block is stored.

A requested page is built from its blobs on disk (the nearest base and the nearest delta) and the
changes since the last checkpoint, then cached. A durable commit is added to the pending changes of
its pages, and applied to those pages that are cached. So any cached page can be dropped at any time
without I/O: the disk and the pending changes hold all of it.

Applying a change does not look up the blocks that it displaces: with a large volume most random
writes hit pages that are not in memory. The checkpoint looks them up, page by page in order
(R7, R8).
"""

from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blockdev.errors import DeviceError
from storage.errors import DamagedError
from storage.format.commit import MOVE_COUNT_SHIFT, LayerExtents, LayerMoves, Records
from storage.format.entry import KIND_MASK, Words, live_by_segment
from storage.format.pages import PAGE_BLOCKS, PAGE_SHIFT
from storage.map.layer import Layer
from storage.map.page import (
    COUNT_SHIFT,
    PAGE_COST_BYTES,
    ROW_BYTES,
    Page,
    PendingPage,
    Step,
    empty_entries,
    expand_rows,
)
from storage.map.page_reader import PageReader
from storage.members.segment_io import SegmentIO
from storage.members.segments import SegmentTable

ALIAS_COST_BYTES = 250
"""Memory of one more layer's reference to a shared page."""

SLOT_BITS = PAGE_BLOCKS - 1

Slots = NDArray[np.intp]


class BlockMap(PageReader):
    """All layers of the pool, and the cache of their merged pages."""

    def __init__(self, segment_io: SegmentIO, table: SegmentTable, cache_bytes: int):
        self.layers: dict[int, Layer] = {}
        self.records_pending = 0
        """Changes since the last checkpoint, which replay would have to apply again."""
        self.generation = 0
        """Rises when directories or parents change; a page load that overlaps that starts again."""
        super().__init__(segment_io, table)
        self._cache_bytes = cache_bytes
        self._cost = 0
        self._clock: deque[tuple[Layer, int, Page]] = deque()
        self._empty_page = Page(empty_entries(), 0)

    # -- cached pages

    def try_page(self, layer: Layer, number: int) -> Page | None:
        """The merged page from the cache, or None."""
        page = layer.pages.get(number)
        if page is not None:
            page.hot = True
        return page

    def find_page(self, layer: Layer, number: int) -> Page | None:
        """The merged page if no read is needed, else None: the layer or the owner of the page has
        it in the cache, or no layer has changed it.
        """
        cached = layer.pages.get(number)
        if cached is not None:
            cached.hot = True
            return cached
        owner = layer.owner(number)
        shared = self._empty_page if owner is None else owner.pages.get(number)
        return None if shared is None else self._insert(layer, number, shared)

    async def page(self, layer: Layer, number: int) -> Page:
        """The merged page, read from disk when it is not cached.

        Raises:
            ChecksumError, DamagedError: its metadata has no good copy.
        """
        while True:
            found = self.find_page(layer, number)
            if found is not None:
                return found
            owner = layer.owner(number)
            assert owner is not None
            loaded = await self._load(owner, number)
            # A layer frozen a moment ago may have got its last blocks during the load.
            if loaded is not None and layer.owner(number) is owner:
                return self._insert(layer, number, self._insert(owner, number, loaded))

    async def _load(self, owner: Layer, number: int) -> Page | None:
        """Build the page of the layer that owns it; None when `generation` rose meanwhile."""
        generation = self.generation
        try:
            merged = await self.read_merged(owner, number, _row_on_disk, _parent)
        except DeviceError:
            if generation == self.generation:
                raise
            return None  # the blobs may have been freed between two reads
        if generation != self.generation:
            return None
        # From here to the return nothing suspends: the page misses no commit.
        changed = []
        for up in owner.ancestry():
            changed.append(up)
            if up.directory.get(number) is not None:
                break
        for up in reversed(changed):
            for pending in (up.frozen_pending.get(number), up.pending.get(number)):
                for step in () if pending is None else pending.steps():
                    step.apply(merged.entries)
        return Page(merged.entries, owner.number)

    def _insert(self, layer: Layer, number: int, page: Page) -> Page:
        known = layer.pages.get(number)
        if known is not None:
            return known
        layer.pages[number] = page
        self._cost += PAGE_COST_BYTES if page.owner == layer.number else ALIAS_COST_BYTES
        self._clock.append((layer, number, page))
        while self._cost > self._cache_bytes and len(self._clock) > 1:
            self._evict_one()
        return page

    def _evict_one(self) -> None:
        layer, number, page = self._clock.popleft()
        current = layer.pages.get(number)
        if current is page and page.hot:
            page.hot = False
            self._clock.append((layer, number, page))
            return
        if current is page:
            del layer.pages[number]
        self._cost -= PAGE_COST_BYTES if page.owner == layer.number else ALIAS_COST_BYTES

    def _drop(self, layer: Layer, number: int) -> None:
        """Take a page out of the cache; its memory is taken off the cache's cost when the clock
        hand reaches it."""
        layer.pages.pop(number, None)

    def drop_stale(self, layer: Layer, first: int, end: int) -> None:
        """Drop pages [first, end) of a layer and its ancestors from the cache: they may name places
        that were freed since the pages were read.
        """
        for up in layer.ancestry():
            for number in range(first, end):
                self._drop(up, number)

    def keep_only(self, layer: Layer, number: int, exact: Page | None) -> None:
        """Drop the cached page of a layer unless it is `exact`."""
        if layer.pages.get(number) is not exact:
            self._drop(layer, number)

    def drop_layer_pages(self, layer: Layer) -> None:
        """Drop all cached pages of a layer."""
        layer.pages.clear()

    def remove_layer(self, number: int) -> None:
        """Take a layer that stores nothing out of the tree; its children go to its parent."""
        layer = self.layers.pop(number, None)
        if layer is None:
            return
        for child in layer.children:
            child.parent = layer.parent
            child.copied |= layer.copied
        if layer.parent is not None:
            layer.parent.children.remove(layer)
            layer.parent.children += layer.children
        self.drop_layer_pages(layer)
        self.generation += 1

    # -- durable commits

    def apply(self, records: Records) -> None:
        """Apply the changes of a durable commit: zero ranges, then extents, then moves.

        Raises:
            DamagedError: the commit writes to a layer that does not exist.
        """
        for layer_number, first, count in records.zeroes:
            layer = self._layer(layer_number)
            for page, slot, blocks in self._zeroed_pages(layer, first, count):
                row = np.array([[slot | blocks << COUNT_SHIFT, 1, 0]], dtype="<u8")
                self._change(layer, page, row)
        for extents in records.extents:
            self._apply_extents(self._layer(extents.layer), extents)
        for moves in records.moves:
            if moves.layer in self.layers:  # else the layer was deleted or merged meanwhile
                self._apply_moves(self.layers[moves.layer], moves)

    def apply_all(self, batch: list[Records]) -> None:
        """Apply many durable commits in order, at a fraction of the cost of `apply`; for replay.

        Extents of one layer are applied together as long as neither zero ranges nor moves come
        between. Raises as `apply`.
        """
        together: dict[int, list[LayerExtents]] = {}
        for records in batch:
            if records.zeroes or records.moves:
                self._apply_together(together)
                self.apply(records)
                continue
            for extents in records.extents:
                together.setdefault(extents.layer, []).append(extents)
        self._apply_together(together)

    def _apply_together(self, together: dict[int, list[LayerExtents]]) -> None:
        for number, parts in together.items():
            columns = [
                np.concatenate([getattr(part, name) for part in parts])
                for name in ("blocks", "a", "b", "hash_tops")
            ]
            self._apply_extents(self._layer(number), LayerExtents(number, *columns))
        together.clear()

    def _layer(self, number: int) -> Layer:
        layer = self.layers.get(number)
        if layer is None:
            raise DamagedError(f"commit changes a layer that does not exist: layer={number}")
        return layer

    def _zeroed_pages(self, layer: Layer, first: int, count: int) -> Iterator[tuple[int, int, int]]:
        """Yield (page, first slot, blocks) for every page in the range that maps anything."""
        end = first + count
        for page in layer.mapped_pages(first >> PAGE_SHIFT, (end - 1 >> PAGE_SHIFT) + 1):
            start = max(first, page << PAGE_SHIFT)
            stop = min(end, (page + 1) << PAGE_SHIFT)
            yield page, start & SLOT_BITS, stop - start

    def _apply_extents(self, layer: Layer, e: LayerExtents) -> None:
        if not len(e.blocks):
            return
        rows = np.empty((len(e.blocks), 3), dtype="<u8")
        slots = e.blocks & np.uint64(SLOT_BITS)
        counts = (e.b >> np.uint64(20) & np.uint64(0xF)) + np.uint64(1)
        rows[:, 0] = slots | counts << np.uint64(COUNT_SHIFT)
        rows[:, 1] = e.a
        rows[:, 2] = e.b
        if bool((slots + counts > PAGE_BLOCKS).any()):
            rows, pages = _split_at_pages(rows, e.blocks >> np.uint64(PAGE_SHIFT))
        else:
            pages = e.blocks >> np.uint64(PAGE_SHIFT)
        layer.gained += int(counts.sum())
        for segment, stored in live_by_segment(*_whole_extents(e)).items():
            self._table.add_live(segment, stored)
        order = np.argsort(pages, kind="stable")
        for number, group in _groups(pages[order], rows[order]):
            self._change(layer, number, group)

    def _apply_moves(self, layer: Layer, moves: LayerMoves) -> None:
        heads = moves.rows[:, 0]
        counts = heads >> np.uint64(MOVE_COUNT_SHIFT)
        blocks = heads & np.uint64((1 << MOVE_COUNT_SHIFT) - 1)
        rows = np.empty((2 * len(heads), 3), dtype="<u8")
        rows[0::2, 0] = rows[1::2, 0] = (blocks & np.uint64(SLOT_BITS)) | counts << np.uint64(
            COUNT_SHIFT
        )
        rows[0::2, 1:] = moves.rows[:, 1:3]
        rows[1::2, 1:] = moves.rows[:, 3:5]
        _, entries = expand_rows(rows[1::2])
        for segment, stored in live_by_segment(entries[:, 0], entries[:, 1]).items():
            self._table.add_live(segment, stored)
        pages = blocks >> np.uint64(PAGE_SHIFT)
        order = np.argsort(pages, kind="stable")
        for number, group in _groups(pages[order], order):
            pairs = np.stack((2 * group, 2 * group + 1), axis=1).ravel()
            self._pending(layer, number).add_moves(rows[pairs])
            self.records_pending += 2 * len(group)
            page = self._own_page(layer, number)
            if page is not None:
                slots, new = expand_rows(rows[2 * group + 1])
                Step(slots, new, expand_rows(rows[2 * group])[1]).apply(page.entries)

    def _pending(self, layer: Layer, number: int) -> PendingPage:
        pending = layer.pending.get(number)
        if pending is None:
            pending = layer.pending[number] = PendingPage()
        return pending

    def _own_page(self, layer: Layer, number: int) -> Page | None:
        """The cached page of a layer, for the layer to change: copied first if it is shared."""
        page = layer.pages.get(number)
        if page is not None and page.owner != layer.number:
            self._drop(layer, number)
            page = self._insert(layer, number, page.copy_for(layer.number))
        return page

    def _change(self, layer: Layer, number: int, rows: Words) -> None:
        self._pending(layer, number).add(rows)
        self.records_pending += len(rows)
        page = self._own_page(layer, number)
        if page is not None:
            slots, entries = expand_rows(rows)
            page.entries[slots] = entries
        if layer.children:
            # These are the last blocks of a layer frozen a moment ago: pages that its descendants
            # have cached meanwhile lack them.
            for descendant in layer.descendants():
                descendant.note_ancestor_change(number)
                self._drop(descendant, number)

    # -- checkpoints

    def freeze(self) -> None:
        """Set the pending changes aside for the checkpoint that starts now."""
        for layer in self.layers.values():
            assert not layer.frozen_pending
            layer.frozen_pending, layer.pending = layer.pending, {}
            layer.frozen_gained, layer.gained = layer.gained, 0
        self.records_pending = 0

    def thaw(self) -> None:
        """Undo `freeze` after a failed checkpoint: the changes set aside are pending again."""
        for layer in self.layers.values():
            for number, newer in layer.pending.items():
                older = layer.frozen_pending.get(number)
                if older is None:
                    layer.frozen_pending[number] = newer
                else:
                    older.rows += newer.rows
                    older.has_moves |= newer.has_moves
            layer.pending, layer.frozen_pending = layer.frozen_pending, {}
            layer.gained, layer.frozen_gained = layer.gained + layer.frozen_gained, 0
        self.records_pending = sum(
            len(pending.rows) // ROW_BYTES
            for layer in self.layers.values()
            for pending in layer.pending.values()
        )


def by_page(blocks: Words) -> Iterator[tuple[int, Slots]]:
    """Yield (page, indexes of its blocks), ascending; `blocks` has shape (n,) and is sorted."""
    yield from _groups(blocks >> np.uint64(PAGE_SHIFT), np.arange(len(blocks)))


def _groups(pages: Words, items: NDArray[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield (page, its items); `pages` and `items` run in parallel and are sorted by page."""
    cuts = (np.flatnonzero(np.diff(pages)) + 1).tolist()
    for start, stop in zip([0, *cuts], [*cuts, len(pages)], strict=True):
        yield int(pages[start]), items[start:stop]


def _row_on_disk(layer: Layer, number: int) -> list[int] | None:
    return layer.directory.get(number)


def _parent(layer: Layer) -> Layer | None:
    return layer.parent


def _whole_extents(e: LayerExtents) -> tuple[Words, Words]:
    """Words A and B of extents as if each held one block, whose share is then the whole extent."""
    return e.a, e.b & ~np.uint64(0xFF << 16)


def _split_at_pages(rows: Words, pages: Words) -> tuple[Words, NDArray[np.uint64]]:
    """Cut extents that cross the end of a page into one row per block."""
    slots, entries = [], []
    out_pages: list[int] = []
    for (head, a, b), page in zip(rows.tolist(), pages.tolist(), strict=True):
        slot, count = head & 0xFFFF, head >> COUNT_SHIFT
        if slot + count <= PAGE_BLOCKS:
            slots.append(head)
            entries.append((a, b))
            out_pages.append(page)
            continue
        for i in range(count):
            step = i << 16 if a & KIND_MASK > 1 else 0
            slots.append(((slot + i) & SLOT_BITS) | 1 << COUNT_SHIFT)
            entries.append((a, b + step))
            out_pages.append(page + ((slot + i) >> PAGE_SHIFT))
    out = np.empty((len(slots), 3), dtype="<u8")
    out[:, 0] = slots
    out[:, 1:] = entries
    return out, np.array(out_pages, dtype=np.uint64)
