"""Adding and growing members while a pool is served, over real files, also when interrupted."""

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from admin.config.load import Config, MemberConfig
from admin.daemon.devices import check_offline, create, look
from admin.daemon.membership import Membership
from admin.daemon.pool_record import (
    AddedRecord,
    PoolRecord,
    choose_config,
    new_record,
    read_record,
    with_added,
    write_record,
)
from admin.daemon.run import _opened_pool
from admin.daemon.start_plan import Content, Found, make_plan, set_aside
from admin.errors import RefusedError
from admin.home import Home
from blockdev.errors import BusyError, DeviceError
from storage.errors import (
    ExistsError,
    ForeignMemberError,
    InvalidArgumentError,
    MemberTooSmallError,
    MissingMemberError,
    NotFoundError,
)
from storage.pool import Pool

MIB = 1 << 20
CONFIG = """\
format = 1
[[member]]
path = "first.img"
size = "64M"
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "pool.toml"
    path.write_text(CONFIG)
    return path


@asynccontextmanager
async def served(home: Home, file: Path | None) -> AsyncIterator[tuple[Pool, Membership]]:
    """A pool, opened or created as `admin.daemon.run` does it, and its members."""
    home.pool_dir.mkdir(exist_ok=True)
    config = choose_config(home, file)
    record = read_record(home)
    found, _ = set_aside(await look(config.members))
    plan = make_plan(found, record)
    if plan.create:
        await create(config, plan)
        plan = make_plan(await look(config.members), record)
    if record is None:
        identity = next(one.pool for one in plan.use if one.pool is not None)
        record = replace(new_record(identity), config=str(file) if file else None)
        write_record(home, record)
    async with _opened_pool(config, plan, {}) as (pool, devices):
        membership = Membership(pool, devices, home, record)
        membership.settle()
        yield pool, membership


def names(pool: Pool) -> list[str]:
    return [Path(info.name).name for info in pool.info().members]


async def test_an_added_member_is_opened_at_the_next_start(
    home: Home, config: Path, tmp_path: Path
) -> None:
    second = tmp_path / "second.img"
    async with served(home, config) as (pool, members):
        info = await members.add(second, 128 * MIB, "shelf", force=False)
        assert (info.name, info.host, info.size_bytes) == (str(second), "shelf", 128 * MIB)
        assert second.stat().st_blocks * 512 < 2 * MIB
        await pool.management.create_volume("v", MIB)
    async with served(home, None) as (pool, members):
        assert names(pool) == ["first.img", "second.img"]
        assert pool.info().members[1].host == "shelf"
        third = await members.add(tmp_path / "third.img", 64 * MIB, "local", force=False)
    record = read_record(home)
    assert record is not None
    assert [(Path(one.path).name, one.joined) for one in record.added] == [
        ("second.img", True), ("third.img", True),
    ]  # fmt: skip
    assert record.members[-1].uuid == third.uuid
    config.write_text(CONFIG + '[[member]]\npath = "second.img"\n')
    async with served(home, None) as (pool, _):
        assert names(pool) == ["first.img", "second.img", "third.img"]
    report = await check_offline(choose_config(home, None), lambda what, done, total: None)
    assert report.damage == []
    (tmp_path / "third.img").rename(tmp_path / "away.img")
    with pytest.raises(MissingMemberError, match=r"nothing is at .*third\.img"):
        async with served(home, None):
            pass


async def test_the_built_in_configuration_opens_an_added_member(home: Home, tmp_path: Path) -> None:
    async with served(home, None) as (_, members):
        await members.add(tmp_path / "more.img", 512 * MIB, "local", force=False)
    async with served(home, None) as (pool, _):
        assert names(pool) == ["member.img", "more.img"]


async def test_adding_interrupted_before_the_pool_took_the_member(
    home: Home, config: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Goal: whatever the device holds, the pool opens without it, and it can be added again."""
    second = tmp_path / "second.img"
    async with served(home, config) as (pool, members):
        with monkeypatch.context() as patch:

            async def fails(member: object) -> None:
                raise DeviceError("the power went")

            patch.setattr(pool.roster, "admit", fails)
            with pytest.raises(DeviceError, match="power"):
                await members.add(second, 64 * MIB, "local", force=False)
    for left in ("about to be added", "blank", "garbage", "gone"):
        record = read_record(home)
        assert record is not None
        added = [AddedRecord(str(second), "local", joined=False)]
        write_record(home, replace(record, added=added))
        if left == "blank":
            os.truncate(second, 0)
            os.truncate(second, 64 * MIB)
        elif left == "garbage":
            second.write_bytes(b"x" * MIB)
        elif left == "gone":
            second.unlink()
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            async with served(home, None) as (pool, members):
                assert names(pool) == ["first.img"]
        assert f"it is no member: path={second}" in caplog.text
        record = read_record(home)
        assert record is not None
        assert record.added == []
    async with served(home, None) as (pool, members):
        await members.add(second, 64 * MIB, "local", force=False)
        assert names(pool) == ["first.img", "second.img"]


async def test_adding_interrupted_after_the_pool_took_the_member(
    home: Home, config: Path, tmp_path: Path
) -> None:
    """Goal: a device that the record calls undecided is opened as the member that it is."""
    second = tmp_path / "second.img"
    async with served(home, config) as (_, members):
        await members.add(second, 64 * MIB, "local", force=False)
    record = read_record(home)
    assert record is not None
    added = [replace(one, joined=False) for one in record.added]
    write_record(home, replace(record, added=added, members=record.members[:1]))
    report = await check_offline(choose_config(home, None), lambda what, done, total: None)
    assert report.damage == []
    async with served(home, None) as (pool, _):
        assert names(pool) == ["first.img", "second.img"]
    record = read_record(home)
    assert record is not None
    assert [one.joined for one in record.added] == [True]
    assert len(record.members) == 2


