"""The scrub: reads everything that is live in an open pool, on every copy, and repairs it.

Copies that are not read for years rot unnoticed, one and then the other. A pass reads the
superblocks, then segments in the order of their numbers, then the tables, directories and pages of
the map. Data is found from the segments themselves, not from the map: so any amount of it is read
in order, with one piece of each copy in memory. Only bad items are looked up in the map.

No client waits for a scrub: threads read and hash one piece at a time, without locks; only
superblocks are read under the lock of their writer. A pass need not read data written after it
began, and does not read data freed meanwhile.
"""

import logging
from collections.abc import Awaitable, Callable

import trio

from blockdev.errors import DeviceError, NoSpaceError
from storage.catalogue.catalogue import Catalogue
from storage.checkpoint.checkpointer import Checkpointer
from storage.environment import Environment
from storage.errors import FencedError
from storage.format.checkpoint_root import LogPosition
from storage.format.superblock import SUPERBLOCK_BYTES
from storage.map.blockmap import BlockMap
from storage.map.liveness import Liveness
from storage.members.roster import Roster
from storage.members.segment_io import SegmentIO
from storage.members.segments import Role, Segment, SegmentTable
from storage.throttle import Throttle
from storage.verify.affected import Affected
from storage.verify.examiner import Examiner
from storage.verify.scrub_map import MapScrub
from storage.verify.scrub_pass import Finding, Outcome, ScrubPass, Stage
from storage.verify.scrub_segments import SegmentScrub

log = logging.getLogger("cenote.storage")

START = LogPosition(0, 0, 0, 0)
"""Where the replay of a pool without a checkpoint starts."""


class Scrubber:
    """Scrubs one pool.

    Args:
        durable_commit: returns the number of the newest durable commit.
        checkpoint: writes a checkpoint.
    """

    def __init__(
        self, env: Environment, table: SegmentTable, segment_io: SegmentIO, roster: Roster,
        blockmap: BlockMap, durable: Catalogue, liveness: Liveness, checkpointer: Checkpointer,
        durable_commit: Callable[[], int], checkpoint: Callable[[], Awaitable[None]],
    ):  # fmt: skip
        self._env = env
        self._table = table
        self._segment_io = segment_io
        self._roster = roster
        self._map = blockmap
        self._liveness = liveness
        self._affected = Affected(blockmap, durable)
        self._checkpointer = checkpointer
        self._durable_commit = durable_commit
        self._checkpoint = checkpoint

    def new_pass(self) -> ScrubPass:
        """Return a new pass, over everything that is live now."""
        return ScrubPass(self._table.next_number)

    async def run(self, scrub: ScrubPass, throttle: Throttle) -> None:
        """Run a pass to its end. After an error or a cancellation, the next call continues the pass
        where it was. `throttle` limits the bytes read.

        Raises:
            DeviceError: the pool failed.
        """
        examiner = Examiner(self._env, self._table, self._segment_io, self._roster, scrub, throttle)
        self._skip_absent(scrub)
        if scrub.stage is Stage.SUPERBLOCKS:
            await self._superblocks(examiner)
            scrub.stage = Stage.SEGMENTS
        if scrub.stage is Stage.SEGMENTS:
            await self._segments(scrub, examiner)
            scrub.stage = Stage.TABLES
        pages = MapScrub(
            self._table, self._segment_io, self._roster, self._map, self._checkpointer,
            self._checkpoint, examiner, self._affected,
        )  # fmt: skip
        if scrub.stage is Stage.TABLES:
            if scrub.gaps:
                await self._name_everything()
            await pages.tables()
            await examiner.flush_repairs()
            scrub.stage = Stage.PAGES
        if scrub.stage is Stage.PAGES:
            await self._pages(scrub, examiner, pages)
            scrub.stage = Stage.DONE
        self._skip_absent(scrub)

    def _skip_absent(self, scrub: ScrubPass) -> None:
        """Note the members that are not read. A stale one gets what it missed when it is attached
        again, and is read by the next pass."""
        for member, row in zip(self._roster.members, self._roster.rows(), strict=True):
            if member is None:
                scrub.skip(f"{row.uuid}: not attached")
            elif not member.in_sync:
                scrub.skip(f"{member.name}: stale")

    async def _name_everything(self) -> None:
        """Write a checkpoint: then pages on disk, where gaps are looked up, name all live data."""
        try:
            await self._checkpoint()
        except NoSpaceError as error:
            log.warning("scrub: no room for a checkpoint: %s", error)

    # -- superblocks

    async def _superblocks(self, examiner: Examiner) -> None:
        """Verify the newest superblock in both its places. As long as it is good, older ones in the
        ring are never read."""
        bad: list[tuple[str, int]] = []
        for member in self._roster.in_sync():
            try:
                places = await self._roster.audit(member)
            except FencedError:
                raise
            except DeviceError as error:
                await examiner.failed(member, error)
                continue
            bad += [(member.name, offset) for offset in places]
        if not bad:
            return
        await self._roster.publish()  # the next place of the ring, and the end
        for name, offset in bad:
            examiner.note(
                Finding("superblock", [name], 0, offset, SUPERBLOCK_BYTES, "checksum mismatch",
                        Outcome.REPAIRED)
            )  # fmt: skip

    # -- segments

    async def _segments(self, scrub: ScrubPass, examiner: Examiner) -> None:
        walk = SegmentScrub(
            self._env, self._roster, examiner, self._liveness, self._affected,
            lambda: self._checkpointer.position or START, self._durable_commit,
        )  # fmt: skip
        for number in self._numbers(scrub):
            segment = self._table.get(number)
            if segment is not None:
                size = segment.used_bytes * len(segment.places)
                gaps = len(scrub.gaps)
                await walk.run(segment)
                await examiner.flush_repairs()
                if len(scrub.gaps) > gaps and segment.role is Role.LOG:
                    await self._name_everything()  # the log could not be replayed over a gap
                scrub.done_bytes += size if segment.role is not Role.META else 0
            scrub.segment = number + 1
            await trio.lowlevel.checkpoint()

    def _numbers(self, scrub: ScrubPass) -> list[int]:
        numbers = (segment.number for segment in self._table.all())
        return sorted(n for n in numbers if scrub.segment <= n < scrub.end_segment)

    # -- the map

    async def _pages(self, scrub: ScrubPass, examiner: Examiner, pages: MapScrub) -> None:
        for number in sorted(self._map.layers):
            layer = self._map.layers.get(number)
            if layer is None or number < scrub.layer:
                continue
            if number > scrub.layer:
                scrub.layer, scrub.chunk = number, 0
            for chunk in sorted(layer.directory.located):
                if chunk >= scrub.chunk:
                    await pages.chunk(layer, chunk)
                    await examiner.flush_repairs()
                    scrub.chunk = chunk + 1

    # -- progress

    def total_bytes(self, scrub: ScrubPass) -> int:
        """About how many bytes the pass reads in all: those done, and those left as of now."""
        left = 0
        if scrub.stage in (Stage.SUPERBLOCKS, Stage.SEGMENTS):
            left = sum(_size(self._table[number]) for number in self._numbers(scrub))
        if scrub.stage is not Stage.DONE:
            of_map = self._checkpointer.usage.map_bytes * self._table.copies_now()
            left += max(0, of_map - scrub.map_bytes)
        return scrub.done_bytes + left


def _size(segment: Segment) -> int:
    return 0 if segment.role is Role.META else segment.used_bytes * len(segment.places)
