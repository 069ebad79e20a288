"""Scrubs beside other work: no false findings, stops, rates, and members that fail meanwhile."""

import random
from dataclasses import replace
from functools import partial

import pytest
import trio
from typing_extensions import Buffer

from admin.api.wire import decode, encode
from blockdev.errors import DeviceError
from storage.pool import Pool
from storage.throttle import Limits, Throttle
from storage.verify.scrub_pass import Finding, Outcome, ScrubPass, Stage
from tests.crash.harness import (
    MIB,
    ONE,
    SETTINGS,
    THREE,
    TWO_OF_THREE,
    Shape,
    contents,
    live,
    new_world,
    opened,
)
from tests.crash.model import BLOCK, History
from tests.crash.scrubs import first_extent, holds_all, in_pool, kinds, scrub
from tests.crash.sweep import find_no_damage
from tests.crash.test_corruption import BROKEN, damage, stopped_world
from tests.crash.workload import CLEANING, Workload

SEEDS = range(1, 6)

# Beside other work


@pytest.mark.parametrize("shape", [ONE, TWO_OF_THREE], ids=str)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_scrub_of_an_undamaged_pool_in_use_finds_nothing(shape: Shape, seed: int) -> None:
    """Goal: a scrub that runs all the time beside writes, trims, cleaning, checkpoints and
    short-lived snapshots finds nothing and stops none of them.
    """
    world = new_world(shape, seed)
    workload = Workload(History(), seed, CLEANING)
    settings = replace(SETTINGS, checkpoint_interval_s=3.0)
    passes: list[ScrubPass] = []
    coin = random.Random(seed)

    async def again_and_again(pool: Pool) -> None:
        while True:
            passes.append(await scrub(pool))
            passes.append(await scrub(pool, coin.choice([0, 4 * MIB, 20 * MIB])))
            await trio.sleep(0.1)

    async def body() -> None:
        for session in range(2):
            async with opened(world, shape, settings, session) as pool:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(again_and_again, pool)
                    await workload.run(pool, 40)
                    nursery.cancel_scope.cancel()
                passes.append(await scrub(pool))

    live(world, body)
    assert len(passes) > 2
    assert [one for one in passes if one.found] == []
    live(again := world.reboot(), partial(find_no_damage, again, shape))


def test_a_pass_resumes_after_every_stop() -> None:
    """Goal: a pass in many parts, each in a new opening, completes and finds the same damage as a
    pass in one piece.
    """
    whole, _ = stopped_world(ONE, 7)
    parts, _ = stopped_world(ONE, 7)
    for world in (whole, parts):
        damage(world.disks[0], random.Random(7), 0.05)
    found: list[list[Finding]] = []

    async def at_once(pool: Pool) -> None:
        found.append((await scrub(pool)).findings)

    in_pool(whole, ONE, at_once)
    kept = None

    async def a_part(pool: Pool, wait_s: float) -> None:
        nonlocal kept
        going_on = decode(ScrubPass, kept) if kept else pool.scrubber.new_pass()
        with trio.move_on_after(wait_s):
            await pool.scrubber.run(going_on, Throttle(Limits(bytes_per_s=MIB, burst_s=0.0)))
        kept = encode(going_on)

    for number in range(40):
        in_pool(parts, ONE, partial(a_part, wait_s=0.3 + 0.2 * number))
        parts = parts.reboot()
        if decode(ScrubPass, kept).stage is Stage.DONE:
            break
    assert number > 2
    assert {f.where for f in decode(ScrubPass, kept).findings} == {f.where for f in found[0]}


@pytest.mark.parametrize("rate", [MIB, 3 * MIB])
def test_the_rate_is_kept(rate: int) -> None:
    """Goal: at no moment the scrub has read more than the rate allows plus a piece of each copy,
    and the whole pass takes as long as its bytes take at that rate."""
    world, _ = stopped_world(THREE, 5)

    async def body(pool: Pool) -> None:
        done = pool.scrubber.new_pass()
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                pool.scrubber.run, done, Throttle(Limits(bytes_per_s=rate, burst_s=0.0))
            )
            while done.stage is not Stage.DONE:
                await trio.sleep(0.05)
                elapsed = trio.current_time() - began
                assert done.read_bytes <= rate * elapsed + len(THREE.hosts) * MIB
        assert done.seconds >= done.read_bytes / rate - 3 * MIB / rate
        assert done.seconds <= done.read_bytes / rate + 1
        assert pool.scrubber.total_bytes(done) == done.done_bytes

    in_pool(world, THREE, body)


