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
from storage.catalogue import operations
from storage.catalogue.arrivals import identify
from storage.catalogue.operations import Operation
from storage.checkpoint.checkpointer import Checkpointer
from storage.checkpoint.metadata_writer import MetaWriter
from storage.cleaning.cleaner import Cleaner
from storage.cleaning.mover import Mover
from storage.cleaning.reclaim import Reclaimer
from storage.environment import Environment
from storage.errors import DamagedError
from storage.format.values import decode, encode
from storage.info import PoolInfo, PoolSpace, VolumeSpace
from storage.log.budget import SpaceBudget
from storage.log.committer import Log, Written
from storage.map.extents import Extents
from storage.map.follow import follow, make_layers
from storage.map.liveness import Liveness
from storage.map.reader import ExtentCache, Reader
from storage.members.creation import create_pool
from storage.members.growth import Growth
from storage.members.member import MemberDevice, read_superblock
from storage.members.resync import Resync
from storage.members.trimmer import Trimmer
from storage.pool_report import pool_info, pool_space
from storage.recovery import assemble, opening
from storage.recovery.opening import Opened
from storage.settings import PoolSettings
from storage.transfer.transfers import Transfers
from storage.verify.scrub import Scrubber
from storage.volumes.contexts import Contexts
from storage.volumes.flatten import Flattener
from storage.volumes.quota import Quotas
from storage.volumes.registry import Registry
from storage.volumes.space import volume_spaces
from storage.volumes.volume import Volume, VolumeState

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
    found = await assemble.read_all(members)
    newest = assemble.newest_of(found)
    attached = assemble.attach(newest, found, without)
    roster = await opening.take(newest, attached, env)
    cache_bytes = max(settings.page_cache_bytes, 4 << 20)
    opened = await opening.load(roster, attached, cache_bytes, was_clean=newest.clean)
    await Resync(opened.table, opened.roster, opened.losses).bring_back()
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


