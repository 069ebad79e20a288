"""Pools whose members hold wrong bytes give right data or clear errors only."""

import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial

import pytest

from blockdev.errors import DeviceError
from blockdev.simulation.world import SimulatedWorld
from storage.checkpoint.metadata_writer import PIECE_BYTES_MAX
from storage.format import checkpoint_root, codec, commit, pages, superblock
from storage.pool import Pool
from storage.verify.check import check_pool
from tests.crash.harness import Shape, live, members, opened
from tests.crash.model import BLOCK
from tests.fuzz.bounded import bounded_memory, value_or_clear_error
from tests.fuzz.images import (
    ONE,
    TWO,
    Past,
    Tally,
    any_damage,
    cut_world,
    past,
    present,
    read_every_block,
    replaced,
    stopped_world,
)
from tests.fuzz.mutate import mutated

IMAGES, IMAGES_LONG = 150, 5_000
SEEDS = (1, 2)


async def _check(world: SimulatedWorld, shape: Shape) -> None:
    await check_pool(members(world, shape))


def _look(world: SimulatedWorld, shape: Shape, known: Past, tally: Tally, zeroes: bool) -> None:
    """Check, open and read one damaged image."""
    checked = world.reboot()
    with suppress(DeviceError):
        live(checked, partial(_check, checked, shape))

    again = world.reboot()

    async def body() -> None:
        async with opened(again, shape) as pool:
            await read_every_block(pool, known, tally, zeroes=zeroes)
            again.cut_power()

    try:
        live(again, body)
    except DeviceError as error:
        tally.unopened += 1
        tally.messages.add(str(error).split(":")[0])


def damage_many(shape: Shape, images: int, seed: int, *, stopped: bool) -> Tally:
    make = stopped_world if stopped else cut_world
    whole, history = make(shape, seed)
    known = present(history) if stopped else past(history)
    rng = random.Random(f"images {seed} {stopped}")
    tally = Tally()
    for _ in range(images):
        world = whole.reboot()
        any_damage(rng, world.disks[rng.randrange(len(world.disks))])
        _look(world, shape, known, tally, zeroes=not stopped)
    return tally


@pytest.mark.parametrize("stopped", [True, False], ids=["stopped", "cut"])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_damaged_only_member_gives_right_data_or_clear_errors(seed: int, stopped: bool) -> None:
    """Goal: with any place turned to garbage, zeroes or bytes of another place, no read is wrong.

    Method: damage one place of an image, check it, open it, read every block. After a clean stop a
    block must read as it was then; after a power cut, as it was at some time.
    """
    tally = damage_many(ONE, IMAGES, seed, stopped=stopped)
    assert tally.right > 1000
    assert tally.refused + tally.unopened > 0


@pytest.mark.parametrize("seed", SEEDS)
def test_damage_to_one_of_two_copies_changes_nothing(seed: int) -> None:
    """Goal: with a second copy every image opens, and reads as before the damage."""
    tally = damage_many(TWO, IMAGES, seed, stopped=True)
    assert tally.right > 1000
    assert tally.refused == tally.unopened == 0


@pytest.mark.long
@pytest.mark.parametrize("stopped", [True, False], ids=["stopped", "cut"])
@pytest.mark.parametrize("seed", range(100, 106))
def test_damaged_images_long(seed: int, stopped: bool) -> None:
    """Goal: as above, on more images."""
    damage_many(ONE, IMAGES_LONG, seed, stopped=stopped)
    if stopped:
        tally = damage_many(TWO, IMAGES_LONG, seed, stopped=True)
        assert tally.refused == tally.unopened == 0


# Damage with right checksums

METADATA = (
    checkpoint_root.ROOT_BYTES_MAX,
    PIECE_BYTES_MAX,
    pages.CHUNK_BYTES,
    pages.PAGE_BLOB_BYTES_MAX,
)


