"""Processes of ours, each forked from one that has imported everything; see `fork_server`."""

import atexit
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[2]
PATIENCE_S = 300
"""Deadline of what must happen in the end. Only a hang lasts so long, on a busy machine too."""
POLL_S = 0.01
"""Between two looks for something that will be there soon."""


@dataclass(frozen=True)
class Result:
    """What a finished command left."""

    code: int
    out: str
    err: str


def clean_environment(**more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("CENOTE")}
    return {**kept, "PYTHONPATH": str(ROOT), **more}


class ForkedProcess:
    """Like `subprocess.Popen`, as far as the tests need it.

    Args:
        main: one of `fork_server.MAINS`.
        stdout, stderr: descriptors of files; a pipe by default for stdout.
    """

    def __init__(
        self, main: str, words: list[str], *, cwd: Path = ROOT,
        environment: Mapping[str, str] | None = None, stdin: int | None = None,
        stdout: int | None = None, stderr: int | None = None,
    ) -> None:  # fmt: skip
        self.returncode: int | None = None
        self.stdout: IO[str] | None = None
        self.stderr: IO[str] | None = None
        request = {
            "main": main, "words": words, "cwd": str(cwd),
            "environment": dict(clean_environment() if environment is None else environment),
        }  # fmt: skip
        with contextlib.ExitStack() as ours:
            streams = [_null(ours) if stdin is None else stdin]
            for name, given in (("stdout", stdout), ("stderr", stderr)):
                if given is None or given == subprocess.PIPE:
                    read, given = os.pipe()
                    ours.callback(os.close, given)
                    setattr(self, name, os.fdopen(read))
                elif given == subprocess.DEVNULL:
                    given = _null(ours)
                streams.append(given)
            status, told = os.pipe()
            ours.callback(os.close, told)
            self._status = os.fdopen(status)
            _ask(json.dumps(request).encode(), [*streams, told])
        self.pid = int(self._status.readline())

    def poll(self) -> int | None:
        """The exit status, or None while it runs; negative for a signal."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("a forked process", timeout or 0)
            self.returncode = int(self._status.readline())
            self._status.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> "ForkedProcess":
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self.stdout, self.stderr):
            if stream is not None:
                stream.close()
        self.wait()


def _null(stack: contextlib.ExitStack) -> int:
    descriptor = os.open(os.devnull, os.O_RDWR)
    stack.callback(os.close, descriptor)
    return descriptor


def cenote(home: Path, *words: str, cwd: Path = ROOT) -> Result:
    """Run a command that ends by itself."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with ForkedProcess(
            "cenote", ["--home", str(home), *words],
            cwd=cwd, stdout=out.fileno(), stderr=err.fileno(),
        ) as process:  # fmt: skip
            try:
                code = process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        for file in (out, err):
            file.seek(0)
        return Result(code, out.read().decode(), err.read().decode())


def wait_for_path(path: Path, process: "subprocess.Popen[str] | subprocess.Popen[bytes]") -> None:
    """Wait until a server has made its socket or file; the server must not end before."""
    deadline = time.monotonic() + PATIENCE_S
    while not path.exists():
        assert process.poll() is None, f"it ended: {process.args!r}"
        assert time.monotonic() < deadline, f"{path} does not appear"
        time.sleep(POLL_S)


# The fork server

_asking = threading.Lock()


def _ask(message: bytes, descriptors: list[int]) -> None:
    with _asking:
        socket.send_fds(_fork_server(), [message], descriptors)


@cache
def _fork_server() -> socket.socket:
    """Start it; it stays as long as this process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.system.fork_server", str(theirs.fileno())],
            cwd=ROOT, env=clean_environment(), stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )  # fmt: skip

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours
