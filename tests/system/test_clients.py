"""Volumes that change under libnbd clients: deleted, rolled back, grown; never wrong data."""

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.system.daemon_process import Daemon
from tests.system.processes import PATIENCE_S, cenote

pytestmark = pytest.mark.system

SYSTEM_PYTHON = "/usr/bin/python3"  # which has libnbd's binding
KIB, MIB = 1 << 10, 1 << 20

# Says what it reads, and connects anew whenever the connection ends.
STUBBORN = """
import nbd, sys
last = None
while True:
    h = nbd.NBD()
    try:
        h.connect_uri(sys.argv[1])
    except nbd.Error as error:
        print("refused", error.string, flush=True)
        break
    try:
        while True:
            data = bytes(h.pread(65536, 0))
            assert data == data[:1] * 65536, "torn"
            if data[0] != last:
                last = data[0]
                print("reads", last, flush=True)
    except nbd.Error:
        pass
"""

# Does what it is told, a line at a time.
OBEDIENT = """
import nbd, sys
h = nbd.NBD()
h.set_strict_mode(0)  # the server is to judge
h.connect_uri(sys.argv[1])
print("ready", flush=True)
for line in sys.stdin:
    try:
        print(eval(line), flush=True)
    except nbd.Error as error:
        print("error", error.errno, flush=True)
"""


