"""Opening a pool with missing, stale, copied, foreign, newer and too small members."""

import random
import struct
from functools import partial
from uuid import UUID

import pytest

from blockdev.simulation.disk import SimulatedDisk
from blockdev.simulation.world import SimulatedWorld
from storage.errors import (
    DamagedError,
    ForeignMemberError,
    FormatVersionError,
    MemberTooSmallError,
    MissingMemberError,
    NotAMemberError,
    PoolError,
)
from storage.format.codec import digest_of
from storage.format.superblock import RING_SLOTS, SUPERBLOCK_BYTES
from storage.members.member import closing_offset, read_superblock
from storage.pool import MemberDevice, create_pool, open_pool
from tests.crash.harness import (
    MIB,
    ONE,
    SEGMENT_BYTES,
    SETTINGS,
    TWO_OF_THREE,
    Shape,
    live,
    members,
    new_world,
    opened,
    recover,
)
from tests.crash.model import History
from tests.crash.some_members import open_some, run, world_with_data
from tests.crash.sweep import find_no_damage
from tests.crash.workload import Workload
from tests.sim.deterministic import environment

BROKEN = 1


def world_with_a_stale_member(seed: int) -> tuple[SimulatedWorld, History, UUID]:
    """Return a world in which member 1 failed every write and flush until the power went."""
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


@pytest.mark.parametrize("seed", range(1, 6))
def test_a_member_that_failed_is_recorded_stale_and_not_needed(seed: int) -> None:
    """Goal: the other members record a failed member stale before an acknowledgement (R5)."""
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
    """Goal: a stale member counts as in sync only once it holds all data.

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
    """Goal: a pool opens without a member only if the members present record it stale (R5).

    Method: member 1 is stale; offer every choice of members that lacks a member in sync.
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
def test_opening_by_force_never_loses_the_log_of_one_member_silently(outcome: int) -> None:
    """Goal: data flushed to one member alone is there, or opening says that it is missing.

    Method: one of two members misses all writes and comes back, in sync except for data with one
    copy only; soon the power goes, and the pool is opened with the returned member only.
    """
    shape = Shape("two", 2, ("a", "b"))
    world = new_world(shape, 13)
    uuids: list[UUID] = []

    async def write() -> None:
        async with opened(world, shape) as pool:
            uuids.extend(m.uuid for m in pool.info().members)
            world.disks[0].dead = True
            await pool.management.create_volume("v", MIB)
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
            found.extend(volume.name for volume in pool.management.volumes())

    said = ""
    try:
        live(again, force)
    except DamagedError as error:
        said = str(error)
    assert found == ["v"] or "missing" in said


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
    """Goal: the error for a device without a superblock names the device."""
    world, _ = world_with_data(9)
    SimulatedDisk(world, ONE.member_bytes)
    blank = MemberDevice(world.disks[3], "blank", "d")
    with pytest.raises(NotAMemberError, match="blank"):
        run(world, [*members_of(world, 3), blank], None)


def test_a_newer_format_is_refused() -> None:
    """Goal: a pool with superblocks of a later version or unknown features does not open (R19)."""
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
    """Goal: the error says how large the member must be, and the pool is not made."""
    world = SimulatedWorld(1)
    SimulatedDisk(world, 2 * MIB)

    async def make() -> None:
        await create_pool(members(world, ONE), copies=1, segment_bytes=SEGMENT_BYTES)

    with pytest.raises(MemberTooSmallError, match="at least"):
        live(world, make)


def test_a_member_that_shrank_is_refused() -> None:
    """Goal: a pool with a truncated image does not open."""
    world = new_world(ONE, 11)
    world.disks[0].size_bytes -= MIB
    with pytest.raises(PoolError):
        run(world, members(world, ONE), None)
