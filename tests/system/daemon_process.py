"""The real daemon in a process of its own, and real NBD clients against it."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any, Self

from tests.system.processes import (
    PATIENCE_S,
    ForkedProcess,
    Result,
    cenote,
    clean_environment,
)

CENOTE = (sys.executable, "-m", "admin")
"""Starts a command as an administrator would, in a Python of its own."""


class Daemon:
    """`cenote serve`, ready once the context is entered, stopped with SIGTERM after it.

    Args:
        own_python: start a Python of its own, instead of a fork.
    """

    def __init__(
        self, home: Path, *words: str, own_python: bool = False, **environment: str
    ) -> None:
        self.home = home
        self.log = ""
        self.ready: dict[str, Any] = {}
        words = ("--home", str(home), "serve", "--json", *words)
        env = clean_environment(**environment)
        self.process: subprocess.Popen[str] | ForkedProcess
        if own_python:
            self.process = subprocess.Popen(
                [*CENOTE, *words], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                text=True,
            )  # fmt: skip
        else:
            self.process = ForkedProcess("cenote", [*words], environment=env)
        self._reader = threading.Thread(target=self._read_log)
        self._reader.start()

    def __enter__(self) -> Self:
        line = line_within(PATIENCE_S, self.process)
        if not line:
            self.wait()
            raise AssertionError(f"the daemon did not start: {self.log}")
        self.ready = json.loads(line)
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.wait()
        assert code == 0, f"exit status {code}: {self.log}"

    def wait(self) -> int:
        """Wait for the process, whatever it takes, and return its exit status."""
        try:
            code = self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code

    def kill(self) -> None:
        """Kill it as the kernel would."""
        self.process.kill()
        self.wait()

    def run(self, *words: str) -> Result:
        """Run a client command."""
        return cenote(self.home, *words)

    def json(self, *words: str) -> Any:
        """Run a client command that succeeds and return what it says."""
        result = self.run(*words, "--json")
        assert result.code == 0, result.err
        return json.loads(result.out)

    def uri(self, export: str, endpoint: int = 0) -> str:
        uri: str = self.ready["daemon"]["endpoints"][endpoint]
        return uri.format(name=export)

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as stderr:
            for line in stderr:
                self.log += line


def line_within(seconds: float, process: subprocess.Popen[str] | ForkedProcess) -> str:
    """The next line that a process writes; empty if it ends, or writes none and is killed."""
    assert process.stdout is not None
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    line = process.stdout.readline()
    timer.cancel()
    return line


def tool(*words: str) -> Result:
    """Run a program away from our packages: libnbd's Python binding is called `nbd` too."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    with tempfile.TemporaryDirectory() as directory:
        done = subprocess.run(
            words,
            cwd=directory,
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    return Result(done.returncode, done.stdout, done.stderr)


def qemu_io(uri: str, *commands: str) -> Result:
    """Run qemu-io on an export; it exits with 0 even when a pattern is not found."""
    words = [word for command in commands for word in ("-c", command)]
    result = tool("qemu-io", "-f", "raw", *words, uri)
    failed = result.code or "Pattern verification failed" in result.out
    return Result(int(failed), result.out, result.err)
