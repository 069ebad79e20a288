"""Snapshots sent from pool to pool: the content that arrives, and the refusals."""

import random
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import pytest

from storage.errors import BaseMissingError, ExistsError, InUseError, InvalidArgumentError
from storage.pool import Pool
from storage.transfer.send import WINDOW_BYTES
from storage.transfer.stream import DATA_BYTES_MAX
from tests.unit.storage.checkpoint.test_merge import Family
from tests.unit.storage.pools import MIB, assert_clean, new_members, opened, read, write
from tests.unit.storage.streams import receive, sent

BLOCK = 4096


@asynccontextmanager
async def two_pools(mib: int = 64) -> AsyncIterator[tuple[Pool, Pool]]:
    ours, theirs = await new_members(mib=mib), await new_members(mib=mib)
    async with opened(ours) as one, opened(theirs) as two:
        yield one, two
    await assert_clean(ours)
    await assert_clean(theirs)


async def content(pool: Pool, name: str) -> bytes:
    device = pool.open_export(name)
    size_bytes = device.size_bytes
    await device.close()
    return await read(pool, name, 0, size_bytes)


async def new_volume(pool: Pool, name: str = "v", mib: int = 4) -> None:
    """Make a volume with data and a snapshot `one`."""
    await pool.management.create_volume(name, mib * MIB)
    await write(pool, name, 0, random.Random(name).randbytes(MIB))
    await pool.management.create_snapshot(name, "one")


# Content


