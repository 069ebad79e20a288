"""Power cuts: which content may survive, which must, and that every outcome comes up."""

import contextlib
import itertools
import random
from collections.abc import Awaitable, Callable

import pytest
import trio

from blockdev.simulation.disk import SimulatedDisk
from blockdev.simulation.power import PowerCut
from blockdev.simulation.world import SimulatedWorld

KIB = 1024
SECTOR = 512
PAGE = 4096
OUTCOMES = range(60)


def page(text: str) -> bytes:
    return text.encode().ljust(SECTOR, b".") * (PAGE // SECTOR)


async def after_cut(
    prepare: Callable[[SimulatedDisk], Awaitable[None]], length: int = PAGE, garbles: bool = False
) -> list[bytes]:
    """Return the start of the disk after one crash, once for each outcome."""
    world = SimulatedWorld(seed=3)
    disk = SimulatedDisk(world, 64 * KIB, garbles=garbles)
    await prepare(disk)
    return [world.reboot(outcome=n).disks[0].durable(0, length) for n in OUTCOMES]


# The cut itself


async def test_the_cut_keeps_firing_on_every_disk_and_operation() -> None:
    world = SimulatedWorld(1, cut_at=3)
    left, right = SimulatedDisk(world, 64 * KIB), SimulatedDisk(world, 64 * KIB, try_reads=True)
    await left.write(0, page("a"))
    await right.write(0, page("a"))
    with pytest.raises(PowerCut):
        await left.flush()
    assert world.was_cut
    for disk in (left, right):
        with pytest.raises(PowerCut):
            await disk.read(0, SECTOR)
        with pytest.raises(PowerCut):
            await disk.write(0, page("b"))
        with pytest.raises(PowerCut):
            await disk.write_zeroes(0, PAGE)
        with pytest.raises(PowerCut):
            await disk.trim(0, PAGE)
        with pytest.raises(PowerCut):
            await disk.flush()
        with pytest.raises(PowerCut):
            await disk.allocate(0, PAGE)
        with pytest.raises(PowerCut):
            await disk.extents(0, PAGE)
        with pytest.raises(PowerCut):
            await disk.close()
    with pytest.raises(PowerCut):
        right.try_read(0, SECTOR)


def test_error_handling_does_not_catch_a_power_cut() -> None:
    assert not issubclass(PowerCut, Exception)


async def test_operations_count_over_all_disks_and_closing_does_not() -> None:
    world = SimulatedWorld(1)
    left, right = SimulatedDisk(world, 64 * KIB), SimulatedDisk(world, 64 * KIB)
    await left.write(0, page("a"))
    await right.write_zeroes(0, PAGE)
    await right.trim(0, PAGE)
    await right.allocate(0, PAGE)
    await left.flush()
    await left.read(0, PAGE)
    assert world.operations == 6
    await left.extents(0, PAGE)
    await left.close()
    assert world.operations == 6


async def test_reads_may_be_left_out_of_the_count_but_not_of_the_cut() -> None:
    world = SimulatedWorld(1, cut_at=2, count_reads=False)
    disk = SimulatedDisk(world, 64 * KIB)
    await disk.write(0, page("a"))
    await disk.read(0, PAGE)
    assert world.operations == 1
    with pytest.raises(PowerCut):
        await disk.flush()
    with pytest.raises(PowerCut):
        await disk.read(0, PAGE)


async def test_the_cut_can_be_at_a_read() -> None:
    disk = SimulatedDisk(SimulatedWorld(1, cut_at=1), 64 * KIB)
    with pytest.raises(PowerCut):
        await disk.read(0, PAGE)


async def test_a_nursery_wraps_the_cut() -> None:
    disk = SimulatedDisk(SimulatedWorld(1, cut_at=2), 64 * KIB)
    caught = 0
    try:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(disk.write, 0, page("a"))
    except* PowerCut as group:
        caught = len(group.exceptions)
    assert caught


# Survivors


async def test_flushed_writes_survive() -> None:
    async def prepare(disk: SimulatedDisk) -> None:
        await disk.write(0, page("old"))
        await disk.flush()

    assert set(await after_cut(prepare)) == {page("old")}


async def test_an_unflushed_write_is_kept_dropped_or_torn_between_sectors() -> None:
    async def prepare(disk: SimulatedDisk) -> None:
        await disk.write(0, page("old"))
        await disk.flush()
        await disk.write(0, page("new"))

    found = set(await after_cut(prepare))
    assert page("old") in found
    assert page("new") in found
    assert len(found) > 4, "no torn writes came up"
    old, new = page("old")[:SECTOR], page("new")[:SECTOR]
    for content in found:
        sectors = {content[at : at + SECTOR] for at in range(0, PAGE, SECTOR)}
        assert sectors <= {old, new}


async def test_a_later_write_can_survive_an_earlier_one() -> None:
    async def prepare(disk: SimulatedDisk) -> None:
        await disk.write(0, page("first"))
        await disk.write(PAGE, page("second"))

    found = set(await after_cut(prepare, 2 * PAGE))
    for first, second in itertools.product(
        (bytes(PAGE), page("first")), (bytes(PAGE), page("second"))
    ):
        assert first + second in found


async def test_almost_all_of_many_writes_can_survive() -> None:
    async def prepare(disk: SimulatedDisk) -> None:
        for at in range(16):
            await disk.write(at * PAGE, page("x"))

    pages = [
        sum(content[at : at + PAGE] == page("x") for at in range(0, len(content), PAGE))
        for content in await after_cut(prepare, 16 * PAGE)
    ]
    assert {0, 16} <= set(pages)
    assert any(12 <= count < 16 for count in pages)


async def test_a_fua_write_survives_alone() -> None:
    async def prepare(disk: SimulatedDisk) -> None:
        await disk.write(0, page("plain"))
        await disk.write(PAGE, page("fua"), fua=True)

    found = await after_cut(prepare, 2 * PAGE)
    assert {content[PAGE:] for content in found} == {page("fua")}
    assert bytes(PAGE) in {content[:PAGE] for content in found}


async def test_an_older_write_never_comes_back_over_a_fua_write() -> None:
    async def prepare(disk: SimulatedDisk) -> None:
        await disk.write(0, page("older"))
        await disk.write(0, page("fua"), fua=True)

    assert set(await after_cut(prepare)) == {page("fua")}


async def test_zeroes_are_a_write_like_any_other() -> None:
    async def prepare(disk: SimulatedDisk) -> None:
        await disk.write(0, page("old"), fua=True)
        await disk.write_zeroes(0, PAGE)

    found = set(await after_cut(prepare))
    assert {page("old"), bytes(PAGE)} <= found


@pytest.mark.parametrize("cut_at", [3, 4])
async def test_the_cut_operation_may_have_taken_effect(cut_at: int) -> None:
    """Goal: a write that was cut counts as any unflushed write. Method: cut one with FUA, or the
    write after it."""
    found = set()
    for seed in OUTCOMES:
        disk = SimulatedDisk(SimulatedWorld(seed, cut_at), 64 * KIB)
        await disk.write(0, page("old"))
        await disk.flush()
        with contextlib.suppress(PowerCut):
            await disk.write(0, page("new"), fua=True)
            await disk.write(0, page("new"))
        assert disk.world.was_cut
        found.add(disk.reboot().durable(0, PAGE))
    assert page("new") in found
    assert (page("old") in found) == (cut_at == 3), "the FUA write had returned"


async def test_a_write_in_flight_beside_the_cut_may_have_taken_effect() -> None:
    found = set()
    for seed in OUTCOMES:
        world = SimulatedWorld(seed, cut_at=1, checkpoints=True)
        disks = [SimulatedDisk(world, 64 * KIB) for _ in range(2)]
        try:
            async with trio.open_nursery() as nursery:
                for disk in disks:
                    nursery.start_soon(disk.write, 0, page("x"))
        except* PowerCut:
            pass
        found.add(tuple(disk.durable(0, PAGE) == page("x") for disk in world.reboot().disks))
    assert found == {(False, False), (False, True), (True, False), (True, True)}


async def test_a_torn_write_may_destroy_the_rest_of_a_physical_block() -> None:
    async def prepare(disk: SimulatedDisk) -> None:
        await disk.write(0, page("old"))
        await disk.flush()
        await disk.write(SECTOR, page("new")[: 2 * SECTOR])

    def neighbours(contents: list[bytes]) -> set[bytes]:
        return {content[:SECTOR] + content[3 * SECTOR :] for content in contents}

    assert len(neighbours(await after_cut(prepare))) == 1
    assert len(neighbours(await after_cut(prepare, garbles=True))) > 1


# Reboots


async def test_rebooting_again_gives_the_same_disks() -> None:
    world = SimulatedWorld(5)
    disks = [SimulatedDisk(world, 64 * KIB, physical_bytes=512) for _ in range(3)]
    for disk in disks:
        for at in range(16):
            await disk.write(at * PAGE, page(f"{at}"))
    one, two = world.reboot(), world.reboot(cut_at=9)
    contents = [disk.durable(0, 64 * KIB) for disk in one.disks]
    assert contents == [disk.durable(0, 64 * KIB) for disk in two.disks]
    assert len(set(contents)) == 3, "every disk has survivors of its own"
    assert two.cut_at == 9
    assert one.disks[0].physical_bytes == 512


async def test_a_rebooted_disk_reads_what_survived_and_works() -> None:
    disk = SimulatedDisk(SimulatedWorld(6), 64 * KIB)
    await disk.write(0, page("a"), fua=True)
    again = disk.reboot()
    with pytest.raises(PowerCut):
        await disk.read(0, PAGE)
    assert await again.read(0, PAGE) == page("a")
    await again.write(0, page("b"))
    await again.flush()
    assert await again.reboot().read(0, PAGE) == page("b")


async def run_randomly(seed: int, cut_at: int | None) -> tuple[object, bytes]:
    world = SimulatedWorld(seed, cut_at, traced=True, checkpoints=True)
    disk = SimulatedDisk(world, 64 * KIB)
    choices = random.Random(seed)
    try:
        for turn in range(20):
            at = choices.randrange(16) * PAGE
            await disk.write(at, page(f"{turn}"), fua=choices.random() < 0.1)
            if choices.random() < 0.3:
                await disk.flush()
            await disk.trim(at, PAGE)
    except PowerCut:
        pass
    return world.trace, disk.reboot().durable(0, 64 * KIB)


async def test_one_seed_gives_one_run() -> None:
    assert await run_randomly(1, 17) == await run_randomly(1, 17)
    assert await run_randomly(1, 17) != await run_randomly(2, 17)
    assert await run_randomly(1, 17) != await run_randomly(1, 18)


async def test_the_trace_names_every_operation() -> None:
    world = SimulatedWorld(1, traced=True)
    SimulatedDisk(world, 64 * KIB)
    disk = SimulatedDisk(world, 64 * KIB)
    await disk.write(SECTOR, b"x" * SECTOR)
    await disk.flush()
    await disk.read(0, PAGE)
    assert world.trace == [
        (1, "write", SECTOR, SECTOR, 0x3B0B6D5D),
        (1, "flush", 0, 0, 0),
        (1, "read", 0, PAGE, 0),
    ]


# A small crash test, as tests of storage write them


async def write_numbered(disk: SimulatedDisk, history: list[set[int]]) -> None:
    """Write numbered sectors over and over; `history` lists the numbers each sector may hold."""
    choices = random.Random(11)
    for number in range(1, 25):
        at = choices.randrange(len(history))
        history[at].add(number)
        await disk.write(at * SECTOR, number.to_bytes(2, "little") * (SECTOR // 2))
        if number % 5 == 0:
            await disk.flush()
            for numbers in history:
                newest = max(numbers)
                numbers.clear()
                numbers.add(newest)


async def lost_sectors(seed: int, *, lie: bool) -> int:
    """Cut the power at every operation; return the number of sectors with wrong content."""
    lost = 0
    for cut_at in itertools.count(1):
        world = SimulatedWorld(seed, cut_at, checkpoints=True)
        disk = SimulatedDisk(world, 64 * KIB)
        if lie:
            disk.lose_flush(times=None)
        history = [{0} for _ in range(6)]
        with contextlib.suppress(PowerCut):
            await write_numbered(disk, history)
        content = disk.reboot().durable(0, len(history) * SECTOR)
        for at, numbers in enumerate(history):
            sector = content[at * SECTOR : (at + 1) * SECTOR]
            found = int.from_bytes(sector[:2], "little")
            lost += found not in numbers or sector != sector[:2] * (SECTOR // 2)
        if not world.was_cut or cut_at > world.operations:
            return lost
    raise AssertionError


@pytest.mark.parametrize("seed", range(8))
async def test_flushed_sectors_survive_a_cut_anywhere(seed: int) -> None:
    assert await lost_sectors(seed, lie=False) == 0


async def test_the_crash_test_notices_a_disk_that_loses_flushes() -> None:
    assert await lost_sectors(1, lie=True) > 0
