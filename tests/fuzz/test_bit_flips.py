"""Flipped bits of live data and metadata are found when read, and repaired from another copy or
reported, but never returned.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import pytest

from blockdev.errors import ChecksumError
from blockdev.simulation.world import SimulatedWorld
from storage.errors import DamagedError
from storage.info import Damage
from storage.pool import Pool
from storage.verify.check import check_pool
from tests.crash.harness import Shape, live, members, opened
from tests.crash.model import History
from tests.fuzz.images import ONE, TWO, Tally, overwrite, present, read_every_block, stopped_world
from tests.fuzz.live import Piece, live_pieces
from tests.sim.look import contents

POSITIONS, POSITIONS_LONG = 2_000, 12_000
FLIPS = 40
"""Flips in one image, each in a piece of its own, so that each is a finding of its own."""
SEEDS = (11, 12, 13)


@dataclass(frozen=True)
class Flip:
    """One bit of one copy of a piece."""

    piece: Piece
    disk: int
    at: int
    bit: int


def flip_some(
    world: SimulatedWorld, pieces: Sequence[Piece], rng: random.Random, count: int
) -> list[Flip]:
    """Flip bits in `count` pieces, half of them metadata if there are so many."""
    metadata = [piece for piece in pieces if piece.kind != "data"]
    data = [piece for piece in pieces if piece.kind == "data"]
    some = rng.sample(metadata, min(len(metadata), count // 2))
    some += rng.sample(data, min(len(data), count - len(some)))
    flips = []
    for piece in some:
        disk, offset = rng.choice(piece.places)
        flip = Flip(piece, disk, offset + rng.randrange(piece.stored_bytes), rng.randrange(8))
        turn(world, flip)
        flips.append(flip)
    return flips


def turn(world: SimulatedWorld, flip: Flip) -> None:
    disk = world.disks[flip.disk]
    byte = disk._durable.read(flip.at, 1)[0]
    overwrite(disk, flip.at, bytes([byte ^ 1 << flip.bit]))


def damage_found(world: SimulatedWorld, shape: Shape) -> list[Damage]:
    """Return the damage that the offline check finds."""
    found: list[Damage] = []
    again = world.reboot()

    async def body() -> None:
        found.extend((await check_pool(members(again, shape))).damage)

    live(again, body)
    return found


# Two copies


def heal(whole: SimulatedWorld, history: History, pieces: list[Piece], rng: random.Random) -> int:
    """Flip bits on one image of a pool with two copies; return how many were read and repaired."""
    world = whole.reboot()
    before = [disk._durable.copy() for disk in world.disks]
    flips = flip_some(world, pieces, rng, FLIPS)
    reported = damage_found(world, TWO)
    assert len(reported) == len(flips), [flip for flip in flips if flip.piece.kind != "data"]
    assert all(each.repairable for each in reported)
    world = world.reboot()
    counted = [0, 0]

    async def body() -> None:
        async with opened(world, TWO) as pool:
            found = await contents(pool)
            assert found == history.tip, history.differences(found)
            infos = pool.info().members
            counted[:] = sum(m.checksum_errors for m in infos), sum(m.repaired for m in infos)
            world.cut_power()

    live(world, body)
    healed = [
        flip for flip in flips
        if world.disks[flip.disk]._visible.read(flip.at, 1) == before[flip.disk].read(flip.at, 1)
    ]  # fmt: skip
    # Parts of one request may read the same extent at the same time.
    assert counted[0] == counted[1], "what is found is repaired"
    assert len(healed) <= counted[0] <= len(healed) + 2, "each is counted, once"
    first = [flip for flip in flips if flip.disk == flip.piece.places[0][0]]
    # Pages and data of an ancestor are not read where pages of every descendant replace them.
    certain = [flip for flip in first if flip.piece.kind not in ("page", "data")]
    assert [flip for flip in certain if flip not in healed] == [], "what is read is repaired"
    assert sum(flip in healed for flip in first) >= len(first) * 0.8
    return len(healed)


def heal_many(positions: int, seeds: Sequence[int]) -> None:
    done = read = 0
    for seed in seeds:
        whole, history = stopped_world(TWO, seed, 60)
        pieces = live_pieces(whole, TWO)
        rng = random.Random(f"flips {seed}")
        enough = done + positions // len(seeds)
        while done < enough:
            read += heal(whole, history, pieces, rng)
            done += FLIPS
    # Flips are equally frequent in both copies, and reads take the first copy.
    assert read > done // 3


def test_with_two_copies_each_flipped_bit_is_found_when_read_and_repaired() -> None:
    """Goal: no read is wrong; every read of a flipped piece repairs it, and is counted.

    Method: flip bits in live pieces, root to data, of either copy; the check must name each; read
    everything; compare the disks with their content before the flips.
    """
    heal_many(POSITIONS, SEEDS)


@pytest.mark.long
def test_with_two_copies_each_flipped_bit_is_found_when_read_and_repaired_long() -> None:
    """Goal: as above, at many more positions."""
    heal_many(POSITIONS_LONG, range(20, 32))


# One copy


async def _read_blocks(
    world: SimulatedWorld, history: History, tally: Tally, errors: list[int]
) -> None:
    async with opened(world, ONE) as pool:
        await read_every_block(pool, present(history), tally, zeroes=False)
        errors.append(_errors(pool))
        world.cut_power()


def _errors(pool: Pool) -> int:
    return sum(m.checksum_errors for m in pool.info().members)


def report_data(
    whole: SimulatedWorld, history: History, pieces: list[Piece], rng: random.Random
) -> int:
    """Flip bits in data only: the flipped blocks give errors, and all other blocks read right."""
    data = [piece for piece in pieces if piece.kind == "data"]
    world = whole.reboot()
    flips = flip_some(world, data, rng, min(FLIPS, len(data)))
    reported = damage_found(world, ONE)
    assert len(reported) == len(flips)
    assert not any(each.repairable for each in reported)
    tally, errors = Tally(), [0]
    world = world.reboot()
    live(world, partial(_read_blocks, world, history, tally, errors))
    assert tally.refused >= 1
    assert tally.right > 100
    assert errors[-1] >= len(flips) * 0.5, "flipped bits were read over"
    return len(flips)


def report_metadata(
    whole: SimulatedWorld, history: History, pieces: list[Piece], rng: random.Random
) -> int:
    """Flip one bit of metadata: the pool does not open, or some blocks cannot be read."""
    metadata = [piece for piece in pieces if piece.kind != "data"]
    world = whole.reboot()
    [flip] = flip_some(world, metadata, rng, 2)[:1]
    said = ""
    try:
        said = str(damage_found(world, ONE))
    except DamagedError as error:
        said = str(error)
    assert "damaged" in said, f"a check overlooks {flip}"
    tally, errors = Tally(), [0]
    world = world.reboot()
    try:
        live(world, partial(_read_blocks, world, history, tally, errors))
    except (DamagedError, ChecksumError) as error:
        said = str(error)
    assert "damaged" in said
    return 1


def report_many(positions: int, seeds: Sequence[int]) -> None:
    done = 0
    for seed in seeds:
        whole, history = stopped_world(ONE, seed, 60)
        pieces = live_pieces(whole, ONE)
        rng = random.Random(f"flips {seed}")
        enough = done + positions // len(seeds)
        while done < enough:
            done += report_data(whole, history, pieces, rng)
            done += sum(report_metadata(whole, history, pieces, rng) for _ in range(4))


def test_with_one_copy_each_flipped_bit_is_reported_and_never_returned() -> None:
    """Goal: the block gives an error, all others read right, and the check names the place."""
    report_many(POSITIONS // 2, SEEDS)


@pytest.mark.long
def test_with_one_copy_each_flipped_bit_is_reported_and_never_returned_long() -> None:
    """Goal: as above, at many more positions."""
    report_many(POSITIONS_LONG, range(20, 32))


def test_a_flipped_bit_of_a_superblock_costs_nothing() -> None:
    """Goal: one of the two copies of the newest superblock on a member is enough."""
    whole, history = stopped_world(ONE, 14)
    rng = random.Random(1)
    for _ in range(60):
        world = whole.reboot()
        disk = world.disks[0]
        places = [place for place in range(0, 8 * 16384, 512) if any(disk.durable(place, 512))]
        at = rng.choice(places) + rng.randrange(512)
        overwrite(disk, at, bytes([disk._durable.read(at, 1)[0] ^ 1 << rng.randrange(8)]))
        tally, errors = Tally(), [0]
        live(world, partial(_read_blocks, world, history, tally, errors))
        assert tally.refused == 0
