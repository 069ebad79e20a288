"""What can be done with the volumes and snapshots of a pool. All of it is durable on return.

Every call raises NotFoundError for a name that is not there, NoSpaceError when the pool has no room
to log it (it is then carried out as soon as there is), and DeviceError when the pool failed.
A cancelled call may or may not take effect.
"""

from collections import Counter
from collections.abc import Sequence

from storage.catalogue.catalogue import Catalogue
from storage.catalogue.records import SnapshotRecord
from storage.catalogue.schedule import Schedule
from storage.catalogue.tree import VolumeTree, tree
from storage.errors import InvalidArgumentError
from storage.info import SnapshotInfo, TreeNode, VolumeInfo
from storage.volumes.exports import Exports
from storage.volumes.flatten import Flattener
from storage.volumes.listing import snapshot_info, volume_info
from storage.volumes.operation_log import OperationLog
from storage.volumes.registry import Registry


class Management:
    """Creates, changes and deletes volumes and snapshots, and lists them."""

    def __init__(
        self, live: Catalogue, registry: Registry, flattener: Flattener, exports: Exports,
        operations: OperationLog,
    ):  # fmt: skip
        self._live = live
        self._registry = registry
        self._flattener = flattener
        self._exports = exports
        self._carry_out = operations.carry_out

    async def _zero_behind(self, volume: str, size_bytes: int) -> None:
        device = self._exports.open(volume)
        try:
            await device.write_zeroes(size_bytes, device.size_bytes - size_bytes, fua=True)
        finally:
            await device.close()

    # -- what there is

    def volumes(self) -> list[VolumeInfo]:
        """All volumes by name."""
        return [self.volume(name) for name in sorted(self._live.volumes)]

    def volume(self, name: str) -> VolumeInfo:
        """One volume."""
        record = self._registry.record(name, arriving=True)
        flattening = self._flattener.progress(name) if record.flattening else None
        return volume_info(name, record, self._registry.handles(name), self._live, flattening)

    def snapshots(self, volume: str | None = None) -> list[SnapshotInfo]:
        """Snapshots of one volume, or of all, oldest first."""
        names = sorted(self._live.volumes) if volume is None else [volume]
        clones = VolumeTree(self._live).clones
        return [
            snapshot_info(name, snap, record, clones)
            for name in names
            for snap, record in self._registry.record(name, arriving=True).snapshots.items()
        ]

    def tree(self) -> list[TreeNode]:
        """Volumes, snapshots and clones, each with what it is shown under; and what is deleted
        and not given back yet."""
        return tree(self._live, self._registry.pages_left)

    # -- volumes

    async def create_volume(self, name: str, size_bytes: int) -> VolumeInfo:
        """Make an empty, thin volume.

        Raises:
            InvalidArgumentError, ExistsError: the name or the size.
        """
        await self._carry_out(self._registry.create(name, size_bytes))
        return self.volume(name)

    async def delete_volume(self, name: str, *, snapshots: bool = False) -> None:
        """Delete a volume; with `snapshots`, also those it has. Space comes back in checkpoints;
        clones keep what they need.

        Raises:
            InUseError: it has clients or snapshots, or is protected.
        """
        await self._carry_out(self._registry.delete(name, snapshots=snapshots))

    async def resize_volume(
        self, name: str, size_bytes: int, *, shrink: bool = False
    ) -> VolumeInfo:
        """Grow a volume, also while it is open; the new part reads as zeroes. Or shrink it: what
        lies behind is zeroed first, so that growing again never shows it (R12). A crash in
        between leaves the old size with zeroes there.

        Raises:
            InvalidArgumentError: it would shrink, and `shrink` is not set.
            InUseError: it would shrink, and has clients.
        """
        operation = self._registry.resize(name, size_bytes, shrink=shrink)
        if size_bytes < self.volume(name).size_bytes:
            await self._zero_behind(name, size_bytes)
            operation = self._registry.resize(name, size_bytes, shrink=shrink)
        await self._carry_out(operation)
        return self.volume(name)

    async def rename_volume(self, name: str, new_name: str) -> VolumeInfo:
        """Rename a volume.

        Raises:
            InvalidArgumentError, ExistsError: the new name.
            InUseError: it or a snapshot of it has clients.
        """
        await self._carry_out(self._registry.rename(name, new_name))
        return self.volume(new_name)

    async def promote(self, name: str) -> VolumeInfo:
        """Give a clone the snapshots of its origin that it depends on; the origin then depends on
        snapshots of the clone.

        Raises:
            InvalidArgumentError: it depends on none.
            ExistsError: both have a snapshot of the same name.
            InUseError: such a snapshot has clients.
        """
        await self._carry_out(self._registry.promote(name))
        return self.volume(name)

    async def flatten(self, name: str, *, on: bool = True) -> VolumeInfo:
        """Let a clone get copies of all that it inherits from other volumes, in the background,
        also after a restart; then it and its snapshots are independent of them. Not `on`: stop
        that; what is copied stays.

        Raises:
            InvalidArgumentError: it is independent already, or is not being flattened.
        """
        await self._carry_out(self._registry.flatten(name, on=on))
        self._flattener.look()
        return self.volume(name)

    async def note(self, name: str, notes: dict[str, object]) -> None:
        """Change `description`, `labels` or `protected` of a volume or of `VOL@SNAP`, or `limits`
        of a volume; these count at once.

        Raises:
            InvalidArgumentError: a text or a label is not acceptable.
        """
        await self._carry_out(self._registry.note(name, notes))

    # -- snapshots

    async def create_snapshot(self, volume: str, snapshot: str) -> SnapshotInfo:
        """Freeze a volume as it is now, under load too.

        Raises:
            InvalidArgumentError, ExistsError: the name.
        """
        await self._carry_out(self._registry.snapshot(volume, snapshot))
        return self._new_snapshot(volume, snapshot)

    async def create_snapshots(
        self, volumes: Sequence[str], snapshot: str, *, schedule: str = ""
    ) -> list[SnapshotInfo]:
        """Freeze several volumes at one point of the log, all or none. Automatic snapshots carry
        the name of their schedule, until they are renamed.

        Raises:
            InvalidArgumentError, ExistsError: a name.
        """
        await self._carry_out(self._registry.group(volumes, snapshot, schedule))
        return [self._new_snapshot(volume, snapshot) for volume in volumes]

    def schedules(self) -> dict[str, Schedule]:
        """The schedules that were set, by name. The pool only keeps them."""
        return dict(self._live.schedules)

    async def set_schedule(self, name: str, schedule: Schedule) -> None:
        """Set a schedule, or change all of it.

        Raises:
            InvalidArgumentError: the name, or something in it.
        """
        await self._carry_out(self._registry.set_schedule(name, schedule))

    async def remove_schedule(self, name: str) -> None:
        """Remove a schedule; its snapshots stay."""
        await self._carry_out(self._registry.remove_schedule(name))

    async def delete_snapshot(self, volume: str, snapshot: str) -> None:
        """Delete a snapshot, in any order: volumes and snapshots that depend on it keep the data
        that they need, and checkpoints give the rest back.

        Raises:
            InUseError: it has clients, or is protected.
        """
        await self._carry_out(self._registry.delete_snapshot(volume, snapshot))

    async def rename_snapshot(self, volume: str, snapshot: str, new_name: str) -> SnapshotInfo:
        """Rename a snapshot. Raises as `rename_volume`."""
        await self._carry_out(self._registry.rename_snapshot(volume, snapshot, new_name))
        record = self._record(volume, new_name)
        return snapshot_info(volume, new_name, record, VolumeTree(self._live).clones)

    async def rollback(self, volume: str, snapshot: str) -> None:
        """Make a volume again what its snapshot is; what was written since is dropped.

        Raises:
            InUseError: the volume has clients.
        """
        await self._carry_out(self._registry.rollback(volume, snapshot))

    async def clone(self, volume: str, snapshot: str | None, new_name: str) -> VolumeInfo:
        """Make a writable volume that starts as a snapshot is, or as the volume is now. Costs
        one record.

        Raises:
            InvalidArgumentError, ExistsError: the new name.
        """
        await self._carry_out(self._registry.clone(volume, snapshot, new_name))
        return self.volume(new_name)

    def _new_snapshot(self, volume: str, snapshot: str) -> SnapshotInfo:
        return snapshot_info(volume, snapshot, self._record(volume, snapshot), Counter())

    def _record(self, volume: str, snapshot: str) -> SnapshotRecord:
        records = self._registry.record(volume).snapshots
        if snapshot not in records:  # deleted while we waited
            raise InvalidArgumentError(f"{volume}@{snapshot} was deleted meanwhile")
        return records[snapshot]
