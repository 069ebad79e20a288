"""Flattening: a clone gets copies of all that it inherits, and is independent afterwards."""

import random
from contextlib import suppress

import pytest
import trio
import trio.testing
from typing_extensions import Buffer

from storage.catalogue import operations
from storage.catalogue.catalogue import Catalogue
from storage.catalogue.operations import Operation
from storage.errors import InvalidArgumentError, NotFoundError
from storage.map.layer import Layer
from storage.pool import MemberDevice, Pool, PoolSettings
from storage.volumes import flatten
from tests.unit.hang import HANG_S
from tests.unit.storage.pools import MIB, assert_clean, new_members, opened, read, write

BLOCK = 4096
SIZE = 10 * MIB  # three map pages
FAST = PoolSettings(flush_interval_s=0.01, checkpoint_interval_s=0.05)


async def flattened(pool: Pool, name: str) -> None:
    """Wait until the flattening of a volume is finished."""
    with trio.fail_after(HANG_S):
        while pool.management.volume(name).flattening is not None:
            await trio.sleep(0.005)


class Held:
    """The reader of a flattener, which waits for `gate` from the fourth read on."""

    def __init__(self, pool: Pool) -> None:
        self.waits = trio.Event()
        self.gate = trio.Event()
        self._reads = 0
        self._reader = pool.flattener._reader
        pool.flattener._reader = self  # type: ignore[assignment]

    async def read(self, layer: Layer, block: int, count: int) -> Buffer:
        self._reads += 1
        if self._reads > 3:
            self.waits.set()
            await self.gate.wait()
        return await self._reader.read(layer, block, count)


async def begun(held: Held) -> None:
    """Wait until some blocks are copied, and others are not."""
    with trio.fail_after(HANG_S):
        await held.waits.wait()


async def settle(pool: Pool) -> None:
    await pool.flush()
    await pool.checkpoint()
    while pool.checkpointer.has_more_to_free:
        await pool.checkpoint()


def parents(pool: Pool) -> dict[str, str | None]:
    return {node.name: node.parent for node in pool.management.tree()}


@pytest.fixture
async def members() -> list[MemberDevice]:
    return await new_members(mib=192)


