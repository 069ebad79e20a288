"""The block map: from (layer, block) to where the block is stored.

A page that is asked for is built from what lies on disk (the nearest base, the nearest delta) and
the changes since the last checkpoint, then cached. Durable commits go to the list of pending
changes of their page, and to the cached page if there is one. So any page can be
dropped at any time without I/O, and nothing in memory is needed to know what is on disk.

What a change displaces is not looked up here: with a large volume most random writes hit
pages that are not in memory. The checkpoint finds out, page by page in order (R7, R8).
"""

from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from storage import pageblob
from storage.commit import LayerExtents, Records
from storage.entry import KIND_MASK, Words, live_by_segment
from storage.errors import DamagedError
from storage.layer import Layer
from storage.page import (
    COUNT_SHIFT,
    PAGE_COST_BYTES,
    ROW_BYTES,
    Page,
    PendingPage,
    empty_entries,
    expand_rows,
)
from storage.pageblob import PAGE_BLOB_BYTES_MAX, PAGE_BLOCKS, PAGE_SHIFT
from storage.segments import SegmentTable
from storage.store import Store

ALIAS_COST_BYTES = 250
"""Memory of one more layer's reference to a shared page."""

SLOT_BITS = PAGE_BLOCKS - 1

RowOf = Callable[[Layer, int], list[int] | None]
ParentOf = Callable[[Layer], Layer | None]
Fetch = Callable[[int, int, int], Awaitable[bytes]]


class Merged:
    """A page as read from disk, before pending changes.

    `own` marks entries that belong to the layer asked for; `changed` those that differ from
    the nearest base, which the next delta has to repeat. Arrays of shape (1024,) and (1024, 2).
    """

    __slots__ = ("changed", "entries", "own")

    def __init__(self) -> None:
        self.entries = empty_entries()
        self.own = np.zeros(PAGE_BLOCKS, dtype=np.bool_)
        self.changed = np.zeros(PAGE_BLOCKS, dtype=np.bool_)


