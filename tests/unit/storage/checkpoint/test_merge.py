"""Deleting snapshots in any order keeps the blocks that other layers need and frees the rest."""

import random
from contextlib import suppress

import pytest

from storage.catalogue.catalogue import Catalogue
from storage.errors import ExistsError, InvalidArgumentError
from storage.map.layer import Layer
from storage.pool import MemberDevice, Pool
from tests.unit.storage.pools import MIB, assert_clean, new_members, opened, read, write

BLOCK = 4096
SIZE = 6 * MIB  # two map pages


async def settle(pool: Pool) -> None:
    await pool.flush()
    for _ in range(4):
        await pool.checkpoint()


async def test_a_deleted_snapshot_gives_back_the_blocks_that_only_it_held() -> None:
    members = await new_members()
    coin = random.Random(1)
    async with opened(members) as pool:
        await pool.management.create_volume("v", SIZE)
        await write(pool, "v", 0, coin.randbytes(2 * MIB))
        await pool.management.create_snapshot("v", "s")
        kept = coin.randbytes(MIB)
        await write(pool, "v", 0, kept)
        await settle(pool)
        both = pool.info().live_bytes
        await pool.management.delete_snapshot("v", "s")
        await settle(pool)
        assert both - pool.info().live_bytes >= MIB
        assert pool.info().live_bytes < 2 * MIB + 64 * 1024
        assert await read(pool, "v", 0, MIB) == kept
    await assert_clean(members)


async def test_pages_that_only_the_deleted_layer_has_are_not_read() -> None:
    """A merge costs as much as the smaller layer."""
    members = await new_members(mib=256)
    async with opened(members) as pool:
        await pool.management.create_volume("v", 64 << 30)
        for page in range(500):
            await write(pool, "v", page * 4 * MIB, page.to_bytes(4) * 1024)
        await pool.management.create_snapshot("v", "s")
        for page in (3, 400):
            await write(pool, "v", page * 4 * MIB + BLOCK, b"new!" * 1024)
        await pool.checkpoint()
        read_merged, reads = pool.blockmap.read_merged, []

        async def counted(layer, number, *args):  # type: ignore[no-untyped-def]
            reads.append(number)
            return await read_merged(layer, number, *args)

        pool.blockmap.read_merged = counted  # type: ignore[method-assign]
        await pool.management.delete_snapshot("v", "s")
        await settle(pool)
        assert set(reads) == {3, 400}
        assert len(pool.live.layers) == 1
        for page in range(0, 500, 7):
            assert await read(pool, "v", page * 4 * MIB, BLOCK) == page.to_bytes(4) * 1024
        assert await read(pool, "v", 400 * 4 * MIB + BLOCK, BLOCK) == b"new!" * 1024
    await assert_clean(members)