class Pool(Transfers):
    """An open pool."""

    def __init__(self, opened: Opened, settings: PoolSettings, env: Environment):
        self.failed = trio.Event()
        """Set when the pool takes no more writes; `failure` says why."""
        self.roster = opened.roster
        self.table = opened.table
        self.blockmap = opened.blockmap
        self.segment_io = opened.segment_io
        self._env = env
        self._settings = settings
        identify(opened.catalogue, opened.roster.superblock.pool_uuid)
        self._durable = opened.catalogue
        self._live = opened.catalogue.copy()
        self.space = SpaceBudget(self.table, settings.buffer_bytes, self._make_room)
        self._log = Log(
            env,
            self.table,
            self.segment_io,
            self.roster,
            self.space,
            opened.position,
            self._on_durable,
        )
        self.roster.on_change = self.table.relocate_all
        self._reader = Reader(
            self.blockmap, self.segment_io, ExtentCache(max(settings.extent_cache_bytes, 1 << 20))
        )
        self._extents = Extents(self.blockmap)
        self.growth = Growth(self.roster, self.table, env, self._log.intake.pulse)
        meta = MetaWriter(self.segment_io, self.table, self.roster.superblock.commit_align)
        at = opened.meta_end
        if at is not None and self.table.has_all_copies(self.table[at[0]]):
            meta.go_on(*at)
        self._checkpointer = Checkpointer(
            self.blockmap, self.table, self.segment_io, self.roster, meta, self._durable,
            opened.usage, opened.stock,
        )  # fmt: skip
        if opened.root is not None:
            self._checkpointer.position = opened.root.position
        self._checkpointed_commit = opened.root.position.commit if opened.root else 0
        self._checkpointed_at = trio.current_time()
        self._commits_at_checkpoint = -opened.replayed
        self._table_changed = False
        """Copies were added that no checkpoint knows of."""
        self._room_lock = trio.Lock()
        mover = Mover(
            self.segment_io,
            self.table,
            self.roster,
            self._log.intake,
            lambda: self._log.durable.commit,
        )
        liveness = Liveness(self.blockmap, self._durable)
        self.scrubber = Scrubber(
            env, self.table, self.segment_io, self.roster, self.blockmap, self._durable, liveness,
            self._checkpointer, lambda: self._log.durable.commit, self.checkpoint,
        )  # fmt: skip
        self.cleaner = Cleaner(
            env, self.table, self.segment_io, self.roster, self.space, mover, liveness
        )
        self._reclaimer = Reclaimer(
            self.table, self.space, self.cleaner, self._checkpointer, self.checkpoint,
            lambda: self._log.durable.commit, lambda: self._log.intake.failure is None,
            self._log.intake.pulse,
        )  # fmt: skip
        self.quotas = Quotas(
            self._live, self.blockmap.layers, lambda: self._checkpointer.usage, self.space,
            self._log.intake.flush, self._count_anew,
        )  # fmt: skip
        volumes = Registry(self._live, self.blockmap, self.quotas, env)
        super().__init__(self._live, volumes, self.blockmap, self.table, env)
        self._contexts = Contexts(self.blockmap, self.table, self._registry, self.flush)
        self._flattener = Flattener(
            self._live, self.blockmap, self._reader, self._log.intake, self.space, self.quotas,
            self._checkpointer.whole, self.checkpoint, self._carry_out,
        )  # fmt: skip

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

    def space_info(self) -> PoolSpace:
        """Where the bytes of the pool are, as of the last checkpoint."""
        checkpointer = self._checkpointer
        promised = self.quotas.promised_bytes()
        return pool_space(self, checkpointer.stock, checkpointer.usage, self._live, promised)

    def volume_space(self, volume: str | None = None) -> list[VolumeSpace]:
        """What each volume takes, followed by its snapshots, as of the last checkpoint.

        Raises:
            NotFoundError: there is no volume of that name.
        """
        names = sorted(self._live.volumes) if volume is None else [volume]
        for name in names:
            self._registry.record(name, arriving=True)
        checkpointer = self._checkpointer
        return volume_spaces(checkpointer.stock, checkpointer.usage, self._live, names)

    # -- what can be done

    def open_export(self, name: str) -> Volume:
        """A handle of a volume `NAME`, or of a snapshot `NAME@SNAP`, read-only.

        Raises:
            NotFoundError: there is none of that name.
        """
        state, read_only = self._registry.open(name)
        return self._handle(state, read_only=read_only)

    def _open_arrival(self, name: str) -> Volume:
        return self._handle(self._registry.open(name, arriving=True)[0], read_only=False)

    def _handle(self, state: VolumeState, *, read_only: bool) -> Volume:
        return Volume(
            state, self._log.intake, self._reader, self._extents, self._contexts, self.quotas,
            read_only=read_only, on_close=lambda: self._registry.closed(state),
        )  # fmt: skip

    async def _carry_out(self, operation: Operation) -> None:
        # From here to the wait nothing suspends: the operation is one point in the log.
        self._log.intake.refuse_operations()
        try:
            made = operations.apply(self._live, operation).made
        except DamagedError as error:  # a mistake of ours must not get into the log
            self._log.die(error)
            raise
        buffer = self._log.intake.put_operation(encode(operation))
        make_layers(made, self._live, self.blockmap)
        self._registry.applied(operation)
        try:
            await self._log.intake.wait(buffer)
        except NoSpaceError as error:
            raise NoSpaceError(
                f"no room to log it yet, it is carried out as soon as there is: {error}"
            ) from error

    def _on_durable(self, written: Written) -> None:
        self.blockmap.apply(written.records)
        for placed in written.records.placed:
            segment = self.table[placed.segment]
            segment.announced_in = min(segment.announced_in, written.position.commit)
        for operation in written.records.operations:
            follow(operations.apply(self._durable, decode(operation)), self.blockmap)
        if written.buffer is not None:
            for number, part in written.buffer.layers.items():
                self.blockmap.layers[number].overlays.remove(part)
                self.cleaner.heat.written(number, part.index)
        if self._replay_cost() >= REPLAY_COST_MAX:
            self.space.paused = True

    async def flush(self) -> None:
        """Make everything written so far durable. Raises as `BlockDevice.flush`."""
        await self._log.intake.flush()

    # -- checkpoints

    async def checkpoint(self) -> None:
        """Write a checkpoint now. Raises as `Checkpointer.run`."""
        await self._run_checkpoint(clean=False)

    async def _count_anew(self) -> bool:
        await self.checkpoint()
        return self._checkpointer.layers_left

    async def _run_checkpoint(self, *, clean: bool) -> None:
        commits = self._log.commits
        self._table_changed = False
        started = trio.current_time()
        # A client that waits for room may go away; the checkpoint is everybody's.
        with trio.CancelScope(shield=True):
            gone = await self._checkpointer.run(lambda: self._log.durable, clean=clean)
        oldest = min((segment.number for segment in self.table.all()), default=0)
        for catalogue in (self._durable, self._live):
            catalogue.remove(gone, self.table.next_number)
            catalogue.forget_aliases(oldest)
        for number in gone:
            self.blockmap.remove_layer(number)
        assert self._checkpointer.position is not None
        self._checkpointed_commit = self._checkpointer.position.commit
        self._checkpointed_at = trio.current_time()
        self._commits_at_checkpoint = commits
        self.cleaner.checkpointed(self._checkpointed_commit, layers_gone=bool(gone))
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
            or self._checkpointer.layers_left
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
            nursery.start_soon(self._reclaimer.run)
            nursery.start_soon(Trimmer(self.table, lambda: self.failure is not None).run)
            nursery.start_soon(self._flattener.run)
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
        """Get space back for somebody who waits.

        Raises:
            NoSpaceError: what is alive fills the pool.
        """
        async with self._room_lock:
            await self._log.intake.flush()  # a trim may wait there
            await self.table.ask_full_again()
            await self._reclaimer.make_room()

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
