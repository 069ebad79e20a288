"""The cleaner: moves what is alive out of segments that are mostly dead, so that they come back.

Victims are chosen by what they give and how long what is alive in them has lived: cost-benefit
as of Rosenblum and Ousterhout, "The Design and Implementation of a Log-Structured File System"
(1992), section 3.6, with the square root of the age, which separates better when a few blocks
take most writes. What is found alive goes to segments of its own, of two kinds: blocks that are
written often die together there, and those that are not stay together (`storage.cleaning.heat`).

It works as late as it can, as everything that dies meanwhile need not be moved, and as hard
as it must. It never pauses because snapshots exist. Checkpoints give back what it emptied (R10).
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
"""A segment that is fuller gives less than its record tables and paddings cost."""

_WORTH = {Role.LOG: 1.2}
"""Hot and cold blocks that are alive in the log are told apart when it is cleaned; simulated, this
saves 0.01 bytes per byte of Zipf writes, and 1.4 would cost uniform ones 0.05."""

ROUND_BYTES = 16 << 20
"""Moved at least, if there is as much, before moves are flushed and logged."""

TRIES_MAX = 3
"""A segment that cannot be emptied so often is left alone until the pool is opened again."""


@dataclass(slots=True)
class CleanerStats:
    """What the cleaner did since the pool was opened."""

    segments: int = 0
    moved_bytes: int = 0
    read_bytes: int = 0
    damaged: int = 0


class Cleaner:
    """Empties segments of one pool."""

    def __init__(
        self, env: Environment, table: SegmentTable, segment_io: SegmentIO, roster: Roster,
        space: SpaceBudget, mover: Mover, liveness: Liveness,
    ):  # fmt: skip
        self.stats = CleanerStats()
        self.on_gain: Callable[[int], None] = lambda gain_bytes: None
        """Told how much space a window of a victim nets."""
        self.heat = Heat(table.total_segments() * table.segment_bytes >> BLOCK_SHIFT)
        """To be told of what clients write."""
        self._env = env
        self._table = table
        self._segment_io = segment_io
        self._roster = roster
        self._space = space
        self._mover = mover
        self._liveness = liveness
        self.emptied: dict[int, int] = {}
        """Victims whose moves are durable, and since which commit; a checkpoint frees them."""
        self._tries: dict[int, int] = {}
        self._lock = trio.Lock()

    # -- when

    def checkpointed(self, commit: int, *, layers_gone: bool) -> None:
        """Counts are exact as of a commit: what was emptied by then is freed, or was not empty.

        What layers held that are gone may have kept segments from that: they are tried again.
        """
        if layers_gone:
            self._tries.clear()
        self.emptied = {n: since for n, since in self.emptied.items() if since > commit}

    async def round(self, most: int = 1 << 30, *, mixed: bool = False) -> bool:
        """Empty some segments, at most so many, the best first; False when there is none worth it.

        Hot and cold blocks are `mixed` where else no segment would come back.

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

    # -- which

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

    # -- some of them

    async def _empty_some(self, victims: list[Segment], mixed: bool) -> list[Segment]:
        """Store elsewhere what is alive in victims; returns those of which all of it is."""
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
        """Parcels by the kind of segment they go to; those of one layer stay together.

        They are put victim by victim. Gathered from several, batches would cost fewer headers,
        but the room that is left could go to one half of each, and then no victim comes back.
        """
        found: dict[Role, list[Parcel]] = {}
        for layer, group in itertools.groupby(parcels, lambda parcel: parcel.layer):
            some = list(group)
            blocks = np.array([parcel.block for parcel in some], dtype=np.uint64)
            for parcel, hot in zip(some, self.heat.is_hot(layer, blocks).tolist(), strict=True):
                found.setdefault(Role.MOVED if hot else Role.SETTLED, []).append(parcel)
        return found

    async def _rescue(self, victim: Segment, bad: Bad) -> list[Parcel]:
        """Blocks whose first copy is bad, from another one, which also repairs it."""
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
        """There is nothing to do: leave segments that hold nothing."""
        self._mover.rest()