# Members that fail


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("at", [0, 3, 20])
def test_a_member_that_fails_during_a_scrub_is_one_finding(seed: int, at: int) -> None:
    """Goal: a member that stops answering is one finding, not one for each place; the scrub reads
    the other members to the end, and reports nothing as lost."""
    world, _ = stopped_world(TWO_OF_THREE, seed)
    disk = world.disks[BROKEN]

    async def body(pool: Pool) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dies_after_reads, at)
            done = await scrub(pool, rate=MIB)
            nursery.cancel_scope.cancel()
        assert kinds(done) <= {("member", Outcome.UNREPAIRED)}
        # When a checkpoint meets the dead member first, the member is stale and is not read.
        known = at == 0 and done.skipped == ["disk0: stale"]
        assert [each.members for each in done.findings] == ([] if known else [["disk0"]])
        assert any(why.startswith("disk0:") for why in done.skipped)
        disk.dead = False
        assert (await scrub(pool)).found == 0

    async def dies_after_reads(reads: int) -> None:
        if reads:
            await trio.sleep(reads * 0.1)
        disk.dead = True

    in_pool(world, TWO_OF_THREE, body)


def test_unreadable_places_are_rewritten_from_the_other_copy() -> None:
    """Goal: a bad sector of one copy is rewritten from the other copy, and counts as repaired when
    the device can read it again."""
    world, history = stopped_world(TWO_OF_THREE, 2)

    async def body(pool: Pool) -> None:
        await contents(pool)
        extent = first_extent(pool)
        member, base = pool.table[extent.segment].places[0]
        bad = range(base + extent.offset, base + extent.offset + extent.stored_bytes)
        disk = member.device
        read, write = disk.read, disk.write
        healed = False

        async def failing_read(offset: int, length: int) -> bytes:
            if not healed and offset < bad.stop and bad.start < offset + length:
                raise DeviceError("medium error")
            return bytes(await read(offset, length))

        async def healing_write(offset: int, data: Buffer, *, fua: bool = False) -> None:
            nonlocal healed
            healed |= offset <= bad.start < offset + len(memoryview(data))
            await write(offset, data, fua=fua)

        disk.read = failing_read  # type: ignore[method-assign]
        disk.write = healing_write  # type: ignore[method-assign]
        done = await scrub(pool)
        assert {one.problem for one in done.findings} == {"cannot be read: medium error"}
        assert {finding.outcome for finding in done.findings} == {Outcome.REPAIRED}
        assert healed
        assert (await scrub(pool)).found == 0
        await holds_all(pool, history)

    in_pool(world, TWO_OF_THREE, body)


def test_damage_at_old_places_of_moved_blocks_is_reported() -> None:
    """Goal: descendants read a moved block from its old place until that is freed: the scrub
    reports damage there until then, and nothing is lost afterwards."""
    world = new_world(ONE, 1)
    noise = random.Random(1).randbytes(200 * BLOCK)

    async def body(pool: Pool) -> None:
        await pool.management.create_volume("root", 4 * MIB)
        root = pool.open_export("root")
        await root.write(0, noise)
        await root.flush()
        await pool.management.create_snapshot("root", "s")
        await pool.management.clone("root", "s", "c")
        clone = pool.open_export("c")
        await clone.write(300 * BLOCK, noise[:BLOCK])
        await clone.flush()
        await clone.read(0, BLOCK)
        await root.read(0, BLOCK)
        place = first_extent(pool)
        while place.segment not in [victim.number for victim in pool.cleaner.victims()]:
            await root.write(MIB, noise)
            await root.flush()
            await pool.checkpoint()
        assert await pool.cleaner.round()
        segment = pool.table[place.segment]
        for member, base in segment.places:
            world.disks[member.index].corrupt(base + place.offset, 1)
        done = await scrub(pool)
        assert [one.export for found in done.findings for one in found.holds] == ["root", "c"]
        assert done.lost == 1
        with pytest.raises(DeviceError):
            await clone.read(0, BLOCK)
        snapshot = pool.open_export("root@s")
        assert bytes(await snapshot.read(0, BLOCK)) == noise[:BLOCK]
        for _ in range(2):
            await pool.checkpoint()
        assert (await scrub(pool)).found == 0
        for device in (root, clone, snapshot):
            assert bytes(await device.read(0, BLOCK)) == noise[:BLOCK]
            await device.close()

    in_pool(world, ONE, body)
