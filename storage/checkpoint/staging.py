"""The state of the pool at one commit, and what a checkpoint of it has prepared but not published.

Nothing here changes the map: directories, counts and catalogue take what was staged only when the
checkpoint has succeeded, and an attempt that fails is simply forgotten.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from storage.checkpoint.metadata_writer import MetaWriter
from storage.format import pages
from storage.format.checkpoint_root import LogPosition
from storage.format.entry import KIND_MASK, RAW, ZERO, Words, live_by_segment, unpack
from storage.format.pages import CHUNK_PAGES, CHUNK_SHIFT
from storage.map.directory import lying_in
from storage.map.layer import Layer
from storage.map.page import Page, PendingPage, settle
from storage.map.page_reader import Merged, PageReader
from storage.map.usage import Usage

NO_ROW = [0, 0, 0, 0]

GATHERED_MAX = 1 << 16
"""Blocks that are counted together: 3 MiB at most."""


@dataclass
class Frozen:
    """The state of the pool at one commit, and what the checkpoint of it has staged."""

    position: LogPosition
    catalogue: bytes
    parents: dict[int, Layer | None]
    dying: set[int]
    merging: dict[int, int]
    """Deleted layers that one other stands on, and which that is."""
    whole: set[int]
    """Layers whose pages get a base of their own, see `storage.volumes.flatten`."""
    layers: list[Layer]
    live: dict[int, int]
    losses: dict[int, int]
    usage: Usage
    """What layers store; a copy, changed as the pages are."""
    delta: Counter[int] = field(default_factory=Counter)
    """Live bytes gained and lost by segment."""
    chunks: dict[int, dict[int, Words]] = field(default_factory=dict)
    """Changed directory chunks by layer and number, whole."""
    located: dict[int, dict[int, tuple[int, int]]] = field(default_factory=dict)
    """Where those of them lie that are not empty."""
    merged: list[tuple[Layer, int, Page | None]] = field(default_factory=list)
    """Pages of layers that got more of their own, and what of that is cached and exact."""
    _came: list[Words] = field(default_factory=list)
    _went: list[Words] = field(default_factory=list)
    _lost: list[Words] = field(default_factory=list)
    _gathered: int = 0
    """Blocks whose entries wait in these for `settle`: stored, displaced, and stored in vain."""

    def row(self, layer: Layer, number: int) -> list[int] | None:
        """Where a page of a layer lies: [base A, base B, delta A, delta B]; None for nowhere."""
        staged = self.chunks.get(layer.number)
        chunk = None if staged is None else staged.get(number >> CHUNK_SHIFT)
        if chunk is None:  # asked for each layer of a chain, most of which have nothing there
            return layer.directory.get(number)
        row: list[int] = chunk[number & (CHUNK_PAGES - 1)].tolist()
        return row if row[0] or row[2] else None

    def stage(self, layer: Layer, number: int, row: list[int]) -> None:
        """Let a page lie elsewhere."""
        self.chunk(layer, number >> CHUNK_SHIFT)[number & (CHUNK_PAGES - 1)] = row

    def chunk(self, layer: Layer, number: int) -> Words:
        """A directory chunk, shape (1024, 4), to be changed."""
        staged = self.chunks.setdefault(layer.number, {})
        if number not in staged:
            staged[number] = layer.directory.chunk(number)
        return staged[number]

    def chunk_numbers(self, layer: Layer) -> list[int]:
        """The directory chunks of a layer in which anything is stored, ascending."""
        staged = self.chunks.get(layer.number, {})
        numbers = {number for number in layer.directory.located if number not in staged}
        numbers.update(number for number, chunk in staged.items() if chunk.any())
        return sorted(numbers)

    def pages_in(self, layer: Layer, number: int, segments: Words) -> list[int]:
        """The pages of a chunk whose base or delta lies in one of these segments, ascending."""
        chunk = self.chunks.get(layer.number, {}).get(number)
        if chunk is None:
            slots = layer.directory.slots_in(number, segments)
        else:
            slots = lying_in(chunk, segments)
        return [number << CHUNK_SHIFT | slot for slot in slots.tolist()]

    def index_rows(self) -> list[tuple[int, int, int, int]]:
        """(layer, chunk, A, B) of every directory chunk as staged."""
        rows = []
        for layer in self.layers:
            located = layer.directory.located
            if staged := self.chunks.get(layer.number):
                located = {n: where for n, where in located.items() if n not in staged}
                located.update(self.located.get(layer.number, {}))
            rows += [(layer.number, chunk, a, b) for chunk, (a, b) in located.items()]
        return rows

    def resolve(self, layer: int, merged: Merged, pending: PendingPage, *, rootless: bool) -> bool:
        """Apply pending changes to a page; what they bring and displace counts once `settle` is
        called (R6, R7). Returns whether anything changed: moves may all have come too late (R11).
        """
        changed = False
        for step in pending.steps():
            slots, entries = step.slots, step.entries
            if step.old is None:
                counts = settle(slots)
            else:
                counts = merged.own[slots] & (merged.entries[slots] == step.old).all(axis=1)
            self._lost.append(entries[~counts])
            slots, entries = slots[counts], entries[counts]
            mine = merged.own[slots]
            self._went.append(merged.entries[slots[mine]])
            self._came.append(entries)
            self._gathered += len(step.slots)
            merged.entries[slots] = entries
            merged.own[slots] = True
            merged.changed[slots] = True
            merged.fresh += len(slots)
            changed |= len(slots) > 0
        if rootless:
            # Nothing lies below: a zero block is an absent one, and takes no entry.
            zero = (merged.entries[:, 0] & np.uint64(KIND_MASK)) == ZERO
            merged.entries[zero] = 0
            merged.own[zero] = False
        if self._gathered >= GATHERED_MAX:
            self.settle(layer)
        return changed

    def settle(self, layer: int) -> None:
        """Count what pages of a layer brought since it was last done. One by one, they would take
        longer to count than to write."""
        if self._gathered:
            self.usage.add(layer, np.concatenate(self._came))
            self.displace(layer, np.concatenate(self._went))
            self.release(np.concatenate(self._lost))
            self._came, self._went, self._lost, self._gathered = [], [], [], 0

    def displace(self, layer: int, entries: Words) -> None:
        """Take stored blocks that count for a layer off its counts and off the live counts."""
        self.usage.add(layer, entries, -1)
        self.release(entries)

    def release(self, entries: Words) -> None:
        """Take stored blocks that do not count for any layer off the live counts."""
        for segment, stored in live_by_segment(entries[:, 0], entries[:, 1]).items():
            self.delta[segment] -= stored

    def count(self, a: int, b: int, sign: int) -> None:
        """Add a blob of metadata to the live counts, or take it off."""
        if a & KIND_MASK >= RAW:
            at = unpack(a, b)
            self.delta[at.segment] += sign * at.stored_bytes
            self.usage.map_bytes += sign * at.stored_bytes

    def replace_blobs(self, old_rows: Iterable[list[int]], new_row: list[int]) -> None:
        """Count the blobs of a page that are new, and take off those that are no longer named."""
        old = {(row[at], row[at + 1]) for row in old_rows for at in (0, 2)}
        new = {(new_row[at], new_row[at + 1]) for at in (0, 2)}
        for a, b in old - new:
            self.count(a, b, -1)
        for a, b in new - old:
            self.count(a, b, +1)


async def read_page(
    reader: PageReader, meta: MetaWriter, frozen: Frozen, layer: Layer, number: int
) -> Merged:
    """A page as staged, without pending changes. Raises as `PageReader.read_merged`."""

    def parent_of(up: Layer) -> Layer | None:
        return frozen.parents[up.number]

    return await reader.read_merged(layer, number, frozen.row, parent_of, meta.fetch)


def is_due_whole(changed: int, fresh: int, present: int) -> bool:
    """Whether a page of `present` entries is better written whole than as another delta.

    With `fresh` changes each time, deltas up to n entries hold n / 2 on average, and n / fresh of
    them are written until the page is. Both together are least for n * n = 2 * fresh * present: 45
    entries for single changes, 88 for four at a time, as with uniform writes to 1 TiB, and 143
    for ten, as while a pool is cleaned. With more than half of the entries it is not worth it.
    """
    return 2 * changed > present or changed * changed > 2 * max(fresh, 1) * present


async def store_page(
    meta: MetaWriter, merged: Merged, old_row: list[int], *, whole: bool = False
) -> list[int]:
    """Write what changed in a page as a delta on the base in `old_row`, or else all of it."""
    present = (merged.entries[:, 0] & np.uint64(KIND_MASK)).nonzero()[0]
    changed = merged.changed.nonzero()[0]
    if not len(present):
        return NO_ROW
    whole = whole or is_due_whole(len(changed), merged.fresh, len(present))
    slots = present if whole else changed
    blob = pages.encode_page(slots, merged.entries[slots], merged.own[slots])
    a, b = await meta.append(blob)
    return [a, b, 0, 0] if whole else [old_row[0], old_row[1], a, b]
