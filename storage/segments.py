"""The segment table: number to placement, state, live bytes; and the free slots.

Live bytes are upper bounds between checkpoints and exact at each one (R7). A freed
segment's slots cool down: freed under checkpoint K, they are reusable after K+1 (R10).
"""

import heapq
from collections.abc import Iterable, Sequence
from contextlib import suppress
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from blockdev.errors import DeviceError, NoSpaceError
from storage import placement
from storage.errors import DamagedError
from storage.member import Member
from storage.superblock import COPIES_MAX, Copy


class State(IntEnum):
    """Where a segment is in its life."""

    OPEN = 0
    SEALED = 1
    FREED = 2
    """Holds nothing; its slots wait for the next checkpoint."""


ROW = np.dtype(
    [
        ("number", "<u8"),
        ("live_bytes", "<u8"),
        ("used_bytes", "<u4"),
        ("state", "u1"),
        ("copies", "u1"),
        ("members", "<u2", (COPIES_MAX,)),
        ("slots", "<u4", (COPIES_MAX,)),
        ("zero_1", "<u4"),
        ("last_commit", "<u8"),
        ("zero_2", "<u4"),
    ]
)
"""One segment in a checkpoint: 56 bytes, in this order, packed."""
assert ROW.itemsize == 56


class MemberFailedError(DeviceError):
    """A member failed while a segment was taken on it; go on without that member."""

    def __init__(self, member: Member, error: DeviceError):
        super().__init__(f"cannot take a segment on it: member={member.name}: {error}")
        self.member = member


class Segment:
    """One segment. `places` lists (member, device offset), those in sync first."""

    __slots__ = (
        "announced_in",
        "copies",
        "last_commit",
        "live_bytes",
        "number",
        "places",
        "readers",
        "state",
        "used_bytes",
    )

    def __init__(self, number: int, copies: tuple[Copy, ...]):
        self.number = number
        self.copies = copies
        self.state = State.OPEN
        self.live_bytes = 0
        self.used_bytes = 0
        self.last_commit = 0
        self.announced_in = 0
        """Commit that announced it; 0 for metadata segments. Later than a checkpoint: not in it."""
        self.readers = 0
        """Reads under way that suspend; its slots are not reused meanwhile (R10)."""
        self.places: tuple[tuple[Member, int], ...] = ()


