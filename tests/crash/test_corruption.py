"""Damaged members: reads give the right bytes or an error, and a good copy repairs the damage."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest

from blockdev.errors import ChecksumError, DeviceError
from blockdev.simulation.disk import SimulatedDisk
from blockdev.simulation.world import SimulatedWorld
from storage.errors import DamagedError
from storage.format.commit import HEADER_BYTES, CommitHeader, decode_header
from storage.format.superblock import DATA_START_BYTES
from storage.members import segment_io
from storage.pool import Pool
from tests.crash.harness import (
    MIB,
    ONE,
    SEGMENT_BYTES,
    TWO_OF_THREE,
    Shape,
    contents,
    live,
    new_world,
    opened,
)
from tests.crash.model import BLOCK, ZERO_BLOCK, History
from tests.crash.workload import Workload, sessions

BROKEN = 0
"""The member that is damaged. Its copies are read first, so each read meets the damage."""
SEEDS = range(1, 6)


def stopped_world(shape: Shape, seed: int) -> tuple[SimulatedWorld, History]:
    """Return a pool with data, cleanly stopped."""
    world = new_world(shape, seed)
    history = History()
    live(world, sessions(world, shape, Workload(history, seed), (30, 10)))
    return world.reboot(), history


def damage(disk: SimulatedDisk, noise: random.Random, share: float) -> None:
    """Put garbage over a share of the places ever written behind the superblocks."""
    used = _used_bytes(disk)
    wanted = int(used * share)
    while wanted > 0:
        length = noise.choice([1, 512, 4096, 20_000])
        disk.corrupt(DATA_START_BYTES + noise.randrange(used), length)
        wanted -= length


def _used_bytes(disk: SimulatedDisk) -> int:
    last = DATA_START_BYTES
    at = DATA_START_BYTES
    for extent in disk._durable.extents(at, disk.size_bytes - at - MIB):
        at += extent.length_bytes
        last = last if extent.hole else at
    return last - DATA_START_BYTES


def counters(pool: Pool) -> tuple[int, int]:
    infos = pool.info().members
    return sum(m.checksum_errors for m in infos), sum(m.repaired for m in infos)


def heals(seed: int) -> None:
    """Damage a tenth of one member of three; compare every read with the history."""
    world, history = stopped_world(TWO_OF_THREE, seed)
    damage(world.disks[BROKEN], random.Random(seed), 0.1)

    async def body() -> None:
        async with opened(world, TWO_OF_THREE) as pool:
            found = await contents(pool)
            assert history.explain(found) is not None, history.differences(found)
            errors, repaired = counters(pool)
            assert errors == repaired > 0
            assert pool.info().health == "ok"
            assert history.explain(await contents(pool)) is not None
            assert counters(pool) == (errors, repaired), "damage was not repaired"

    live(world, body)


@pytest.mark.parametrize("seed", SEEDS)
def test_damage_of_one_copy_is_read_around_counted_and_repaired(seed: int) -> None:
    """Goal: with two copies, garbage on one member changes no read, is counted and repaired.

    Method: read everything twice; the second time finds no new damage.
    """
    heals(seed)


def test_an_uncompared_checksum_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: this suite fails for a reader that believes the first copy without its checksum."""
    monkeypatch.setattr(segment_io, "CHECK_MASK", 0)
    with pytest.raises((AssertionError, DeviceError)):
        heals(1)


@dataclass
class Tally:
    """Counts the results of reads of a damaged pool."""

    right: int = 0
    refused: int = 0


@pytest.mark.parametrize("share", [0.002, 0.1, 4.0])
def test_damage_of_the_only_copy_never_reads_wrong(share: float) -> None:
    """Goal: each block reads right or gives an error; opening works or names the damage."""
    tally = Tally()
    for seed in range(1, 6):
        world, history = stopped_world(ONE, seed)
        damage(world.disks[0], random.Random(seed), share)
        try:
            live(world, partial(_read_each_block, world, history, tally))
        except DeviceError as error:
            assert "damage" in str(error) or "checksum" in str(error)  # noqa: PT017
    assert (tally.right > 500) is (share < 1)
    assert tally.refused > 0 or share > 1


async def _read_each_block(world: SimulatedWorld, history: History, tally: Tally) -> None:
    async with opened(world, ONE) as pool:
        for name, model in history.tip.items():
            images = {name: model.head}
            images |= {f"{name}@{snap}": image for snap, image in model.snapshots.items()}
            for export, image in images.items():
                device = pool.open_export(export)
                for block in range(image.size_bytes // BLOCK):
                    try:
                        data = bytes(await device.read(block * BLOCK, BLOCK))
                    except (ChecksumError, DamagedError, DeviceError):
                        tally.refused += 1
                    else:
                        assert data == image.blocks.get(block, ZERO_BLOCK), f"{export}[{block}]"
                        tally.right += 1
                await device.close()
        world.cut_power()


# Commits


def commits_on(disk: SimulatedDisk) -> list[tuple[int, CommitHeader]]:
    """Return (device offset, header) of every commit, oldest first."""
    found = []
    for at in range(DATA_START_BYTES, disk.size_bytes - SEGMENT_BYTES, 4096):
        header = decode_header(disk.durable(at, HEADER_BYTES))
        if header is not None:
            found.append((at, header))
    return sorted(found, key=lambda pair: pair[1].number)


def crashed_world(shape: Shape, seed: int) -> tuple[SimulatedWorld, History]:
    """Return a pool that lost power after several flushed commits, none of them in a checkpoint."""
    world = new_world(shape, seed)
    history = History()
    workload = Workload(history, seed)

    async def body() -> None:
        async with opened(world, shape) as pool:
            await workload.run(pool, 0)
            for _ in range(12):
                await workload._write_blocks()
                workload._returned = len(history.steps)
                await workload._flush()
            world.cut_power()

    assert live(world, body)
    return world.reboot(), history


Where = Callable[[int, CommitHeader], tuple[int, int]]

PARTS: dict[str, Where] = {
    "header": lambda at, header: (at + 40, 8),
    "table": lambda at, header: (at + HEADER_BYTES, 16),
    "whole": lambda at, header: (at, header.total_bytes),
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_damaged_durable_commit_of_the_only_copy_is_refused(seed: int, part: str) -> None:
    """Goal: damage at or before the durable point is never taken for a torn tail (R3).

    Method: damage each commit but the last two; the pool must refuse to open every time.
    """
    world, _ = crashed_world(ONE, seed)
    commits = commits_on(world.disks[0])
    assert len(commits) > 10
    for at, header in commits[:-2]:
        again = world.reboot()
        again.disks[0].corrupt(*PARTS[part](at, header))
        with pytest.raises(DamagedError, match="damaged"):
            live(again, partial(_just_open, again, ONE))


async def _just_open(world: SimulatedWorld, shape: Shape) -> None:
    async with opened(world, shape):
        pass


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_damaged_durable_commit_is_read_from_the_other_copy(seed: int, part: str) -> None:
    """Goal: with two copies the log survives damage to any commit of one of them (R3)."""
    world, history = crashed_world(TWO_OF_THREE, seed)
    for disk in range(3):
        again = world.reboot()
        for at, header in commits_on(again.disks[disk]):
            again.disks[disk].corrupt(*PARTS[part](at, header))

        async def body(again: SimulatedWorld = again) -> None:
            async with opened(again, TWO_OF_THREE) as pool:
                found = await contents(pool)
                assert history.explain(found) is not None, history.differences(found)

        live(again, body)
