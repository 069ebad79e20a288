"""The pool: everything below put together, and what can be done with it.

    async with open_pool(members) as pool:
        await pool.create_volume("root", 20 << 30)
        device = pool.open_export("root")

Tasks: the committer, and a ticker that commits what lies around and starts checkpoints.
Catalogue changes are made in memory at once and logged behind all writes before them; the call
returns when that commit is durable. Between two `await`s everything here is atomic.
"""

import logging
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from uuid import UUID

import trio

from blockdev.device import BlockDevice
from blockdev.errors import DeviceError, NoSpaceError
from storage import catalogue as catalogue_module
from storage import opening
from storage.catalogue import Operation
from storage.checkpoint import Checkpointer
from storage.creation import create_pool
from storage.environment import Environment
from storage.info import PoolInfo, SnapshotInfo, VolumeInfo
from storage.log import Log, Written
from storage.member import MemberDevice, read_superblock
from storage.meta import MetaWriter
from storage.opening import Opened, detach_dying, make_layers
from storage.reader import ExtentCache, Reader
from storage.report import pool_info, snapshot_info, volume_info
from storage.resync import Resync
from storage.settings import PoolSettings
from storage.space import SpaceBudget
from storage.volume import Volume
from storage.volumes import Volumes

__all__ = ["MemberDevice", "Pool", "PoolSettings", "create_pool", "open_pool", "probe_member"]

log = logging.getLogger("cenote.storage")

REPLAY_COST_MAX = 2
"""Writers wait when the log behind the last checkpoint would cost twice what makes one due: the
bound on replay (R20)."""
JUMPS_SETTLED_AT = 8
"""So many failures or crashes without a checkpoint: one is written before anything is served."""


_DEFAULTS = PoolSettings()
_REAL_WORLD = Environment()


async def probe_member(device: BlockDevice) -> UUID | None:
    """The UUID of the pool a device belongs to, or None when it is not a member of one.

    Raises:
        FormatVersionError: made by a newer Cenote.
    """
    sb = await read_superblock(device)
    return None if sb is None else sb.pool_uuid


@asynccontextmanager
async def open_pool(
    members: Sequence[MemberDevice],
    *,
    settings: PoolSettings = _DEFAULTS,
    env: Environment = _REAL_WORLD,
    without: Collection[UUID] = (),
) -> AsyncIterator["Pool"]:
    """Open a pool, recovering it if need be; leaving the context checkpoints and closes it.

    The devices stay open: they belong to the caller. Cancellation, or a `BaseException` in
    the body, leaves the pool as a crash would: nothing flushed is lost.

    Raises:
        PoolError: and its kinds say why the pool cannot be opened.
    """
    found = await opening.read_all(members)
    newest = opening.newest_of(found)
    attached = opening.attach(newest, found, without)
    roster = await opening.take(newest, attached, env)
    opened = await opening.load(roster, attached, max(settings.page_cache_bytes, 4 << 20))
    await Resync(opened.table, opened.roster).bring_back()
    await opening.begin(opened, was_clean=newest.clean)
    pool = Pool(opened, settings, env)
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool._log.run)
        if len(roster.superblock.jumps) >= JUMPS_SETTLED_AT:
            await pool.checkpoint()
        nursery.start_soon(pool._tick)
        try:
            yield pool
        except Exception as error:
            failure = error  # raised again below, outside the nursery, which would wrap it
        try:
            await pool._close()
        except DeviceError as error:
            failure = failure or error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


