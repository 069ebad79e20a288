"""Differences of snapshots, and depths of blocks: exact, at a cost that follows the changes."""

import random

import pytest

from storage.errors import NotFoundError
from storage.map import runs as runs_module
from storage.map.compare import DATA, SAME, ZEROES, Comparison
from storage.map.layer import Layer
from storage.map.runs import Run, walk
from storage.pool import Pool, PoolSettings
from storage.volumes.contexts import ALLOCATION_DEPTH, DIRTY_BITMAP
from tests.unit.storage.checkpoint.test_merge import BLOCK, SIZE, Family
from tests.unit.storage.pools import MIB, new_members, opened, read, write

PIB = 1 << 50
PAGE = 1024 * BLOCK


def layer_of(pool: Pool, name: str) -> Layer:
    volume, _, snapshot = name.partition("@")
    return pool.blockmap.layers[pool.registry.snapshot_record(volume, snapshot).layer]


def comparison(pool: Pool, name: str, base: Layer | None, first: int, end: int) -> Comparison:
    return Comparison(pool.blockmap, pool.table, layer_of(pool, name), base, first, end)


async def differences(
    pool: Pool, name: str, since: str | None, size_bytes: int = SIZE
) -> list[Run]:
    """All runs (blocks, state) of a snapshot, by as many walks as it takes."""
    base = None if since is None else layer_of(pool, since)
    at, end = 0, size_bytes // BLOCK
    found: list[Run] = []
    while at < end:
        part = await walk(comparison(pool, name, base, at, end), at, end)
        assert all(blocks > 0 for blocks, _ in part)
        at += sum(blocks for blocks, _ in part)
        found += part
    assert at == end
    return found


def by_block(runs: list[Run]) -> list[int]:
    return [state for blocks, state in runs for _ in range(blocks)]


Image = dict[int, bytes]


def expected(image: Image, base: Image) -> list[int]:
    states = []
    for block in range(SIZE // BLOCK):
        new, old = image.get(block, bytes(BLOCK)), base.get(block, bytes(BLOCK))
        states.append(SAME if new == old else DATA if any(new) else ZEROES)
    return states


async def check_differences(pool: Pool, family: Family, coin: random.Random) -> None:
    names = sorted(family.snapshots)
    for _ in range(min(6, len(names))):
        one, two = coin.choice(names), coin.choice([*names, None])
        await pool.flush()  # the base of a comparison has to be durable
        found = await differences(pool, "@".join(one), None if two is None else "@".join(two))
        base = {} if two is None else family.snapshots[two]
        assert by_block(found) == expected(family.snapshots[one], base), (one, two)


async def status(pool: Pool, name: str, context: str) -> list[int]:
    """The state of every block, asked for in pieces."""
    device = pool.open_export(name)
    assert context in device.contexts
    offset = 0
    states: list[int] = []
    while offset < device.size_bytes:
        for length, state in await device.status(context, offset, device.size_bytes - offset):
            assert length % BLOCK == 0
            states += [state] * (length // BLOCK)
            offset += length
    await device.close()
    assert len(states) == device.size_bytes // BLOCK
    return states


async def check_contexts(pool: Pool, family: Family, coin: random.Random) -> None:
    """Check the contexts of a volume with writes that are not durable yet: blocks written with
    zeroes are recognized only when they become durable, and count as data until then."""
    volume = coin.choice(sorted(family.heads))
    image = family.heads[volume]
    for (owner, name), base in family.snapshots.items():
        if owner == volume:
            wanted = [int(state != SAME) for state in expected(image, base)]
            dirty = await status(pool, volume, DIRTY_BITMAP + name)
            for block, (found, changed) in enumerate(zip(dirty, wanted, strict=True)):
                assert found == changed or not any(image.get(block, b"x")), (volume, name, block)
            await pool.flush()
            assert await status(pool, volume, DIRTY_BITMAP + name) == wanted
    depths = await status(pool, volume, ALLOCATION_DEPTH)
    layers = len(list(pool.blockmap.layers[pool.registry.record(volume).head].ancestry()))
    for block, depth in enumerate(depths):
        assert depth <= layers
        assert depth or not any(image.get(block, b"")), f"{block=} is stored somewhere"


def drop_some_pages(pool: Pool, coin: random.Random) -> None:
    """Drop half of the cached pages: they are read anew, and the pages kept may be old."""
    for layer in pool.blockmap.layers.values():
        for number in [*layer.pages]:
            if coin.random() < 0.5:
                pool.blockmap.drop_stale(layer, number, number + 1)


@pytest.mark.parametrize("seed", range(6))
async def test_differences_of_random_families(seed: int) -> None:
    """Goal: after snapshots, clones, rollbacks, promotions, deleted and merged layers, checkpoints
    and reopenings in any order, comparing any two snapshots finds exactly the differing blocks.

    Method: compare dictionaries of blocks. Every write is of new random bytes, so equal blocks were
    not written in between.
    """
    members = await new_members(mib=256)
    family: Family | None = None
    coin = random.Random(seed)
    for _ in range(3):
        async with opened(members) as pool:
            family = family or Family(pool, seed)
            family.pool = pool
            for step in range(50):
                await family.step()
                if coin.random() < 0.1:
                    await pool.cleaner.round()
                if coin.random() < 0.05:
                    drop_some_pages(pool, coin)
                if step % 7 == 6:
                    await check_contexts(pool, family, coin)
                    await check_differences(pool, family, coin)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1000, 1040))
