"""The daemon from start to stop, with real clients."""

import json
import os
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.daemon_process import CENOTE, Daemon, qemu_io, tool
from tests.system.processes import PATIENCE_S, POLL_S, cenote, clean_environment

pytestmark = pytest.mark.system

CONFIG = """\
format = 1
[[member]]
path = "member.img"
size = "2G"
[nbd]
tcp = "127.0.0.1:0"
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "pool.toml"
    path.write_text(CONFIG)
    return str(path)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def daemon(home: Path, config: str) -> Iterator[Daemon]:
    with Daemon(home, config) as daemon:
        yield daemon


def connect(daemon: Daemon) -> socket.socket:
    """A client that says nothing and stays."""
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(daemon.home / "nbd.sock"))
    assert client.recv(8) == b"NBDMAGIC"
    return client


def test_the_first_start_needs_nothing(home: Path) -> None:
    with Daemon(home, own_python=True) as daemon:
        assert daemon.ready["created"] is True
        assert daemon.ready["health"] == "ok"
        assert (home / "pool" / "member.img").stat().st_blocks * 512 < 256 << 20
        assert stat.S_IMODE(home.stat().st_mode) == 0o700
        for name in ("control.sock", "nbd.sock"):
            assert stat.S_IMODE((home / name).stat().st_mode) == 0o600
    assert not (home / "control.sock").exists()
    assert not (home / "nbd.sock").exists()
    record = json.loads((home / "pool" / "pool.json").read_text())
    assert record["pool"] == daemon.ready["pool"]
    with Daemon(home) as daemon:
        assert daemon.ready["created"] is False


def test_a_person_is_told_what_to_do_next(home: Path, config: str) -> None:
    with subprocess.Popen(
        [*CENOTE, "--home", str(home), "serve", config],
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline().strip() for _ in range(10)]
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
    assert lines[0].startswith("cenote: created and serving pool ")
    assert f"exports  nbd+unix:///NAME?socket={home}/nbd.sock" in lines
    assert f"cenote volume create demo --size 20G --home {home}" in lines
    assert f"cenote snapshot create demo@first --home {home}" in lines


def test_volumes_snapshots_and_clones_are_served(daemon: Daemon) -> None:
    daemon.json("volume", "create", "root", "--size", "64M")
    assert qemu_io(daemon.uri("root"), "write -P 1 0 1M", "flush").code == 0
    daemon.json("snapshot", "create", "root@one")
    assert qemu_io(daemon.uri("root"), "write -P 2 0 512k", "flush").code == 0
    daemon.json("clone", "root@one", "copy")
    assert qemu_io(daemon.uri("copy"), "read -P 1 0 1M", "write -P 3 0 4k").code == 0
    frozen = tool("qemu-io", "-r", "-f", "raw", "-c", "read -P 1 0 1M", daemon.uri("root@one"))
    assert frozen.code == 0, frozen
    assert "failed" not in frozen.out
    assert qemu_io(daemon.uri("root@one"), "write 0 4k").code != 0
    tcp = daemon.uri("root", endpoint=1)
    assert tcp.startswith("nbd://127.0.0.1:")
    assert qemu_io(tcp, "read -P 2 0 512k", "read -P 1 512k 512k").code == 0
    assert "none" in qemu_io(daemon.uri("none"), "read 0 4k").err
    origins = {one["name"]: one["origin"] for one in daemon.json("volume", "list")}
    assert origins == {"copy": "root@one", "root": None}
    daemon.json("snapshot", "rollback", "root@one", "--yes")
    assert qemu_io(daemon.uri("root"), "read -P 1 0 1M").code == 0
    names = tool("nbdinfo", "--list", daemon.uri("")).out
    assert [line for line in names.splitlines() if line.startswith("export=")] == [
        'export="copy":',
        'export="root":',
        'export="root@one":',
    ]


def test_clients_are_counted_and_protect_their_volume(daemon: Daemon) -> None:
    daemon.json("volume", "create", "root", "--size", "64M")
    with subprocess.Popen(
        ["qemu-io", "-f", "raw", daemon.uri("root")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as client:
        assert client.stdin is not None
        deadline = time.monotonic() + PATIENCE_S
        while not (clients := daemon.json("client", "list")):
            assert time.monotonic() < deadline
        assert clients[0]["export"] == "root"
        assert daemon.json("volume", "list")[0]["clients"] == 1
        refused = daemon.run("volume", "delete", "root", "--yes")
        assert refused.code == 33, refused
        assert f"in use by client {clients[0]['number']} (unix:pid={client.pid} uid=" in refused.err
        client.stdin.close()
        client.wait(PATIENCE_S)
    while daemon.json("client", "list"):
        assert time.monotonic() < deadline
    daemon.json("volume", "delete", "root", "--yes")


def test_a_second_daemon_is_refused(daemon: Daemon, config: str, tmp_path: Path) -> None:
    same = cenote(daemon.home, "serve", config)
    assert same.code == 5
    assert f"process {daemon.process.pid}" in same.err
    other = cenote(tmp_path / "other", "serve", config)
    assert other.code == 18
    assert "member.img" in other.err
    assert daemon.json("pool", "status")["health"] == "ok"


def test_it_replaces_the_sockets_of_a_killed_one(home: Path, config: str) -> None:
    with Daemon(home, config) as first:
        first.json("volume", "create", "root", "--size", "64M")
        assert qemu_io(first.uri("root"), "write -P 5 0 1M", "flush").code == 0
        first.kill()
        first.process.returncode = 0  # killed as it should be
    assert (home / "control.sock").exists()
    with Daemon(home, config) as second:
        assert qemu_io(second.uri("root"), "read -P 5 0 1M").code == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_while_clients_linger(home: Path, config: str, number: int) -> None:
    with Daemon(home, config, own_python=True) as daemon:
        daemon.json("volume", "create", "root", "--size", "64M")
        with connect(daemon), subprocess.Popen(
            ["qemu-io", "-f", "raw", daemon.uri("root")],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as client:  # fmt: skip
            assert client.stdin is not None
            client.stdin.write(b"write -P 6 0 4M\n")
            client.stdin.flush()
            deadline = time.monotonic() + PATIENCE_S
            while not any(one["written_bytes"] for one in daemon.json("client", "list")):
                assert time.monotonic() < deadline
            daemon.process.send_signal(number)
            assert daemon.wait() == 0, "it waits for clients that stay"
            client.stdin.close()
    assert "stopped" in daemon.log
    with Daemon(home, config) as daemon:
        # Never flushed by the client, but a clean stop loses nothing.
        assert qemu_io(daemon.uri("root"), "read -P 6 0 4M").code == 0
        assert "commits_replayed" not in daemon.log


def test_a_second_signal_hurries(home: Path, config: str) -> None:
    with Path(config).open("a") as file:
        file.write("[nbd.limits]\ngrace_s = 60\nhandshake_s = 3600\n")
    with Daemon(home, config, own_python=True) as daemon, connect(daemon):
        daemon.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE_S
        while "SIGTERM: stopping" not in daemon.log:
            assert time.monotonic() < deadline
            time.sleep(POLL_S)
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.wait() == 0
    assert "stopped in a hurry" in daemon.log
    assert "clients lingered" not in daemon.log, "the client got its minute"
    with Daemon(home, config):
        pass


@pytest.mark.parametrize("abstract", [False, True])
def test_the_service_manager_is_told(
    home: Path, config: str, tmp_path: Path, abstract: bool
) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + path if abstract else path)
        manager.settimeout(PATIENCE_S)
        with Daemon(home, config, own_python=True, NOTIFY_SOCKET="@" + path if abstract else path):
            pass
        heard: list[str] = []
        while not heard or not any("checkpoint" in line for line in heard):
            heard += manager.recv(4096).decode().splitlines()
    states = [line for line in heard if not line.startswith("STATUS=")]
    assert states == ["READY=1", "STOPPING=1"]
    assert "STATUS=serving, pool is ok" in heard


def test_a_pool_that_was_here_is_not_made_anew(home: Path, config: str, tmp_path: Path) -> None:
    member = tmp_path / "member.img"
    with Daemon(home, config):
        pass
    member.rename(tmp_path / "away")
    refused = cenote(home, "serve", config)
    assert refused.code == 24
    assert "was here before" in refused.err
    assert not member.exists()
    (tmp_path / "away").rename(member)
    with Daemon(home, config):
        pass


def test_data_is_not_overwritten(home: Path, config: str, tmp_path: Path) -> None:
    member = tmp_path / "member.img"
    member.write_bytes(b"precious" * 200_000)
    refused = cenote(home, "serve", config)
    assert refused.code == 8
    assert f"--format {member}" in refused.err
    assert member.read_bytes() == b"precious" * 200_000
    os.truncate(member, 1 << 30)
    with Daemon(home, config, "--format", str(member)) as daemon:
        assert daemon.ready["created"] is True


def test_a_bad_configuration_is_named(home: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text('format = 1\n[[member]]\npath = "a.img"\nsise = "1G"\n')
    result = cenote(home, "serve", str(bad))
    assert result.code == 4
    assert result.err.startswith(f"cenote: {bad}: member[0].sise: unknown key")
    assert "did you mean 'size'" in result.err
    assert json.loads(cenote(home, "--json", "serve", str(bad)).err)["error"] == "ConfigError"
    assert cenote(home, "serve", str(tmp_path / "none.toml")).code == 4


def test_a_member_too_small_leaves_nothing_behind(home: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.toml"
    small.write_text('format = 1\n[[member]]\npath = "a.img"\nsize = "1M"\n')
    result = cenote(home, "serve", str(small))
    assert result.code == 27, result
    assert not (tmp_path / "a.img").exists()


def test_the_log_can_be_json(home: Path, config: str) -> None:
    with Daemon(home, config, "--log-json", "--log-level", "debug", own_python=True) as daemon:
        pass
    entries = [json.loads(line) for line in daemon.log.splitlines()]
    assert {"level", "logger", "message", "time"} <= set(entries[0])
    assert any(entry["message"] == "stopped" for entry in entries)