class Pool:
    """An open pool."""

    def __init__(self, opened: Opened, settings: PoolSettings, env: Environment):
        self.failed = trio.Event()
        """Set when the pool takes no more writes; `failure` says why."""
        self.roster = opened.roster
        self.table = opened.table
        self.blockmap = opened.blockmap
        self.store = opened.store
        self._env = env
        self._settings = settings
        self._durable = opened.catalogue
        self._live = opened.catalogue.copy()
        self.space = SpaceBudget(self.table, settings.buffer_bytes, self._make_room)
        self._log = Log(
            env, self.table, self.store, self.roster, self.space, opened.position, self._on_durable
        )
        self.roster.on_change = self._members_changed
        self._reader = Reader(
            self.blockmap, self.store, ExtentCache(max(settings.extent_cache_bytes, 1 << 20))
        )
        meta = MetaWriter(self.store, self.table, self.roster.superblock.commit_align)
        at = opened.meta_end
        if at is not None and self.table.has_all_copies(self.table[at[0]]):
            meta.go_on(*at)
        self._checkpointer = Checkpointer(
            self.blockmap, self.table, self.store, self.roster, meta, self._durable
        )
        self._checkpointed_commit = opened.root.position.commit if opened.root else 0
        self._checkpointed_at = trio.current_time()
        self._commits_at_checkpoint = -opened.replayed
        self._table_changed = False
        """Copies were added that no checkpoint knows of."""
        self._room_lock = trio.Lock()
        self._full_at = -1
        self._volumes = Volumes(self._live, self.blockmap, env.wall_clock)

    # -- what there is

    @property
    def failure(self) -> DeviceError | None:
        """Why the pool takes no more writes, or None."""
        return self._log.intake.failure

    @property
    def durable_commit(self) -> int:
        """Everything through this commit is durable."""
        return self._log.durable.commit

    def info(self) -> PoolInfo:
        """The pool and its members."""
        return pool_info(self, self._checkpointed_commit, self._live)

    def volumes(self) -> list[VolumeInfo]:
        """All volumes by name."""
        return [self.volume(name) for name in sorted(self._live.volumes)]

    def volume(self, name: str) -> VolumeInfo:
        """One volume. Raises NotFoundError."""
        record = self._volumes.record(name)
        return volume_info(name, record, self._volumes.handles(name), self._live)

    def snapshots(self, volume: str | None = None) -> list[SnapshotInfo]:
        """Snapshots of one volume, or of all, oldest first. Raises NotFoundError."""
        names = sorted(self._live.volumes) if volume is None else [volume]
        return [
            snapshot_info(name, snap, record, self._live)
            for name in names
            for snap, record in self._volumes.record(name).snapshots.items()
        ]

    # -- what can be done

    async def create_volume(self, name: str, size_bytes: int) -> VolumeInfo:
        """Make an empty, thin volume. Durable on return.

        Raises:
            InvalidArgumentError, ExistsError: the name or the size.
        """
        await self._carry_out(self._volumes.create(name, size_bytes))
        return self.volume(name)

    async def delete_volume(self, name: str, *, snapshots: bool = False) -> None:
        """Delete a volume; with `snapshots`, also those it has. Space comes back in checkpoints.

        Raises:
            NotFoundError, InUseError: it has clients, snapshots or clones.
        """
        await self._carry_out(self._volumes.delete(name, snapshots=snapshots))

    async def resize_volume(self, name: str, size_bytes: int) -> VolumeInfo:
        """Grow a volume, also while it is open; the new part reads as zeroes.

        Raises:
            InvalidArgumentError: it would shrink.
        """
        await self._carry_out(self._volumes.resize(name, size_bytes))
        return self.volume(name)

    async def create_snapshot(self, volume: str, snapshot: str) -> SnapshotInfo:
        """Freeze a volume as it is now, under load too. Durable on return."""
        await self._carry_out(self._volumes.snapshot(volume, snapshot))
        return snapshot_info(
            volume, snapshot, self._volumes.record(volume).snapshots[snapshot], self._live
        )

    async def delete_snapshot(self, volume: str, snapshot: str) -> None:
        """Delete a snapshot on which nothing stands. Raises NotFoundError, InUseError."""
        await self._carry_out(self._volumes.delete_snapshot(volume, snapshot))

    async def rollback(self, volume: str, snapshot: str) -> None:
        """Make a volume again what its snapshot is; what was written since is dropped.

        Raises:
            InUseError: the volume has clients.
        """
        await self._carry_out(self._volumes.rollback(volume, snapshot))

    async def clone(self, volume: str, snapshot: str, new_name: str) -> VolumeInfo:
        """Make a writable volume that starts as a snapshot is. Costs one record."""
        await self._carry_out(self._volumes.clone(volume, snapshot, new_name))
        return self.volume(new_name)

    def open_export(self, name: str) -> Volume:
        """A handle of a volume `NAME`, or of a snapshot `NAME@SNAP`, read-only.

        Raises:
            NotFoundError: there is none of that name.
        """
        state, read_only = self._volumes.open(name)
        return Volume(
            state, self._log.intake, self._reader, read_only=read_only,
            on_close=lambda: self._volumes.closed(state),
        )  # fmt: skip

    async def _carry_out(self, operation: Operation) -> None:
        # From here to the wait nothing suspends: the operation is one point in the log.
        buffer = self._log.intake.put_operation(catalogue_module.encode(operation))
        self._live.apply(operation)
        make_layers(self._live, self.blockmap)
        self._volumes.applied(operation)
        try:
            await self._log.intake.wait(buffer)
        except NoSpaceError as error:
            raise NoSpaceError(
                f"no room to log it yet, it is carried out as soon as there is: {error}"
            ) from error

    def _on_durable(self, written: Written) -> None:
        self.blockmap.apply(written.records)
        for operation in written.records.operations:
            self._durable.apply(catalogue_module.decode(operation))
            detach_dying(self._durable, self.blockmap)
        if written.buffer is not None:
            for number, part in written.buffer.layers.items():
                self.blockmap.layers[number].overlays.remove(part)
        if self._replay_cost() >= REPLAY_COST_MAX:
            self.space.paused = True

    def _members_changed(self) -> None:
        self.table.relocate_all()

    async def flush(self) -> None:
        """Make everything written so far durable. Raises as `BlockDevice.flush`."""
        await self._log.intake.flush()

    # -- checkpoints

    async def checkpoint(self) -> None:
        """Write a checkpoint now. Raises as `Checkpointer.run`."""
        await self._run_checkpoint(clean=False)

    async def _run_checkpoint(self, *, clean: bool) -> None:
        commits = self._log.commits
        self._table_changed = False
        started = trio.current_time()
        # A client that waits for room may go away; the checkpoint is everybody's.
        with trio.CancelScope(shield=True):
            gone = await self._checkpointer.run(lambda: self._log.durable, clean=clean)
        for number in gone:
            for catalogue in (self._durable, self._live):
                catalogue.layers.pop(number, None)
            self.blockmap.layers.pop(number, None)
        assert self._checkpointer.position is not None
        self._checkpointed_commit = self._checkpointer.position.commit
        self._checkpointed_at = trio.current_time()
        self._commits_at_checkpoint = commits
        self.space.paused = False
        self._log.intake.pulse()
        log.debug(
            "checkpoint %d: commit=%d seconds=%.3f",
            self._checkpointer.number, self._checkpointed_commit, trio.current_time() - started,
        )  # fmt: skip

    def _replay_cost(self) -> float:
        """What a crash now would cost the next opening; records and commits count together."""
        commits = self._log.commits - self._commits_at_checkpoint
        records = self.blockmap.records_pending / self._settings.checkpoint_records
        return records + commits / self._settings.checkpoint_commits

    def _checkpoint_is_due(self) -> bool:
        settings = self._settings
        commits = self._log.commits - self._commits_at_checkpoint
        age = trio.current_time() - self._checkpointed_at
        return (
            self._replay_cost() >= 1
            or self._checkpointer.dying_left
            or (commits > 0 and age >= settings.checkpoint_interval_s)
            or (bool(self._checkpointer.cooling) and age >= settings.checkpoint_interval_s)
            or bool(self.roster.superblock.jumps)
            or self._table_changed
        )

    async def _tick(self) -> None:
        """Commit what nobody flushes, and start checkpoints when they are due."""
        interval = self._settings.flush_interval_s
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._checkpoint_when_due)
            nursery.start_soon(self._restore_copies)
            while True:
                await trio.sleep(interval)
                self._log.intake.nudge(interval)
                if self._log.intake.failure is not None:
                    self.failed.set()

    async def _checkpoint_when_due(self) -> None:
        while True:
            if self._checkpoint_is_due() and self._log.intake.failure is None:
                try:
                    await self.checkpoint()
                except NoSpaceError as error:
                    log.error("no space for a checkpoint: %s", error)
                    await trio.sleep(5)
                except DeviceError as error:
                    self._log.die(error)
                    self.failed.set()
            await trio.sleep(self._settings.flush_interval_s)

    async def _restore_copies(self) -> None:
        resync = Resync(self.table, self.roster)
        while True:
            while self._log.intake.failure is None and await resync.restore_one():
                self._table_changed = True
            await trio.sleep(self._settings.flush_interval_s)

    async def _make_room(self) -> None:
        """Free dead segments by checkpoints: one finds them, the next gives them back (R10).

        Raises:
            NoSpaceError: that did not help.
        """
        async with self._room_lock:
            await self._log.intake.flush()  # a trim may wait there
            await self.table.ask_full_again()
            for _ in range(3):
                if self.table.free_segments() > self.space.reserve_segments:
                    return
                nothing_new = self._full_at == self._log.durable.commit
                if nothing_new and not self._checkpointer.cooling:
                    break
                self._full_at = self._log.durable.commit
                await self.checkpoint()
            if self.table.free_segments() > self.space.reserve_segments:
                return
        raise NoSpaceError("the pool is full: delete volumes or snapshots, or add a member")

    # -- the end

    async def _close(self) -> None:
        if self._log.intake.failure is not None:
            log.error("closing a pool that failed: %s", self._log.intake.failure)
            return
        try:
            await self._log.intake.close()
        except NoSpaceError as error:
            log.error("writes that were never flushed are lost for lack of space: %s", error)
            self._log.die(error)
            return
        try:
            await self._run_checkpoint(clean=True)
        except NoSpaceError as error:
            log.warning("stopped without a checkpoint, the log is replayed next time: %s", error)
