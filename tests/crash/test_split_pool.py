"""Split pools: members that went on without each other, and stale members that only look so."""

from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from uuid import UUID

import pytest

from blockdev.simulation.disk import SimulatedDisk
from storage.errors import ForeignMemberError
from storage.format.codec import digest_of
from storage.format.superblock import (
    RING_SLOTS,
    SUPERBLOCK_BYTES,
    Left,
    Seen,
    Superblock,
    decode,
    encode,
)
from tests.crash.harness import MIB, TWO_OF_THREE, live, members, new_world, opened
from tests.crash.some_members import open_some, run, world_with_data


def test_a_split_pool_is_refused() -> None:
    """Goal: a pool does not open with members of two sides that went on without each other."""
    world, _ = world_with_data(6)
    uuids: list[UUID] = []

    async def look() -> None:
        async with opened(world, TWO_OF_THREE) as pool:
            uuids.extend(m.uuid for m in pool.info().members)

    live(world, look)
    world = world.reboot()
    all_members = members(world, TWO_OF_THREE)
    live(world, partial(open_some, all_members[:2], None, [uuids[2]]))
    live(world, partial(open_some, all_members[2:], None, uuids[:2]))
    with pytest.raises(ForeignMemberError):
        run(world, all_members, None)


SUCCESSIONS = {
    # For each member's newest superblock: (epoch, sequence, members that it calls stale).
    "one missed that another came back": [(2, 6, ()), (1, 4, (0,)), (1, 5, ())],
    "that one failed since": [(1, 6, (1,)), (1, 4, (0,)), (1, 6, (1,))],
    "and the next daemon reached one member": [(2, 7, (1,)), (1, 4, (0,)), (1, 6, (1,))],
    "and the next daemon worked": [(2, 9, (1,)), (1, 4, (0,)), (2, 9, (1,))],
    "and the one after that reached one": [(3, 10, (1,)), (1, 4, (0,)), (2, 9, (1,))],
}


@pytest.mark.parametrize("written", SUCCESSIONS.values(), ids=[*SUCCESSIONS])
def test_superblocks_of_one_history_are_no_split_pool(
    written: list[tuple[int, int, tuple[int, ...]]],
) -> None:
    """Goal: a pool whose members call each other stale opens when a member was in sync with both.

    Method: write the superblocks that power cuts leave when members fail and are brought back.
    """
    world = new_world(TWO_OF_THREE, 12)
    sb = newest_superblock(world.disks[0])

    async def write() -> None:
        for index, (epoch, sequence, stale) in enumerate(written):
            rows = tuple(
                replace(row, stale_since=0) if i in stale else row
                for i, row in enumerate(sb.members)
            )
            holder = UUID(int=epoch)
            each = replace(
                sb, epoch=epoch, sequence=sequence, holder=holder, members=rows, clean=False
            )
            place = sequence % RING_SLOTS * SUPERBLOCK_BYTES
            await world.disks[index].write(place, encode(each.for_member(index)), fua=True)

    live(world, write)
    run(world, members(world, TWO_OF_THREE), None)


def seen(holder: int, sequence: int) -> Seen:
    return Seen(digest_of(UUID(int=holder).bytes), sequence)


MEMORIES = {
    # The newest superblock's record of a stale member that comes back with a superblock of
    # (holder, sequence) (2, 12), and whether that superblock is one that the newest came after.
    "the last it was given": (Left(seen(2, 12), seen(2, 11).mark), True),
    "one before those that it was to be given": (Left(seen(2, 13), seen(2, 11).mark), True),
    "none of those that it was to be given by another": (Left(seen(3, 20), seen(2, 12).mark), True),
    "it went on without the others": (Left(seen(2, 11), seen(2, 10).mark), False),
    "it went on with another daemon": (Left(seen(3, 12), seen(3, 12).mark), False),
    "it went on before another's came": (Left(seen(3, 20), seen(2, 11).mark), False),
    "nothing": (Left(), False),
}


@pytest.mark.parametrize(("left", "is_past"), MEMORIES.values(), ids=[*MEMORIES])
def test_a_stale_member_comes_back_when_the_members_that_saw_it_last_have_failed(
    left: Left, is_past: bool
) -> None:
    """Goal: a stale member is not taken for the other side of a split pool, and the other side is
    never taken for a stale member.

    Method: the first two members were in sync and the third was not; then the second failed, the
    third came back, and the first failed. The first is not attached.
    """
    world = new_world(TWO_OF_THREE, 13)
    sb = newest_superblock(world.disks[0])
    one, two, three = sb.members
    past = replace(
        sb,
        epoch=2,
        sequence=12,
        holder=UUID(int=2),
        members=(one, two, replace(three, stale_since=0)),
    )
    rows = (replace(one, stale_since=0), replace(two, stale_since=0, left=left), three)
    newest = replace(sb, epoch=3, sequence=24, holder=UUID(int=9), members=rows)

    async def write() -> None:
        for index, each in ((1, past), (2, newest)):
            place = each.sequence % RING_SLOTS * SUPERBLOCK_BYTES
            await world.disks[index].write(place, encode(each.for_member(index)), fua=True)

    live(world, write)
    attached = members(world, TWO_OF_THREE)[1:]
    with nullcontext() if is_past else pytest.raises(ForeignMemberError):
        run(world, attached, None)


def test_a_failed_member_is_recorded_with_the_last_superblocks_it_got() -> None:
    """Goal: the superblock that calls a member stale names the last superblock that the member has
    and the last one that was tried on it."""
    world = new_world(TWO_OF_THREE, 14)

    async def body() -> None:
        async with opened(world, TWO_OF_THREE) as pool:
            before = pool.roster.superblock
            world.disks[1].fail_write(times=None)
            await pool.management.create_volume("v", MIB)
            await pool.checkpoint()
            now = pool.roster.superblock
            left = [row.left for row in now.members]
            assert [row.stale_since is None for row in now.members] == [True, False, True]
            assert left[1].tried.holder == before.seen.holder
            assert before.sequence <= left[1].tried.sequence < now.sequence
            assert left[1].had == before.seen.mark
            assert left[0] == left[2] == Left()

    live(world, body)


def test_superblocks_of_one_daemon_are_no_split_pool() -> None:
    """Goal: a stale member comes back to a member that was never in sync with it.

    Method: the member was brought up to date and failed at once, so that the others do not know
    the superblock that the same daemon gave it and that arrived nevertheless.
    """
    world = new_world(TWO_OF_THREE, 15)
    sb = newest_superblock(world.disks[0])
    one, two, three = sb.members
    holder = replace(sb, epoch=2, holder=UUID(int=2))
    came = replace(holder, sequence=6, members=(one, two, replace(three, stale_since=0)))
    rows = (replace(one, stale_since=0), replace(two, stale_since=0), three)
    went_on = replace(holder, sequence=14, members=rows)

    async def write() -> None:
        for index, each in ((1, came), (2, went_on)):
            place = each.sequence % RING_SLOTS * SUPERBLOCK_BYTES
            await world.disks[index].write(place, encode(each.for_member(index)), fua=True)

    live(world, write)
    run(world, members(world, TWO_OF_THREE)[1:], None)


def newest_superblock(disk: SimulatedDisk) -> Superblock:
    places = (slot * SUPERBLOCK_BYTES for slot in range(RING_SLOTS))
    found = [decode(disk.durable(place, SUPERBLOCK_BYTES)) for place in places]
    return max((sb for sb in found if sb is not None), key=lambda sb: sb.order)
