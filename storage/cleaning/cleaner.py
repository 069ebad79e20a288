"""The cleaner: moves the live blocks out of mostly dead segments, so that these can be freed.

Victims are chosen by the space that they give and by the age of their live blocks: cost-benefit
as of Rosenblum and Ousterhout, "The Design and Implementation of a Log-Structured File System"
(1992), section 3.6, with the square root of the age, which separates better when a few blocks
take most writes. Live blocks go to segments of two kinds: in one, blocks that are written often
die together; in the other, the remaining blocks stay together (`storage.cleaning.heat`).

Cleaning starts late, as blocks that die meanwhile need not be moved (`storage.cleaning.reclaim`).
It never pauses because snapshots exist. Checkpoints free the emptied segments (R10).
"""

import itertools
import logging
import math
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

import numpy as np
import trio

from blockdev.errors import DeviceError, NoSpaceError
from storage.cleaning.heat import Heat
from storage.cleaning.mover import MoveFailedError, Mover
from storage.cleaning.parcel import Bad, Parcel, make_parcels, parcels_of
from storage.cleaning.windows import windows
from storage.environment import Environment
from storage.format.entry import BLOCK_SHIFT, CHECK_SHIFT, unpack
from storage.log.budget import SpaceBudget
from storage.map.liveness import Liveness
from storage.members.roster import Roster
from storage.members.segment_io import SegmentIO
from storage.members.segments import Role, Segment, SegmentTable, State

log = logging.getLogger("cenote.storage")

LIVE_MAX = 0.95
"""A segment with a larger live part gives less space than new record tables and paddings cost."""

_WORTH = {Role.LOG: 1.2}
"""Factors on the scores of victims, by role. Live blocks of the log are told apart as hot and cold
when they are moved; simulated, 1.2 saves 0.01 bytes moved per byte of Zipf writes, and 1.4 would
cost uniform writes 0.05."""

ROUND_BYTES = 16 << 20
"""Bytes stored at least, if victims hold as many, before moves are flushed and logged."""

TRIES_MAX = 3
"""A segment that was cleaned so often and is still not freed is left alone until a deleted layer is
gone, or the pool is opened again."""


@dataclass(slots=True)
class CleanerStats:
    """Counts since the pool was opened."""

    segments: int = 0
    moved_bytes: int = 0
    read_bytes: int = 0
    damaged: int = 0
    """Extents found without a good copy."""


