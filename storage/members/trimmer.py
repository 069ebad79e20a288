"""Trims freed slots in the background, which gives their space back to the file system or disk.

A slot is free only when no superblock can lead to it any more (R10), so a trim that a power cut
interrupts harms nothing. A device that cannot trim does nothing. A device that fails to trim is not
trimmed any more but stays a member, as its data is not concerned.
"""

import logging
from collections.abc import Callable

import trio

from blockdev.errors import DeviceError
from storage.format.superblock import DATA_START_BYTES
from storage.members.member import Member
from storage.members.segments import SegmentTable

log = logging.getLogger("cenote.storage")

LOOK_INTERVAL_S = 1.0
REST_FACTOR = 4
REST_MIN_S = 0.01
"""The trimmer rests after each slot for four times as long as its trim took, and leaves the device
to clients."""


class Trimmer:
    """Trims free slots of all members, one at a time."""

    def __init__(self, table: SegmentTable, stopped: Callable[[], bool]) -> None:
        self._table = table
        self._stopped = stopped
        """Whether the pool changes nothing any more."""
        self._looked_at: set[int] = set()
        self._unable: set[int] = set()

    async def run(self) -> None:
        """Trim until cancelled; a slot whose trim is cancelled counts as used, and is free."""
        while True:
            while not self._stopped() and await self._one_round():
                pass
            await trio.sleep(LOOK_INTERVAL_S)

    async def _one_round(self) -> bool:
        """Trim one slot of each member; False when there was nothing to do."""
        busy = False
        for member in list(self._table.usable_members()):
            if member.index in self._unable:
                continue
            started = trio.current_time()
            try:
                if member.index not in self._looked_at:
                    self._looked_at.add(member.index)
                    await self._survey(member)
                if not await self._trim_one(member):
                    continue
            except DeviceError as error:
                self._unable.add(member.index)
                log.warning("freed space is not given back: member=%s: %s", member.name, error)
                continue
            busy = True
            took = trio.current_time() - started
            await trio.sleep(max(REST_MIN_S, REST_FACTOR * took))
        return busy

    async def _trim_one(self, member: Member) -> bool:
        free = self._table.free_slots_of(member)
        slot = free.begin_trim(trio.current_time())
        if slot is None:
            return False
        done = False
        try:
            await member.trim(member.slot_offset(slot), self._table.segment_bytes)
            done = True
        finally:
            free.end_trim(done=done, now=trio.current_time())
        return True

    async def _survey(self, member: Member) -> None:
        """Find free slots that have space allocated: an earlier daemon stopped before it trimmed
        them.

        A device that reports no hole at all is taken for one that cannot report holes.
        """
        size = self._table.segment_bytes
        offset = DATA_START_BYTES
        end = offset + member.slots * size
        used: set[int] = set()
        holes = False
        while offset < end:
            for extent in await member.device.extents(offset, end - offset):
                stop = offset + extent.length_bytes
                if extent.hole:
                    holes = True
                else:
                    first, last = offset - DATA_START_BYTES, stop - 1 - DATA_START_BYTES
                    used.update(range(first // size, last // size + 1))
                offset = stop
            await trio.lowlevel.checkpoint()
        if holes:
            self._table.free_slots_of(member).mark_used(used, trio.current_time())
