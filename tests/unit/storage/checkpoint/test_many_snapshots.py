"""The cost of a thousand snapshots and of two hundred clones: reads, records and memory."""

import gc
import random
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from bench.snapshots import counting
from storage.map.layer import Layer
from storage.pool import MemberDevice, Pool
from storage.volumes.volume import Volume
from tests.unit.storage.pools import MIB, assert_clean, new_members, opened

BLOCK = 4096
PAGE_BYTES = 4 * MIB
SNAPSHOTS = 1000
PAGES = 2
HOT_BLOCKS = 40
"""Blocks of each page that are written."""
CLONES = 200


@asynccontextmanager
async def exported(pool: Pool, name: str) -> AsyncIterator[Volume]:
    device = pool.open_export(name)
    yield device
    await device.close()


async def stored_bytes(pool: Pool) -> int:
    """Bytes of all blocks that the map stores; every block is raw here."""
    total = 0
    for layer in pool.blockmap.layers.values():
        for number in layer.directory.pages():
            row = layer.directory.get(number)
            assert row is not None
            entries = await pool.blockmap.own_entries(row, number)
            total += BLOCK * int(((entries[:, 0] & 7) == 3).sum())
    return total


class Chain:
    """A volume with a thousand snapshots, each of which changed every page, and their images."""

    def __init__(self) -> None:
        self.blocks: dict[int, bytes] = {}
        self.images: dict[str, dict[int, bytes]] = {}

    async def build(self, pool: Pool) -> None:
        coin = random.Random(1)
        await pool.management.create_volume("deep", PAGES * PAGE_BYTES)
        async with exported(pool, "deep") as device:
            for i in range(SNAPSHOTS):
                for page in range(PAGES):
                    block = page * 1024 + coin.randrange(HOT_BLOCKS)
                    self.blocks[block] = coin.randbytes(BLOCK)
                    await device.write(block * BLOCK, self.blocks[block])
                await pool.management.create_snapshot("deep", f"s{i}")
                self.images[f"s{i}"] = dict(self.blocks)
                if coin.random() < 0.02:
                    await pool.checkpoint()
        await pool.checkpoint()

    async def verify(self, pool: Pool, names: list[str]) -> None:
        for name in names:
            _, _, snapshot = name.partition("@")
            async with exported(pool, name) as device:
                for block, data in self.images.get(snapshot, self.blocks).items():
                    assert bytes(await device.read(block * BLOCK, BLOCK)) == data, (name, block)

    def distinct_blocks(self) -> int:
        held = {id(data) for image in self.images.values() for data in image.values()}
        return len(held | {id(data) for data in self.blocks.values()})


async def settle(pool: Pool) -> None:
    await pool.checkpoint()
    while pool.checkpointer.has_more_to_free:
        await pool.checkpoint()


async def test_a_thousand_snapshots_in_a_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: a read through a thousand layers costs no read of the map when warm, and two when cold;
    deleting every second snapshot gives back exactly the blocks that only these held.

    Method: count the reads and the layers looked at; compare the stored bytes with the images.
    """
    members = await new_members(mib=256)
    chain = Chain()
    async with opened(members) as pool:
        await chain.build(pool)
    async with opened(members) as pool:
        for name in ("deep", "deep@s0", "deep@s500", "deep@s999"):
            for page in range(PAGES):
                async with exported(pool, name) as device:
                    with counting(pool) as count:
                        await device.read(page * PAGE_BYTES, BLOCK)
                    assert count[0] <= 2, "cold"
        await _warm_reads(pool, monkeypatch)
        await _trims(pool, monkeypatch)
        assert await stored_bytes(pool) == chain.distinct_blocks() * BLOCK
        for i in range(0, SNAPSHOTS, 2):
            await pool.management.delete_snapshot("deep", f"s{i}")
            del chain.images[f"s{i}"]
        before = pool.info().live_bytes
        await settle(pool)
        assert await stored_bytes(pool) == chain.distinct_blocks() * BLOCK
        assert pool.info().live_bytes < before
        assert len(pool.blockmap.layers) == SNAPSHOTS // 2 + 1
        names = ["deep", *(f"deep@s{i}" for i in (1, 3, 499, 501, 777, 999))]
        await chain.verify(pool, names)
    await assert_clean(members)


async def _warm_reads(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A warm read looks at one layer and reads nothing of the map."""

    def looked_up(*_: object) -> None:
        raise AssertionError("a warm read looked at ancestors")

    async with exported(pool, "deep") as device:
        with monkeypatch.context() as patch, counting(pool) as count:
            patch.setattr(Layer, "ancestry", looked_up)
            patch.setattr(Layer, "owns", looked_up)
            for block in range(0, PAGES * 1024, 7):
                assert device.try_read(block * BLOCK, BLOCK) is not None
            assert count[0] == 0


