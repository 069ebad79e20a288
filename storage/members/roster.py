"""The roster: all members, their states, and the superblocks that record these.

`publish` writes the superblocks of the members in sync. It records a member that fails as stale on
all the others before it returns, so nothing is acknowledged without that (R5).
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import trio

from blockdev.errors import DeviceError, TakenError
from storage.errors import FencedError, PoolError
from storage.format import superblock
from storage.format.superblock import SUPERBLOCK_BYTES, Copy, Left, MemberRow, Superblock
from storage.members.member import Member, read_superblock

log = logging.getLogger("cenote.storage")

ATTEMPTS_MAX = 3
"""The pool stops when so many writes of a superblock failed on all members; a transient error does
not stop it."""


def _unchanged(sb: Superblock) -> Superblock:
    return sb


class Roster:
    """All members of the pool, attached or not, and the newest superblock."""

    def __init__(self, newest: Superblock, members: list[Member | None], rows: Sequence[MemberRow]):
        self.members = members
        self.superblock = newest
        self.on_change: Callable[[], None] = lambda: None
        """Called after a member changed state."""
        self._rows = list(rows)
        self._lock = trio.Lock()

    def in_sync(self) -> list[Member]:
        """Attached members that hold everything durable."""
        return [m for m in self.members if m is not None and m.in_sync]

    def last_holders(self, copies: Iterable[Copy]) -> set[int]:
        """Return the members that have all that was ever durable in a segment with these copies.

        They are the members in sync. If none is in sync, they are the members that became stale
        last, attached or not: as long as one of them was in sync, the log could go on in the
        segment without the other members, and since then it could not (R3).
        """
        rows = self.rows()
        holders = {copy.member for copy in copies}
        in_sync = {index for index in holders if rows[index].stale_since is None}
        if in_sync or not holders:
            return in_sync
        last = max(rows[index].left.tried.sequence for index in holders)
        return {index for index in holders if rows[index].left.tried.sequence == last}

    def rows(self) -> tuple[MemberRow, ...]:
        """The member table as it is now."""
        return tuple(
            member.row if member else row
            for member, row in zip(self.members, self._rows, strict=True)
        )

    def fail(self, member: Member, since: int, error: DeviceError) -> None:
        """Make a member stale in memory; `publish` records it on the other members.

        The last member in sync stays in sync: no other member is left to record it.

        Raises:
            FencedError: the member did not fail, but another daemon took it. The pool stops then:
                a record of such a member as stale would contradict that daemon's superblocks.
        """
        if isinstance(error, TakenError):
            raise FencedError(f"another daemon took the pool: member={member.name}") from error
        if not member.in_sync or len(self.in_sync()) == 1:
            return
        log.error(
            "member failed and is stale from now on, the pool goes on without it: "
            "member=%s host=%s since_commit=%d: %s", member.name, member.host, since, error,
        )  # fmt: skip
        member.stale_since = since
        member.left = Left(self.superblock.seen, member.seen.mark)
        self.on_change()

    async def publish(
        self,
        change: Callable[[Superblock], Superblock] = _unchanged,
        *,
        last: Member | None = None,
    ) -> None:
        """Write a new superblock to every member in sync, and flush it.

        `change` gets the newest superblock and returns the next. `last` is a member that comes
        back: it is written only when the superblocks of all others call it in sync. Otherwise a
        power cut could leave it newer than members that call it stale, which looks like a split
        pool. For the same reason its superblock alone is not enough when all others fail.
        Cancellation leaves the new superblock on some members.

        Raises:
            PoolError: no member took it.
            FencedError: another daemon took a member.
        """
        async with self._lock:
            await self._publish(change, last=last)

    async def audit(self, member: Member) -> list[int]:
        """Return the device offsets at which a member ought to hold the newest superblock but does
        not; none for a member that is not in sync.

        Raises:
            FencedError: another daemon's superblock is there.
            DeviceError: the member cannot be read.
        """
        async with self._lock:  # else a superblock may be half written
            if not member.in_sync:
                return []
            wanted = superblock.encode(self.superblock.for_member(member.index))
            bad = []
            for offset in member.superblock_places(self.superblock):
                found = memoryview(await member.read_medium(offset, SUPERBLOCK_BYTES))
                if found != wanted:
                    self._refuse_other(member, superblock.decode(found))
                    bad.append(offset)
        return bad

    def _refuse_other(self, member: Member, theirs: Superblock | None) -> None:
        mine = self.superblock
        if theirs is not None and theirs.epoch >= mine.epoch and theirs.holder != mine.holder:
            raise FencedError(
                f"another daemon took the pool: member={member.name} epoch={theirs.epoch}"
            )

    async def admit(self, member: Member) -> None:
        """Make a device a member; its own superblock says already that it is about to be added.

        The superblocks of the others name it first: from then on it is a member, and nothing has
        been placed on it yet.

        Raises:
            PoolError: no member took a superblock.
            DeviceError: the device failed; the superblocks of the others no longer name it.
        """
        async with self._lock:
            await self._publish(_unchanged, more=(member.row,))
            try:
                await member.write_superblock(self.superblock)
            except DeviceError:
                await self._publish(_unchanged)
                raise
            self.members.append(member)
            self._rows.append(member.row)

    async def _publish(
        self,
        change: Callable[[Superblock], Superblock],
        *,
        last: Member | None = None,
        more: tuple[MemberRow, ...] = (),
    ) -> None:
        attempts = 0
        while True:
            sb = replace(change(self.superblock), members=(*self.rows(), *more))
            sb = replace(sb, sequence=self.superblock.sequence + 1)
            self.superblock = sb
            members = self.in_sync()
            others = [m for m in members if m is not last]
            failures = await self._write_all(others, sb)
            if last in members and not failures:
                others = members
                failures = await self._write_all([last], sb)
            if not failures:
                return
            for member, error in failures:
                if isinstance(error, TakenError):
                    self.fail(member, sb.durable_commit, error)
            if len(failures) == len(others):
                # Written again whole, to the next place of the ring: no flush is retried.
                attempts += 1
                if attempts == ATTEMPTS_MAX:
                    raise PoolError(f"no member takes a superblock: {failures[0][1]}")
                continue
            for member, error in failures:
                self.fail(member, sb.durable_commit, error)

    async def _write_all(
        self, members: list[Member], sb: Superblock
    ) -> list[tuple[Member, DeviceError]]:
        failures: list[tuple[Member, DeviceError]] = []

        async def write_one(member: Member) -> None:
            try:
                await member.write_superblock(sb)
            except DeviceError as error:
                failures.append((member, error))

        if len(members) == 1:
            await write_one(members[0])
            return failures
        async with trio.open_nursery() as nursery:
            for member in members:
                nursery.start_soon(write_one, member)
        return failures

    async def check_fence(self) -> None:
        """Read the superblocks back and make sure that no other daemon took the pool (R16).

        Raises:
            FencedError: a member carries another holder's newer epoch.
        """
        for member in self.in_sync():
            try:
                theirs = await read_superblock(member.device)
            except DeviceError:
                continue  # the next write to it reports the failure
            self._refuse_other(member, theirs)
