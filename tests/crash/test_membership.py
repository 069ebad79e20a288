"""Who may open a pool: missing, stale, copied, foreign, newer and too small members."""

import random
import struct
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from uuid import UUID

import pytest

from blockdev.simulated import SimulatedDisk, SimulatedWorld
from storage.codec import digest_of
from storage.errors import (
    DamagedError,
    ForeignMemberError,
    FormatVersionError,
    MemberTooSmallError,
    MissingMemberError,
    NotAMemberError,
    PoolError,
)
from storage.member import closing_offset, read_superblock
from storage.pool import MemberDevice, create_pool, open_pool
from storage.superblock import RING_SLOTS, SUPERBLOCK_BYTES, Seen, Superblock, decode, encode
from tests.crash.harness import (
    MIB,
    ONE,
    SEGMENT_BYTES,
    SETTINGS,
    TWO_OF_THREE,
    Shape,
    contents,
    live,
    members,
    new_world,
    opened,
    recover,
)
from tests.crash.model import History
from tests.crash.sweep import find_no_damage
from tests.crash.workload import Workload, sessions
from tests.sim.deterministic import environment

BROKEN = 1


def world_with_data(seed: int) -> tuple[SimulatedWorld, History]:
    """Three members, two copies, cleanly stopped."""
    world = new_world(TWO_OF_THREE, seed)
    history = History()
    live(world, sessions(world, TWO_OF_THREE, Workload(history, seed), (12,)))
    return world.reboot(), history


def world_with_a_stale_member(seed: int) -> tuple[SimulatedWorld, History, UUID]:
    """Member 1 stopped taking writes for good, then the power went."""
    world, history = world_with_data(seed)
    lost: list[UUID] = []

    async def body() -> None:
        async with opened(world, TWO_OF_THREE) as pool:
            lost.append(pool.info().members[BROKEN].uuid)
            world.disks[BROKEN].fail_write(1, times=None)
            world.disks[BROKEN].fail_flush(1, times=None)
            await Workload(history, f"{seed}-b").run(pool, 15)
            world.cut_power()

    assert live(world, body)
    return world.reboot(), history, lost[0]


async def open_some(
    chosen: Sequence[MemberDevice], history: History | None, without: Sequence[UUID] = ()
) -> None:
    """Open with these members only; with a history, hold the contents against it."""
    env = environment([each.name for each in chosen])
    async with open_pool(chosen, settings=SETTINGS, env=env, without=without) as pool:
        if history is not None:
            found = await contents(pool)
            assert history.explain(found) is not None, history.differences(found)


def run(world: SimulatedWorld, chosen: Sequence[MemberDevice], *arguments: object) -> None:
    live(world, partial(open_some, chosen, *arguments))  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(1, 6))
def test_a_member_that_failed_is_recorded_stale_and_not_needed(seed: int) -> None:
    """Goal: nothing was acknowledged without the others knowing (R5)."""
    world, history, lost = world_with_a_stale_member(seed)

    async def look() -> None:
        for index in (0, 2):
            sb = await read_superblock(world.disks[index])
            assert sb is not None
            assert {row.uuid for row in sb.members if row.stale_since is not None} == {lost}

    live(world, look)
    good = world.reboot()
    left = [member for i, member in enumerate(members(good, TWO_OF_THREE)) if i != BROKEN]
    run(good, left, history.copy())
    everyone = world.reboot(outcome=1)
    run(everyone, members(everyone, TWO_OF_THREE), history.copy())


@pytest.mark.parametrize("seed", range(1, 4))
def test_a_power_cut_while_a_stale_member_comes_back(seed: int) -> None:
    """Goal: a member that is brought level again counts only once it holds everything.

    Method: cut at operation 1, 2, 3... of an opening with the stale member attached; open
    again, stop cleanly, and check every copy on every member.
    """
    stale, history, _ = world_with_a_stale_member(seed)
    cut_at = 1
    was_cut = True
    while was_cut:
        world = stale.reboot(cut_at)
        known = history.copy()
        was_cut = recover(world, TWO_OF_THREE, known)
        world = world.reboot(outcome=cut_at)
        assert not recover(world, TWO_OF_THREE, known), f"{cut_at=}"
        live(world, partial(find_no_damage, world, TWO_OF_THREE))
        cut_at += 1