async def filled(pool: Pool, name: str, seed: int, *, dense: bool = True) -> bytearray:
    """Make a volume with data in most blocks, or (not `dense`) in a few; returns its content."""
    coin = random.Random(seed)
    image = bytearray(SIZE)
    await pool.management.create_volume(name, SIZE)
    for block in range(SIZE // BLOCK):
        if coin.random() < (0.6 if dense else 0.004):
            data = coin.randbytes(BLOCK) if coin.random() < 0.5 else coin.randbytes(8) * 512
            image[block * BLOCK : (block + 1) * BLOCK] = data
            await write(pool, name, block * BLOCK, data)
    return image


async def scribble(
    pool: Pool, name: str, image: bytearray, coin: random.Random, times: int = 20
) -> None:
    """Write and trim at random, in the volume and in `image`."""
    for _ in range(times):
        block = coin.randrange(SIZE // BLOCK - 20)
        count = coin.choice([1, 1, 3, 20]) if times > 5 else 1
        device = pool.open_export(name)
        start, length = block * BLOCK, count * BLOCK
        if coin.random() < 0.3:
            await device.trim(start, length)
            image[start : start + length] = bytes(length)
        else:
            data = coin.randbytes(16) * (length // 16)
            await device.write(start, data)
            image[start : start + length] = data
        await device.close()


@pytest.mark.parametrize("dense", [True, False])
async def test_a_flattened_clone_needs_no_origin(members: list[MemberDevice], dense: bool) -> None:
    """Goal: all of the origin can be deleted, and the clone keeps its content."""
    async with opened(members) as pool:
        image = await filled(pool, "v", 1, dense=dense)
        await pool.management.create_snapshot("v", "s")
        await pool.management.clone("v", "s", "c")
        await scribble(pool, "c", image, random.Random(2))
        await pool.management.flatten("c")
        await flattened(pool, "c")
        assert parents(pool) == {"v": None, "v@s": "v", "c": None}
        assert pool.management.volume("c").origin is None
        assert await read(pool, "c", 0, SIZE) == image
        await settle(pool)
        await pool.management.delete_volume("v", snapshots=True)
        await settle(pool)
        assert await read(pool, "c", 0, SIZE) == image
        assert len(pool.live.layers) == 1
        with pytest.raises(InvalidArgumentError, match="nothing to flatten"):
            await pool.management.flatten("c")
    await assert_clean(members)
    async with opened(members) as pool:
        assert await read(pool, "c", 0, SIZE) == image
        stored = pool.info().live_bytes
        # A volume with the same content that never had an origin takes as much.
        await pool.management.create_volume("other", SIZE)
        await write(pool, "other", 0, bytes(image))
        await settle(pool)
        twice = pool.info().live_bytes
        assert abs(twice - 2 * stored) < 0.1 * stored + 32 * 1024
    await assert_clean(members)


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("seed", range(3))
async def test_the_snapshots_of_a_flattened_clone_are_independent_too(
    members: list[MemberDevice], dense: bool, seed: int
) -> None:
    """Goal: snapshots made before and during the flattening need nothing of the origin either.

    Method: write pages of all snapshots to disk first, so that their deltas count from bases of the
    origin; delete the origin and read everything again after a restart. Sparse volumes have
    deltas everywhere, dense ones bases.
    """
    coin = random.Random(seed)
    times = 20 if dense else 4
    async with opened(members, FAST) as pool:
        image = await filled(pool, "v", seed, dense=dense)
        await pool.management.create_snapshot("v", "s")
        await pool.management.clone("v", "s", "c")
        images = {}
        for name in ("one", "two"):
            await scribble(pool, "c", image, coin, times)
            await pool.management.create_snapshot("c", name)
            images[f"c@{name}"] = bytes(image)
            await pool.checkpoint()
        await pool.management.flatten("c")
        for i in range(4):
            await scribble(pool, "c", image, coin, times)
            await pool.management.create_snapshot("c", f"more{i}")
            images[f"c@more{i}"] = bytes(image)
            await trio.sleep(0.01)
        await pool.management.clone("c", "one", "grandchild")
        images["grandchild"] = images["c@one"]
        await flattened(pool, "c")
        images["c"] = bytes(image)
        assert parents(pool)["c"] is None
        for restart in (False, True):
            if restart:
                await pool.management.delete_volume("v", snapshots=True)
                await settle(pool)
            for name, wanted in images.items():
                assert await read(pool, name, 0, SIZE) == wanted, (name, restart)
    await assert_clean(members)
    async with opened(members) as pool:
        for name, wanted in images.items():
            assert await read(pool, name, 0, SIZE) == wanted, name
        for name in ("one", "more1", "two"):
            await pool.management.delete_snapshot("c", name)
        await settle(pool)
        for name in ("c", "c@more3", "grandchild"):
            assert await read(pool, name, 0, SIZE) == images[name], name
    await assert_clean(members)


async def test_writes_of_clients_win(
    members: list[MemberDevice], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: a copy is never logged after a client's write of its block, and no client waits for it.

    Method: many writers at once, while each read for a copy is slow.
    """
    async with opened(members, FAST) as pool:
        image = await filled(pool, "v", 7)
        await pool.management.clone("v", None, "c")
        reader = pool.flattener._reader
        slow_reader = type("Slow", (), {})()

        async def slowly(layer, block, count):  # type: ignore[no-untyped-def]
            data = await reader.read(layer, block, count)
            await trio.sleep(0.002)
            return data

        slow_reader.read = slowly
        pool.flattener._reader = slow_reader
        done = trio.Event()
        written = 0

        async def keep_writing(seed: int) -> None:
            nonlocal written
            coin = random.Random(seed)
            device = pool.open_export("c")
            mine = range(seed, SIZE // BLOCK, 8)
            while not done.is_set():
                block = coin.choice(mine)
                data = coin.randbytes(8) * 512
                if not device.try_write(block * BLOCK, data):
                    await device.write(block * BLOCK, data)
                image[block * BLOCK : (block + 1) * BLOCK] = data
                written += 1
                await trio.sleep(0.0005)
            await device.close()

        async with trio.open_nursery() as nursery:
            for seed in range(8):
                nursery.start_soon(keep_writing, seed)
            await pool.management.flatten("c")
            await flattened(pool, "c")
            done.set()
        assert written > 100
        assert await read(pool, "c", 0, SIZE) == image
    await assert_clean(members)


async def test_flattening_continues_after_a_restart(members: list[MemberDevice]) -> None:
    async with opened(members) as pool:
        image = await filled(pool, "v", 3)
        await pool.management.create_snapshot("v", "s")
        await pool.management.clone("v", "s", "c")
        held = Held(pool)
        await pool.management.flatten("c")
        await begun(held)
        assert pool.management.volume("c").flattening is not None
    async with opened(members) as pool:
        assert pool.management.volume("c").flattening is not None
        await flattened(pool, "c")
        assert parents(pool)["c"] is None
        assert await read(pool, "c", 0, SIZE) == image
    await assert_clean(members)


async def test_flattening_can_be_stopped(members: list[MemberDevice]) -> None:
    async with opened(members) as pool:
        image = await filled(pool, "v", 4)
        await pool.management.create_snapshot("v", "s")
        await pool.management.clone("v", "s", "c")
        with pytest.raises(InvalidArgumentError, match="not being flattened"):
            await pool.management.flatten("c", on=False)
        held = Held(pool)
        await pool.management.flatten("c")
        await begun(held)
        await pool.management.flatten("c", on=False)
        assert pool.management.volume("c").flattening is None
        held.gate.set()
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert pool.management.volume("c").origin == "v@s"
        assert await read(pool, "c", 0, SIZE) == image
    await assert_clean(members)


@pytest.mark.parametrize("seed", range(6))
async def test_the_family_may_change_meanwhile(members: list[MemberDevice], seed: int) -> None:
    """Goal: no change of the volume, its snapshots or its origin harms the content.

    Method: rename, promote, roll back, delete, snapshot at random while the volume is flattened.
    """
    coin = random.Random(seed)
    async with opened(members, FAST) as pool:
        image = await filled(pool, "v", seed)
        await pool.management.create_snapshot("v", "s")
        await pool.management.clone("v", "s", "c")
        await scribble(pool, "c", image, coin)
        await pool.management.create_snapshot("c", "mine")
        kept = bytes(image)
        name = "c"
        await pool.management.flatten(name)
        for i in range(12):
            action = coin.choice(
                ["rename", "promote", "rollback", "snapshot", "drop", "write", "origin"]
            )
            if action == "rename":
                await pool.management.rename_volume(name, f"c{i}")
                name = f"c{i}"
            elif action == "promote":
                with suppress(InvalidArgumentError, NotFoundError):
                    await pool.management.promote(coin.choice([name, "v"]))
            elif action == "rollback" and any(
                s.name == "mine" for s in pool.management.snapshots(name)
            ):
                await pool.management.rollback(name, "mine")
                image = bytearray(kept)
            elif action == "origin" and any(v.name == "v" for v in pool.management.volumes()):
                await pool.management.delete_volume("v", snapshots=True)
            elif action == "snapshot":
                await pool.management.create_snapshot(name, f"t{i}")
            elif action == "drop":
                names = [s.name for s in pool.management.snapshots(name) if s.name.startswith("t")]
                if names:
                    await pool.management.delete_snapshot(name, coin.choice(names))
            else:
                await scribble(pool, name, image, coin)
            await trio.sleep(coin.choice([0, 0.01, 0.03]))
        await flattened(pool, name)
        assert await read(pool, name, 0, SIZE) == image
        await pool.management.delete_volume(name, snapshots=True)
        for volume in pool.management.volumes():
            await pool.management.delete_volume(volume.name, snapshots=True)
        await settle(pool)
        assert pool.live.layers == {}
    await assert_clean(members)


async def test_a_full_pool_keeps_room_for_clients(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    members = await new_members(mib=64)
    monkeypatch.setattr(flatten, "RETRY_S", 0.05)
    async with opened(members, FAST) as pool:
        coin = random.Random(1)
        for name in ("v", "w"):
            await pool.management.create_volume(name, 22 * MIB)
            for i in range(20):
                await write(pool, name, i * MIB, coin.randbytes(MIB))
        await pool.management.create_snapshot("v", "s")
        await pool.management.clone("v", "s", "c")
        await pool.management.flatten("c")
        with trio.fail_after(HANG_S):
            while (state := pool.management.volume("c").flattening) and state.error is None:
                await trio.sleep(0.01)
        assert state is not None
        assert "copies wait for room" in str(state.error)
        # The cleaner may hold all free space for a moment; a client waits then, and gets some.
        await write(pool, "w", 20 * MIB, coin.randbytes(MIB))
        await pool.management.delete_volume("w")
        await flattened(pool, "c")
        assert parents(pool)["c"] is None
    assert "flattening c is interrupted" in caplog.text
    caplog.clear()
    await assert_clean(members)


def family_that_merges() -> Catalogue:
    """A clone whose branch layer, 3, is merged into its head, 4: its only snapshot was deleted."""
    catalogue = Catalogue()
    family: list[Operation] = [
        {"op": "create", "v": "v", "size": MIB, "head": 1, "at": "now"},
        {"op": "snapshot", "v": "v", "snap": "s", "head": 2, "at": "now"},
        {"op": "clone", "v": "c", "from": "v", "snap": "s", "head": 3, "at": "now"},
        {"op": "snapshot", "v": "c", "snap": "t", "head": 4, "at": "now"},
        {"op": "unsnapshot", "v": "c", "snap": "t"},
    ]
    for operation in family:
        operations.apply(catalogue, operation)
    assert catalogue.merging() == {3: 4}
    return catalogue


FLATTENING: list[Operation] = [
    {"op": "flatten", "v": "c", "begin": True, "layers": [3]},
    {"op": "sever", "v": "c", "layers": [3]},
]


@pytest.mark.parametrize("carried_out", range(3))
def test_flattening_gives_the_same_catalogue_whenever_its_layer_is_merged(carried_out: int) -> None:
    """Goal: an operation in the log is applicable, with the same result, although a checkpoint that
    was under way has merged the layer that the operation names.
    """
    other = family_that_merges()
    for operation in FLATTENING:
        operations.apply(other, operation)
    other.remove({3: 4}, 1)
    catalogue = family_that_merges()
    for number, operation in enumerate(FLATTENING):
        if number == carried_out:
            catalogue.remove({3: 4}, 1)
        operations.apply(catalogue, operation)
    if carried_out == len(FLATTENING):
        catalogue.remove({3: 4}, 1)
    assert catalogue.pack() == other.pack()
    assert (catalogue.layers[4].parent, catalogue.layers[4].copied) == (0, True)
    assert catalogue.layers[1].children == 1