async def _trims(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trims and status requests do not look at each ancestor, except for the first request."""
    async with exported(pool, "deep") as device:
        await device.extents(0, device.size_bytes)
        looks, real = 0, Layer.owns

        def counted(layer: Layer, page: int) -> bool:
            nonlocal looks
            looks += 1
            return real(layer, page)

        with monkeypatch.context() as patch:
            patch.setattr(Layer, "owns", counted)
            for page in range(PAGES):
                # These blocks are not stored, so that the trim changes no content.
                await device.trim(page * PAGE_BYTES + 100 * BLOCK, 800 * BLOCK)
                await device.extents(page * PAGE_BYTES, PAGE_BYTES)
            await pool.flush()
        assert looks <= 8 * PAGES


async def test_a_snapshot_is_one_small_record() -> None:
    """Goal: creating a snapshot costs one record in the log, however many snapshots there are."""
    members = await new_members(mib=128)
    async with opened(members) as pool:
        await pool.management.create_volume("v", 1 << 40)
        async with exported(pool, "v") as device:
            commits_each = []
            for i in range(300):
                await device.write(i * PAGE_BYTES, b"x" * BLOCK)
                await pool.flush()
                commits, start = pool.log.commits, pool.log.durable
                await pool.management.create_snapshot("v", f"s{i}")
                if pool.log.durable.segment == start.segment:  # else the next one is announced
                    commits_each.append(pool.log.commits - commits)
                    assert pool.log.durable.offset - start.offset == BLOCK
        assert len(commits_each) > 290
        assert set(commits_each) == {1}


async def _image(pool: Pool) -> list[int]:
    """A volume of 1 GiB with something in every page of its map, kept as image@clean."""
    await pool.management.create_volume("image", 1 << 30)
    offsets = [page * PAGE_BYTES + 17 * BLOCK for page in range(256)]
    async with exported(pool, "image") as device:
        for i, offset in enumerate(offsets):
            data = i.to_bytes(2) * 2048 if i % 2 else random.Random(i).randbytes(BLOCK)
            await device.write(offset, data)
    await pool.management.create_snapshot("image", "clean")
    await pool.checkpoint()
    return offsets


async def test_an_untouched_clone_takes_little_memory(members: list[MemberDevice]) -> None:
    async with opened(members) as pool:
        await _image(pool)
        tracemalloc.start()
        await pool.management.clone("image", "clean", "first")  # the newest write buffer is kept
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        commits = pool.log.commits
        for i in range(CLONES):
            await pool.management.clone("image", "clean", f"c{i}")
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        announced = 1 + CLONES * BLOCK // MIB
        assert CLONES <= pool.log.commits - commits <= CLONES + announced, "one record each"
        assert grown / CLONES < 4096


async def test_all_clones_are_read_from_one_cached_copy(members: list[MemberDevice]) -> None:
    """Goal: the pages and extents that a read of the first clone cached serve all other clones.

    Method: read every page of 200 clones; the map is read from disk for the first alone,
    compressed extents are expanded once, and all read the same places of the member.
    """
    async with opened(members) as pool:
        offsets = await _image(pool)
    async with opened(members) as pool:
        real, places = pool.segment_io.try_read, []

        def noting(number: int, offset: int, length: int) -> memoryview | None:
            places.append((number, offset, length))
            return real(number, offset, length)

        map_reads, places_of = [], []
        for i in range(CLONES):
            await pool.management.clone("image", "clean", f"c{i}")
            async with exported(pool, f"c{i}") as device:
                with counting(pool) as count:
                    pool.segment_io.try_read = noting  # type: ignore[method-assign]
                    for page, offset in enumerate(offsets):
                        wanted = page.to_bytes(2) * 2048 if page % 2 else None
                        found = bytes(await device.read(offset, BLOCK))
                        assert wanted is None or found == wanted
                    pool.segment_io.try_read = real  # type: ignore[method-assign]
            map_reads.append(count[0])
            places_of.append({place for place in places if place[2] == BLOCK})
            packed = [place for place in places if place[2] != BLOCK]
            assert i == 0 or not packed, "a compressed extent is read twice"
            places.clear()
        assert map_reads == [256] + [0] * (CLONES - 1)
        assert all(one == places_of[0] for one in places_of)


@pytest.fixture
async def members() -> list[MemberDevice]:
    return await new_members(mib=64)