@pytest.mark.parametrize("kept", [[0], [2], [1], [0, 1], [1, 2]], ids=str)
def test_missing_members_are_refused_unless_stale(kept: list[int]) -> None:
    """Goal: a pool opens without a member only if those present record it stale (R5).

    Method: member 1 is stale; offer every choice that lacks a member in sync.
    """
    world, _, _ = world_with_a_stale_member(3)
    chosen = [members(world, TWO_OF_THREE)[i] for i in kept]
    with pytest.raises(MissingMemberError):
        run(world, chosen, None)


def test_opening_by_force_without_a_member() -> None:
    """Goal: naming the missing member opens the pool from the other copies, with all data."""
    world, history = world_with_data(5)
    uuids: list[UUID] = []

    async def look() -> None:
        async with opened(world, TWO_OF_THREE) as pool:
            uuids.extend(m.uuid for m in pool.info().members)

    live(world, look)
    world = world.reboot()
    live(world, partial(open_some, members(world, TWO_OF_THREE)[:2], history, [uuids[2]]))


@pytest.mark.parametrize("outcome", range(8))
def test_forcing_it_open_without_who_alone_had_the_log_loses_nothing_silently(outcome: int) -> None:
    """Goal: what was flushed to one member alone is there, or opening says what is missing.

    Method: one of two members misses everything and comes back, in sync but for what has one copy
    only; soon the power goes, and only the returned member is there.
    """
    shape = Shape("two", 2, ("a", "b"))
    world = new_world(shape, 13)
    uuids: list[UUID] = []

    async def write() -> None:
        async with opened(world, shape) as pool:
            uuids.extend(m.uuid for m in pool.info().members)
            world.disks[0].dead = True
            await pool.create_volume("v", MIB)
            world.cut_power()

    async def come_back() -> None:
        async with opened(world, shape) as pool:
            assert pool.info().health == "ok"
            world.cut_power()

    assert live(world, write)
    world = world.reboot(outcome=outcome)
    assert live(world, come_back)
    again = world.reboot(outcome=outcome)
    found: list[str] = []

    async def force() -> None:
        chosen, env = members(again, shape)[:1], environment(3)
        async with open_pool(chosen, settings=SETTINGS, env=env, without=[uuids[1]]) as pool:
            found.extend(volume.name for volume in pool.volumes())

    said = ""
    try:
        live(again, force)
    except DamagedError as error:
        said = str(error)
    assert found == ["v"] or "missing" in said


def test_a_split_pool_is_refused() -> None:
    """Goal: two sides that went on without each other are never mixed."""
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
    # (epoch, sequence, members that it calls stale) of each member's newest superblock.
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
    """Goal: members that call each other stale are believed when one was in sync with both.

    Method: write what power cuts leave when members fail and are brought back.
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


MEMORIES = {
    # (holder, sequence) that the newest superblock remembers of a stale member that comes back
    # with (2, 12), and whether that is its past.
    "the last it was given": ((2, 12), True),
    "one that it was to be given": ((2, 13), True),
    "it went on without the others": ((2, 11), False),
    "it went on with another daemon": ((3, 12), False),
    "nothing": (None, False),
}


@pytest.mark.parametrize(("left", "is_past"), MEMORIES.values(), ids=[*MEMORIES])
def test_a_stale_member_comes_back_when_those_that_saw_it_last_have_failed(
    left: tuple[int, int] | None, is_past: bool
) -> None:
    """Goal: it is no other side of a split pool, and one that is never passes for it.

    Method: the first two were in sync and the third was not; then the second failed, the third
    came back, and the first failed. The first is not attached.
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
    seen = Seen() if left is None else Seen(digest_of(UUID(int=left[0]).bytes), left[1])
    rows = (replace(one, stale_since=0), replace(two, stale_since=0, left=seen), three)
    newest = replace(sb, epoch=3, sequence=24, holder=UUID(int=9), members=rows)

    async def write() -> None:
        for index, each in ((1, past), (2, newest)):
            place = each.sequence % RING_SLOTS * SUPERBLOCK_BYTES
            await world.disks[index].write(place, encode(each.for_member(index)), fua=True)

    live(world, write)
    attached = members(world, TWO_OF_THREE)[1:]
    with nullcontext() if is_past else pytest.raises(ForeignMemberError):
        run(world, attached, None)