class Liar:
    """Changes one input of the parsers, number `at`, after its checksum was compared."""

    def __init__(self, rng: random.Random, at: int):
        self._rng = rng
        self._left = at
        self._seen: list[bytes] = []

    def expanded(self, honest: Callable[..., bytes], *arguments: object) -> bytes:
        data = honest(*arguments)
        if arguments[2] not in METADATA:
            return data
        return self._changed(data)

    def table(self, honest: Callable[[bytes], object], data: bytes) -> object:
        return honest(self._changed(bytes(data)))

    def superblock(self, honest: Callable[[bytes], object], data: bytes) -> object:
        body = bytes(data)
        if body[:8] != superblock.MAGIC:
            return honest(body)
        changed = bytearray(self._changed(body).ljust(len(body), b"\0")[: len(body)])
        changed[:8] = superblock.MAGIC
        changed[8:16] = codec.digest_of(memoryview(changed)[16:]).to_bytes(8, "little")
        return honest(bytes(changed))

    def _changed(self, data: bytes) -> bytes:
        self._left -= 1
        self._seen.append(data)
        if self._left:
            return data
        return mutated(self._rng, [data, *self._seen[-3:]])


async def _exercise(world: SimulatedWorld, shape: Shape) -> None:
    """Open, read, write, snapshot, delete, checkpoint and stop; clear errors may end it early."""
    async with opened(world, shape) as pool:
        await read_every_block(pool, _Anything(), Tally(), zeroes=True)
        for number, volume in enumerate(pool.management.volumes()):
            with suppress(DeviceError):
                await pool.management.create_snapshot(volume.name, f"late{number}")
                await _write(pool, volume.name)
        for snap in pool.management.snapshots()[::2]:
            with suppress(DeviceError):
                await pool.management.delete_snapshot(snap.volume, snap.name)
        for _ in range(3):
            await pool.checkpoint()


async def _write(pool: Pool, name: str) -> None:
    device = pool.open_export(name)
    try:
        await device.write(0, bytes(range(256)) * 32)
        await device.trim(0, min(device.size_bytes, 5 * BLOCK))
    finally:
        await device.close()


class _Anything(dict[str, dict[int, set[bytes]]]):
    """Known contents that allow any bytes in any block, because the map itself is wrong."""

    def get(self, key: str, default: object = None) -> "_AnyBlock":
        return _AnyBlock()


class _AnyBlock(dict[int, set[bytes]]):
    def get(self, key: int, default: object = None) -> "_AnyBlock":  # type: ignore[override]
        return self

    def __contains__(self, key: object) -> bool:
        return True


def lie_many(shape: Shape, images: int, seed: int) -> int:
    """Return how many images worked all the same."""
    worlds: Sequence[SimulatedWorld] = [
        stopped_world(shape, seed, 24)[0], cut_world(shape, seed, 24)[0]
    ]  # fmt: skip
    rng = random.Random(f"lies {seed}")
    worked = 0
    for number in range(images):
        world = worlds[number % 2].reboot()
        liar = Liar(rng, rng.randint(1, rng.choice([12, 60])))
        with ExitStack() as patches:
            for owner, name, lie in (
                (codec, "expand", liar.expanded), (commit, "decode_table", liar.table),
                (superblock, "decode", liar.superblock),
            ):  # fmt: skip
                patches.enter_context(replaced(owner, name, partial(lie, getattr(owner, name))))
            work = partial(live, world, partial(_exercise, world, shape))
            worked += value_or_clear_error(work, f"opening, {seed=} {number=}")
            again = world.reboot()
            value_or_clear_error(
                partial(live, again, partial(_check, again, shape)), f"check, {seed=} {number=}"
            )
    return worked


@pytest.mark.parametrize("seed", SEEDS)
def test_metadata_that_lies_behind_right_checksums_gives_clear_errors(seed: int) -> None:
    """Goal: no bytes of a member, not even with right checksums, crash or hang the engine or fill
    the memory.

    Method: one superblock, record table, map page, directory, table or root is changed behind its
    checksum while the pool is opened, read, written, checkpointed and checked.
    """
    with bounded_memory():
        assert lie_many(ONE, IMAGES // 3, seed) > 0


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 106))
def test_metadata_that_lies_behind_right_checksums_long(seed: int) -> None:
    """Goal: as above."""
    lie_many(ONE, IMAGES_LONG, seed)
