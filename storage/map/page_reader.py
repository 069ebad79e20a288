"""Reads pages of the block map from disk: the nearest base and the nearest delta.

Inherited entries whose blocks the cleaner moved since are looked up from their owners.
"""

from collections.abc import Awaitable, Callable

import numpy as np
from numpy.typing import NDArray

from storage.errors import DamagedError
from storage.format import pages
from storage.format.entry import KIND_MASK, RAW, SEGMENT_SHIFT, Words
from storage.format.pages import PAGE_BLOB_BYTES_MAX, PAGE_BLOCKS
from storage.map.layer import Layer
from storage.map.page import empty_entries
from storage.members.segment_io import SegmentIO
from storage.members.segments import SegmentTable

RowOf = Callable[[Layer, int], list[int] | None]
ParentOf = Callable[[Layer], Layer | None]
Fetch = Callable[[int, int, int], Awaitable[bytes]]
Slots = NDArray[np.intp]


class Merged:
    """A page as read from disk, before pending changes.

    `own` marks entries that belong to the layer asked for, `changed` those that differ from the
    nearest base, so that the next delta has to repeat them; both of shape (1024,). `entries` is of
    shape (1024, 2). `fresh` counts the changes that the checkpoint under way applies.
    """

    __slots__ = ("changed", "entries", "fresh", "own")

    def __init__(self) -> None:
        self.entries = empty_entries()
        self.own = np.zeros(PAGE_BLOCKS, dtype=np.bool_)
        self.changed = np.zeros(PAGE_BLOCKS, dtype=np.bool_)
        self.fresh = 0


class PageReader:
    """Reads pages through `segment_io`; `table` says which segments are live."""

    def __init__(self, segment_io: SegmentIO, table: SegmentTable):
        self._segment_io = segment_io
        self._table = table

    async def read_merged(
        self,
        layer: Layer,
        number: int,
        row_of: RowOf,
        parent_of: ParentOf,
        fetch: Fetch | None = None,
    ) -> Merged:
        """The page of `layer` as stored, without pending changes.

        `row_of` gives a layer's row of the page, `parent_of` a layer's parent; `fetch` reads a blob
        by its entry words, by default `SegmentIO.read_located`. Costs at most two reads, one delta
        and one base, however many ancestors there are. An inherited entry is a hint: when the
        cleaner has moved the block since, it is looked up from its owner, at more reads.

        Raises:
            ChecksumError, DamagedError: a blob has no good copy, or an entry no owner.
        """
        fetch = fetch or self._segment_io.read_located
        merged = await self._read_blobs(layer, number, row_of, parent_of, fetch)
        stale = self._stale_hints(merged)
        up = parent_of(layer)
        while len(stale) and up is not None:
            row = row_of(up, number)
            if row is not None:
                theirs = await self.own_of(row, number, fetch)
                found = stale[theirs.own[stale]]
                merged.entries[found] = theirs.entries[found]
                merged.changed[found] = True
                stale = stale[~theirs.own[stale]]
            up = parent_of(up)
        if len(stale):
            raise DamagedError(f"inherited entries of nobody: layer={layer.number} page={number}")
        return merged

    async def _read_blobs(
        self, layer: Layer, number: int, row_of: RowOf, parent_of: ParentOf, fetch: Fetch
    ) -> Merged:
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

    def _stale_hints(self, merged: Merged) -> Slots:
        """Slots of inherited entries that name segments which are no longer live."""
        words = merged.entries[:, 0]
        hints = (~merged.own & ((words & np.uint64(KIND_MASK)) >= np.uint64(RAW))).nonzero()[0]
        if not len(hints):
            return hints
        segments = words[hints] >> np.uint64(SEGMENT_SHIFT)
        gone = [n for n in np.unique(segments).tolist() if not self._table.is_live(n)]
        return hints[np.isin(segments, np.array(gone, dtype=np.uint64))] if gone else hints[:0]

    async def own_of(self, row: list[int], number: int, fetch: Fetch | None = None) -> Merged:
        """A layer's own base and delta of a page, by the page's row; `own` marks its own entries,
        all other entries are absent or hints. Raises as `read_merged`.
        """
        fetch = fetch or self._segment_io.read_located
        merged = Merged()
        for at, delta in ((0, False), (2, True)):
            if row[at]:
                blob = await fetch(row[at], row[at + 1], PAGE_BLOB_BYTES_MAX)
                _add_blob(merged, blob, own=True, delta=delta)
        return merged

    async def own_entries(self, row: list[int], number: int, fetch: Fetch | None = None) -> Words:
        """A layer's own entries of a page, shape (n, 2), by the page's row. Raises as `own_of`."""
        merged = await self.own_of(row, number, fetch)
        return merged.entries[merged.own]


def _add_blob(merged: Merged, blob: bytes, *, own: bool, delta: bool) -> None:
    slots, entries, flags = pages.decode_page(blob)
    merged.entries[slots] = entries
    merged.own[slots] = flags & own
    if delta:
        merged.changed[slots] = True
