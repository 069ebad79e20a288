"""Space and members through the real daemon, with real clients."""

import os
import time
from pathlib import Path

import pytest

from tests.system.daemon_process import Daemon, qemu_io
from tests.system.processes import PATIENCE_S, POLL_S, cenote

pytestmark = pytest.mark.system

MIB = 1 << 20
CONFIG = """\
format = 1
[[member]]
path = "first.img"
size = "256M"
"""


@pytest.mark.parametrize("with_file", [True, False], ids=["file", "built-in"])
def test_a_pool_grows_while_it_is_served_and_remembers(with_file: bool, tmp_path: Path) -> None:
    """Goal: added and grown members are there after a kill and after a stop, with all data."""
    config = tmp_path / "pool.toml"
    config.write_text(CONFIG)
    home, second = tmp_path / "home", tmp_path / "second.img"
    words = [str(config)] if with_file else []
    with Daemon(home, *words) as daemon:
        daemon.json("volume", "create", "root", "--size", "256M")
        assert qemu_io(daemon.uri("root"), "write -P 1 0 16M", "flush").code == 0
        added = daemon.json("member", "add", str(second), "--size", "512M", "--host", "shelf")
        assert (added["name"], added["host"]) == (str(second), "shelf")
        assert qemu_io(daemon.uri("root"), "write -P 2 16M 32M", "flush").code == 0
        again = daemon.run("member", "add", str(second))
        assert (again.code, "already" in again.err) == (32, True)
        daemon.kill()
        daemon.process.returncode = 0  # as wanted
    with Daemon(home) as daemon:
        assert [one["name"] for one in daemon.json("member", "list")][1:] == [str(second)]
        read = qemu_io(daemon.uri("root"), "read -P 1 0 16M", "read -P 2 16M 32M")
        assert read.code == 0, read
        before = daemon.json("pool", "status")["size_bytes"]
        os.truncate(second, 768 * MIB)
        assert daemon.json("member", "grow", str(second))["size_bytes"] == 768 * MIB
        grown = daemon.json("member", "grow", str(second), "--size", "1G")
        assert grown["size_bytes"] == 1024 * MIB
        assert daemon.json("pool", "status")["size_bytes"] > before + 384 * MIB
    with Daemon(home) as daemon:
        assert daemon.json("member", "list")[1]["size_bytes"] == 1024 * MIB
        assert qemu_io(daemon.uri("root"), "read -P 2 16M 32M").code == 0
    assert "clean" in cenote(home, "check").out


def test_space_adds_up_and_comes_back_to_the_file_system(tmp_path: Path) -> None:
    """Goal: figures add up over the API; what is deleted makes the file smaller."""
    config = tmp_path / "pool.toml"
    config.write_text(CONFIG)
    member = tmp_path / "first.img"
    with Daemon(tmp_path / "home", str(config)) as daemon:
        daemon.json("volume", "create", "root", "--size", "256M")
        assert qemu_io(daemon.uri("root"), "write -s /dev/urandom 0 64M", "flush").code == 0
        daemon.json("snapshot", "create", "root@one")
        daemon.json("clone", "root@one", "test")
        assert qemu_io(daemon.uri("test"), "write -s /dev/urandom 0 4M", "flush").code == 0
        space = daemon.json("pool", "df", "--now")
        lines = {line["name"]: line for line in daemon.json("volume", "df")}
        assert space["shared_bytes"] == 64 * MIB == lines["root@one"]["stored_bytes"]
        assert lines["test"]["unique_bytes"] == 4 * MIB
        unique = sum(line["unique_bytes"] for line in lines.values() if "@" not in line["name"])
        assert unique == space["unique_bytes"]
        parts = ("data", "map", "dead", "unwritten", "newer", "cooling", "free")
        assert sum(space[f"{part}_bytes"] for part in parts) == space["total_bytes"]
        assert member.stat().st_blocks * 512 > 68 * MIB
        for name in ("test", "root"):
            daemon.json("volume", "delete", name, "--snapshots", "--yes")
        for _ in range(3):
            space = daemon.json("pool", "df", "--now")
        assert space["data_bytes"] == 0
        deadline = time.monotonic() + PATIENCE_S
        while member.stat().st_blocks * 512 > 16 * MIB:
            assert time.monotonic() < deadline, "the file did not become smaller"
            time.sleep(POLL_S)


def test_a_cap_fails_one_client_and_a_reservation_holds(tmp_path: Path) -> None:
    """Goal: ENOSPC goes to whoever reached the cap; what is promised can be written."""
    config = tmp_path / "pool.toml"
    config.write_text(CONFIG)
    with Daemon(tmp_path / "home", str(config)) as daemon:
        for name in ("capped", "mine", "other"):
            daemon.json("volume", "create", name, "--size", "512M")
        daemon.json("volume", "set", "capped", "--cap", "16M")
        assert qemu_io(daemon.uri("capped"), "write -s /dev/urandom 0 16M", "flush").code == 0
        assert "No space left" in qemu_io(daemon.uri("capped"), "write -P 1 25M 1M").out
        assert qemu_io(daemon.uri("capped"), "discard 0 8M", "write -P 1 25M 4M").code == 0
        refused = daemon.run("volume", "set", "mine", "--reserve", "512M")
        assert (refused.code, "cannot promise" in refused.err) == (11, True)
        daemon.json("volume", "set", "mine", "--reserve", "75M")
        full = qemu_io(daemon.uri("other"), "write -s /dev/urandom 0 256M")
        assert "No space left" in full.out, full
        mine = qemu_io(daemon.uri("mine"), "write -s /dev/urandom 0 75M", "flush")
        assert mine.code == 0, mine
        assert "% full" in daemon.run("pool", "status").out
        daemon.json("volume", "delete", "other", "--yes")
        assert qemu_io(daemon.uri("capped"), "read -P 1 25M 4M").code == 0
    assert "clean" in cenote(tmp_path / "home", "check").out
