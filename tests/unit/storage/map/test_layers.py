"""Snapshots, clones and rollback over the layered map."""

import random
import struct
from functools import partial

import pytest
import trio

from blockdev.errors import ReadOnlyError
from storage.errors import (
    ExistsError,
    FormatVersionError,
    InUseError,
    InvalidArgumentError,
    NotFoundError,
)
from storage.format import superblock
from storage.format.codec import digest_of
from storage.members.member import closing_offset
from storage.pool import Pool, PoolSettings
from tests.unit.storage.pools import MIB, assert_clean, new_members, opened, read, write

BLOCK = 4096


async def test_a_snapshot_keeps_the_old_content_while_the_volume_changes() -> None:
    members = await new_members()
    async with opened(members) as pool:
        await pool.management.create_volume("v", MIB)
        await write(pool, "v", 0, b"old" * 4000)
        await pool.management.create_snapshot("v", "s")
        await write(pool, "v", 5, b"new")
        assert await read(pool, "v@s", 0, 12000) == b"old" * 4000
        assert (await read(pool, "v", 0, 9)) == b"oldolnewd"
        snapshot = pool.open_export("v@s")
        with pytest.raises(ReadOnlyError):
            await snapshot.write(0, b"x")
        await snapshot.close()
    await assert_clean(members)


async def test_open_handles_follow_a_snapshot_taken_under_load() -> None:
    """Goal: a writer never writes into a frozen layer, and the snapshot is one point in time.

    Method: one task writes rising numbers to two blocks, always the first before the second;
    in every snapshot the first is never behind.
    """
    members = await new_members(mib=128)
    async with opened(members) as pool:
        await pool.management.create_volume("v", MIB)
        device = pool.open_export("v")
        stop = trio.Event()

        async def count_up() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                stamp = number.to_bytes(8, "little") * 512
                await device.write(0, stamp)
                await device.write(8 * BLOCK, stamp)
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(count_up)
            for i in range(20):
                await pool.management.create_snapshot("v", f"s{i}")
            stop.set()
        last = 0
        for i in range(20):
            first = int.from_bytes(await read(pool, f"v@s{i}", 0, 8), "little")
            second = int.from_bytes(await read(pool, f"v@s{i}", 8 * BLOCK, 8), "little")
            assert second <= first <= second + 1
            assert first >= last
            last = first
        await device.close()
    await assert_clean(members)


async def test_rollback_and_clone_start_from_the_snapshot() -> None:
    members = await new_members()
    async with opened(members) as pool:
        await pool.management.create_volume("v", MIB)
        await write(pool, "v", 0, b"a" * BLOCK)
        await pool.management.create_snapshot("v", "s")
        await write(pool, "v", 0, b"b" * BLOCK)
        await pool.management.clone("v", "s", "c")
        await write(pool, "c", BLOCK, b"c" * BLOCK)
        await pool.management.rollback("v", "s")
        assert await read(pool, "v", 0, 2 * BLOCK) == b"a" * BLOCK + bytes(BLOCK)
        assert await read(pool, "c", 0, 2 * BLOCK) == b"a" * BLOCK + b"c" * BLOCK
        assert pool.management.volume("c").origin == "v@s"
    async with opened(members) as pool:
        assert await read(pool, "c", 0, 2 * BLOCK) == b"a" * BLOCK + b"c" * BLOCK
    await assert_clean(members)


async def test_volumes_and_snapshots_in_use_cannot_be_deleted_or_replaced() -> None:
    members = await new_members()
    async with opened(members) as pool:
        await pool.management.create_volume("v", MIB)
        await pool.management.create_snapshot("v", "s")
        await pool.management.clone("v", "s", "c")
        for name, refused in (
            ("c", partial(pool.management.delete_volume, "c")),
            ("c", partial(pool.management.rename_volume, "c", "d")),
            ("c", partial(pool.management.resize_volume, "c", BLOCK, shrink=True)),
            ("v", partial(pool.management.rollback, "v", "s")),
            ("v@s", partial(pool.management.delete_snapshot, "v", "s")),
            ("v@s", partial(pool.management.delete_volume, "v", snapshots=True)),
            ("v@s", partial(pool.management.rename_volume, "v", "d")),
            ("v@s", partial(pool.management.rename_snapshot, "v", "s", "t")),
            ("v@s", partial(pool.management.promote, "c")),
        ):
            device = pool.open_export(name)
            with pytest.raises(InUseError, match="stop its clients"):
                await refused()
            await device.close()
        with pytest.raises(InUseError, match="has snapshots"):
            await pool.management.delete_volume("v")
        with pytest.raises(NotFoundError):
            await pool.management.rollback("v", "none")
        await pool.management.delete_volume("v", snapshots=True)
        assert [volume.name for volume in pool.management.volumes()] == ["c"]


