"""Scrubs of pools on simulated disks find, repair or report all rot, and nothing else."""

import random
from functools import partial

import pytest

from blockdev.errors import DeviceError
from blockdev.simulation.disk import SimulatedDisk
from blockdev.simulation.power import CachedWrite
from blockdev.simulation.world import SimulatedWorld
from storage.format import checkpoint_root
from storage.format.commit import HEADER_BYTES
from storage.format.entry import Location, unpack
from storage.format.superblock import RING_SLOTS, SUPERBLOCK_BYTES
from storage.members.segments import Role, Segment
from storage.pool import Pool
from storage.verify import affected, examiner, scrub_map, scrub_segments
from storage.verify.scrub_pass import Outcome, ScrubPass
from tests.crash.harness import (
    MIB,
    ONE,
    THREE,
    TWO_OF_THREE,
    Shape,
    live,
)
from tests.crash.model import BLOCK, History
from tests.crash.scrubs import first_extent, holds_all, in_pool, kinds, scrub
from tests.crash.sweep import find_no_damage
from tests.crash.test_corruption import BROKEN, commits_on, damage, stopped_world
from tests.crash.workload import Workload

SEEDS = range(1, 6)
SMALL_PIECE_BYTES = 8 << 10
"""Makes batches longer than one piece that is read at once, as in large pools."""


