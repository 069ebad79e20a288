"""The pool: opens it, puts its parts together, and runs its tasks.

    async with open_pool(members) as pool:
        await pool.management.create_volume("root", 20 << 30)
        device = pool.open_export("root")

Tasks: the committer, and those of `Pool.run`. Between two `await`s everything here is atomic.
"""

import logging
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from uuid import UUID

import trio

from blockdev.device import BlockDevice
from blockdev.errors import DeviceError, NoSpaceError
from storage.catalogue.arrivals import identify
from storage.checkpoint.checkpointer import Checkpointer
from storage.checkpoint.due import Due
from storage.checkpoint.metadata_writer import MetaWriter
from storage.cleaning.cleaner import Cleaner
from storage.cleaning.mover import Mover
from storage.cleaning.reclaim import Reclaimer
from storage.environment import Environment
from storage.info import PoolInfo, PoolSpace, VolumeSpace
from storage.log.budget import SpaceBudget
from storage.log.committer import Log, Written
from storage.map.extents import Extents
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
from storage.volumes.exports import Exports
from storage.volumes.flatten import Flattener
from storage.volumes.management import Management
from storage.volumes.operation_log import OperationLog
from storage.volumes.quota import Quotas
from storage.volumes.registry import Registry
from storage.volumes.space import volume_spaces
from storage.volumes.volume import Volume

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
        nursery.start_soon(pool.log.run)
        if len(roster.superblock.jumps) >= JUMPS_SETTLED_AT:
            await pool.checkpoint()
        nursery.start_soon(pool.run)
        try:
            yield pool
        except Exception as error:
            failure = error  # raised again below, outside the nursery, which would wrap it
        try:
            await pool.close()
        except DeviceError as error:
            failure = failure or error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


