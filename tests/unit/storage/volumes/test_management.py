"""Renaming, promoting, forking, protecting, labels, groups and shrinking."""

import random

import pytest
import trio
import trio.testing

from storage.errors import ExistsError, InUseError, InvalidArgumentError, NotFoundError
from storage.pool import Pool
from tests.unit.storage.pools import MIB, assert_clean, new_members, opened, read, write

BLOCK = 4096


async def test_a_clone_without_a_snapshot_has_the_present_content() -> None:
    members = await new_members()
    async with opened(members) as pool:
        await pool.management.create_volume("v", MIB)
        await write(pool, "v", 0, b"a" * BLOCK)  # in memory only
        device = pool.open_export("v")
        made = await pool.management.clone("v", None, "c")
        assert (made.origin, made.size_bytes) == ("v", MIB)
        await device.write(0, b"b" * BLOCK)
        await device.close()
        assert await read(pool, "c", 0, BLOCK) == b"a" * BLOCK
        await write(pool, "c", BLOCK, b"c" * BLOCK)
        assert await read(pool, "v", 0, 2 * BLOCK) == b"b" * BLOCK + bytes(BLOCK)
        await pool.management.delete_volume("v")
        assert pool.management.volume("c").origin is None
    async with opened(members) as pool:
        assert await read(pool, "c", 0, 2 * BLOCK) == b"a" * BLOCK + b"c" * BLOCK
    await assert_clean(members)


async def test_a_group_of_snapshots_is_one_commit() -> None:
    members = await new_members()
    async with opened(members) as pool:
        for name in "ab":
            await pool.management.create_volume(name, MIB)
            await write(pool, name, 0, name.encode() * BLOCK)
        commit = pool.durable_commit
        made = await pool.management.create_snapshots(["b", "a"], "g")
        assert [(one.volume, one.name) for one in made] == [("b", "g"), ("a", "g")]
        assert pool.durable_commit == commit + 1, "one commit for all"
        await write(pool, "a", 0, b"x" * BLOCK)
        assert await read(pool, "a@g", 0, BLOCK) == b"a" * BLOCK
        with pytest.raises(ExistsError):
            await pool.management.create_snapshots(["a", "b"], "g")
        with pytest.raises(NotFoundError):
            await pool.management.create_snapshots(["a", "none"], "h")
        for bad in ([], ["a", "a"]):
            with pytest.raises(InvalidArgumentError, match="each once"):
                await pool.management.create_snapshots(bad, "h")
        assert len(pool.management.snapshots()) == 2
    await assert_clean(members)


async def test_origins_follow_renamed_volumes_and_snapshots() -> None:
    members = await new_members()
    async with opened(members) as pool:
        await pool.management.create_volume("v", MIB)
        for snapshot in ("one", "two", "three"):
            await pool.management.create_snapshot("v", snapshot)
        await pool.management.clone("v", "two", "c")
        await pool.management.clone("c", None, "d")
        await pool.management.rename_snapshot("v", "two", "zwei")
        assert [s.name for s in pool.management.snapshots("v")] == ["one", "zwei", "three"]
        assert pool.management.volume("c").origin == "v@zwei"
        await pool.management.rename_volume("v", "w")
        await pool.management.rename_volume("c", "e")
        assert pool.management.volume("e").origin == "w@zwei"
        assert pool.management.volume("d").origin == "e"
        for refused, error in (
            (pool.management.rename_volume("w", "e"), ExistsError),
            (pool.management.rename_volume("w", "a/b"), InvalidArgumentError),
            (pool.management.rename_volume("v", "x"), NotFoundError),
            (pool.management.rename_snapshot("w", "one", "three"), ExistsError),
            (pool.management.rename_snapshot("w", "two", "x"), NotFoundError),
        ):
            with pytest.raises(error):
                await refused
    async with opened(members) as pool:
        assert [v.name for v in pool.management.volumes()] == ["d", "e", "w"]
    await assert_clean(members)


async def test_a_promoted_clone_gets_the_common_snapshots_and_becomes_the_origin() -> None:
    members = await new_members()
    async with opened(members) as pool:
        await pool.management.create_volume("v", MIB)
        for snapshot in ("one", "two", "three"):
            await write(pool, "v", 0, snapshot.encode().ljust(BLOCK))
            await pool.management.create_snapshot("v", snapshot)
        await pool.management.clone("v", "two", "c")
        await pool.management.clone("v", "one", "other")
        await pool.management.create_snapshot("c", "mine")
        promoted = await pool.management.promote("c")
        assert promoted.origin is None
        assert [s.name for s in pool.management.snapshots("c")] == ["one", "two", "mine"]
        assert [s.name for s in pool.management.snapshots("v")] == ["three"]
        assert pool.management.volume("v").origin == "c@two"
        assert pool.management.volume("other").origin == "c@one"
        assert await read(pool, "c@one", 0, 3) == b"one"
        await pool.management.delete_volume("v", snapshots=True)
        assert await read(pool, "c@two", 0, 3) == b"two"
        with pytest.raises(InvalidArgumentError, match="stands on no snapshot"):
            await pool.management.promote("c")
    await assert_clean(members)