class Cleaner:
    """Empties segments of one pool."""

    def __init__(
        self, env: Environment, table: SegmentTable, segment_io: SegmentIO, roster: Roster,
        space: SpaceBudget, mover: Mover, liveness: Liveness,
    ):  # fmt: skip
        self.stats = CleanerStats()
        self.on_gain: Callable[[int], None] = lambda gain_bytes: None
        """Called with the bytes gained by each window of a victim: its size less moved bytes."""
        self.heat = Heat(table.total_segments() * table.segment_bytes >> BLOCK_SHIFT)
        """Counts of writes to blocks; the pool calls `heat.written` for each durable write."""
        self._env = env
        self._table = table
        self._segment_io = segment_io
        self._roster = roster
        self._space = space
        self._mover = mover
        self._liveness = liveness
        self.emptied: dict[int, int] = {}
        """Victims whose moves are durable: number -> the commit that made them durable. The next
        checkpoint frees them."""
        self._tries: dict[int, int] = {}
        self._lock = trio.Lock()

    # -- rounds

    def checkpointed(self, commit: int, *, layers_gone: bool) -> None:
        """Note a checkpoint of `commit`: victims emptied by then are freed, or hold live data.

        `layers_gone`: deleted layers are gone, whose blocks may have kept segments from being
        freed, so all segments are tried again.
        """
        if layers_gone:
            self._tries.clear()
        self.emptied = {n: since for n, since in self.emptied.items() if since > commit}

    async def round(self, most: int = 1 << 30, *, mixed: bool = False) -> bool:
        """Empty up to `most` segments, the best first, and log the moves; False if it emptied none.

        With `mixed`, hot and cold blocks of the first may share a segment if no other is left.

        Raises:
            DeviceError: the pool failed.
        """
        async with self._lock:
            try:
                done = await self._empty_some(self.victims()[:most], mixed)
                await self._mover.finish()
            except MoveFailedError as failed:
                log.warning("%s", failed)
                await self._mover.give_up(failed.failures)
                return False
            for victim in done:
                self.emptied[victim.number] = self._mover.durable_commit()
                self._tries[victim.number] = self._tries.get(victim.number, 0) + 1
            self.stats.segments += len(done)
            self.stats.moved_bytes = self._mover.bytes_written
            return bool(done)

    # -- victims

    def victims(self) -> list[Segment]:
        """Segments worth cleaning, the best first."""
        newest = self._table.next_number
        size = self._table.segment_bytes
        scored = []
        for segment in self._table.all():
            live = segment.live_bytes / size
            if not 0 < live < LIVE_MAX or not self._is_candidate(segment):
                continue
            age = newest - segment.number
            score = (1 - live) * math.sqrt(age) / (1 + live)
            scored.append((score * _WORTH.get(segment.role, 1), segment.number))
        return [self._table[number] for _, number in sorted(scored, reverse=True)]

    def _is_candidate(self, segment: Segment) -> bool:
        return (
            segment.state is State.SEALED
            and segment.role is not Role.META
            and segment.last_commit <= self._mover.durable_commit()
            and segment.number not in self.emptied
            and self._tries.get(segment.number, 0) < TRIES_MAX
            and bool(segment.places)
        )

    # -- moving

    async def _empty_some(self, victims: list[Segment], mixed: bool) -> list[Segment]:
        """Store the live blocks of victims elsewhere, until the round is large enough or no segment
        is free; return the victims of which all live blocks are stored."""
        most = self._mover.bytes_written + ROUND_BYTES
        done = 0
        try:
            for victim in victims:
                await self._empty(victim, mixed and not done)
                done += 1
                if self._mover.bytes_written >= most:
                    break
        except NoSpaceError as error:
            log.debug("cleaning pauses: %s", error)
        return victims[:done]

    async def _empty(self, victim: Segment, mixed: bool) -> None:
        pool_uuid = self._roster.superblock.pool_uuid
        async with aclosing(windows(self._segment_io, victim, pool_uuid)) as found:
            async for window in found:
                self.stats.read_bytes += len(window.data)
                alive = await self._liveness.of(window.extents)
                if not alive:
                    self.on_gain(len(window.data))
                    continue
                parcels, bad = await self._env.offload(partial(make_parcels, window, alive))
                for each in bad:
                    parcels += await self._rescue(victim, each)
                before = self._mover.bytes_written
                for role, some in self._by_role(parcels).items():
                    await self._mover.put(some, role, self._space.cleaner_floor, mixed=mixed)
                self.on_gain(len(window.data) - (self._mover.bytes_written - before))

    def _by_role(self, parcels: list[Parcel]) -> dict[Role, list[Parcel]]:
        """Group parcels by the kind of segment that they go to; parcels of one layer stay together.

        Parcels are stored victim by victim. Batches from several victims would cost fewer headers,
        but the space that is left could go to one half of each victim, and then none is emptied.
        """
        found: dict[Role, list[Parcel]] = {}
        for layer, group in itertools.groupby(parcels, lambda parcel: parcel.layer):
            some = list(group)
            blocks = np.array([parcel.block for parcel in some], dtype=np.uint64)
            for parcel, hot in zip(some, self.heat.is_hot(layer, blocks).tolist(), strict=True):
                found.setdefault(Role.MOVED if hot else Role.SETTLED, []).append(parcel)
        return found

    async def _rescue(self, victim: Segment, bad: Bad) -> list[Parcel]:
        """Read an extent with a bad first copy from another copy, which also repairs it; return its
        parcels, none if no copy is good."""
        at = unpack(bad.rows[0][1], bad.rows[0][2])
        try:
            stored = await self._segment_io.read(
                victim.number, at.offset, at.stored_bytes, bad.rows[0][2] >> CHECK_SHIFT
            )
            return parcels_of(bad.layer, bad.rows, at, stored)
        except DeviceError as error:
            self.stats.damaged += 1
            log.error("a damaged extent keeps its segment from being cleaned: %s", error)
            return []

    def rest(self) -> None:
        """Seal unfinished segments in which nothing is alive. Called when there is nothing to
        clean."""
        self._mover.rest()
