"""Runs the real daemon, as an administrator would: `cenote serve`, and the other commands."""

import contextlib
import json
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.system.daemon_process import line_within
from tests.system.processes import PATIENCE_S, ForkedProcess, cenote


def run(*command: str | Path, cwd: Path, limit_s: float = 600) -> str:
    """Run a program and return what it says; a failure shows all of it."""
    done = subprocess.run(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=limit_s, check=False,
    )  # fmt: skip
    words = " ".join(map(str, command))
    assert done.returncode == 0, f"{words}: status={done.returncode}\n{done.stdout}"
    return done.stdout


@dataclass(frozen=True)
class CheckResult:
    """What `cenote check` says."""

    status: int
    text: str

    @property
    def is_clean(self) -> bool:
        return self.status == 0


class PoolDaemon:
    """A pool of files in one directory and its daemon; `start` and `stop` as often as needed.

    The directory's path must be short: its sockets have at most 107 bytes.
    """

    def __init__(self, directory: Path, *, members: int, copies: int, member_size: str) -> None:
        self.directory = directory
        self.home = directory / "home"
        self.config = directory / "pool.toml"
        self.log_file = directory / "daemon.log"
        self._process: ForkedProcess | None = None
        lines = ["format = 1", "[pool]", f"copies = {copies}"]
        for index in range(members):
            lines += ["[[member]]", f'path = "member-{index}.img"', f'size = "{member_size}"']
            lines += [f'host = "host-{index}"']
        self.config.write_text("\n".join(lines) + "\n")

    # -- life

    def start(self) -> float:
        """Start the daemon; returns after how many seconds it says that it is ready."""
        assert self._process is None
        began = time.monotonic()
        with self.log_file.open("a") as log:
            words = ["serve", str(self.config), "--home", str(self.home), "--json"]
            process = ForkedProcess("cenote", words, cwd=self.directory, stderr=log.fileno())
        self._process = process
        line = line_within(PATIENCE_S, process)
        assert line, f"the daemon did not start: {self.log_tail()}"
        assert json.loads(line)["event"] == "ready", line
        return time.monotonic() - began

    @property
    def process_id(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """`kill -9`, and wait until it is gone."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self.reap()

    def reap(self) -> None:
        """Wait for a daemon that somebody killed."""
        assert self._process is not None
        with self._process as process:
            process.wait(PATIENCE_S)
        self._process = None

    def stop(self) -> float:
        """Stop cleanly; returns how many seconds that took."""
        assert self._process is not None
        began = time.monotonic()
        with self._process as process:
            process.send_signal(signal.SIGTERM)
            status = process.wait(PATIENCE_S)
        self._process = None
        assert status == 0, f"the daemon stopped with status {status}: {self.log_tail()}"
        return time.monotonic() - began

    def abandon(self) -> None:
        """Leave no process behind, whatever happened."""
        if self._process is not None:
            self.kill()

    def log_tail(self) -> str:
        return "\n".join(self.log_file.read_text().splitlines()[-20:])

    # -- its commands

    def cenote(self, *words: str) -> dict[str, Any]:
        """Run one command against this home; returns its JSON."""
        done = cenote(self.home, *words, "--json")
        assert done.code == 0, f"{' '.join(words)}: status={done.code}\n{done.out}{done.err}"
        answer: dict[str, Any] = json.loads(done.out)
        return answer

    def create_volume(self, name: str, size_bytes: int) -> None:
        self.cenote("volume", "create", name, "--size", str(size_bytes))

    def uri(self, volume: str) -> str:
        return f"nbd+unix:///{volume}?socket={self.socket}"

    @property
    def socket(self) -> Path:
        return self.home / "nbd.sock"

    def check(self) -> CheckResult:
        """Verify the pool offline; the daemon must not run."""
        done = cenote(self.home, "check", str(self.config), "--json")
        return CheckResult(done.code, done.out + done.err)

    def assert_check_is_clean(self) -> None:
        result = self.check()
        assert result.is_clean, f"cenote check: status={result.status}\n{result.text}"


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a member; its holes are not read."""
    run("cp", "--sparse=always", "--reflink=auto", source, target, cwd=source.parent)


@contextlib.contextmanager
def scratch_directory() -> Iterator[Path]:
    """A directory with a short path for gigabytes; removed at once, unlike pytest's.

    /var/tmp is on a disk where /tmp may be in memory.
    """
    path = Path(tempfile.mkdtemp(prefix="cenote-", dir="/var/tmp"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def pool_daemon(
    directory: Path, *, members: int = 1, copies: int = 1, member_size: str = "8G"
) -> Iterator[PoolDaemon]:
    """A daemon that is not started yet, and is gone afterwards."""
    daemon = PoolDaemon(directory, members=members, copies=copies, member_size=member_size)
    try:
        yield daemon
    finally:
        daemon.abandon()