@pytest.mark.parametrize(
    "name", ["", "-x", "a b", "a@b", "a/b", "a\n", "\u00e9", "x" * 128, "..", "a\0"]
)
async def test_odd_names_are_refused_and_nothing_changes(name: str) -> None:
    members = await new_members()
    async with opened(members) as pool:
        with pytest.raises(InvalidArgumentError, match="bad volume name"):
            await pool.management.create_volume(name, MIB)
        assert pool.management.volumes() == []


@pytest.mark.parametrize("size", [0, -4096, 1, 4095, 4097, 1 << 60])
async def test_odd_sizes_are_refused(size: int) -> None:
    members = await new_members()
    async with opened(members) as pool:
        with pytest.raises(InvalidArgumentError):
            await pool.management.create_volume("v", size)


async def test_volumes_grow_while_open_and_never_shrink() -> None:
    members = await new_members()
    async with opened(members) as pool:
        await pool.management.create_volume("v", BLOCK)
        with pytest.raises(ExistsError):
            await pool.management.create_volume("v", BLOCK)
        device = pool.open_export("v")
        await pool.management.resize_volume("v", 1 << 40)
        await device.write((1 << 40) - 5, b"hello")
        assert device.size_bytes == 1 << 40
        assert bytes(await device.read((1 << 40) - 8, 8)) == b"\0\0\0hello"
        with pytest.raises(InvalidArgumentError, match="shrink"):
            await pool.management.resize_volume("v", BLOCK)
        await device.close()
    await assert_clean(members)


async def page_reads(pool: Pool, name: str) -> int:
    """How many map blobs one cold read of the first block takes."""
    count = 0
    real = pool.segment_io.read_located

    async def counting(a: int, b: int, plain_bytes_max: int) -> bytes:
        nonlocal count
        count += 1
        return await real(a, b, plain_bytes_max)

    pool.segment_io.read_located = counting  # type: ignore[method-assign]
    await read(pool, name, 0, BLOCK)
    pool.segment_io.read_located = real  # type: ignore[method-assign]
    return count


async def test_a_deep_chain_costs_two_page_reads_cold() -> None:
    """Goal: a cold read costs at most two blobs of the map, however many ancestors a layer has.

    Method: 200 snapshots, each of which changed the page that is read, with
    checkpoints at random places; reopen, count the blobs read for the first block.
    """
    members = await new_members(mib=128)
    coin = random.Random(1)
    contents = bytearray(MIB)
    async with opened(members) as pool:
        await pool.management.create_volume("v", MIB)
        for i in range(200):
            at = coin.randrange(256) * BLOCK
            contents[at : at + BLOCK] = coin.randbytes(BLOCK)
            await write(pool, "v", at, bytes(contents[at : at + BLOCK]))
            await pool.management.create_snapshot("v", f"s{i}")
            if coin.random() < 0.2:
                await pool.checkpoint()
    async with opened(members) as pool:
        assert await page_reads(pool, "v") <= 2
        assert await page_reads(pool, "v@s77") <= 2
        assert await read(pool, "v", 0, MIB) == bytes(contents)
    await assert_clean(members)


async def test_evicting_pages_loses_no_changes() -> None:
    """Method: the smallest caches and a volume of many pages, compared with a dictionary."""
    members = await new_members(mib=128)
    settings = PoolSettings(page_cache_bytes=1, extent_cache_bytes=1)
    coin = random.Random(2)
    stride = 4 * MIB  # one page each
    async with opened(members, settings) as pool:
        await pool.management.create_volume("v", 600 * stride)
        device = pool.open_export("v")
        written = {}
        for _ in range(1500):
            at = coin.randrange(600) * stride + coin.randrange(8) * BLOCK
            written[at] = coin.randbytes(16) * 256
            await device.write(at, written[at])
            if coin.random() < 0.3:
                probe = coin.choice(list(written))
                assert bytes(await device.read(probe, BLOCK)) == written[probe]
        await pool.checkpoint()
        for at, data in written.items():
            assert bytes(await device.read(at, BLOCK)) == data
        await device.close()
    await assert_clean(members)


async def test_a_pool_with_a_feature_it_cannot_write_can_be_checked_but_not_served() -> None:
    """Rule R19, for an unknown feature with which only reading is safe."""
    members = await new_members()
    device = members[0].device
    for slot in range(superblock.RING_SLOTS + 1):
        place = slot * superblock.SUPERBLOCK_BYTES
        if slot == superblock.RING_SLOTS:
            place = closing_offset(device.size_bytes)
        data = bytearray(memoryview(await device.read(place, superblock.SUPERBLOCK_BYTES)))
        if data[:8] == superblock.MAGIC:
            struct.pack_into("<Q", data, 32, 1)
            struct.pack_into("<Q", data, 8, digest_of(memoryview(data)[16:]))
            await device.write(place, data)
    await assert_clean(members)
    with pytest.raises(FormatVersionError, match="upgrade"):
        async with opened(members):
            pass
