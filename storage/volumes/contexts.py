"""The metadata contexts of volumes and snapshots, besides data and zeroes, under QEMU's names.

    qemu:allocation-depth     0: nothing is stored, 1: stored by this layer, 2: by its parent, ...
    qemu:dirty-bitmap:SNAP    bit 0: the block differs from that snapshot of the volume

So backup tools that know QEMU's incremental backups can read the changes since any snapshot. For a
consistent backup of a live volume, make another snapshot, and ask about `VOL@NEW`.
"""

from collections.abc import Awaitable, Callable
from typing import Protocol

from storage.catalogue.records import SnapshotRecord, VolumeRecord
from storage.errors import NotFoundError
from storage.format.entry import BLOCK_BYTES, BLOCK_SHIFT
from storage.map.blockmap import BlockMap
from storage.map.compare import SAME, Comparison
from storage.map.layer import Layer
from storage.map.ownership import Depth
from storage.map.runs import Run, Runs, in_bytes, walk
from storage.members.segments import SegmentTable

ALLOCATION_DEPTH = "qemu:allocation-depth"
DIRTY_BITMAP = "qemu:dirty-bitmap:"
DIRTY = 1


class Records(Protocol):
    """Looks records up in the catalogue by name; both methods raise NotFoundError."""

    def record(self, name: str) -> VolumeRecord:
        """The record of a volume."""
        ...

    def snapshot_record(self, volume: str, snapshot: str) -> SnapshotRecord:
        """The record of a snapshot."""
        ...


class Contexts:
    """The metadata contexts of all volumes and snapshots of a pool.

    Args:
        flush: makes all earlier writes durable.
    """

    def __init__(
        self, blockmap: BlockMap, table: SegmentTable, records: Records,
        flush: Callable[[], Awaitable[None]],
    ):  # fmt: skip
        self._map = blockmap
        self._table = table
        self._records = records
        self._flush = flush

    def names(self, export: str) -> tuple[str, ...]:
        """The names of the contexts of `VOL` or `VOL@SNAP`. Raises NotFoundError."""
        snapshots = self._records.record(export.partition("@")[0]).snapshots
        return ALLOCATION_DEPTH, *(DIRTY_BITMAP + name for name in snapshots)

    async def status(
        self, export: str, layer: Layer, context: str, offset: int, length: int
    ) -> list[Run]:
        """The first runs of a range of an export, as `BlockDevice.status`; `layer` is its layer.

        Raises:
            NotFoundError: there is no such context, or its snapshot was deleted or replaced.
            ChecksumError, DamagedError: a page of the map has no good copy.
        """
        if not length:
            return []
        first, end = offset >> BLOCK_SHIFT, offset + length + BLOCK_BYTES - 1 >> BLOCK_SHIFT
        if context == ALLOCATION_DEPTH:
            runs = await walk(Depth(self._map, layer, first, end), first, end)
        elif context.startswith(DIRTY_BITMAP):
            runs = await self._dirty(export, layer, context, first, end)
        else:
            raise NotFoundError(f"{export} has no metadata context {context!r}")
        return in_bytes(runs, offset - (first << BLOCK_SHIFT), length)

    async def _dirty(
        self, export: str, layer: Layer, context: str, first: int, end: int
    ) -> list[Run]:
        volume, snapshot = export.partition("@")[0], context.removeprefix(DIRTY_BITMAP)
        base = self._base(volume, snapshot)
        if base.drained_overlays():
            await self._flush()
        view = Comparison(self._map, self._table, layer, base, first, end)
        dirty = Runs()
        for blocks, state in await walk(view, first, end):
            dirty.add(blocks, 0 if state == SAME else DIRTY)
        if self._base(volume, snapshot) is not base:
            raise NotFoundError(f"{volume}@{snapshot} was replaced by another snapshot")
        return dirty.items

    def _base(self, volume: str, snapshot: str) -> Layer:
        return self._map.layers[self._records.snapshot_record(volume, snapshot).layer]