async def test_differences_of_many_random_families(seed: int) -> None:
    await test_differences_of_random_families(seed)


async def test_the_cost_of_a_comparison_follows_the_changes() -> None:
    """Goal: a petabyte with many mapped pages, two of which changed, is compared in one walk."""
    members = await new_members(mib=256)
    async with opened(members) as pool:
        await pool.management.create_volume("v", PIB)
        for page in range(500):
            await write(pool, "v", page * PAGE, b"x" * BLOCK)
        await write(pool, "v", PIB - BLOCK, b"x" * BLOCK)
        await pool.management.create_snapshot("v", "one")
        await write(pool, "v", 7 * PAGE + 5 * BLOCK, b"y" * BLOCK)
        await pool.management.create_snapshot("v", "gone")
        await write(pool, "v", PIB // 2, b"z" * BLOCK)
        await pool.management.create_snapshot("v", "two")
        await pool.management.delete_snapshot("v", "gone")
    async with opened(members) as pool:
        view = comparison(pool, "v@two", layer_of(pool, "v@one"), 0, PIB // BLOCK)
        found = await walk(view, 0, PIB // BLOCK)
        first, second = 7 * 1024 + 5, PIB // 2 // BLOCK
        assert found == [
            (first, SAME), (1, DATA), (second - first - 1, SAME), (1, DATA),
            (PIB // BLOCK - second - 1, SAME),
        ]  # fmt: skip
        assert view.reads <= 4  # two pages of each


async def test_moved_blocks_count_as_unchanged() -> None:
    """Goal: blocks that the cleaner moved, as whole extents or parts, count as unchanged; blocks
    that were written do not.

    Method: fill segments with text, which is compressed in extents of four, and overwrite most of
    it with noise, so that the rest of the text lies in mostly dead segments. Clean, with the pages
    of the newer snapshot in memory, of the older one, of both and of neither.
    """
    members = await new_members(mib=128)
    size = 16 * MIB
    coin = random.Random(1)
    changed = [*range(100, 140), 3000]
    async with opened(members) as pool:
        await pool.management.create_volume("v", size)
        for at in range(0, size, MIB):
            await write(pool, "v", at, b"%20d" % at * (MIB // 20) + bytes(16))
        await pool.flush()
        for at in range(0, size // BLOCK, 16):
            await write(pool, "v", at * BLOCK, coin.randbytes(14 * BLOCK))
        await pool.management.create_snapshot("v", "one")
        for block in changed:
            await write(pool, "v", block * BLOCK, coin.randbytes(BLOCK))
        await pool.management.create_snapshot("v", "two")
        await pool.checkpoint()
    wanted = [int(block in changed) for block in range(size // BLOCK)]
    for names in ([], ["v@one"], ["v@two"], ["v@one", "v@two"]):
        async with opened(members) as pool:
            for name in names:
                await read(pool, name, 0, size)
            before = pool.cleaner.stats.moved_bytes
            while await pool.cleaner.round():
                assert by_block(await differences(pool, "v@two", "v@one", size)) == wanted
            assert pool.cleaner.stats.moved_bytes > before or names
            for _ in range(3):
                await pool.checkpoint()
                assert by_block(await differences(pool, "v@two", "v@one", size)) == wanted


async def test_the_same_bytes_written_again_count_as_changed() -> None:
    """The 40 bits of a hash in the map do not prove that the bytes are the same."""
    members = await new_members()
    async with opened(members) as pool:
        await pool.management.create_volume("v", MIB)
        data = random.Random(1).randbytes(4 * BLOCK)
        await write(pool, "v", 0, data)
        await pool.management.create_snapshot("v", "one")
        await write(pool, "v", BLOCK, data[BLOCK : 2 * BLOCK])
        await pool.management.create_snapshot("v", "two")
        found = await differences(pool, "v@two", "v@one", MIB)
        assert found == [(1, SAME), (1, DATA), (254, SAME)]


async def test_a_walk_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs_module, "PAGES_MAX", 10)
    monkeypatch.setattr(runs_module, "READS_MAX", 4)
    monkeypatch.setattr(runs_module, "EXTENTS_MAX", 7)
    members = await new_members()
    size = 101 * PAGE
    async with opened(members) as pool:
        await pool.management.create_volume("v", size)
        await pool.management.create_snapshot("v", "zero")
        for page in range(0, 100, 3):
            await write(pool, "v", page * PAGE + 7 * BLOCK, b"x" * BLOCK)
        await pool.management.create_snapshot("v", "one")
    wanted = [DATA if b % 1024 == 7 and b // 1024 % 3 == 0 and b < 100 * 1024 else SAME
              for b in range(size // BLOCK)]  # fmt: skip
    async with opened(members, PoolSettings(page_cache_bytes=1)) as pool:
        end = size // BLOCK
        view = comparison(pool, "v@one", layer_of(pool, "v@zero"), 0, end)
        part = await walk(view, 0, end)
        assert len(part) <= 7
        assert view.reads <= 6
        assert by_block(await differences(pool, "v@one", "v@zero", size)) == wanted


# Contexts


async def test_depth_counts_the_layers() -> None:
    members = await new_members()

    async def check(pool: Pool) -> None:
        depths = await status(pool, "c", ALLOCATION_DEPTH)
        assert depths == [4, 1, 3, 2, 1, *[0] * 251]
        assert (await status(pool, "v@two", ALLOCATION_DEPTH))[:4] == [2, 2, 1, 0]
        device = pool.open_export("c")
        assert await device.status(ALLOCATION_DEPTH, BLOCK + 7, 2 * BLOCK) == [
            (BLOCK - 7, 1), (BLOCK, 3), (7, 2),
        ]  # fmt: skip
        assert await device.status(ALLOCATION_DEPTH, 0, 0) == []
        await device.close()

    async with opened(members) as pool:
        await pool.management.create_volume("v", MIB)
        await write(pool, "v", 0, b"1" * 2 * BLOCK)
        await pool.management.create_snapshot("v", "one")
        await write(pool, "v", 2 * BLOCK, b"2" * BLOCK)
        await pool.management.create_snapshot("v", "two")
        await write(pool, "v", 3 * BLOCK, b"3" * BLOCK)
        await pool.management.create_snapshot("v", "three")
        await pool.management.clone("v", "three", "c")
        device = pool.open_export("c")
        await device.write_zeroes(BLOCK, BLOCK)
        await device.write(4 * BLOCK, b"4" * BLOCK)
        await check(pool)  # in a buffer
        await device.close()
        await pool.flush()
        await check(pool)  # pending
        await pool.checkpoint()
        await check(pool)
    async with opened(members) as pool:
        await check(pool)


async def test_a_bitmap_follows_the_volume() -> None:
    members = await new_members()
    async with opened(members) as pool:
        await pool.management.create_volume("v", MIB)
        device = pool.open_export("v")
        assert [*device.contexts] == [ALLOCATION_DEPTH]
        await device.write(0, b"1" * 4 * BLOCK)
        await pool.management.create_snapshot("v", "s")
        assert [*device.contexts] == [ALLOCATION_DEPTH, DIRTY_BITMAP + "s"]
        context = DIRTY_BITMAP + "s"
        assert await device.status(context, 0, MIB) == [(MIB, 0)]
        await device.trim(BLOCK, MIB - BLOCK)
        await device.write_zeroes(0, 100)  # part of a block
        assert await device.status(context, 0, MIB) == [(4 * BLOCK, 1), (MIB - 4 * BLOCK, 0)]
        await device.flush()
        assert await device.status(context, 0, MIB) == [(4 * BLOCK, 1), (MIB - 4 * BLOCK, 0)]
        await pool.management.create_snapshot("v", "t")
        assert await device.status(DIRTY_BITMAP + "t", 0, MIB) == [(MIB, 0)]
        snapshot = pool.open_export("v@t")
        await device.write(8 * BLOCK, b"2")
        assert (await snapshot.status(context, 0, MIB))[0] == (4 * BLOCK, 1)
        assert await device.status(DIRTY_BITMAP + "t", 8 * BLOCK, BLOCK) == [(BLOCK, 1)]
        await pool.management.delete_snapshot("v", "s")
        for handle in (device, snapshot):
            with pytest.raises(NotFoundError):
                await handle.status(context, 0, MIB)
            with pytest.raises(NotFoundError):
                await handle.status("qemu:nothing", 0, MIB)
        await snapshot.close()
        await device.close()