class Pool:
    """An open pool: its parts, and what keeps them going.

    Parts: `roster`, `table` and `segment_io` (members and segments), `blockmap` and `reader`,
    `log`, `checkpointer`, `cleaner`, `scrubber`, `growth`, `quotas`, `registry` (names),
    `management` (what administrators do), `transfers` (send and receive).
    """

    def __init__(self, opened: Opened, settings: PoolSettings, env: Environment):
        self.failed = trio.Event()
        """Set when the pool takes no more writes; `failure` says why."""
        self.roster, self.table = opened.roster, opened.table
        self.blockmap, self.segment_io = opened.blockmap, opened.segment_io
        self._settings = settings
        identify(opened.catalogue, opened.roster.superblock.pool_uuid)
        self.durable = opened.catalogue
        """The catalogue as of the newest durable commit."""
        self.live = opened.catalogue.copy()
        """The catalogue as clients see it: operations count at once."""
        self.space = SpaceBudget(self.table, settings.buffer_bytes, self._make_room)
        self.log = Log(
            env, self.table, self.segment_io, self.roster, self.space, opened.position,
            self._on_durable,
        )  # fmt: skip
        self.roster.on_change = self.table.relocate_all
        extent_cache = ExtentCache(max(settings.extent_cache_bytes, 1 << 20))
        self.reader = Reader(self.blockmap, self.segment_io, extent_cache)
        self.growth = Growth(self.roster, self.table, env, self.log.intake.pulse)
        self.checkpointer = self._make_checkpointer(opened)
        self._checkpointed_commit = opened.root.position.commit if opened.root else 0
        self._due = Due(
            settings, self.blockmap, self.checkpointer, self.roster, lambda: self.log.commits,
            opened.replayed,
        )  # fmt: skip
        self._room_lock = trio.Lock()
        self._make_cleaner(env)
        self._make_volumes(env)

    def _make_checkpointer(self, opened: Opened) -> Checkpointer:
        meta = MetaWriter(self.segment_io, self.table, self.roster.superblock.commit_align)
        at = opened.meta_end
        if at is not None and self.table.has_all_copies(self.table[at[0]]):
            meta.go_on(*at)
        made = Checkpointer(
            self.blockmap, self.table, self.segment_io, self.roster, meta, self.durable,
            opened.usage, opened.stock,
        )  # fmt: skip
        if opened.root is not None:
            made.position = opened.root.position
        return made

    def _make_cleaner(self, env: Environment) -> None:
        """Make the parts that read segments again: cleaner and scrubber."""
        intake = self.log.intake
        mover = Mover(self.segment_io, self.table, self.roster, intake, lambda: self.durable_commit)
        liveness = Liveness(self.blockmap, self.durable)
        self.scrubber = Scrubber(
            env, self.table, self.segment_io, self.roster, self.blockmap, self.durable, liveness,
            self.checkpointer, lambda: self.durable_commit, self.checkpoint,
        )  # fmt: skip
        self.cleaner = Cleaner(
            env, self.table, self.segment_io, self.roster, self.space, mover, liveness
        )
        self._reclaimer = Reclaimer(
            self.table, self.space, self.cleaner, self.checkpointer, self.checkpoint,
            lambda: self.durable_commit, lambda: self.failure is None, intake.pulse,
        )  # fmt: skip

    def _make_volumes(self, env: Environment) -> None:
        """Make the parts that know names."""
        intake = self.log.intake
        self.quotas = Quotas(
            self.live, self.blockmap.layers, lambda: self.checkpointer.usage, self.space,
            intake.flush, self._count_anew,
        )  # fmt: skip
        self.registry = Registry(self.live, self.blockmap, self.quotas, env)
        contexts = Contexts(self.blockmap, self.table, self.registry, self.flush)
        self.exports = Exports(
            self.registry, intake, self.reader, Extents(self.blockmap), contexts, self.quotas
        )
        self._operations = OperationLog(
            self.live, self.durable, self.blockmap, self.registry, intake, self.log.die
        )
        self.flattener = Flattener(
            self.live, self.blockmap, self.reader, intake, self.space, self.quotas,
            self.checkpointer.whole, self.checkpoint, self._operations.carry_out,
        )  # fmt: skip
        self.management = Management(
            self.live, self.registry, self.flattener, self.exports, self._operations
        )
        self.transfers = Transfers(
            self.live, self.registry, self.blockmap, self.table, self.exports, self._operations,
            self.flush, env,
        )  # fmt: skip

    # -- the state of it

    @property
    def failure(self) -> DeviceError | None:
        """The error after which the pool takes no more writes, or None."""
        return self.log.intake.failure

    @property
    def durable_commit(self) -> int:
        """Everything through this commit is durable."""
        return self.log.durable.commit

    def info(self) -> PoolInfo:
        """The pool and its members."""
        return pool_info(self, self._checkpointed_commit, self.live)

    def space_info(self) -> PoolSpace:
        """Where the bytes of the pool are, as of the last checkpoint."""
        checkpointer = self.checkpointer
        promised = self.quotas.promised_bytes()
        return pool_space(self, checkpointer.stock, checkpointer.usage, self.live, promised)

    def volume_space(self, volume: str | None = None) -> list[VolumeSpace]:
        """What each volume takes, followed by its snapshots, as of the last checkpoint.

        Raises:
            NotFoundError: there is no volume of that name.
        """
        names = sorted(self.live.volumes) if volume is None else [volume]
        for name in names:
            self.registry.record(name, arriving=True)
        checkpointer = self.checkpointer
        return volume_spaces(checkpointer.stock, checkpointer.usage, self.live, names)

    def open_export(self, name: str) -> Volume:
        """A handle of a volume `NAME`, or of a snapshot `NAME@SNAP`, read-only.

        Raises:
            NotFoundError: there is none of that name.
        """
        return self.exports.open(name)

    async def flush(self) -> None:
        """Make everything written so far durable. Raises as `BlockDevice.flush`."""
        await self.log.intake.flush()

    def _on_durable(self, written: Written) -> None:
        self.blockmap.apply(written.records)
        for placed in written.records.placed:
            segment = self.table[placed.segment]
            segment.announced_in = min(segment.announced_in, written.position.commit)
        self._operations.became_durable(written.records.operations)
        if written.buffer is not None:
            for number, part in written.buffer.layers.items():
                self.blockmap.layers[number].overlays.remove(part)
                self.cleaner.heat.written(number, part.index)
        if self._due.replay_cost() >= REPLAY_COST_MAX:
            self.space.paused = True

    # -- checkpoints

    async def checkpoint(self) -> None:
        """Write a checkpoint now. Raises as `Checkpointer.run`."""
        await self._run_checkpoint(clean=False)

    async def _count_anew(self) -> bool:
        await self.checkpoint()
        return self.checkpointer.layers_left

    async def _run_checkpoint(self, *, clean: bool) -> None:
        commits = self._due.begun()
        started = trio.current_time()
        # A client that waits for room may go away; the checkpoint is everybody's.
        with trio.CancelScope(shield=True):
            gone = await self.checkpointer.run(lambda: self.log.durable, clean=clean)
        oldest = min((segment.number for segment in self.table.all()), default=0)
        for catalogue in (self.durable, self.live):
            catalogue.remove(gone, self.table.next_number)
            catalogue.forget_aliases(oldest)
        for number in gone:
            self.blockmap.remove_layer(number)
        assert self.checkpointer.position is not None
        self._checkpointed_commit = self.checkpointer.position.commit
        self._due.written(commits)
        self.cleaner.checkpointed(self._checkpointed_commit, layers_gone=bool(gone))
        self.space.paused = False
        self.log.intake.pulse()
        log.debug(
            "checkpoint %d: commit=%d seconds=%.3f",
            self.checkpointer.number, self._checkpointed_commit, trio.current_time() - started,
        )  # fmt: skip

    # -- tasks

    async def run(self) -> None:
        """Run everything else in the background for ever: commits of what is not flushed,
        checkpoints, missing copies, cleaning, trimming, flattening."""
        interval = self._settings.flush_interval_s
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._checkpoint_when_due)
            nursery.start_soon(self._restore_copies)
            nursery.start_soon(self._reclaimer.run)
            nursery.start_soon(Trimmer(self.table, lambda: self.failure is not None).run)
            nursery.start_soon(self.flattener.run)
            while True:
                await trio.sleep(interval)
                self.log.intake.nudge(interval)
                if self.failure is not None:
                    self.failed.set()

    async def _checkpoint_when_due(self) -> None:
        while True:
            if self._due.is_due() and self.failure is None:
                try:
                    await self.checkpoint()
                except NoSpaceError as error:
                    log.error("no space for a checkpoint: %s", error)
                    await trio.sleep(5)
                except DeviceError as error:
                    self.log.die(error)
                    self.failed.set()
            await trio.sleep(self._settings.flush_interval_s)

    async def _restore_copies(self) -> None:
        resync = Resync(self.table, self.roster)
        while True:
            while self.failure is None and await resync.restore_one():
                self._due.copies_added()
            await trio.sleep(self._settings.flush_interval_s)

    async def _make_room(self) -> None:
        """Get space back for a writer that waits.

        Raises:
            NoSpaceError: live data fills the pool.
        """
        async with self._room_lock:
            await self.log.intake.flush()  # a trim may wait there
            await self.table.ask_full_again()
            await self._reclaimer.make_room()

    async def close(self) -> None:
        """Commit what is left and write a last checkpoint; `open_pool` calls it."""
        if self.failure is not None:
            log.error("closing a pool that failed: %s", self.failure)
            return
        try:
            await self.log.intake.close()
        except NoSpaceError as error:
            log.error("writes that were never flushed are lost for lack of space: %s", error)
            self.log.die(error)
            return
        try:
            await self._run_checkpoint(clean=True)
        except NoSpaceError as error:
            log.warning("stopped without a checkpoint, the log is replayed next time: %s", error)
