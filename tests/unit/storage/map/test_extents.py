"""Runs of data and zeroes of a volume: exact, consistent, and cheap however large it is."""

import itertools
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
import trio

from blockdev.device import BlockDevice, Extent
from blockdev.errors import DeviceError
from blockdev.simulation.disk import SimulatedDisk
from blockdev.simulation.world import SimulatedWorld
from storage.map import extents as extents_of_map
from storage.map.blockmap import BlockMap
from storage.map.layer import Layer
from storage.map.page import Page
from storage.pool import MemberDevice, Pool, PoolSettings, create_pool
from storage.volumes.volume import Volume
from tests.unit.storage.pools import MIB, as_members, new_members, opened, write

BLOCK = 4096
PAGE = 1024 * BLOCK
PIB = 1 << 50

Run = tuple[int, bool]


def runs(extents: list[Extent]) -> list[Run]:
    assert all(extent.hole == extent.zero for extent in extents)
    assert all(one.zero != two.zero for one, two in itertools.pairwise(extents))
    return [(extent.length_bytes, extent.zero) for extent in extents]


def expected_runs(data: set[int], offset: int, length: int) -> list[Run]:
    """The runs of a volume of which only the blocks `data` were written."""
    found: list[Run] = []
    at, end = offset, offset + length
    blocks = sorted(block for block in data if block * BLOCK < end and at < (block + 1) * BLOCK)
    for block in blocks:
        start, stop = max(block * BLOCK, offset), min((block + 1) * BLOCK, end)
        if start > at:
            found.append((start - at, True))
        if found and not found[-1][1]:
            found[-1] = (found[-1][0] + stop - start, False)
        else:
            found.append((stop - start, False))
        at = stop
    if at < end:
        found.append((end - at, True))
    return found


async def all_extents(device: BlockDevice, offset: int, length: int) -> list[Run]:
    """Ask until the range is covered; runs that were cut are joined."""
    found: list[Run] = []
    while length:
        for size, zero in runs(await device.extents(offset, length)):
            if found and found[-1][1] == zero:
                size += found.pop()[0]
                found.append((size, zero))
            else:
                found.append((size, zero))
        done = sum(size for size, _ in found) - (done_before := offset)
        offset, length = offset + done, length - done
        assert done_before < offset
    return found