class Script:
    """A program with libnbd, away from our package of the same name."""

    def __init__(self, text: str, uri: str) -> None:
        self._directory = tempfile.TemporaryDirectory()
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        self.process = subprocess.Popen(
            [SYSTEM_PYTHON, "-c", text, uri],
            cwd=self._directory.name,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, expression: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(expression + "\n")
        self.process.stdin.flush()
        return self.line()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self._directory.cleanup()


@contextmanager
def script(text: str, uri: str) -> Iterator[Script]:
    running = Script(text, uri)
    try:
        yield running
    finally:
        running.close()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    config = tmp_path / "pool.toml"
    config.write_text('format = 1\n[[member]]\npath = "member.img"\nsize = "2G"\n')
    with Daemon(tmp_path / "home", str(config)) as daemon:
        daemon.json("volume", "create", "root", "--size", "1M")
        yield daemon


def fill(daemon: Daemon, value: int) -> None:
    with script(OBEDIENT, daemon.uri("root")) as client:
        assert client.line() == "ready"
        assert client.ask(f"h.pwrite(bytes([{value}]) * 65536, 0)") == "None"
        assert client.ask("h.flush()") == "None"


def test_changes_under_clients_that_come_back_at_once(daemon: Daemon) -> None:
    """Goal: what a command says is done is done, however quickly clients come back.

    Method: three clients read and connect anew; roll back, delete. They go from the newer content
    to the older one and never back, then learn that the volume is gone.
    """
    fill(daemon, 1)
    daemon.json("snapshot", "create", "root@one")
    fill(daemon, 2)
    scripts = [Script(STUBBORN, daemon.uri("root")) for _ in range(3)]
    try:
        assert [one.line() for one in scripts] == ["reads 2"] * 3
        refused = daemon.run("snapshot", "rollback", "root@one", "--yes")
        assert refused.code == 33, refused
        assert "volume root is in use by client " in refused.err
        assert "cenote client disconnect --export root" in refused.err
        daemon.json("snapshot", "rollback", "root@one", "--yes", "--disconnect")
        assert [one.line() for one in scripts] == ["reads 1"] * 3
        assert daemon.json("client", "disconnect", "--export", "root")["disconnected"]
        deadline = time.monotonic() + PATIENCE_S
        while len(daemon.json("client", "list")) < 3:  # they are back
            assert time.monotonic() < deadline
        assert daemon.run("volume", "delete", "root", "--snapshots", "--yes").code == 33
        daemon.json("volume", "delete", "root", "--snapshots", "--yes", "--disconnect")
        for one in scripts:
            assert one.line().startswith("refused ")
            assert one.process.wait(PATIENCE_S) == 0
    finally:
        for one in scripts:
            one.close()
    (root,) = daemon.json("client", "list", "--exports")
    assert (root["name"], root["clients"]) == ("root", 0)
    assert root["read_bytes"] > 6 * 64 * KIB
    assert "client disconnected: peer=unix:pid=" in daemon.log
    assert "reason=the volume goes back to root@one" in daemon.log


def test_clients_of_a_snapshot_are_disconnected_from_it_alone(daemon: Daemon) -> None:
    daemon.json("snapshot", "create", "root@one")
    with (
        script(OBEDIENT, daemon.uri("root")) as writer,
        script(OBEDIENT, daemon.uri("root@one")) as reader,
    ):
        assert [writer.line(), reader.line()] == ["ready", "ready"]
        assert daemon.run("snapshot", "delete", "root@one", "--yes").code == 33
        daemon.json("snapshot", "delete", "root@one", "--yes", "--disconnect")
        assert reader.ask("h.pread(512, 0)").startswith("error")
        assert writer.ask("h.pwrite(b'x' * 512, 0)") == "None"


def test_growing_under_a_client(daemon: Daemon) -> None:
    """Goal: a client that does not know of its disk's growth is not harmed, and is named."""
    with script(OBEDIENT, daemon.uri("root")) as client:
        assert client.line() == "ready"
        grown = daemon.json("volume", "resize", "root", "--size", "2M")
        assert [one["size_bytes"] for one in grown["stale_clients"]] == [MIB]
        pid = client.process.pid
        said = daemon.run("volume", "resize", "root", "--size", "3M").out
        assert f"unix:pid={pid} uid={os.getuid()}, sees 1 MiB" in said
        assert client.ask("h.get_size()") == str(MIB)
        assert client.ask(f"h.pwrite(b'x' * 4096, {3 * MIB - 4096})") == "None"
        assert client.ask(f"bytes(h.pread(8192, {3 * MIB - 8192}))[4090:4100]") == repr(
            bytes(6) + b"xxxx"
        )
        assert client.ask(f"h.pwrite(b'x' * 4096, {3 * MIB})") == "error ENOSPC"
        assert client.ask(f"h.pread(4096, {3 * MIB})") == "error EINVAL"
        assert client.ask("set(bytes(h.pread(4096, 0)))") == "{0}"
    with script(OBEDIENT, daemon.uri("root")) as client:
        assert client.line() == "ready"
        assert client.ask("h.get_size()") == str(3 * MIB)
        assert daemon.json("volume", "resize", "root", "--size", "3M")["stale_clients"] == []


def test_clients_are_disconnected_by_number(daemon: Daemon) -> None:
    with script(OBEDIENT, daemon.uri("root")) as one, script(OBEDIENT, daemon.uri("root")) as two:
        assert [one.line(), two.line()] == ["ready", "ready"]
        clients = {client["address"]: client for client in daemon.json("client", "list")}
        first, second = (clients[f"unix:pid={script.process.pid}"] for script in (one, two))
        assert first["uid"] == os.getuid()
        assert (first["size_bytes"], first["tls"], first["names"]) == (MIB, False, [])
        daemon.json("client", "disconnect", str(first["number"]))
        assert [c["number"] for c in daemon.json("client", "list")] == [second["number"]]
        assert daemon.run("client", "disconnect", str(first["number"])).code == 31
        assert one.ask("h.pread(512, 0)").startswith("error")
        assert two.ask("h.flush()") == "None"


def test_users_are_told_apart(tmp_path: Path) -> None:
    """Goal: a rule by user id holds for real clients, and covers snapshots."""
    mine = os.getuid()
    config = tmp_path / "pool.toml"
    config.write_text(
        'format = 1\n[[member]]\npath = "member.img"\nsize = "2G"\n'
        f'[[export]]\nname = "mine"\nuids = [{mine}]\nread_only = true\n'
        f'[[export]]\nname = "theirs"\nuids = [{mine + 1}]\n'
    )
    with Daemon(tmp_path / "home", str(config)) as daemon:
        for name in ("mine", "theirs"):
            daemon.json("volume", "create", name, "--size", "1M")
            daemon.json("snapshot", "create", f"{name}@one")
        with script(OBEDIENT, daemon.uri("mine")) as client:
            assert client.line() == "ready"
            assert client.ask("h.is_read_only()") == "True"
            assert client.ask("h.pwrite(b'x' * 512, 0)") == "error EPERM"
            assert daemon.json("client", "list")[0]["read_only"] is True
        for name in ("theirs", "theirs@one"):
            with script(STUBBORN, daemon.uri(name)) as client:
                said = client.line()
                assert said.startswith("refused "), said
        assert "export refused: peer=unix:pid=" in daemon.log


def test_certificates_are_looked_at_before_the_pool(tmp_path: Path) -> None:
    config = tmp_path / "pool.toml"
    config.write_text(
        'format = 1\n[[member]]\npath = "member.img"\nsize = "2G"\n'
        '[nbd]\nunix_tls = "require"\ncertificate = "none.pem"\nkey = "none.key"\n'
    )
    refused = cenote(tmp_path / "home", "serve", str(config))
    assert refused.code == 4, refused
    assert f"certificate cannot be read: No such file or directory: path={tmp_path}" in refused.err
    assert not (tmp_path / "member.img").exists()