class SegmentTable:
    """All segments and all free slots of the pool."""

    def __init__(self, members: Sequence[Member | None], segment_bytes: int, copies: int):
        self.members = members
        self.segment_bytes = segment_bytes
        self.copies = copies
        self.next_number = 1
        self._segments: dict[int, Segment] = {}
        self.get = self._segments.get
        self._free: list[list[int]] = [list(range(m.slots)) if m else [] for m in members]

    def all(self) -> list[Segment]:
        """Every segment, in no order."""
        return list(self._segments.values())

    def __getitem__(self, number: int) -> Segment:
        segment = self._segments.get(number)
        if segment is None:
            raise DamagedError(f"map names a segment that does not exist: segment={number}")
        return segment

    # -- placement

    def adopt(self, number: int, copies: tuple[Copy, ...]) -> Segment:
        """Add a segment that is already on disk; the same again is harmless.

        Raises:
            DamagedError: its slots are taken, or not of this pool.
        """
        known = self._segments.get(number)
        if known is not None:
            if known.copies != copies:
                raise DamagedError(f"segment is in two places: segment={number}")
            return known
        for copy in copies:
            self._take(number, copy)
        segment = Segment(number, copies)
        self._segments[number] = segment
        self.next_number = max(self.next_number, number + 1)
        self._locate(segment)
        return segment

    def _take(self, number: int, copy: Copy) -> None:
        if copy.member >= len(self.members):
            raise DamagedError(f"segment is on an unknown member: segment={number}")
        if self.members[copy.member] is None:
            return
        try:
            self._free[copy.member].remove(copy.slot)
            heapq.heapify(self._free[copy.member])
        except ValueError:
            raise DamagedError(
                f"slot holds two segments: segment={number} member={copy.member} slot={copy.slot}"
            ) from None

    async def allocate(self, *, announced_in: int = 0) -> Segment:
        """Take slots for a new segment and make sure the file systems below have the room (R5).

        Raises:
            NoSpaceError: too few members have a free slot.
            MemberFailedError: a member has, but fails.
        """
        while True:
            chosen = self._choose()
            copies: list[Copy] = []
            try:
                for member in chosen:
                    slot = heapq.heappop(self._free[member.index])
                    copies.append(Copy(member.index, slot))
                    await member.device.allocate(member.slot_offset(slot), self.segment_bytes)
            except NoSpaceError:
                member.full_below = True
                self.give_back(copies)
                continue
            except DeviceError as error:
                self.give_back(copies)
                raise MemberFailedError(member, error) from error
            except BaseException:
                self.give_back(copies)
                raise
            return self._admit(tuple(copies), announced_in)

    async def ask_full_again(self) -> None:
        """Let members take segments again whose file system below has room by now."""
        for member in self.members:
            if member and member.full_below and self._free[member.index]:
                offset = member.slot_offset(self._free[member.index][0])
                with suppress(DeviceError):
                    await member.device.allocate(offset, self.segment_bytes)
                    member.full_below = False

    def _choose(self) -> list[Member]:
        usable = self.usable_members()
        candidates = [placement.Candidate(m.index, m.host, self.free_slots(m)) for m in usable]
        chosen = placement.choose(candidates, self.copies_now())
        if not chosen:
            raise NoSpaceError("pool is full: no free segment; delete data or add a member")
        by_index = {member.index: member for member in usable}
        return [by_index[index] for index in chosen]

    def _admit(self, copies: tuple[Copy, ...], announced_in: int) -> Segment:
        segment = Segment(self.next_number, copies)
        segment.announced_in = announced_in
        self.next_number += 1
        self._segments[segment.number] = segment
        self._locate(segment)
        return segment

    def take_slot(self, member: Member) -> int:
        """A free slot of one member, for another copy of a segment."""
        return heapq.heappop(self._free[member.index])

    def add_copy(self, segment: Segment, copy: Copy) -> None:
        """The segment has one more copy, written and flushed."""
        segment.copies = (*segment.copies, copy)
        self._locate(segment)

    def give_back(self, copies: Iterable[Copy]) -> None:
        """Slots that hold nothing any more."""
        for copy in copies:
            if self.members[copy.member] is not None:
                heapq.heappush(self._free[copy.member], copy.slot)

    def forget(self, segment: Segment) -> None:
        """Drop a freed segment and give its slots back."""
        del self._segments[segment.number]
        self.give_back(segment.copies)
        for copy in segment.copies:
            if member := self.members[copy.member]:
                member.full_below = False

    # -- members

    def usable_members(self) -> list[Member]:
        """Members that take new segments."""
        return [m for m in self.members if m and m.in_sync and not m.full_below]

    def copies_now(self) -> int:
        """Copies a new segment gets: the policy, or as many as there are members in sync."""
        in_sync = sum(1 for m in self.members if m and m.in_sync)
        if not in_sync:
            raise DeviceError("no member is in sync: the pool cannot write")
        return min(self.copies, in_sync)

    def free_slots(self, member: Member) -> int:
        """Free slots of one member, cooling ones left out."""
        return len(self._free[member.index])

    def free_segments(self) -> int:
        """How many more segments can be placed now."""
        slots = [self.free_slots(m) for m in self.usable_members()]
        return placement.capacity(slots, self.copies_now())

    def relocate_all(self) -> None:
        """Order every segment's places anew, after a member changed state."""
        for segment in self._segments.values():
            self._locate(segment)

    def _locate(self, segment: Segment) -> None:
        attached = [(self.members[c.member], c.slot) for c in segment.copies]
        places = [(m, m.slot_offset(slot)) for m, slot in attached if m is not None]
        segment.places = tuple(sorted(places, key=lambda place: not place[0].in_sync))

    def is_degraded(self, segment: Segment) -> bool:
        """Whether a copy of it is on a member that is not in sync."""
        return any(not m or not m.in_sync for m in (self.members[c.member] for c in segment.copies))

    def has_all_copies(self, segment: Segment) -> bool:
        """Whether it has as many copies in sync as a new segment would get."""
        return not self.is_degraded(segment) and len(segment.copies) >= self.copies_now()

    # -- persistence

    def rows(
        self, segments: Sequence[Segment], live_bytes: dict[int, int], freed: set[int]
    ) -> bytes:
        """The table as a checkpoint stores it, with `freed` segments marked so."""
        rows = np.zeros(len(segments), dtype=ROW)
        for row, segment in zip(rows, segments, strict=True):
            row["number"] = segment.number
            row["live_bytes"] = live_bytes[segment.number]
            # An open one is still being written, maybe by this very checkpoint.
            is_open = segment.state is State.OPEN
            row["used_bytes"] = self.segment_bytes if is_open else segment.used_bytes
            row["state"] = State.FREED if segment.number in freed else segment.state
            row["copies"] = len(segment.copies)
            row["last_commit"] = segment.last_commit
            for i, copy in enumerate(segment.copies):
                row["members"][i] = copy.member
                row["slots"][i] = copy.slot
        return rows.tobytes()

    def load(self, data: bytes) -> None:
        """Fill an empty table from a checkpoint.

        Raises:
            DamagedError: the rows make no sense.
        """
        if len(data) % ROW.itemsize:
            raise DamagedError("segment table has the wrong size")
        rows: NDArray[np.void] = np.frombuffer(data, dtype=ROW)
        taken: list[set[int]] = [set() for _ in self.members]
        for row in rows:
            number, count = int(row["number"]), int(row["copies"])
            if not 1 <= count <= COPIES_MAX or number in self._segments:
                raise DamagedError(f"segment table has a bad row: segment={number}")
            copies = tuple(
                Copy(int(m), int(s))
                for m, s in zip(row["members"][:count], row["slots"][:count], strict=True)
            )
            segment = Segment(number, copies)
            segment.state = State(min(int(row["state"]), 2))
            segment.live_bytes = int(row["live_bytes"])
            segment.used_bytes = int(row["used_bytes"])
            segment.last_commit = int(row["last_commit"])
            for copy in copies:
                self._note_taken(number, copy, taken)
            self._segments[number] = segment
            self.next_number = max(self.next_number, number + 1)
        for member in self.members:
            if member:
                mine = taken[member.index]
                self._free[member.index] = [s for s in range(member.slots) if s not in mine]
        self.relocate_all()

    def _note_taken(self, number: int, copy: Copy, taken: list[set[int]]) -> None:
        if copy.member >= len(self.members) or copy.slot in taken[copy.member]:
            raise DamagedError(f"slot holds two segments: segment={number}")
        member = self.members[copy.member]
        if member and copy.slot >= member.slots:
            raise DamagedError(f"segment lies outside its member: segment={number}")
        taken[copy.member].add(copy.slot)