async def test_a_merge_makes_the_hints_of_inherited_blocks_exact() -> None:
    """Goal: a cached page may name the old places of inherited blocks that were moved, but not once
    a merge made them the layer's own: the cleaner would take the blocks for dead, and their
    segments would never be freed.
    """
    members = await new_members()
    coin = random.Random(4)
    async with opened(members) as pool:
        await pool.management.create_volume("v", SIZE)
        for _ in range(2):
            await write(pool, "v", 0, coin.randbytes(3 * MIB))
            for block in coin.sample(range(3 * MIB // BLOCK), 300):
                await write(pool, "v", block * BLOCK, coin.randbytes(BLOCK))
        await pool.management.create_snapshot("v", "s")
        await write(pool, "v", 0, coin.randbytes(BLOCK))
        await settle(pool)
        before = await read(pool, "v", 0, SIZE)
        assert await pool.cleaner.round(mixed=True)
        await settle(pool)
        await pool.management.delete_snapshot("v", "s")
        await settle(pool)
        [layer] = pool.blockmap.layers.values()
        for number in layer.directory.pages():
            cached = await pool.blockmap.page(layer, number)
            stored = await pool.blockmap.read_merged(
                layer, number, lambda up, page: up.directory.get(page), lambda up: up.parent
            )
            assert (cached.entries == stored.entries)[stored.own].all()
        assert await read(pool, "v", 0, SIZE) == before
    await assert_clean(members)


class Family:
    """Volumes, snapshots and clones, compared with plain dictionaries of blocks."""

    def __init__(self, pool: Pool, seed: int) -> None:
        self.beside: set[str] = set()
        self.pool = pool
        self.coin = random.Random(seed)
        self.heads: dict[str, dict[int, bytes]] = {}
        self.snapshots: dict[tuple[str, str], dict[int, bytes]] = {}
        self.names = 0

    def look_for_owners(self, layer: Layer) -> None:
        """Check a layer's set of pages that ancestors changed against what each ancestor owns."""
        for page in range(SIZE // (4 * MIB) + 2):
            changed = [up for up in layer.ancestry() if up.owns(page)]
            assert layer.owner(page) is (changed[0] if changed else None)
            assert page in layer.mapped_pages(0, 1 << 20) or not changed
            assert page in layer.mapped_pages(page, page + 1) or not changed

    async def step(self) -> None:
        coin, pool = self.coin, self.pool
        self.look_for_owners(coin.choice([*pool.blockmap.layers.values()] or [Layer(1, None)]))
        self.names += 1
        action = coin.choice("wwwwwzscdddxrkfpng")
        if not self.heads or (action == "c" and len(self.heads) < 5 and not self.snapshots):
            await pool.management.create_volume(f"v{self.names}", SIZE)
            self.heads[f"v{self.names}"] = {}
            return
        volume = coin.choice(sorted(self.heads))
        if action in "wz":
            first = coin.choice([0, 5, 1000, 1020, coin.randrange(1500)])
            for block in range(first, min(first + coin.choice([1, 3, 60]), SIZE // BLOCK)):
                data = bytes(BLOCK) if action == "z" else coin.randbytes(8) * (BLOCK // 8)
                self.heads[volume][block] = data
                await write(pool, volume, block * BLOCK, data)
        elif action == "s":
            await pool.management.create_snapshot(volume, f"s{self.names}")
            self.snapshots[volume, f"s{self.names}"] = dict(self.heads[volume])
        elif action == "k":
            await pool.checkpoint()
        elif action == "f" and len(self.heads) < 5:
            await pool.management.clone(volume, None, f"f{self.names}")
            self.heads[f"f{self.names}"] = dict(self.heads[volume])
        elif action == "n":
            await pool.management.rename_volume(volume, f"n{self.names}")
            self.heads[f"n{self.names}"] = self.heads.pop(volume)
            self._move_snapshots(volume, f"n{self.names}")
        elif action == "g":
            await pool.management.create_snapshots(sorted(self.heads), f"g{self.names}")
            for each, image in self.heads.items():
                self.snapshots[each, f"g{self.names}"] = dict(image)
        elif action == "p":
            with suppress(InvalidArgumentError, ExistsError):
                await pool.management.promote(volume)
            listed = {(one.volume, one.name) for one in pool.management.snapshots()}
            for moved in listed - self.snapshots.keys():
                [old] = [k for k in self.snapshots if k[1] == moved[1] and k not in listed]
                self.snapshots[moved] = self.snapshots.pop(old)
        elif action == "x" and len(self.heads) > 1:
            await pool.management.delete_volume(volume, snapshots=True)
            del self.heads[volume]
            self.snapshots = {k: v for k, v in self.snapshots.items() if k[0] != volume}
        elif self.snapshots:
            chosen = coin.choice(sorted(self.snapshots))
            if action == "d":
                await pool.management.delete_snapshot(*chosen)
                del self.snapshots[chosen]
            elif action == "r":
                await pool.management.rollback(*chosen)
                self.heads[chosen[0]] = dict(self.snapshots[chosen])
            elif action == "c" and len(self.heads) < 5:
                await pool.management.clone(*chosen, f"c{self.names}")
                self.heads[f"c{self.names}"] = dict(self.snapshots[chosen])

    def _move_snapshots(self, volume: str, to: str) -> None:
        self.snapshots = {
            (to if key[0] == volume else key[0], key[1]): image
            for key, image in self.snapshots.items()
        }

    def look_at_tree(self) -> None:
        """Every volume and snapshot is in the tree once, and no node is its own ancestor."""
        nodes = {node.name: node for node in self.pool.management.tree()}
        assert len(nodes) == len(self.pool.management.tree())
        assert {name for name in nodes if not name.startswith("#")} == {
            *self.heads, *self.beside, *(f"{volume}@{name}" for volume, name in self.snapshots),
        }  # fmt: skip
        for node in nodes.values():
            steps = 0
            while node.parent is not None:
                node = nodes[node.parent]
                steps += 1
                assert steps <= len(nodes)

    async def verify(self) -> None:
        self.look_at_tree()
        live = self.pool.live
        assert Catalogue.unpack(live.pack()).layers == live.layers, "layers are miscounted"
        for layer in self.pool.blockmap.layers.values():
            self.look_for_owners(layer)
        listed = {(one.volume, one.name) for one in self.pool.management.snapshots()}
        assert listed == self.snapshots.keys()
        images = dict(self.heads)
        images |= {f"{volume}@{name}": image for (volume, name), image in self.snapshots.items()}
        for name, image in images.items():
            found = await read(self.pool, name, 0, SIZE)
            for block in range(SIZE // BLOCK):
                wanted = image.get(block, bytes(BLOCK))
                assert found[block * BLOCK : (block + 1) * BLOCK] == wanted, (name, block)


async def _live(members: list[MemberDevice], seed: int, steps: int) -> None:
    async with opened(members) as pool:
        await pool.checkpoint()
        free = pool.info().free_bytes
        family = Family(pool, seed)
    for _ in range(3):
        async with opened(members) as pool:
            family.pool = pool
            for _ in range(steps):
                await family.step()
            await family.verify()
            await settle(pool)
            await family.verify()
        await assert_clean(members)
    async with opened(members) as pool:
        for volume in list(family.heads):
            await pool.management.delete_volume(volume, snapshots=True)
        await settle(pool)
        assert pool.live.layers == {}
        assert pool.info().live_bytes < 64 * 1024
        assert pool.info().free_bytes == free
    await assert_clean(members)


@pytest.mark.parametrize("seed", range(8))
async def test_random_families(seed: int) -> None:
    await _live(await new_members(mib=256), seed, 60)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 200))
async def test_many_random_families(seed: int) -> None:
    await _live(await new_members(mib=512), seed, 200)