class Work:
    """Counts pages that are looked at and pages that are read from disk."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.looks = self.loads = 0
        find, load = BlockMap.find_page, BlockMap._load

        def count_look(blockmap: BlockMap, layer: Layer, number: int) -> Page | None:
            self.looks += 1
            return find(blockmap, layer, number)

        async def count_load(blockmap: BlockMap, owner: Layer, number: int) -> Page | None:
            self.loads += 1
            return await load(blockmap, owner, number)

        monkeypatch.setattr(BlockMap, "find_page", count_look)
        monkeypatch.setattr(BlockMap, "_load", count_load)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    return Work(monkeypatch)


@asynccontextmanager
async def volume(
    members: list[MemberDevice], size_bytes: int = 64 * MIB, settings: PoolSettings | None = None
) -> AsyncIterator[tuple[Pool, Volume]]:
    """Open the volume `v`, created if there is none."""
    async with opened(members, settings) as pool:
        if not pool.management.volumes():
            await pool.management.create_volume("v", size_bytes)
        device = pool.open_export("v")
        yield pool, device
        await device.close()


# A petabyte with a few blocks

LONE = [0, 1, 5, 1023, 1024, 10**6, 10**9, 10**9 + 3, PIB // BLOCK - 1]


async def check_petabyte(device: Volume, work: Work) -> None:
    work.looks = work.loads = 0
    found = runs(await device.extents(0, PIB))
    assert found == expected_runs({*LONE}, 0, PIB)
    assert work.looks <= 20
    assert work.loads <= len(LONE)


async def test_a_sparse_petabyte_is_described_by_its_few_pages(work: Work) -> None:
    """Goal: the cost follows the mapped pages, not the size, whether the blocks are in a buffer,
    pending or on disk."""
    members = await new_members()
    async with volume(members, PIB) as (pool, device):
        assert runs(await device.extents(0, PIB)) == [(PIB, True)]
        for block in LONE:
            await device.write(block * BLOCK, b"x")
        await check_petabyte(device, work)  # in a buffer
        await device.flush()
        await check_petabyte(device, work)  # pending
        await pool.checkpoint()
        await check_petabyte(device, work)  # on disk
        assert runs(await device.extents(3 * BLOCK + 1, PIB // 2)) == expected_runs(
            {*LONE}, 3 * BLOCK + 1, PIB // 2
        )
    async with volume(members) as (_, device):
        await check_petabyte(device, work)  # on disk, and not in memory
        assert work.loads
        await check_petabyte(device, work)
        assert not work.loads


async def test_a_wide_trim_of_a_petabyte_looks_at_mapped_pages_only(work: Work) -> None:
    members = await new_members()
    async with volume(members, PIB) as (_, device):
        for block in LONE:
            await device.write(block * BLOCK, b"x")
        await device.flush()
        await device.trim(BLOCK, PIB - 2 * BLOCK)
        expected = expected_runs({0, LONE[-1]}, 0, PIB)
        assert runs(await device.extents(0, PIB)) == expected
        await device.flush()
        assert runs(await device.extents(0, PIB)) == expected
        assert work.looks < 100


# Bounds


async def test_a_call_looks_at_a_bounded_number_of_pages(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extents_of_map, "PAGES_MAX", 10)
    monkeypatch.setattr(extents_of_map, "COLD_PAGES_MAX", 4)
    monkeypatch.setattr(extents_of_map, "PIECE_PAGES", 3)
    members = await new_members()
    data = {page * 1024 + 7 for page in range(0, 100, 3)}
    size = 101 * PAGE
    async with volume(members, size) as (_, device):
        for block in data:
            await device.write(block * BLOCK, b"x")
        assert len(await device.extents(0, size)) == 21  # hole, block, hole, ... of 10 pages
        assert await all_extents(device, 0, size) == expected_runs(data, 0, size)
    async with volume(members) as (_, device):
        work.loads = 0
        found = await device.extents(0, size)
        assert work.loads == 4
        assert len(found) == 9
        assert await all_extents(device, 0, size) == expected_runs(data, 0, size)


async def test_a_call_returns_a_bounded_number_of_extents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extents_of_map, "EXTENTS_MAX", 5)
    data = set(range(0, 100, 2))
    async with volume(await new_members()) as (_, device):
        for block in data:
            await device.write(block * BLOCK, b"x")
        assert len(await device.extents(1, 50 * BLOCK)) == 5
        assert await all_extents(device, 0, MIB) == expected_runs(data, 0, MIB)


# Without suspending


async def test_try_extents_needs_pages_in_memory() -> None:
    members = await new_members()
    async with volume(members) as (_, device):
        await device.write(BLOCK, b"x" * BLOCK)
        extents = [(BLOCK, True), (BLOCK, False), (MIB - 2 * BLOCK, True)]
        assert runs(device.try_extents(0, MIB) or []) == extents
        assert device.try_extents(0, 0) is None
        assert device.try_extents(0, extents_of_map.TRY_BYTES_MAX) is not None
        assert device.try_extents(0, extents_of_map.TRY_BYTES_MAX + 1) is None
    async with volume(members) as (_, device):
        assert device.try_extents(0, MIB) is None
        # No block was ever written there, which is known without reading.
        assert runs(device.try_extents(PAGE, MIB) or []) == [(MIB, True)]
        await device.extents(0, MIB)
        assert runs(device.try_extents(0, MIB) or []) == extents


# Layers


async def test_runs_of_a_clone_include_the_data_of_its_ancestors() -> None:
    """A block that only the origin holds is data in the clone; a block that the clone zeroed is
    zero, whatever the origin holds."""
    async with volume(await new_members()) as (pool, device):
        await device.write(0, b"x" * 8 * BLOCK)
        await pool.management.create_snapshot("v", "s")
        await pool.management.clone("v", "s", "c")
        clone = pool.open_export("c")
        data = [(8 * BLOCK, False), (MIB - 8 * BLOCK, True)]

        async def check(zeroed: list[Run]) -> None:
            for handle, expected in ((device, data), (clone, zeroed)):
                assert runs(await handle.extents(0, MIB)) == expected
                assert runs(handle.try_extents(0, MIB) or []) == expected

        await check(data)
        await clone.write_zeroes(2 * BLOCK, 3 * BLOCK)
        await clone.write(10 * BLOCK, b"y" * BLOCK)
        zeroed = [
            (2 * BLOCK, False),
            (3 * BLOCK, True),
            (3 * BLOCK, False),
            (2 * BLOCK, True),
            (BLOCK, False),
            (MIB - 11 * BLOCK, True),
        ]
        await check(zeroed)
        await clone.flush()
        await check(zeroed)
        await pool.checkpoint()
        await check(zeroed)
        await clone.close()


def positions(seed: int) -> Iterator[tuple[random.Random, int, int]]:
    rng = random.Random(seed)
    for _ in range(150):
        first = rng.choice((0, 1000, 5000)) + rng.randrange(100)
        yield rng, first, rng.choice((1, 1, 3, 50))


@pytest.mark.parametrize("seed", range(3))
async def test_runs_agree_with_a_model(seed: int) -> None:
    """Goal: runs are exact across overlays, pending changes, pages, snapshots and merges."""
    members = await new_members()
    async with volume(members) as (pool, device):
        data: set[int] = set()
        snapshots: list[str] = []
        for rng, first, count in positions(seed):
            blocks = range(first, first + count)
            match rng.randrange(12):
                case 0:
                    await device.flush()
                case 1:
                    await pool.checkpoint()
                case 2 if len(snapshots) < 3:
                    snapshots.append(f"s{rng.random()}")
                    await pool.management.create_snapshot("v", snapshots[-1])
                case 3 if snapshots:
                    await pool.management.delete_snapshot(
                        "v", snapshots.pop(rng.randrange(len(snapshots)))
                    )
                case 4 | 5 | 6 | 7:
                    await device.write_zeroes(first * BLOCK, count * BLOCK)
                    data.difference_update(blocks)
                case _:
                    await device.write(first * BLOCK, b"x" * count * BLOCK)
                    data.update(blocks)
            offset, length = rng.randrange(6 * PAGE), rng.randrange(1, 6 * PAGE)
            expected = expected_runs(data, offset, length)
            assert runs(await device.extents(offset, length)) == expected
            assert runs(device.try_extents(offset, length) or []) in ([], expected)


# Concurrent writes


@pytest.mark.parametrize("seed", range(6))
async def test_a_block_written_before_a_call_is_never_reported_as_zero(seed: int) -> None:
    """Goal: a block reported as zero was zero at some moment of the call.

    Method: odd blocks are written once and stay, even blocks are written and zeroed; snapshots,
    deletions and checkpoints run meanwhile, and the disk pauses at every step.
    """
    world = SimulatedWorld(seed=seed, checkpoints=True)
    disks: list[BlockDevice] = [SimulatedDisk(world, 64 * MIB)]
    members = as_members(disks)
    await create_pool(members, copies=1, segment_bytes=MIB)
    rng = random.Random(seed)
    settings = PoolSettings(page_cache_bytes=1)  # every page is read again
    async with volume(members, PAGES * PAGE, settings) as (pool, device):
        written: list[int] = []
        with trio.CancelScope() as churning:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(churn, pool, device, written, rng)
                while len(written) < PAGES * 3 // 4:
                    certain = [*written]
                    zero = await zero_runs(device)
                    await trio.lowlevel.checkpoint()  # describing an empty volume does not suspend
                    assert not [b for b in certain if any(low <= b < end for low, end in zero)]
                churning.cancel()


PAGES = 200


async def churn(pool: Pool, device: Volume, written: list[int], rng: random.Random) -> None:
    fresh = [page * 1024 + 1 for page in range(PAGES)]
    rng.shuffle(fresh)
    for turn in itertools.count():
        for block in [fresh.pop() for _ in range(rng.randrange(4)) if fresh]:
            await device.write(block * BLOCK, b"y" * BLOCK)
            written.append(block)
            if rng.random() < 0.5:
                await device.write((block + 1) * BLOCK, b"y" * BLOCK)
            else:
                await device.write_zeroes((block + 1) * BLOCK, 100 * BLOCK)
        match turn % 8:
            case 1:
                await pool.management.create_snapshot("v", f"s{turn}")
            case 3:
                await pool.management.delete_snapshot("v", f"s{turn - 2}")
            case 5:
                await pool.checkpoint()
            case _:
                await device.flush()


async def zero_runs(device: Volume) -> list[tuple[int, int]]:
    """[first, end) blocks."""
    found: list[tuple[int, int]] = []
    offset = 0
    while offset < device.size_bytes:
        for extent in await device.extents(offset, device.size_bytes - offset):
            stop = offset + extent.length_bytes
            if extent.zero:
                found.append((offset // BLOCK, stop // BLOCK))
            offset = stop
    return found


# Hints


async def test_reading_ahead_ignores_damage_and_is_bounded() -> None:
    members = await new_members()
    async with opened(members) as pool:
        await pool.management.create_volume("v", PIB)
        await write(pool, "v", 0, random.Random(1).randbytes(MIB))
        await pool.flush()
        with_data = [segment for segment in pool.table.all() if segment.live_bytes > MIB // 4]
        places = [place for segment in with_data for place in segment.places]
        assert places
    for member, offset in places:
        await member.device.write(offset, b"\xee" * MIB)
    async with volume(members) as (_, device):
        with pytest.raises(DeviceError):
            await device.read(0, MIB)
        await device.cache(0, PIB)
        await device.cache(5, 3)