async def test_a_chain_of_snapshots_arrives() -> None:
    async with two_pools() as (ours, theirs):
        await new_volume(ours, mib=8)
        await write(ours, "v", 5 * MIB, b"text " * 50_000)
        await receive(theirs, await sent(ours, "v@one"), "w")
        assert [v.name for v in theirs.management.volumes()] == ["w"]
        assert await content(theirs, "w") == await content(ours, "v@one")
        await write(ours, "v", 100, b"changed")
        device = ours.open_export("v")
        await device.trim(MIB // 2, MIB)
        await device.close()
        await ours.management.create_snapshot("v", "two")
        stream = await sent(ours, "v@two", since="v@one")
        assert await receive(theirs, stream, "w", "zwei", piece=7) == "w@zwei"
        for mine, other in (("v@one", "w@one"), ("v@two", "w@zwei"), ("v@two", "w")):
            assert await content(theirs, other) == await content(ours, mine)
        by_name = {one.name: one for one in theirs.management.snapshots("w")}
        assert by_name["zwei"].uuid == ours.management.snapshots("v")[1].uuid
        assert by_name["one"].created == ours.management.snapshots("v")[0].created
        # And back again, into the pool that it came from.
        await write(theirs, "w", MIB, b"theirs")
        await theirs.management.create_snapshot("w", "three")
        await receive(ours, await sent(theirs, "w@three", since="w@zwei"), "v")
        assert await content(ours, "v@three") == await content(theirs, "w")


@pytest.mark.parametrize("seed", range(5))
async def test_the_difference_of_any_two_snapshots_arrives(seed: int) -> None:
    """Goal: after clones, rollbacks, promotions, merges and so on, a stream turns any snapshot into
    any other.

    Method: histories as in the tests of merges. In another pool, receive one snapshot, then the
    difference to a second; both snapshots and the volume read as they should.
    """
    coin = random.Random(seed)
    async with two_pools(256) as (ours, theirs):
        family = Family(ours, seed)
        for turn in range(12):
            for _ in range(12):
                await family.step()
            if len(family.snapshots) < 2:
                continue
            one, two = (f"{v}@{s}" for v, s in coin.sample(sorted(family.snapshots), 2))
            await receive(theirs, await sent(ours, one), f"t{turn}", "one")
            await receive(theirs, await sent(ours, two, since=one), f"t{turn}", "two")
            for mine, other in ((one, "@one"), (two, "@two"), (two, "")):
                assert await content(theirs, f"t{turn}{other}") == await content(ours, mine)
            if turn % 3:
                await theirs.management.delete_volume(f"t{turn}", snapshots=True)


async def test_the_difference_to_a_rolled_back_snapshot_arrives() -> None:
    """The base is no ancestor of the snapshot any more; the difference to it is still right."""
    async with two_pools() as (ours, theirs):
        await new_volume(ours)
        await write(ours, "v", 0, b"dropped" * BLOCK)
        await write(ours, "v", 2 * MIB, b"dropped too")
        await ours.management.create_snapshot("v", "two")
        await ours.management.rollback("v", "one")
        await write(ours, "v", 3 * MIB, b"instead")
        await ours.management.create_snapshot("v", "three")
        await receive(theirs, await sent(ours, "v@two"), "v")
        await receive(theirs, await sent(ours, "v@three", since="v@two"), "v")
        assert await content(theirs, "v") == await content(ours, "v")


async def test_a_clone_arrives_as_a_clone() -> None:
    """The base is found by its identity, not by the names of snapshot and volume."""
    async with two_pools() as (ours, theirs):
        await new_volume(ours)
        await ours.management.clone("v", "one", "c")
        await write(ours, "c", 0, b"cloned")
        await ours.management.create_snapshot("c", "mine")
        await receive(theirs, await sent(ours, "v@one"), "golden", "image")
        stream = await sent(ours, "c@mine", since="v@one")
        assert len(stream) < 5 * BLOCK
        await receive(theirs, stream, "c")
        assert theirs.management.volume("c").origin == "golden@image"
        assert await content(theirs, "c") == await content(ours, "c")
        await theirs.checkpoint()
        assert theirs.info().live_bytes < 1.2 * MIB


async def test_sizes_follow_and_growing_again_shows_zeroes() -> None:
    """R12, in the receiving pool."""
    async with two_pools() as (ours, theirs):
        await new_volume(ours)
        await write(ours, "v", 4 * MIB - BLOCK, b"secret" * 600)
        await ours.management.create_snapshot("v", "two")
        await receive(theirs, await sent(ours, "v@two"), "v")
        await ours.management.resize_volume("v", MIB, shrink=True)
        await ours.management.create_snapshot("v", "small")
        await receive(theirs, await sent(ours, "v@small", since="v@two"), "v")
        assert theirs.management.volume("v").size_bytes == MIB
        await theirs.management.resize_volume("v", 4 * MIB)
        assert await content(theirs, "v") == await content(ours, "v@small") + bytes(3 * MIB)
        await theirs.management.rollback("v", "small")
        await ours.management.resize_volume("v", 4 * MIB)
        await ours.management.create_snapshot("v", "large")
        await receive(theirs, await sent(ours, "v@large", since="v@small"), "v")
        assert await content(theirs, "v") == await content(ours, "v")


# Size


async def test_a_stream_is_as_long_as_the_changed_blocks() -> None:
    """Goal: neither unchanged blocks nor ranges that were never written are sent."""
    async with two_pools(256) as (ours, _):
        await ours.management.create_volume("v", 1 << 50)
        coin = random.Random(3)
        for page in range(200):
            await write(ours, "v", page * 4 * MIB, coin.randbytes(16 * BLOCK))
        await ours.management.create_snapshot("v", "one")
        assert abs(len(await sent(ours, "v@one")) - 200 * (16 * BLOCK + 32)) < 1000
        for page in coin.sample(range(200), 50):
            await write(ours, "v", page * 4 * MIB + 3 * BLOCK, coin.randbytes(BLOCK))
        await ours.management.create_snapshot("v", "two")
        assert abs(len(await sent(ours, "v@two", since="v@one")) - 50 * (BLOCK + 32)) < 1000
        await write(ours, "v", 0, b"text " * 200_000)
        await ours.management.create_snapshot("v", "three")
        assert len(await sent(ours, "v@three", since="v@two")) < 20_000
        device = ours.open_export("v")
        await device.trim(0, 1 << 50)
        await device.close()
        await ours.management.create_snapshot("v", "none")
        stream = await sent(ours, "v@none", since="v@three")
        assert len(stream) < 200 * 3 * 32 + 1000
        await ours.management.create_snapshot("v", "same")
        assert len(await sent(ours, "v@same", since="v@none")) < 300
        assert len(await sent(ours, "v@same")) < 300


async def test_a_stream_comes_in_bounded_pieces() -> None:
    """Memory is bounded by windows, and the reader sets the pace."""
    async with two_pools() as (ours, _):
        await ours.management.create_volume("v", 32 * MIB)
        await write(ours, "v", 0, random.Random(1).randbytes(20 * MIB))
        await ours.management.create_snapshot("v", "one")
        sending = await ours.transfers.send("v@one")
        async with aclosing(sending.chunks()) as chunks:
            sizes = [len(chunk) async for chunk in chunks]
        await sending.close()
        assert max(sizes) <= WINDOW_BYTES + DATA_BYTES_MAX + 512 * 32
        assert len(sizes) >= 10


async def test_a_stream_has_the_content_of_its_snapshots_despite_changes() -> None:
    """Writes, snapshots, checkpoints and deletions go on while the stream is sent."""
    async with two_pools(128) as (ours, theirs):
        await new_volume(ours, mib=32)
        for step in range(8):
            await write(ours, "v", step * 3 * MIB, random.Random(step).randbytes(2 * MIB))
            await ours.management.create_snapshot("v", f"s{step}")
        expected = await content(ours, "v@s7")
        sending = await ours.transfers.send("v@s7", since="v@one")
        parts = []
        async with aclosing(sending.chunks()) as chunks:
            async for chunk in chunks:
                parts.append(chunk)
                step = len(parts)
                await write(ours, "v", step * MIB, random.Random(-step).randbytes(MIB))
                await ours.management.create_snapshot("v", f"later{step}")
                if step < 7:
                    await ours.management.delete_snapshot("v", f"s{step - 1}")
                await ours.checkpoint()
        for name in ("s7", "one"):
            with pytest.raises(InUseError):
                await ours.management.delete_snapshot("v", name)
        await sending.close()
        await receive(theirs, await sent(ours, "v@one"), "v")
        await receive(theirs, b"".join(parts), "v")
        assert await content(theirs, "v") == expected


# Refusals


async def test_a_difference_needs_its_base() -> None:
    async with two_pools() as (ours, theirs):
        await new_volume(ours)
        await ours.management.create_snapshot("v", "two")
        stream = await sent(ours, "v@two", since="v@one")
        uuid = ours.management.snapshots("v")[0].uuid
        with pytest.raises(BaseMissingError, match=rf"v@one \({uuid}\), which this pool does not"):
            await receive(theirs, stream, "v")
        await new_volume(theirs)  # the same name and the same bytes, but another identity
        with pytest.raises(BaseMissingError, match="which volume v does not have"):
            await receive(theirs, stream, "v")
        assert [v.name for v in theirs.management.volumes()] == ["v"]


async def test_a_snapshot_that_cannot_be_received_is_refused() -> None:
    async with two_pools() as (ours, theirs):
        await new_volume(ours)
        whole = await sent(ours, "v@one")
        await receive(theirs, whole, "v")
        with pytest.raises(ExistsError, match="has this snapshot already, as v@one"):
            await receive(theirs, whole, "v")
        await write(ours, "v", 0, b"x")
        await ours.management.create_snapshot("v", "two")
        with pytest.raises(ExistsError, match="volume v exists"):
            await receive(theirs, await sent(ours, "v@two"), "v")
        stream = await sent(ours, "v@two", since="v@one")
        with pytest.raises(ExistsError, match="another snapshot 'one'"):
            await receive(theirs, stream, "v", "one")
        for name in ("a/b", "x" * 120):
            with pytest.raises(InvalidArgumentError):
                await receive(theirs, whole, name)
        handle = theirs.open_export("v")
        with pytest.raises(InUseError, match="stop its clients"):
            await receive(theirs, stream, "v")
        await handle.close()
        assert [(s.volume, s.name) for s in theirs.management.snapshots()] == [("v", "one")]
        await receive(theirs, stream, "v")


async def test_data_written_in_the_receiving_volume_is_not_dropped_unasked() -> None:
    async with two_pools() as (ours, theirs):
        await new_volume(ours)
        await receive(theirs, await sent(ours, "v@one"), "v")
        await write(ours, "v", 0, b"ours")
        await ours.management.create_snapshot("v", "two")
        stream = await sent(ours, "v@two", since="v@one")
        await write(theirs, "v", 0, b"theirs")
        with pytest.raises(InUseError, match="rollback"):
            await receive(theirs, stream, "v")
        # A snapshot of it that is deleted again does not keep it either.
        await theirs.management.create_snapshot("v", "kept")
        await theirs.management.delete_snapshot("v", "kept")
        with pytest.raises(InUseError, match="--discard"):
            await receive(theirs, stream, "v")
        assert await read(theirs, "v", 0, 6) == b"theirs"
        await theirs.management.create_snapshot("v", "kept")
        await receive(theirs, stream, "v")
        assert await read(theirs, "v", 0, 4) == b"ours"
        assert await read(theirs, "v@kept", 0, 6) == b"theirs"
        await write(theirs, "v", 0, b"again")
        await write(ours, "v", BLOCK, b"more")
        await ours.management.create_snapshot("v", "three")
        stream = await sent(ours, "v@three", since="v@two")
        await receive(theirs, stream, "v", discard=True)
        assert await content(theirs, "v") == await content(ours, "v")


async def test_only_snapshots_can_be_sent() -> None:
    async with two_pools() as (ours, _):
        await new_volume(ours)
        for name, since, words in (
            ("v", None, "is no snapshot"),
            ("v@one", "v", "is no snapshot"),
            ("v@one", "v@one", "does not differ from itself"),
        ):
            with pytest.raises(InvalidArgumentError, match=words):
                await ours.transfers.send(name, since=since)
