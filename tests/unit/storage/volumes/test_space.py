"""Space adds up: by layer, volume, snapshot, segment, member and pool."""

import random

import pytest

from storage.catalogue.catalogue import Catalogue
from storage.catalogue.records import LayerRecord, SnapshotRecord, VolumeRecord
from storage.errors import NotFoundError
from storage.info import VolumeSpace
from storage.map.usage import Usage
from storage.pool import Pool
from storage.verify.check import check_pool
from storage.volumes.space import owners
from tests.unit.storage.checkpoint.test_merge import Family, settle
from tests.unit.storage.pools import MIB, assert_clean, new_members, opened, write

KIB = 1 << 10


def assert_adds_up(pool: Pool) -> None:
    space = pool.space_info()
    assert space.unique_bytes + space.shared_bytes + space.deleted_bytes == space.data_bytes
    parts = (
        space.data_bytes, space.map_bytes, space.dead_bytes, space.unwritten_bytes,
        space.newer_bytes, space.cooling_bytes, space.free_bytes,
    )  # fmt: skip
    assert sum(parts) == space.total_bytes
    assert min(parts) >= 0
    assert space.reserve_bytes <= space.free_bytes
    for member in space.members:
        known = member.overhead_bytes, member.used_bytes, member.cooling_bytes, member.free_bytes
        assert sum(known) == member.size_bytes
        assert min(known) >= 0
        assert 0 <= member.reserve_bytes <= member.free_bytes
    copies, free = pool.info().copies, sum(m.free_bytes for m in space.members)
    assert sum(m.reserve_bytes for m in space.members) == min(free, copies * space.reserve_bytes)
    volumes = [line for line in pool.volume_space() if "@" not in line.name]
    assert sum(line.unique_bytes for line in volumes) == space.unique_bytes
    assert all(line.unique_bytes + line.shared_bytes == line.stored_bytes for line in volumes)
    assert all(0 <= line.shared_bytes <= space.shared_bytes for line in volumes)


def lines(pool: Pool) -> dict[str, VolumeSpace]:
    return {line.name: line for line in pool.volume_space()}


async def test_unique_shared_and_written_bytes_are_exact() -> None:
    """Random data does not compress, so every figure is known beforehand."""
    members = await new_members()
    coin = random.Random(1)
    async with opened(members) as pool:
        await pool.management.create_volume("v", 64 * MIB)
        await write(pool, "v", 0, coin.randbytes(MIB))
        await pool.management.create_snapshot("v", "one")
        await write(pool, "v", 0, coin.randbytes(256 * KIB))
        await pool.management.create_snapshot("v", "two")
        await write(pool, "v", 0, coin.randbytes(64 * KIB))
        await write(pool, "v", 0, coin.randbytes(4 * KIB))
        await pool.management.clone("v", "one", "c")
        await write(pool, "c", 2 * MIB, coin.randbytes(128 * KIB))
        assert [line.stored_bytes for line in pool.volume_space()] == [0, 0, 0, 0]
        await settle(pool)
        found = lines(pool)
        figures = {
            name: [
                n // KIB
                for n in (line.mapped_bytes, line.stored_bytes, line.unique_bytes,
                          line.shared_bytes, line.written_bytes)
            ]
            for name, line in found.items()
        }  # fmt: skip
        assert figures == {
            "c": [1152, 1152, 128, 1024, 128],
            "v": [1344, 1344, 320, 1024, 64],
            "v@one": [1024, 1024, 0, 1024, 1024],
            "v@two": [1280, 1280, 0, 1280, 256],
        }
        space = pool.space_info()
        assert space.commit == found["v"].commit == pool.durable_commit
        assert space.data_bytes == 1472 * KIB
        assert_adds_up(pool)
        await pool.management.rollback("v", "one")
        await settle(pool)
        assert lines(pool)["v@two"].unique_bytes == 256 * KIB
        await pool.management.delete_volume("c")
        await settle(pool)
        assert lines(pool)["v"].unique_bytes == 1280 * KIB
        assert_adds_up(pool)
        with pytest.raises(NotFoundError, match="nothing"):
            pool.volume_space("nothing")
    await assert_clean(members)