async def test_devices_that_cannot_be_members_are_refused(
    home: Home, config: Path, tmp_path: Path
) -> None:
    other_home = Home(tmp_path / "other")
    other_home.path.mkdir()
    theirs = tmp_path / "theirs.toml"
    theirs.write_text(CONFIG.replace("first", "theirs"))
    async with served(other_home, theirs):
        pass
    data = tmp_path / "data.img"
    data.write_bytes(b"precious" * (8 * MIB))
    link = tmp_path / "link.img"
    hard = tmp_path / "hard.img"
    async with served(home, config) as (pool, members):

        async def refused(name: str, size_bytes: int | None = None, *, force: bool = False) -> None:
            await members.add(tmp_path / name, size_bytes, "local", force=force)

        link.symlink_to(tmp_path / "first.img")
        hard.hardlink_to(tmp_path / "first.img")
        with pytest.raises(ExistsError, match="already"):
            await refused("first.img")
        with pytest.raises(ExistsError, match="already"):
            await refused("link.img")
        with pytest.raises(BusyError):
            await refused("hard.img")
        for force in (False, True):
            with pytest.raises(ForeignMemberError, match="of pool"):
                await refused("theirs.img", force=force)
        with pytest.raises(RefusedError, match="--force"):
            await refused("data.img")
        assert data.read_bytes()[:8] == b"precious"
        with pytest.raises(InvalidArgumentError, match="has a size already"):
            await refused("data.img", MIB, force=True)
        with pytest.raises(InvalidArgumentError, match="no size yet"):
            await refused("none.img")
        with pytest.raises(InvalidArgumentError, match="steps of 4K"):
            await refused("none.img", 5000)
        with pytest.raises(RefusedError, match="does not exist"):
            await refused("nowhere/none.img", 64 * MIB)
        with pytest.raises(RefusedError, match="attach the disk"):
            await members.add(Path("/dev/none-such"), None, "local", force=False)
        with pytest.raises(MemberTooSmallError):
            await refused("small.img", 2 * MIB)
        assert not (tmp_path / "small.img").exists()
        assert names(pool) == ["first.img"]
        record = read_record(home)
        assert record is not None
        assert record.added == []
        await members.add(data, None, "local", force=True)
        assert names(pool) == ["first.img", "data.img"]


async def test_a_member_grows(home: Home, config: Path, tmp_path: Path) -> None:
    first = tmp_path / "first.img"
    async with served(home, config) as (pool, members):
        before = pool.info().size_bytes
        with pytest.raises(InvalidArgumentError, match="not become larger"):
            await members.grow(str(first), None)
        with pytest.raises(InvalidArgumentError, match="only grows"):
            await members.grow(str(first), 32 * MIB)
        info = await members.grow(str(first), 128 * MIB)
        assert info.size_bytes == first.stat().st_size == 128 * MIB
        os.truncate(first, 192 * MIB)
        info = await members.grow(str(pool.info().members[0].uuid), None)
        assert info.size_bytes == 192 * MIB
        assert pool.info().size_bytes > before + 120 * MIB
        link = tmp_path / "link.img"
        link.symlink_to(first)
        await members.grow(str(link), 256 * MIB)
        for name in (str(tmp_path / "none"), str(UUID(int=3))):
            with pytest.raises(NotFoundError, match="cenote member list"):
                await members.grow(name, None)
    async with served(home, None) as (pool, _):
        assert pool.info().members[0].size_bytes == 256 * MIB


def test_only_devices_that_were_being_added_are_set_aside() -> None:
    pool, other = UUID(int=1), UUID(int=2)

    def at(path: str, content: Content, of: UUID | None, *, joining: bool) -> Found:
        return Found(MemberConfig(Path(path), joining=joining), content, of)

    members = [
        at("/a", Content.POOL, pool, joining=False),
        at("/b", Content.ABSENT, None, joining=False),
        at("/c", Content.OTHER, None, joining=False),
        at("/d", Content.POOL, pool, joining=True),
    ]
    strangers = [
        at("/e", Content.POOL, other, joining=True),
        at("/f", Content.EMPTY, None, joining=True),
        at("/g", Content.ABSENT, None, joining=True),
        at("/h", Content.OTHER, None, joining=True),
    ]
    assert set_aside([*members, *strangers]) == (members, strangers)


def test_an_added_member_that_the_configuration_names_counts_once(tmp_path: Path) -> None:
    here = tmp_path / "a.img"
    (tmp_path / "link").symlink_to(here)
    config = Config((MemberConfig(here),))
    added = [AddedRecord(str(tmp_path / "link"), "x", joined=True), AddedRecord("/b", "y", False)]
    found = with_added(config, added).members
    assert found == (MemberConfig(here), MemberConfig(Path("/b"), None, "y", joining=True))


def test_records_without_added_members_are_read(home: Home) -> None:
    home.pool_dir.mkdir()
    write_record(home, PoolRecord(UUID(int=1), "then"))
    path = home.pool_dir / "pool.json"
    path.write_text(path.read_text().replace(',\n  "added": []', ""))
    record = read_record(home)
    assert record is not None
    assert record.added == []
