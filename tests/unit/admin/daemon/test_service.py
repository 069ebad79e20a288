"""Serving a fake pool: how it ends, exports, warnings, the choice of a configuration."""

import logging
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest
import trio
import trio.testing

from admin.config.load import Config, MemberConfig, default_config
from admin.daemon.exports import PoolExports
from admin.daemon.pool_record import PoolRecord, choose_config, write_record
from admin.daemon.service import Orders, serve_pool
from admin.daemon.watch import LOOK_INTERVAL_S, warn_of_filling
from admin.home import Home
from admin.reports.pool import ReadyReport
from blockdev.device import BlockDevice
from blockdev.errors import DeviceError
from blockdev.memory import MemoryDevice
from nbd.errors import UnknownExportError
from storage.errors import FencedError, NotFoundError
from tests.unit.admin.fake_pool import FakeMembers, FakePool


class FakeServedPool(FakePool):
    def __init__(self) -> None:
        super().__init__()
        self.failed = trio.Event()
        self.failure: DeviceError | None = None
        self.opened: list[str] = []

    def open_export(self, name: str) -> BlockDevice:
        if name not in ("root", "root@one"):
            raise NotFoundError(f"no such volume: {name}")
        self.opened.append(name)
        return MemoryDevice(4096)


def orders(home: Home, ready: list[ReadyReport]) -> Orders:
    config = Config((MemberConfig(Path("/member")),))
    return Orders(home, config, (), (), "cenote", "", ready.append)


async def test_a_pool_that_fails_ends_the_daemon(home: Home) -> None:
    pool, ready = FakeServedPool(), list[ReadyReport]()
    with pytest.RaisesGroup(
        pytest.RaisesExc(FencedError, match="another daemon"), flatten_subgroups=True
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                lambda: serve_pool(
                    orders(home, ready), pool, FakeMembers(), trio.Event(), created=True
                )
            )
            while not ready:
                await trio.sleep(0.01)
            pool.failure = FencedError("another daemon took the pool")
            pool.failed.set()
    assert not home.nbd_socket.exists()
    assert not home.control_socket.exists()


async def test_a_stop_ends_the_daemon_cleanly(home: Home) -> None:
    pool, ready, stop = FakeServedPool(), list[ReadyReport](), trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            lambda: serve_pool(orders(home, ready), pool, FakeMembers(), stop, created=True)
        )
        while not ready:
            await trio.sleep(0.01)
        assert home.nbd_socket.is_socket()
        stop.set()
    (report,) = ready
    assert report.commands[0] == "cenote volume create demo --size 20G"
    assert f"nbd+unix:///demo?socket={home.nbd_socket}" in report.commands[1]
    assert not home.nbd_socket.exists()


async def test_exports_are_volumes_and_snapshots() -> None:
    pool = FakeServedPool()
    exports = PoolExports(pool)
    await pool.create_volume("root", 4096)
    await pool.create_snapshot("root", "one")
    assert exports.names() == ["root", "root@one"]
    for name in exports.names():
        await (await exports.open(name)).close()
    assert pool.opened == ["root", "root@one"]
    for name in ("", "none", "root@", "a@b@c", "../root", "\x1b"):
        with pytest.raises(UnknownExportError):
            await exports.open(name)


async def test_opening_waits_while_an_export_is_held() -> None:
    pool = FakeServedPool()
    exports = PoolExports(pool)
    opened: list[str] = []

    async def open_export(name: str) -> None:
        await (await exports.open(name)).close()
        opened.append(name)

    async with trio.open_nursery() as nursery:
        with exports.holding(lambda name: name == "root"), exports.holding(lambda name: False):
            nursery.start_soon(open_export, "root")
            nursery.start_soon(open_export, "root@one")
            await trio.testing.wait_all_tasks_blocked()
            assert opened == ["root@one"]
    assert opened == ["root@one", "root"]


async def test_each_step_of_use_is_logged_once(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    pool = replace(FakePool().info(), size_bytes=100)
    used = 0

    async def at(percent: int) -> list[str]:
        nonlocal used
        used = percent
        caplog.clear()
        await trio.sleep(3 * LOOK_INTERVAL_S)
        return [record.getMessage() for record in caplog.records]

    with caplog.at_level(logging.WARNING):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(warn_of_filling, lambda: replace(pool, free_bytes=100 - used))
            assert await at(79) == []
            (message,) = await at(81)
            assert message.startswith("the pool is 81 % full")
            assert await at(79) == []
            assert await at(82) == []
            assert len(await at(96)) == 1
            assert await at(70) == []
            assert len(await at(91)) == 1
            nursery.cancel_scope.cancel()


def test_a_home_remembers_its_configuration(home: Home, tmp_path: Path) -> None:
    home.pool_dir.mkdir()
    assert choose_config(home, None) == default_config(home.pool_dir)
    file = tmp_path / "pool.toml"
    file.write_text('format = 1\n[[member]]\npath = "a"\n')
    write_record(home, PoolRecord(UUID(int=1), "then", str(file)))
    assert choose_config(home, None).file == file
    other = tmp_path / "other.toml"
    other.write_text('format = 1\n[[member]]\npath = "b"\n')
    assert choose_config(home, other).file == other