def test_what_a_member_has_seen_is_remembered_when_it_fails() -> None:
    """Goal: the superblock that calls a member stale says up to where it came along."""
    world = new_world(TWO_OF_THREE, 14)

    async def body() -> None:
        async with opened(world, TWO_OF_THREE) as pool:
            before = pool.roster.superblock
            world.disks[1].fail_write(times=None)
            await pool.create_volume("v", MIB)
            await pool.checkpoint()
            now = pool.roster.superblock
            left = [row.left for row in now.members]
            assert [row.stale_since is None for row in now.members] == [True, False, True]
            assert left[1].holder == before.seen.holder
            assert before.sequence <= left[1].sequence < now.sequence
            assert left[0] == left[2] == Seen()

    live(world, body)


def newest_superblock(disk: SimulatedDisk) -> Superblock:
    places = (slot * SUPERBLOCK_BYTES for slot in range(RING_SLOTS))
    found = [decode(disk.durable(place, SUPERBLOCK_BYTES)) for place in places]
    return max((sb for sb in found if sb is not None), key=lambda sb: sb.order)


def test_a_copied_member_is_refused() -> None:
    """Goal: two devices with one member's UUID, as after dd, are not both attached (R16)."""
    world, _ = world_with_data(7)
    world.disks[0].boot_into(world, random.Random(1))
    twin = MemberDevice(world.disks[-1], "twin", "d")
    with pytest.raises(ForeignMemberError, match="twice"):
        run(world, [*members_of(world, 3), twin], None)
    with pytest.raises(ForeignMemberError, match="twice"):
        run(world, [*members_of(world, 2), twin], None)


def members_of(world: SimulatedWorld, count: int) -> list[MemberDevice]:
    return [MemberDevice(world.disks[i], f"disk{i}", "abc"[i]) for i in range(count)]


def test_a_foreign_member_is_refused() -> None:
    """Goal: members of two pools do not open together."""
    world, _ = world_with_data(8)
    SimulatedDisk(world, ONE.member_bytes)
    other = MemberDevice(world.disks[3], "other", "d")

    async def make() -> None:
        await create_pool([other], copies=1, segment_bytes=SEGMENT_BYTES, env=environment(99))

    live(world, make)
    with pytest.raises(ForeignMemberError, match="different pools"):
        run(world, [*members_of(world, 3), other], None)


def test_a_blank_device_is_not_a_member() -> None:
    """Goal: a wrong path is called that."""
    world, _ = world_with_data(9)
    SimulatedDisk(world, ONE.member_bytes)
    blank = MemberDevice(world.disks[3], "blank", "d")
    with pytest.raises(NotAMemberError, match="blank"):
        run(world, [*members_of(world, 3), blank], None)


def test_a_newer_format_is_refused() -> None:
    """Goal: superblocks of a later version, and of unknown features, refuse to open (R19)."""
    for field, value in (("<H", 2), ("<Q", 1 << 9)):
        world = new_world(ONE, 10)
        at = 16 if field == "<H" else 24
        live(world, partial(_rewrite_superblocks, world.disks[0], field, at, value))
        with pytest.raises(FormatVersionError, match="upgrade"):
            run(world, members(world, ONE), None)


async def _rewrite_superblocks(disk: SimulatedDisk, field: str, at: int, value: int) -> None:
    places = [slot * SUPERBLOCK_BYTES for slot in range(RING_SLOTS)]
    for place in [*places, closing_offset(disk.size_bytes)]:
        body = bytearray(await disk.read(place, SUPERBLOCK_BYTES))
        if any(body):
            struct.pack_into(field, body, at, value)
            struct.pack_into("<Q", body, 8, digest_of(memoryview(body)[16:]))
            await disk.write(place, bytes(body), fua=True)


def test_a_member_that_is_too_small_is_refused() -> None:
    """Goal: the error says how large it must be, and the pool is not made."""
    world = SimulatedWorld(1)
    SimulatedDisk(world, 2 * MIB)

    async def make() -> None:
        await create_pool(members(world, ONE), copies=1, segment_bytes=SEGMENT_BYTES)

    with pytest.raises(MemberTooSmallError, match="at least"):
        live(world, make)


def test_a_member_that_shrank_is_refused() -> None:
    """Goal: a truncated image does not open as if nothing were missing."""
    world = new_world(ONE, 11)
    world.disks[0].size_bytes -= MIB
    with pytest.raises(PoolError):
        run(world, members(world, ONE), None)