@pytest.fixture(params=[MIB, SMALL_PIECE_BYTES], ids=["whole", "pieces"])
def any_piece(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (examiner, scrub_map, scrub_segments):
        monkeypatch.setattr(module, "PIECE_BYTES", request.param)


# Rot


@pytest.mark.usefixtures("any_piece")
@pytest.mark.parametrize("shape", [TWO_OF_THREE, THREE], ids=str)
@pytest.mark.parametrize("seed", SEEDS)
def test_all_rot_on_one_member_is_repaired(shape: Shape, seed: int) -> None:
    """Goal: after one scrub every copy of every piece in use is good.

    Method: put garbage over a fifth of one member, anywhere; after the scrub, another scrub, every
    read, and the offline check, which finds the pieces in use in another way, find no damage.
    """
    world, history = stopped_world(shape, seed)
    damage(world.disks[BROKEN], random.Random(seed), 0.2)

    async def body(pool: Pool) -> None:
        done = await scrub(pool)
        assert done.found == done.repaired > 0
        assert (await scrub(pool)).found == 0
        await holds_all(pool, history)

    in_pool(world, shape, body)
    world = world.reboot()
    live(world, partial(find_no_damage, world, shape))


def test_a_scrub_that_compares_no_checksum_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: these tests fail for a scrub that does not compare checksums."""
    monkeypatch.setattr(examiner, "bad_items", lambda data, start, piece: [])
    with pytest.raises(AssertionError):
        test_all_rot_on_one_member_is_repaired(TWO_OF_THREE, 1)


@pytest.mark.usefixtures("any_piece")
@pytest.mark.parametrize("seed", range(1, 13))
def test_the_ranges_reported_lost_are_those_that_cannot_be_read(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: with one copy, the scrub reports exactly the ranges whose reads fail, and goes on
    behind each.

    Method: put garbage on the only member; read each block of each volume and snapshot and compare
    the result with the report.
    """
    monkeypatch.setattr(affected, "HELD_MAX", 10_000)
    world, _ = stopped_world(ONE, seed)
    damage(world.disks[0], random.Random(seed), 0.05)

    async def body(pool: Pool) -> None:
        done = await scrub(pool)
        data, pages = reported(done, "data"), reported(done, "map page")
        assert done.lost == done.found
        failing, there = set(), set()
        for name in exports(pool):
            device = pool.open_export(name)
            for block in range(device.size_bytes // BLOCK):
                there.add((name, block))
                try:
                    await device.read(block * BLOCK, BLOCK)
                except DeviceError:
                    failing.add((name, block))
            await device.close()
        assert failing <= data | pages
        assert data & there <= failing

    try:
        in_pool(world, ONE, body)
    except DeviceError as error:
        assert "damaged on every copy" in str(error)  # noqa: PT017


def exports(pool: Pool) -> list[str]:
    snapshots = [f"{one.volume}@{one.name}" for one in pool.management.snapshots()]
    return [volume.name for volume in pool.management.volumes()] + snapshots


def reported(done: ScrubPass, what: str) -> set[tuple[str, int]]:
    return {
        (held.export, block)
        for finding in done.findings
        if finding.what == what and finding.outcome is Outcome.LOST
        for held in finding.holds
        for block in range(held.offset // BLOCK, (held.offset + held.length) // BLOCK)
    }


# Each kind of place


async def places(pool: Pool) -> dict[str, list[Location]]:
    """Return the locations of each kind of metadata."""
    pointer = pool.roster.superblock.root
    made = checkpoint_root.unpack(
        await pool.segment_io.read_located(pointer.a, pointer.b, checkpoint_root.ROOT_BYTES_MAX)
    )
    found = {"root": [unpack(pointer.a, pointer.b)], "directory": [], "map page": []}
    for table in ("catalogue", "segments", "directories", "usage"):
        found[table] = [unpack(a, b) for a, b in getattr(made, table)]
    for layer in pool.blockmap.layers.values():
        found["directory"] += [unpack(*where) for where in layer.directory.located.values()]
        for page in layer.directory.pages():
            row = layer.directory.get(page)
            assert row is not None
            found["map page"] += [unpack(row[at], row[at + 1]) for at in (0, 2) if row[at]]
    return found


def spoil(pool: Pool, at: Location, member: int | None = None) -> None:
    """Corrupt one byte of a stored piece, on one member or on all."""
    for each, base in pool.table[at.segment].places:
        if member is None or each.index == member:
            disk = each.device
            assert isinstance(disk, SimulatedDisk)
            disk.corrupt(base + at.offset + at.stored_bytes // 2, 1)


METADATA = ("root", "catalogue", "segments", "directories", "usage", "directory", "map page")


@pytest.mark.parametrize("what", METADATA)
def test_metadata_is_repaired_from_the_other_copy(what: str) -> None:
    world, history = stopped_world(TWO_OF_THREE, 1)

    async def body(pool: Pool) -> None:
        await pool.checkpoint()
        for at in (await places(pool))[what]:
            first = pool.table[at.segment].places[0][0]
            spoil(pool, at, first.index)
        done = await scrub(pool)
        assert kinds(done) == {(what, Outcome.REPAIRED)}
        assert all(one.members == ["disk0"] or one.members for one in done.findings)
        assert (await scrub(pool)).found == 0

    in_pool(world, TWO_OF_THREE, body)
    in_pool(world.reboot(), TWO_OF_THREE, partial(holds_all, history=history))


@pytest.mark.parametrize("what", METADATA[:-1])
def test_damaged_metadata_that_is_in_memory_is_written_again(what: str) -> None:
    """Goal: when the only copy of a table is bad, the scrub reports it and has a checkpoint write
    it again, so that the pool opens."""
    world, history = stopped_world(ONE, 2)

    async def body(pool: Pool) -> None:
        await pool.checkpoint()
        for at in (await places(pool))[what]:
            spoil(pool, at)
        done = await scrub(pool)
        assert kinds(done) == {(what, Outcome.LOST)}
        assert (await scrub(pool)).found == 0
        world.cut_power()

    in_pool(world, ONE, body)
    in_pool(world.reboot(), ONE, partial(holds_all, history=history))


def test_a_lost_page_is_reported_with_the_volumes_that_need_it() -> None:
    world, _ = stopped_world(ONE, 2)

    async def body(pool: Pool) -> None:
        await pool.checkpoint()
        for at in (await places(pool))["map page"]:
            spoil(pool, at)
        done = await scrub(pool)
        assert kinds(done) == {("map page", Outcome.LOST)}
        assert {held.export for one in done.findings for held in one.holds} >= {"root", "data"}
        assert all(held.length == 1024 * BLOCK for one in done.findings for held in one.holds)

    in_pool(world, ONE, body)


@pytest.mark.parametrize("end", ["ring", "closing"])
def test_superblocks_are_repaired(end: str) -> None:
    world, _ = stopped_world(TWO_OF_THREE, 3)

    async def body(pool: Pool) -> None:
        member = pool.roster.members[1]
        assert member is not None
        place = member.superblock_places(pool.roster.superblock)[end == "closing"]
        world.disks[1].corrupt(place + 100, 1)
        done = await scrub(pool)
        assert [(one.what, one.members, one.offset) for one in done.findings] == [
            ("superblock", ["disk1"], place)
        ]
        assert done.repaired == 1
        assert (await scrub(pool)).found == 0

    in_pool(world, TWO_OF_THREE, body)
    live(again := world.reboot(), partial(find_no_damage, again, TWO_OF_THREE))


def test_superblocks_that_were_replaced_are_not_verified() -> None:
    world, _ = stopped_world(ONE, 3)

    async def body(pool: Pool) -> None:
        sequence = pool.roster.superblock.sequence
        for older in range(1, RING_SLOTS):
            world.disks[0].corrupt((sequence - older) % RING_SLOTS * SUPERBLOCK_BYTES, 1)
        assert (await scrub(pool)).found == 0

    in_pool(world, ONE, body)


@pytest.mark.parametrize("part", ["lost", "misdirected", "old"])
@pytest.mark.parametrize("seed", SEEDS)
def test_lost_misdirected_and_torn_writes_are_repaired(seed: int, part: str) -> None:
    """Goal: a scrub finds and repairs commits of one copy that hold zeroes, another commit, or
    their header alone.

    Method: overwrite commits on one member with zeroes or with valid pieces, checksums included,
    which no flipped bit gives.
    """
    world, history = stopped_world(THREE, seed)
    disk, coin = world.disks[BROKEN], random.Random(seed)
    commits = [(at, header) for at, header in commits_on(disk) if header.total_bytes > HEADER_BYTES]
    for at, header in coin.sample(commits, len(commits) * 2 // 3):
        other, _ = coin.choice(commits)
        content = bytes(header.total_bytes)
        if part == "misdirected":
            content = disk.durable(other, header.total_bytes)
        elif part == "old":
            content = disk.durable(at, HEADER_BYTES) + content[HEADER_BYTES:]
        disk._keep(CachedWrite(0, at, len(content), content, certain=True))

    async def body(pool: Pool) -> None:
        done = await scrub(pool)
        assert done.found == done.repaired > 0
        assert (await scrub(pool)).found == 0
        await holds_all(pool, history)

    in_pool(world, THREE, body)
    live(again := world.reboot(), partial(find_no_damage, again, THREE))


@pytest.mark.usefixtures("any_piece")
@pytest.mark.parametrize("part", ["header", "table"])
@pytest.mark.parametrize("shape", [ONE, TWO_OF_THREE], ids=str)
def test_data_is_verified_also_where_no_copy_has_its_record_table(shape: Shape, part: str) -> None:
    """Goal: a batch whose header or record table is lost on all copies is reported, and its data is
    still verified, at the places that the map names.

    Method: spoil the header or the table of all batches on all copies; after a scrub, spoil one
    extent on one copy too.
    """
    world, history = stopped_world(shape, 4)

    async def body(pool: Pool) -> None:
        await pool.checkpoint()
        for at, segment in batches(world, pool):
            for member, base in segment.places:
                where = base + at + (0 if part == "header" else HEADER_BYTES + 4)
                world.disks[member.index].corrupt(where, 4)
        done = await scrub(pool)
        assert kinds(done) == {("record table", Outcome.LOST)}
        await holds_all(pool, history)
        extent = first_extent(pool)
        spoil(pool, extent, pool.table[extent.segment].places[0][0].index)
        done = await scrub(pool)
        data = [finding for finding in done.findings if finding.what == "data"]
        assert [(one.segment, one.offset) for one in data] == [(extent.segment, extent.offset)]
        outcome = Outcome.LOST if shape is ONE else Outcome.REPAIRED
        assert data[0].outcome is outcome
        assert data[0].holds

    in_pool(world, shape, body)


def batches(world: SimulatedWorld, pool: Pool) -> list[tuple[int, Segment]]:
    """Return (offset, segment) of all commits with records in segments that hold live data."""
    found = []
    for segment in pool.table.all():
        if segment.live_bytes and segment.role is not Role.META:
            disk = world.disks[segment.places[0][0].index]
            here = [header for _, header in commits_on(disk) if header.segment == segment.number]
            found += [(header.offset, segment) for header in here if header.table_bytes]
    return found


def test_a_header_and_a_table_that_are_good_on_different_copies_are_both_repaired() -> None:
    world, history = stopped_world(TWO_OF_THREE, 4)

    async def body(pool: Pool) -> None:
        await pool.checkpoint()
        for at, bad in batches(world, pool):
            (one, first), (other, second) = bad.places
            world.disks[one.index].corrupt(first + at + 20, 1)
            world.disks[other.index].corrupt(second + at + HEADER_BYTES + 4, 1)
        done = await scrub(pool)
        assert done.found == done.repaired >= 1
        assert {finding.what for finding in done.findings} <= {"record table", "log"}
        assert (await scrub(pool)).found == 0

    in_pool(world, TWO_OF_THREE, body)
    in_pool(world.reboot(), TWO_OF_THREE, partial(holds_all, history=history))


@pytest.mark.parametrize("part", ["header", "table"])
def test_a_scrub_of_a_log_that_cannot_be_replayed_saves_its_content(part: str) -> None:
    """Goal: when the only copy of a commit since the last checkpoint is bad, a scrub makes the pool
    independent of it: after a power cut the pool opens with all data.

    Method: spoil the commit, scrub or not, and cut the power; without the scrub the pool must
    refuse to open.
    """
    for scrubs in (True, False):
        world, history = stopped_world(ONE, 5)

        async def body(
            pool: Pool, history: History = history, world: SimulatedWorld = world,
            scrubs: bool = scrubs,
        ) -> None:  # fmt: skip
            workload = Workload(history, 5)
            await workload.run(pool, 0)
            await pool.checkpoint()
            for _ in range(4):
                await workload._write_blocks()
                workload._returned = len(history.steps)
                await workload._flush()
            at, _ = commits_on(world.disks[0])[-3]
            world.disks[0].corrupt(at + (40 if part == "header" else HEADER_BYTES + 2), 1)
            if scrubs:
                assert (await scrub(pool)).lost <= 1
            world.cut_power()

        in_pool(world, ONE, body)
        again = world.reboot()
        if scrubs:
            in_pool(again, ONE, partial(holds_all, history=history))
        else:
            with pytest.raises(DeviceError, match="damaged"):
                in_pool(again, ONE, partial(holds_all, history=history))
