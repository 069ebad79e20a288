"""Stages a checkpoint: the state of the pool at one commit, and its changes until published.

Nothing here changes the map: directories and counts take the staged changes only when the
checkpoint has succeeded, and a failed attempt is simply forgotten.
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
"""Changed blocks whose entries wait to be counted together: 3 MiB at most."""


@dataclass
class Frozen:
    """The state of the pool at one commit, and the staged changes of its checkpoint."""

    position: LogPosition
    catalogue: bytes
    parents: dict[int, Layer | None]
    dying: set[int]
    merging: dict[int, int]
    """Deleted layers with one child each, and that child."""
    whole: set[int]
    """Layers each of whose pages gets a base, see `storage.volumes.flatten`."""
    layers: list[Layer]
    live: dict[int, int]
    """Live bytes by segment."""
    losses: dict[int, int]
    """The `losses` of each member in sync, by index."""
    usage: Usage
    """Blocks and bytes of each layer: a copy, changed as pages are staged."""
    delta: Counter[int] = field(default_factory=Counter)
    """Live bytes gained and lost by segment."""
    chunks: dict[int, dict[int, Words]] = field(default_factory=dict)
    """Changed directory chunks by layer and number, whole."""
    located: dict[int, dict[int, tuple[int, int]]] = field(default_factory=dict)
    """Words A and B of the changed chunks that are not empty, by layer and number."""
    merged: list[tuple[Layer, int, Page | None]] = field(default_factory=list)
    """(layer, page, cached page) of each merged page; the cached one is exact, or None."""
    _added: list[Words] = field(default_factory=list)
    """Entries of stored blocks that wait to be counted by `settle`."""
    _displaced: list[Words] = field(default_factory=list)
    """Likewise the layer's own entries that these replace."""
    _outdated: list[Words] = field(default_factory=list)
    """Likewise entries that were replaced before this checkpoint, or moves that came too late."""
    _gathered: int = 0
    """Changed blocks whose entries wait in the three lists."""

    def row(self, layer: Layer, number: int) -> list[int] | None:
        """Where a page of a layer lies: [base A, base B, delta A, delta B]; None if nowhere."""
        staged = self.chunks.get(layer.number)
        chunk = None if staged is None else staged.get(number >> CHUNK_SHIFT)
        if chunk is None:  # quick: asked for each ancestor, most of which have nothing there
            return layer.directory.get(number)
        row: list[int] = chunk[number & (CHUNK_PAGES - 1)].tolist()
        return row if row[0] or row[2] else None

    def stage(self, layer: Layer, number: int, row: list[int]) -> None:
        """Set the row of a page."""
        self.chunk(layer, number >> CHUNK_SHIFT)[number & (CHUNK_PAGES - 1)] = row

    def chunk(self, layer: Layer, number: int) -> Words:
        """A staged directory chunk, shape (1024, 4), for the caller to change."""
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
        """Apply pending changes to a page; `settle` counts the blocks that they bring and displace
        (R6, R7). Returns whether anything changed: moves may all have come too late (R11).

        `rootless`: the layer has no parent.
        """
        changed = False
        for step in pending.steps():
            slots, entries = step.slots, step.entries
            if step.old is None:
                counts = settle(slots)
            else:
                counts = merged.own[slots] & (merged.entries[slots] == step.old).all(axis=1)
            self._outdated.append(entries[~counts])
            slots, entries = slots[counts], entries[counts]
            mine = merged.own[slots]
            self._displaced.append(merged.entries[slots[mine]])
            self._added.append(entries)
            self._gathered += len(step.slots)
            merged.entries[slots] = entries
            merged.own[slots] = True
            merged.changed[slots] = True
            merged.fresh += len(slots)
            changed |= len(slots) > 0
        if rootless:
            # There is no ancestor to hide: a zero block is an absent one, and takes no entry.
            zero = (merged.entries[:, 0] & np.uint64(KIND_MASK)) == ZERO
            merged.entries[zero] = 0
            merged.own[zero] = False
        if self._gathered >= GATHERED_MAX:
            self.settle(layer)
        return changed

    def settle(self, layer: int) -> None:
        """Count the changes to pages of a layer since the last call. Counting each page alone would
        take longer than writing it."""
        if self._gathered:
            self.usage.add(layer, np.concatenate(self._added))
            self.displace(layer, np.concatenate(self._displaced))
            self.release(np.concatenate(self._outdated))
            self._added, self._displaced, self._outdated, self._gathered = [], [], [], 0

    def displace(self, layer: int, entries: Words) -> None:
        """Take stored blocks that count for a layer off its counts and off the live counts."""
        self.usage.add(layer, entries, -1)
        self.release(entries)

    def release(self, entries: Words) -> None:
        """Take stored blocks that do not count for any layer off the live counts."""
        for segment, stored in live_by_segment(entries[:, 0], entries[:, 1]).items():
            self.delta[segment] -= stored

    def count(self, a: int, b: int, sign: int) -> None:
        """Add a blob of metadata to the live counts, or take it off with `sign` -1."""
        if a & KIND_MASK >= RAW:
            at = unpack(a, b)
            self.delta[at.segment] += sign * at.stored_bytes
            self.usage.map_bytes += sign * at.stored_bytes

    def replace_blobs(self, old_rows: Iterable[list[int]], new_row: list[int]) -> None:
        """Count the blobs that only the new row of a page names, and take off those that only the
        old rows name."""
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
    for ten, as while a pool is cleaned. A delta of more than half of the entries is not worth it.
    """
    return 2 * changed > present or changed * changed > 2 * max(fresh, 1) * present


async def store_page(
    meta: MetaWriter, merged: Merged, old_row: list[int], *, whole: bool = False
) -> list[int]:
    """Write the changes of a page as a delta on the base in `old_row`, or all of it as a base.
    Returns its new row. Raises as `MetaWriter.append`."""
    present = (merged.entries[:, 0] & np.uint64(KIND_MASK)).nonzero()[0]
    changed = merged.changed.nonzero()[0]
    if not len(present):
        return NO_ROW
    whole = whole or is_due_whole(len(changed), merged.fresh, len(present))
    slots = present if whole else changed
    blob = pages.encode_page(slots, merged.entries[slots], merged.own[slots])
    a, b = await meta.append(blob)
    return [a, b, 0, 0] if whole else [old_row[0], old_row[1], a, b]