class BlockMap:
    """All layers of the pool, and the page cache over them."""

    def __init__(self, store: Store, table: SegmentTable, cache_bytes: int):
        self.layers: dict[int, Layer] = {}
        self.records_pending = 0
        """Changes since the last checkpoint; what replay would have to do again."""
        self.generation = 0
        """Rises when directories change; a page load that overlaps that starts again."""
        self._store = store
        self._table = table
        self._cache_bytes = cache_bytes
        self._cost = 0
        self._clock: deque[tuple[Layer, int, Page]] = deque()
        self._nothing = Page(empty_entries(), 0)

    # -- cached pages

    def try_page(self, layer: Layer, number: int) -> Page | None:
        """The merged page from the cache, or None."""
        page = layer.pages.get(number)
        if page is not None:
            page.hot = True
        return page

    async def page(self, layer: Layer, number: int) -> Page:
        """The merged page, read from disk when it is not cached.

        Raises:
            ChecksumError, DamagedError: its metadata has no good copy.
        """
        while True:
            cached = layer.pages.get(number)
            if cached is not None:
                cached.hot = True
                return cached
            owner = _owner(layer, number)
            if owner is None:
                return self._insert(layer, number, self._nothing)
            shared = owner.pages.get(number)
            if shared is None:
                shared = await self._load(owner, number)
                # A layer frozen a moment ago may have got its last blocks meanwhile.
                if shared is None or _owner(layer, number) is not owner:
                    continue
                shared = self._insert(owner, number, shared)
            return self._insert(layer, number, shared)

    async def _load(self, owner: Layer, number: int) -> Page | None:
        """Build the page of a layer that owns it; None when the ground moved meanwhile."""
        generation = self.generation
        merged = await self.read_merged(owner, number, _row_on_disk, _parent)
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
                if pending is not None:
                    slots, entries = pending.expand()
                    merged.entries[slots] = entries
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
        """Take a page out of the cache; the clock settles its cost when it passes."""
        layer.pages.pop(number, None)

    def drop_layer_pages(self, layer: Layer) -> None:
        """Forget all cached pages of a layer that goes away."""
        layer.pages.clear()

    # -- reading what is on disk

    async def read_merged(
        self,
        layer: Layer,
        number: int,
        row_of: RowOf,
        parent_of: ParentOf,
        fetch: Fetch | None = None,
    ) -> Merged:
        """The page of `layer` as directories say, pending changes left out.

        `fetch` reads a blob by its entry words; the store does unless told otherwise. At most
        two reads: one delta and one base, however deep the chain is.
        """
        fetch = fetch or self._store.read_located
        merged = Merged()
        delta: list[int] | None = None
        up: Layer | None = layer
        while up is not None:
            row = row_of(up, number)
            if row is not None:
                if delta is None:
                    delta = row
                    delta_is_own = up is layer
                if row[0]:
                    blob = await fetch(row[0], row[1], PAGE_BLOB_BYTES_MAX)
                    _add_blob(merged, blob, own=up is layer, delta=False)
                    break
            up = parent_of(up)
        if delta is not None and delta[2]:
            blob = await fetch(delta[2], delta[3], PAGE_BLOB_BYTES_MAX)
            _add_blob(merged, blob, own=delta_is_own, delta=True)
        return merged

    async def own_entries(self, layer: Layer, number: int, row: list[int] | None) -> Words:
        """Entries (n, 2) that the layer itself stores on that page according to its row."""
        merged = await self.read_merged(layer, number, lambda up, _: row, lambda up: None)
        return merged.entries[merged.own]

    # -- durable commits

    def apply(self, records: Records) -> None:
        """Take the changes of a commit that is durable: zero ranges first, then extents."""
        for layer_number, first, count in records.zeroes:
            layer = self._layer(layer_number)
            for page, slot, blocks in self._zeroed_pages(layer, first, count):
                row = np.array([[slot | blocks << COUNT_SHIFT, 1, 0]], dtype="<u8")
                self._change(layer, page, row)
        for extents in records.extents:
            self._apply_extents(self._layer(extents.layer), extents)

    def apply_all(self, batch: list[Records]) -> None:
        """Take many durable commits in order; replay does so at a fraction of the cost.

        Extents of one layer are taken together as long as no zero range comes between.
        """
        together: dict[int, list[LayerExtents]] = {}
        for records in batch:
            if records.zeroes:
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
        """(page, slot, blocks) of every page in the range that maps anything at all."""
        end = first + count
        pages: Iterable[int] = range(first >> PAGE_SHIFT, ((end - 1) >> PAGE_SHIFT) + 1)
        ancestry = list(layer.ancestry())
        if len(pages) > 64:  # type: ignore[arg-type]
            pages = sorted(self._mapped_pages(ancestry, first >> PAGE_SHIFT, end - 1 >> PAGE_SHIFT))
        for page in pages:
            if any(up.owns(page) for up in ancestry):
                start = max(first, page << PAGE_SHIFT)
                stop = min(end, (page + 1) << PAGE_SHIFT)
                yield page, start & SLOT_BITS, stop - start

    @staticmethod
    def _mapped_pages(ancestry: list[Layer], low: int, high: int) -> set[int]:
        found: set[int] = set()
        for up in ancestry:
            for source in (up.directory.pages(), up.pending, up.frozen_pending):
                found.update(page for page in source if low <= page <= high)
        return found

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
        for segment, stored in live_by_segment(*_whole_extents(e)).items():
            self._table[segment].live_bytes += stored
        order = np.argsort(pages, kind="stable")
        pages, rows = pages[order], rows[order]
        cuts = (np.flatnonzero(np.diff(pages)) + 1).tolist()
        for start, stop in zip([0, *cuts], [*cuts, len(pages)], strict=True):
            self._change(layer, int(pages[start]), rows[start:stop])

    def _change(self, layer: Layer, number: int, rows: Words) -> None:
        pending = layer.pending.get(number)
        if pending is None:
            pending = layer.pending[number] = PendingPage()
        pending.rows += rows.tobytes()
        self.records_pending += len(rows)
        page = layer.pages.get(number)
        if page is not None:
            if page.owner != layer.number:
                self._drop(layer, number)
                page = self._insert(layer, number, page.copy_for(layer.number))
            slots, entries = expand_rows(rows)
            page.entries[slots] = entries
        if layer.children:
            # Last blocks of a layer frozen a moment ago: views made meanwhile miss them.
            for below in layer.descendants():
                self._drop(below, number)

    # -- checkpoints

    def freeze(self) -> None:
        """Set the changes so far aside for the checkpoint that starts now."""
        for layer in self.layers.values():
            assert not layer.frozen_pending
            layer.frozen_pending, layer.pending = layer.pending, {}
        self.records_pending = 0

    def thaw(self) -> None:
        """Undo `freeze` after a checkpoint that failed: the changes count as pending again."""
        for layer in self.layers.values():
            for number, newer in layer.pending.items():
                older = layer.frozen_pending.get(number)
                if older is None:
                    layer.frozen_pending[number] = newer
                else:
                    older.rows += newer.rows
            layer.pending, layer.frozen_pending = layer.frozen_pending, {}
        self.records_pending = sum(
            len(pending.rows) // ROW_BYTES
            for layer in self.layers.values()
            for pending in layer.pending.values()
        )


def _add_blob(merged: Merged, blob: bytes, *, own: bool, delta: bool) -> None:
    slots, entries, flags = pageblob.decode_page(blob)
    merged.entries[slots] = entries
    merged.own[slots] = flags & own
    if delta:
        merged.changed[slots] = True


def _owner(layer: Layer, number: int) -> Layer | None:
    """The nearest layer at or above this one that has changed the page."""
    return next((up for up in layer.ancestry() if up.owns(number)), None)


def _row_on_disk(layer: Layer, number: int) -> list[int] | None:
    return layer.directory.get(number)


def _parent(layer: Layer) -> Layer | None:
    return layer.parent


def _whole_extents(e: LayerExtents) -> tuple[Words, Words]:
    """Entries that stand for whole extents: one block each, so that a share is all of it."""
    return e.a, e.b & ~np.uint64(0xFF << 16)


def _split_at_pages(rows: Words, pages: Words) -> tuple[Words, NDArray[np.uint64]]:
    """Cut compressed extents that cross a page's end into one row per block."""
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
