"""Reclaims space: runs the cleaner and the checkpoints that free the segments it emptied, in the
background or for a waiting writer.

A segment that the cleaner emptied is freed by one checkpoint and may be used again after the next
(R10). Segments on that way count as free soon. When too few are, writers continue at the pace at
which the cleaner gains space, window by window, so that they need not stop for long.
"""

import logging
from collections.abc import Awaitable, Callable

import trio

from blockdev.errors import DeviceError, NoSpaceError
from storage.checkpoint.checkpointer import Checkpointer
from storage.cleaning.cleaner import Cleaner
from storage.cleaning.shared_run import SharedRun
from storage.log.budget import SpaceBudget
from storage.members.segments import SegmentTable

log = logging.getLogger("cenote.storage")

LOOK_EVERY_S = 0.2
"""Seconds between two looks of the background tasks whether there is something to do."""

BATCH_FRACTION = 8
SOON_FRACTION = 2.5
"""The reserve divided by SOON_FRACTION is to be free soon, and checkpoints free batches of an
eighth of it: while one batch is emptied, and the one before cools down, some segments are left for
writers until the checkpoint is done. With 3.5 there were often none in pools of some GiB, and
writers waited for each batch."""

STEPS_MAX = 1000
"""Most steps for one writer; a step that finds nothing more to free is the last."""

PAUSE_S = 1.0
"""Seconds between a failure and the next try."""


class Reclaimer:
    """Decides when one pool cleans, and when it writes checkpoints to free emptied segments."""

    def __init__(
        self, table: SegmentTable, space: SpaceBudget, cleaner: Cleaner,
        checkpointer: Checkpointer, checkpoint: Callable[[], Awaitable[None]],
        durable_commit: Callable[[], int], is_alive: Callable[[], bool],
        wake_writers: Callable[[], None],
    ):  # fmt: skip
        self._wake_writers = wake_writers
        self._table = table
        self._space = space
        self._cleaner = cleaner
        self._checkpointer = checkpointer
        self._checkpoint = SharedRun(checkpoint)
        self._durable_commit = durable_commit
        self._is_alive = is_alive
        self._kick = trio.Event()
        self._batched = trio.Event()
        """Set when enough segments are emptied for a checkpoint."""
        self._exact_at = -1
        """Commit of the last checkpoint made for a writer; another checkpoint of the same commit
        would free nothing."""
        self._in_vain_at = -1
        """Commit at which the cleaner found no segment worth cleaning."""
        self._at_work = 0
        """Number of background tasks that are cleaning or writing a checkpoint."""
        space.is_short = self._is_short
        space.is_reclaiming = lambda: self._at_work > 0
        cleaner.on_gain = self._gained

    # -- stocks

    def _soon_free(self) -> int:
        cooling = len(self._checkpointer.cooling)
        return self._table.free_segments() + cooling + len(self._cleaner.emptied)

    def _lacking(self) -> int:
        """How many more segments should be free soon. No more than needed, so that cleaning starts
        late: blocks that die meanwhile need not be moved."""
        return self._space.writer_floor + self._wanted() - self._soon_free()

    def _wanted(self) -> int:
        return max(2, int(self._space.reserve_segments / SOON_FRACTION))

    def _batch(self) -> int:
        return max(1, self._space.reserve_segments // BATCH_FRACTION)

    def _is_short(self) -> bool:
        """Whether writers have to keep to the cleaner's pace; asked when they need a buffer."""
        if self._lacking() <= 0:
            return False
        self._kick.set()
        return self._in_vain_at != self._durable_commit()

    def _gained(self, gain_bytes: int) -> None:
        # The more segments are lacking, the less of the gain writers get, but at least half: when
        # writers got all of the gain, the segments free soon never became enough again, and writers
        # stopped at each batch.
        lacking = min(max(0, self._lacking()), self._wanted())
        self._space.gained(int(gain_bytes * (1 - lacking / (2 * self._wanted()))))
        self._wake_writers()

    @property
    def _on_the_way(self) -> bool:
        """Whether another checkpoint gives space back."""
        return self._checkpointer.has_more_to_free or bool(self._cleaner.emptied)

    @property
    def _has_batch(self) -> bool:
        return len(self._cleaner.emptied) >= self._batch()

    # -- in the background

    async def run(self) -> None:
        """Clean and write checkpoints in the background, for ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._checkpoint_batches)
            while True:
                with trio.move_on_after(LOOK_EVERY_S):
                    await self._kick.wait()
                self._kick = trio.Event()
                while await self._tried(self._clean_ahead):
                    self._wake_writers()
                    await trio.lowlevel.checkpoint()
                self._wake_writers()

    async def _checkpoint_batches(self) -> None:
        while True:
            with trio.move_on_after(LOOK_EVERY_S):
                await self._batched.wait()
            self._batched = trio.Event()
            while await self._tried(self._checkpoint_batch):
                self._wake_writers()
            self._wake_writers()

    async def _tried(self, work: Callable[[], Awaitable[bool]]) -> bool:
        if not self._is_alive():
            return False
        self._at_work += 1
        try:
            return await work()
        except NoSpaceError as error:
            log.warning("no room to clean: %s", error)
        except DeviceError as error:
            if self._is_alive():
                log.error("cleaning failed: %s", error)
        finally:
            self._at_work -= 1
        self._wake_writers()
        await trio.sleep(PAUSE_S)
        return False

    async def _clean_ahead(self) -> bool:
        lacking = self._lacking()
        if lacking <= 0:
            self._cleaner.rest()
            return False
        if await self._cleaner.round(most=min(lacking, self._batch()), mixed=not self._on_the_way):
            if self._has_batch:
                self._batched.set()
            return True
        if self._on_the_way:
            await self._checkpoint()
            return True
        self._in_vain_at = self._durable_commit()
        return False

    async def _checkpoint_batch(self) -> bool:
        """Write a checkpoint if a batch of segments is emptied. As checkpoints cost, too, one frees
        this batch and makes the slots of the batch before reusable."""
        if not self._has_batch:
            return False
        await self._checkpoint()
        return True

    # -- for waiting writers

    async def _clean_batch(self) -> bool:
        return await self._cleaner.round(most=self._batch(), mixed=not self._on_the_way)

    async def make_room(self) -> None:
        """Free space until clients may write without waiting for it.

        Raises:
            NoSpaceError: live data fills the pool, or nothing more can be freed.
        """
        for _ in range(STEPS_MAX):
            if self._space.has_room:
                return
            if not await self._step():
                break
        if not self._space.has_room:
            raise NoSpaceError("the pool is full: delete volumes or snapshots, or add a member")

    async def _step(self) -> bool:
        """Do the cheapest thing that may give space back; False when nothing is left to do."""
        enough = self._has_batch or self._table.free_segments() <= self._space.cleaner_floor
        if not (enough and self._on_the_way):
            # Only as much as one checkpoint frees, as a writer waits.
            if not self._space.is_full and await self._clean_batch():
                return True
            if not self._on_the_way and self._exact_at == self._durable_commit():
                return False
        self._exact_at = self._durable_commit()
        await self._checkpoint()
        return True
