"""The segment table: place (R13), state, live bytes by segment number; and the free slots.

Live bytes are upper bounds between checkpoints and exact at each one (R7). The slots of a
segment that checkpoint K freed cool down: they are reusable after K+1, or once the pool was taken
with K (R10).
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from enum import IntEnum

import numpy as np
import trio
from numpy.typing import NDArray

from blockdev.errors import DeviceError, NoSpaceError, TakenError
from storage.errors import DamagedError
from storage.format.entry import SEGMENT_NUMBER_MAX
from storage.format.superblock import COPIES_MAX, Copy
from storage.format.values import NUMBER_MAX
from storage.members import placement
from storage.members.member import Member
from storage.members.slots import FreeSlots


class State(IntEnum):
    """The state of a segment."""

    OPEN = 0
    SEALED = 1
    FREED = 2
    """It holds nothing; its slots wait for the next checkpoint."""


class Role(IntEnum):
    """The kind of data in a segment; data that lives equally long should lie together."""

    LOG = 0
    """Commits: what clients wrote."""
    MOVED = 1
    """Blocks that the cleaner moved and that are often overwritten."""
    SETTLED = 2
    """Blocks that the cleaner moved and that are rarely overwritten."""
    META = 3


UNNAMED = 1 << 62
"""The commit number of data that no commit names yet; greater than any."""

ROW = np.dtype(
    [
        ("number", "<u8"),
        ("live_bytes", "<u8"),
        ("used_bytes", "<u4"),
        ("state", "u1"),
        ("copies", "u1"),
        ("members", "<u2", (COPIES_MAX,)),
        ("slots", "<u4", (COPIES_MAX,)),
        ("role", "u1"),
        ("zero_1", "u1", (3,)),
        ("last_commit", "<u8"),
        ("zero_2", "<u4"),
    ]
)
"""One segment in a checkpoint: 56 bytes, in this order, packed."""
assert ROW.itemsize == 56


class MemberFailedError(DeviceError):
    """A member failed while slots were taken for a segment; go on without the member."""

    def __init__(self, member: Member, error: DeviceError):
        super().__init__(f"cannot take a segment on it: member={member.name}: {error}")
        self.member = member


class Segment:
    """One segment. `places` lists (member, device offset), members in sync first."""

    __slots__ = (
        "announced_in",
        "copies",
        "last_commit",
        "live_bytes",
        "number",
        "places",
        "readers",
        "role",
        "state",
        "used_bytes",
    )

    def __init__(self, number: int, copies: tuple[Copy, ...], role: Role = Role.LOG):
        self.number = number
        self.copies = copies
        self.role = role
        self.state = State.OPEN
        self.live_bytes = 0
        self.used_bytes = 0
        self.last_commit = 0
        """Newest commit in it or naming data in it; `UNNAMED` for data that none names yet."""
        self.announced_in = 0
        """Commit that announced it; 0 for metadata. Checkpoints before that commit leave it out."""
        self.readers = 0
        """Reads under way that suspend; the slots are not reused meanwhile (R10)."""
        self.places: tuple[tuple[Member, int], ...] = ()


class SegmentTable:
    """All segments and all free slots of the pool."""

    def __init__(self, members: Sequence[Member | None], segment_bytes: int, copies: int):
        self.members = members
        self.segment_bytes = segment_bytes
        self.copies = copies
        self.next_number = 1
        self.live_bytes = 0
        """The live bytes of all segments together."""
        self._segments: dict[int, Segment] = {}
        self.get = self._segments.get
        self._free = [FreeSlots(range(m.slots if m else 0)) for m in members]

    def all(self) -> list[Segment]:
        """Return every segment, in no particular order."""
        return list(self._segments.values())

    def __getitem__(self, number: int) -> Segment:
        segment = self._segments.get(number)
        if segment is None:
            raise DamagedError(f"map names a segment that does not exist: segment={number}")
        return segment

    def is_live(self, number: int) -> bool:
        """Whether the map may name data in a segment: the segment exists and is not freed."""
        segment = self._segments.get(number)
        return segment is not None and segment.state is not State.FREED

    # -- placement

    def adopt(self, number: int, copies: tuple[Copy, ...]) -> Segment:
        """Add a segment that is already on disk; adding it again is harmless.

        Raises:
            DamagedError: the number or the copies contradict the table, or a slot is taken.
        """
        if not 0 < number < SEGMENT_NUMBER_MAX:
            raise DamagedError(f"no segment has that number: segment={number}")
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
        except ValueError:
            raise DamagedError(
                f"slot holds two segments: segment={number} member={copy.member} slot={copy.slot}"
            ) from None

    async def allocate(self, *, announced_in: int = 0, role: Role = Role.LOG) -> Segment:
        """Take slots for a new segment and reserve their space (R5); cancellation frees them.

        Raises:
            NoSpaceError: too few members have a free slot, or their file systems are full.
            MemberFailedError: a member fails to reserve space.
            TakenError: another daemon took a member.
        """
        while True:
            chosen = self._choose()
            copies: list[Copy] = []
            try:
                for member in chosen:
                    slot = await self._free[member.index].take_or_wait()
                    if slot is None:
                        break  # another task took the last slot
                    copies.append(Copy(member.index, slot))
                    await member.allocate(member.slot_offset(slot), self.segment_bytes)
            except NoSpaceError:
                member.file_system_full = True
                self.give_back(copies)
                continue
            except TakenError:
                self.give_back(copies)
                raise
            except DeviceError as error:
                self.give_back(copies)
                raise MemberFailedError(member, error) from error
            except BaseException:
                self.give_back(copies)
                raise
            if len(copies) == len(chosen):
                return self._admit(tuple(copies), announced_in, role)
            self.give_back(copies)

    async def ask_full_again(self) -> None:
        """Let members whose file system was full take segments again, if it has room by now."""
        for member in self.members:
            slot = self._free[member.index].peek() if member else None
            if member and member.file_system_full and slot is not None:
                offset = member.slot_offset(slot)
                with suppress(DeviceError):
                    await member.allocate(offset, self.segment_bytes)
                    member.file_system_full = False

    def _choose(self) -> list[Member]:
        usable = self.usable_members()
        candidates = [placement.Candidate(m.index, m.host, self.free_slots(m)) for m in usable]
        chosen = placement.choose(candidates, self.copies_now())
        if not chosen:
            raise NoSpaceError("pool is full: no free segment; delete data or add a member")
        by_index = {member.index: member for member in usable}
        return [by_index[index] for index in chosen]

    def _admit(self, copies: tuple[Copy, ...], announced_in: int, role: Role) -> Segment:
        segment = Segment(self.next_number, copies, role)
        segment.announced_in = announced_in
        self.next_number += 1
        self._segments[segment.number] = segment
        self._locate(segment)
        return segment

    def take_slot(self, member: Member) -> int | None:
        """Take a slot of one member, for another copy of a segment; None when it has none now."""
        return self._free[member.index].take()

    def add_copy(self, segment: Segment, copy: Copy) -> None:
        """Add a copy to a segment; it is written and flushed already."""
        segment.copies = (*segment.copies, copy)
        self._locate(segment)

    def give_back(self, copies: Iterable[Copy]) -> None:
        """Free slots that hold nothing any more."""
        now = trio.current_time()
        for copy in copies:
            if self.members[copy.member] is not None:
                self._free[copy.member].give(copy.slot, now)

    def forget(self, segment: Segment) -> None:
        """Drop a freed segment and give its slots back."""
        del self._segments[segment.number]
        self.live_bytes -= segment.live_bytes
        self.give_back(segment.copies)
        for copy in segment.copies:
            if member := self.members[copy.member]:
                member.file_system_full = False

    # -- members

    def expect_member(self) -> None:
        """Prepare for one more in the list of members; it has no slot before `add_slots`."""
        while len(self._free) <= len(self.members):
            self._free.append(FreeSlots([]))

    def add_slots(self, member: Member, before: int) -> None:
        """Add the new slots of a member that had `before` slots and has `member.slots` now."""
        self._free[member.index].extend(member.slots, range(before, member.slots))
        member.file_system_full = False

    def usable_members(self) -> list[Member]:
        """Members that take new segments."""
        return [m for m in self.members if m and m.in_sync and not m.file_system_full]

    def copies_now(self) -> int:
        """Copies of a new segment: the policy's number, or fewer if fewer members are in sync."""
        in_sync = sum(1 for m in self.members if m and m.in_sync)
        if not in_sync:
            raise DeviceError("no member is in sync: the pool cannot write")
        return min(self.copies, in_sync)

    def free_slots(self, member: Member) -> int:
        """The number of free slots of one member, without cooling ones."""
        return len(self._free[member.index])

    def free_slots_of(self, member: Member) -> FreeSlots:
        """The free slots of one member, for trimming."""
        return self._free[member.index]

    def total_segments(self) -> int:
        """How many segments would fit the members in sync if these were empty."""
        slots = [m.slots for m in self.members if m and m.in_sync]
        return placement.capacity(slots, self.copies_now())

    def add_live(self, number: int, change: int) -> None:
        """Change the live bytes of a segment, and of all together, by `change`."""
        self[number].live_bytes += change
        self.live_bytes += change

    def free_segments(self) -> int:
        """How many more segments can be placed now."""
        slots = [self.free_slots(m) for m in self.usable_members()]
        return placement.capacity(slots, self.copies_now())

    def relocate_all(self) -> None:
        """Put every segment's places in order again, after a member changed state."""
        for segment in self._segments.values():
            self._locate(segment)

    def _locate(self, segment: Segment) -> None:
        attached = [(self.members[c.member], c.slot) for c in segment.copies]
        places = [(m, m.slot_offset(slot)) for m, slot in attached if m is not None]
        segment.places = tuple(sorted(places, key=lambda place: not place[0].in_sync))

    def is_degraded(self, segment: Segment) -> bool:
        """Whether a copy of the segment is on a member that is not in sync."""
        return any(not m or not m.in_sync for m in (self.members[c.member] for c in segment.copies))

    def has_all_copies(self, segment: Segment) -> bool:
        """Whether the segment has as many copies in sync as a new one would get."""
        return not self.is_degraded(segment) and len(segment.copies) >= self.copies_now()

    # -- persistence

    def rows(
        self, segments: Sequence[Segment], live_bytes: dict[int, int], freed: set[int]
    ) -> bytes:
        """Return the table as a checkpoint stores it, with the segments in `freed` marked freed."""
        rows = np.zeros(len(segments), dtype=ROW)
        rows["number"] = [s.number for s in segments]
        rows["live_bytes"] = [live_bytes[s.number] for s in segments]
        # An open segment is still being written, maybe by this very checkpoint.
        rows["used_bytes"] = [
            self.segment_bytes if s.state is State.OPEN else s.used_bytes for s in segments
        ]
        rows["state"] = [State.FREED if s.number in freed else s.state for s in segments]
        rows["role"] = [s.role for s in segments]
        rows["copies"] = [len(s.copies) for s in segments]
        rows["last_commit"] = [s.last_commit for s in segments]
        for i in range(COPIES_MAX):
            copies = [s.copies[i] if i < len(s.copies) else Copy(0, 0) for s in segments]
            rows["members"][:, i] = [copy.member for copy in copies]
            rows["slots"][:, i] = [copy.slot for copy in copies]
        return rows.tobytes()

    def load(self, data: bytes) -> None:
        """Fill an empty table from a checkpoint.

        Slots of segments that the checkpoint freed are free: taking the pool has published this
        checkpoint once more on every member, which is as good as the next one (R10). So repeated
        crashes do not use up the last segments of a full pool.

        Raises:
            DamagedError: the rows contradict each other, or the pool.
        """
        if len(data) % ROW.itemsize:
            raise DamagedError("segment table has the wrong size")
        rows: NDArray[np.void] = np.frombuffer(data, dtype=ROW)
        taken: list[set[int]] = [set() for _ in self.members]
        for row in rows:
            number, count = int(row["number"]), int(row["copies"])
            sane = 1 <= count <= COPIES_MAX and number not in self._segments
            sane = sane and row["used_bytes"] <= self.segment_bytes and row["state"] <= State.FREED
            sane = sane and row["live_bytes"] <= NUMBER_MAX and row["role"] <= Role.META
            if not (sane and 0 < number < SEGMENT_NUMBER_MAX) or row["last_commit"] > NUMBER_MAX:
                raise DamagedError(f"segment table has a bad row: segment={number}")
            copies = tuple(
                Copy(int(m), int(s))
                for m, s in zip(row["members"][:count], row["slots"][:count], strict=True)
            )
            if row["state"] == State.FREED:
                continue
            segment = Segment(number, copies)
            segment.state = State(int(row["state"]))
            segment.role = Role(int(row["role"]))
            segment.live_bytes = int(row["live_bytes"])
            self.live_bytes += segment.live_bytes
            segment.used_bytes = int(row["used_bytes"])
            segment.last_commit = int(row["last_commit"])
            for copy in copies:
                self._note_taken(number, copy, taken)
            self._segments[number] = segment
            self.next_number = max(self.next_number, number + 1)
        for member in self.members:
            if member:
                mine = taken[member.index]
                blank = [s for s in range(member.slots) if s not in mine]
                self._free[member.index] = FreeSlots(blank, slots=member.slots)
        self.relocate_all()

    def _note_taken(self, number: int, copy: Copy, taken: list[set[int]]) -> None:
        if copy.member >= len(self.members) or copy.slot in taken[copy.member]:
            raise DamagedError(f"slot holds two segments: segment={number}")
        member = self.members[copy.member]
        if member and copy.slot >= member.slots:
            raise DamagedError(f"segment lies outside its member: segment={number}")
        taken[copy.member].add(copy.slot)