async def test_compressed_data_counts_before_and_after_compression() -> None:
    members = await new_members()
    async with opened(members) as pool:
        await pool.management.create_volume("v", 64 * MIB)
        await write(pool, "v", 0, b"abcd" * (MIB // 4))
        await write(pool, "v", MIB, bytes(MIB))
        await settle(pool)
        [line] = pool.volume_space("v")
        assert line.mapped_bytes == MIB
        assert 0 < line.stored_bytes < MIB // 20
    await assert_clean(members)


@pytest.mark.parametrize("seed", range(6))
async def test_space_adds_up_in_random_families_of_volumes(seed: int) -> None:
    """Through snapshots, clones, merges, deletions and reopening; the offline check counts again,
    layer by layer."""
    members = await new_members(count=3, copies=2, mib=192)
    async with opened(members) as pool:
        family = Family(pool, seed)
    for _ in range(4):
        async with opened(members) as pool:
            family.pool = pool
            for i in range(30):
                await family.step()
                if i % 3 == 0:
                    assert_adds_up(pool)
            await settle(pool)
            assert_adds_up(pool)
            stored = lines(pool)
            for name, image in family.heads.items():
                mapped = sum(1 for data in image.values() if any(data)) * 4096
                assert stored[name].mapped_bytes >= mapped
        await assert_clean(members)
        async with opened(members) as pool:
            after = lines(pool)
            assert [(n, after[n].stored_bytes) for n in after] == [
                (n, stored[n].stored_bytes) for n in stored
            ]
            assert_adds_up(pool)


async def test_a_check_finds_counts_that_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: the usage of layers and its sum are verified."""
    members = await new_members()
    async with opened(members) as pool:
        await pool.management.create_volume("v", MIB)
        await write(pool, "v", 0, random.Random(2).randbytes(64 * KIB))
        pack = Usage.pack
        with monkeypatch.context() as patch:

            def wrong(self: Usage) -> bytes:
                made = self.copy()
                made._change(1, 1, 100)
                return pack(made)

            patch.setattr(Usage, "pack", wrong)
            await pool.checkpoint()
    found = {damage.what for damage in (await check_pool(members)).damage}
    assert found == set()  # the checkpoint at the end was right again
    async with opened(members) as pool:
        await write(pool, "v", 0, b"x")
        monkeypatch.setattr(Usage, "pack", wrong)
    found = {damage.what for damage in (await check_pool(members)).damage}
    assert found == {
        "usage of a layer is wrong", "layers and map do not add up to what segments hold",
    }  # fmt: skip


def test_a_layer_is_owned_by_the_only_volume_that_reaches_it() -> None:
    """Layers: 1 is a@s, its children are 2, a, and the nameless 3, whose children are 4, b, and
    5, c; 6 is dying."""
    made = Catalogue()
    for number, parent in ((1, 0), (2, 1), (3, 1), (4, 3), (5, 3)):
        made.layers[number] = LayerRecord(parent)
    made.layers[6] = LayerRecord(0, dying=True)
    made.volumes = {name: VolumeRecord(1, n, "") for name, n in (("a", 2), ("b", 4), ("c", 5))}
    made.volumes["a"].snapshots["s"] = SnapshotRecord(1, 1, "")
    assert owners(made) == {1: None, 2: "a", 3: None, 4: "b", 5: "c"}
    del made.volumes["c"], made.layers[5]
    assert owners(made) == {1: None, 2: "a", 3: "b", 4: "b"}
    del made.volumes["b"], made.layers[4], made.layers[3]
    assert owners(made) == {1: "a", 2: "a"}
    assert owners(made, by_snapshot=True) == {1: None, 2: "a"}