async def test_protected_volumes_and_snapshots_are_not_deleted() -> None:
    members = await new_members()
    async with opened(members) as pool:
        await pool.management.create_volume("v", MIB)
        await pool.management.create_snapshot("v", "s")
        await pool.management.note("v@s", {"protected": True, "labels": {"tier": "gold", "x": "1"}})
        await pool.management.note("v", {"description": "the \u00fc one", "labels": {"a": "b"}})
        await pool.management.note("v@s", {"labels": {"x": ""}})
        for refused in (
            pool.management.delete_snapshot("v", "s"),
            pool.management.delete_volume("v", snapshots=True),
        ):
            with pytest.raises(InUseError, match="v@s is protected"):
                await refused
        await pool.checkpoint()
    async with opened(members) as pool:
        [snapshot] = pool.management.snapshots("v")
        assert (snapshot.protected, snapshot.labels) == (True, {"tier": "gold"})
        assert pool.management.volume("v").description == "the \u00fc one"
        await pool.management.note("v@s", {"protected": False})
        await pool.management.delete_snapshot("v", "s")
    await assert_clean(members)


@pytest.mark.parametrize(
    "notes",
    [
        {"description": "x" * 1025},
        {"description": "a\nb"},
        {"description": 3},
        {"labels": {"": "x"}},
        {"labels": {"a b": "x"}},
        {"labels": {"a": "x" * 257}},
        {"labels": {"a": 1}},
        {"labels": ["a"]},
        {"labels": {f"l{i}": "x" for i in range(33)}},
        {"protected": "yes"},
        {"colour": "red"},
        {"limits": 3},
        {"limits": {"iops": 3}},
        {"limits": {"requests_per_s": -1}},
        {"limits": {"requests_per_s": 1.5}},
        {"limits": {"bytes_per_s": True}},
        {"limits": {"bytes_per_s": 1 << 51}},
        {"limits": {"burst_s": float("nan")}},
    ],
)
async def test_odd_notes_are_refused(notes: dict[str, object]) -> None:
    async with opened(await new_members()) as pool:
        await pool.management.create_volume("v", MIB)
        with pytest.raises(InvalidArgumentError):
            await pool.management.note("v", notes)


async def test_growing_after_shrinking_shows_zeroes() -> None:
    """R12."""
    members = await new_members()
    data = random.Random(1).randbytes(MIB)
    async with opened(members) as pool:
        await pool.management.create_volume("v", MIB)
        await write(pool, "v", 0, data)
        await pool.management.create_snapshot("v", "s")
        with pytest.raises(InvalidArgumentError, match="would be lost"):
            await pool.management.resize_volume("v", 5 * BLOCK)
        assert (
            await pool.management.resize_volume("v", 5 * BLOCK, shrink=True)
        ).size_bytes == 5 * BLOCK
    async with opened(members) as pool:
        await pool.management.resize_volume("v", 2 * MIB)
        assert await read(pool, "v", 0, 2 * MIB) == data[: 5 * BLOCK] + bytes(2 * MIB - 5 * BLOCK)
        assert await read(pool, "v@s", 0, MIB) == data
    await assert_clean(members)


async def test_limits_count_at_once_and_last(autojump_clock: trio.testing.MockClock) -> None:
    members = await new_members()

    async def seconds_for(pool: Pool, name: str, writes: int) -> float:
        started = trio.current_time()
        device = pool.open_export(name)
        for i in range(writes):
            if not device.try_write(i * BLOCK, bytes(BLOCK)):
                await device.write(i * BLOCK, bytes(BLOCK))
        await device.close()
        return trio.current_time() - started

    async with opened(members) as pool:
        await pool.management.create_volume("v", MIB)
        await pool.management.create_snapshot("v", "s")
        with pytest.raises(InvalidArgumentError, match="limits count for volumes"):
            await pool.management.note("v@s", {"limits": {"requests_per_s": 10}})
        assert await seconds_for(pool, "v", 100) < 1
        device = pool.open_export("v")
        await pool.management.note("v", {"limits": {"requests_per_s": 10, "burst_s": 0.5}})
        assert 9 <= await seconds_for(pool, "v", 100) <= 10.1, "also while it is open elsewhere"
        await device.close()
    async with opened(members) as pool:
        assert pool.management.volume("v").limits == {"requests_per_s": 10, "burst_s": 0.5}
        assert 9 <= await seconds_for(pool, "v", 100) <= 10.1
        await pool.management.note(
            "v", {"limits": {"requests_per_s": 0, "bytes_per_s": 10 * BLOCK}}
        )
        assert 9 <= await seconds_for(pool, "v", 100) <= 10.1
        device = pool.open_export("v")
        started = trio.current_time()
        for _ in range(20):
            if device.try_read(0, BLOCK) is None:
                await device.read(0, BLOCK)
        assert trio.current_time() - started > 1
        await device.close()
        await pool.management.note("v", {"limits": {"bytes_per_s": 0}})
        assert await seconds_for(pool, "v", 100) < 1
    await assert_clean(members)
