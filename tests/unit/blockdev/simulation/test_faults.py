"""Injected faults: which call fails, and which content the failure leaves."""

import pytest
import trio

from blockdev.errors import CacheLostError, DeviceError, NoSpaceError
from blockdev.simulation.disk import SimulatedDisk
from blockdev.simulation.world import SimulatedWorld

KIB = 1024
PAGE = 4096
SEEDS = range(40)


def new_disk(seed: int = 1) -> SimulatedDisk:
    return SimulatedDisk(SimulatedWorld(seed), 64 * KIB)


async def test_the_chosen_calls_fail_and_no_others() -> None:
    disk = new_disk()
    await disk.read(0, PAGE)
    disk.fail_read(at=2, times=2)
    await disk.read(0, PAGE)
    for _ in range(2):
        with pytest.raises(DeviceError, match="injected fault: operation=read"):
            await disk.read(0, PAGE)
    await disk.read(0, PAGE)


async def test_a_fault_can_last_for_ever_and_choose_its_error() -> None:
    disk = new_disk()
    disk.fail_write(times=None, error=NoSpaceError)
    disk.fail_allocate()
    disk.fail_trim()
    for _ in range(5):
        with pytest.raises(NoSpaceError):
            await disk.write(0, bytes(PAGE))
        with pytest.raises(NoSpaceError):
            await disk.write_zeroes(0, PAGE)
    with pytest.raises(NoSpaceError):
        await disk.allocate(0, PAGE)
    with pytest.raises(DeviceError):
        await disk.trim(0, PAGE)
    await disk.allocate(0, PAGE)
    await disk.trim(0, PAGE)


async def test_a_failed_write_leaves_none_some_or_all_of_its_sectors() -> None:
    kept = set()
    for seed in SEEDS:
        disk = new_disk(seed)
        disk.fail_write()
        with pytest.raises(DeviceError):
            await disk.write(0, b"x" * PAGE)
        content = await disk.read(0, PAGE)
        assert content.count(b"x") % 512 == 0
        kept.add(content.count(b"x"))
    assert {0, PAGE} < kept


async def test_after_a_failed_flush_retrying_succeeds_and_saves_nothing() -> None:
    """Goal: a retried flush hides the loss, as on Linux. Method: fail one flush, retry it, cut the
    power."""
    survived = []
    for seed in SEEDS:
        disk = new_disk(seed)
        await disk.write(0, b"x" * PAGE)
        disk.fail_flush()
        with pytest.raises(DeviceError):
            await disk.flush()
        await disk.flush()
        assert await disk.read(0, PAGE) == b"x" * PAGE, "reads still show the write"
        survived.append(disk.reboot().durable(0, PAGE) == b"x" * PAGE)
    assert {True, False} == set(survived)


async def test_writing_again_after_a_failed_flush_saves_the_data() -> None:
    for seed in SEEDS:
        disk = new_disk(seed)
        await disk.write(0, b"x" * PAGE)
        disk.fail_flush()
        with pytest.raises(DeviceError):
            await disk.flush()
        await disk.write(0, b"x" * PAGE)
        await disk.flush()
        assert disk.reboot().durable(0, PAGE) == b"x" * PAGE


async def test_a_lost_write_reports_success() -> None:
    disk = new_disk()
    await disk.write(0, b"x" * PAGE)
    disk.lose_write()
    await disk.write(0, b"y" * PAGE)
    assert await disk.read(0, PAGE) == b"x" * PAGE


async def test_a_lying_flush_saves_nothing() -> None:
    disk = new_disk()
    disk.lose_flush()
    await disk.write(0, b"x" * PAGE)
    await disk.flush()
    assert disk.durable(0, PAGE) == bytes(PAGE)
    await disk.flush()
    assert disk.durable(0, PAGE) == b"x" * PAGE


async def test_a_lost_cache_is_announced_once() -> None:
    found = set()
    for seed in SEEDS:
        disk = new_disk(seed)
        await disk.write(0, b"x" * PAGE)
        disk.lose_cache()
        with pytest.raises(CacheLostError):
            await disk.flush()
        found.add(await disk.read(0, PAGE))
        assert disk.durable(0, PAGE) == await disk.read(0, PAGE)
    assert {bytes(PAGE), b"x" * PAGE} < found


async def test_a_cache_can_be_lost_silently() -> None:
    disk = new_disk()
    disk.lose_cache(announce=False)
    await disk.flush()


async def test_corruption_changes_every_byte_durably_and_no_other() -> None:
    disk = new_disk()
    await disk.write(0, b"x" * PAGE)
    await disk.flush()
    disk.corrupt(100, 50)
    content = await disk.read(0, PAGE)
    assert b"x" not in content[100:150]
    assert content[:100] + content[150:] == b"x" * (PAGE - 50)
    assert disk.reboot().durable(0, PAGE) == content


async def test_a_dead_disk_fails_until_it_lives_again() -> None:
    disk = new_disk()
    await disk.write(0, b"x" * PAGE)
    await disk.flush()
    disk.dead = True
    for _ in range(2):
        with pytest.raises(DeviceError):
            await disk.read(0, PAGE)
        with pytest.raises(DeviceError):
            await disk.write(PAGE, bytes(PAGE))
        with pytest.raises(DeviceError):
            await disk.flush()
    disk.dead = False
    assert await disk.read(0, PAGE) == b"x" * PAGE


async def test_faults_do_not_outlive_a_reboot() -> None:
    disk = new_disk()
    disk.dead = True
    await disk.reboot().flush()


async def test_trim_takes_effect_or_not_and_for_whole_physical_blocks_only() -> None:
    found = set()
    for seed in SEEDS:
        disk = new_disk(seed)
        await disk.write(0, b"x" * 4 * PAGE)
        await disk.trim(512, 2 * PAGE)
        found.add(await disk.read(0, 4 * PAGE))
    assert found == {b"x" * 4 * PAGE, b"x" * PAGE + bytes(PAGE) + b"x" * 2 * PAGE}


async def test_a_flush_covers_only_what_was_written_before_its_call() -> None:
    """Goal: a flush need not cover a write that ended after the flush was called."""
    missed = 0
    for seed in SEEDS:
        disk = SimulatedDisk(SimulatedWorld(seed, checkpoints=True), 64 * KIB)
        await disk.write(0, b"a" * PAGE)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(disk.flush)
            nursery.start_soon(disk.write, PAGE, b"b" * PAGE)
        assert disk.durable(0, PAGE) == b"a" * PAGE
        missed += disk.durable(PAGE, PAGE) != b"b" * PAGE
    assert missed
