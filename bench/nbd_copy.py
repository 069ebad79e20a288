"""`cenote nbd copy` beside nbdcopy: one image between files and servers, one JSON line per way.

usage: python -m bench.nbd_copy [WAY...] [--mib N] [--repeats N] [--directory DIR]

The image is half holes, half random bytes, 4 MiB each in turn. Both copy between the same
servers (nbdkit, over Unix sockets) with a warm page cache; both make the copy durable, and each
run writes to a destination that is new. Runs alternate, so that other load of the machine
affects both. `ratio` is ours to theirs in MiB per second, of whole commands, their start included.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.machine import ROOT, describe_machine

MIB = 1 << 20
RUN_BYTES = 4 * MIB
START_S = 10.0
TOOLS = {
    "cenote": (sys.executable, "-m", "admin", "nbd", "copy", "--yes", "--quiet"),
    "nbdcopy": ("nbdcopy", "--flush"),
}


def write_image(path: Path, size_bytes: int) -> None:
    rng = random.Random(1)
    with path.open("wb") as file:
        file.truncate(size_bytes)
        for offset in range(0, size_bytes, 2 * RUN_BYTES):
            file.seek(offset)
            file.write(rng.randbytes(min(RUN_BYTES, size_bytes - offset)))
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def nbdkit(directory: Path, name: str, *words: str) -> Iterator[str]:
    """Run a server; yield its URI."""
    socket, ready = directory / f"{name}.sock", directory / f"{name}.pid"
    ready.unlink(missing_ok=True)
    socket.unlink(missing_ok=True)
    command = ["nbdkit", "-f", "-P", str(ready), "-U", str(socket), *words]
    with subprocess.Popen(command) as process:
        try:
            deadline = time.monotonic() + START_S
            while not ready.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("nbdkit does not start")
                time.sleep(0.005)
            yield f"nbd+unix:///?socket={socket}"
        finally:
            process.kill()


@contextmanager
def new_file(directory: Path) -> Iterator[str]:
    path = directory / "copy.raw"
    path.unlink(missing_ok=True)
    yield str(path)


Way = Callable[[Path, int, ExitStack], tuple[str, str]]


def file_to_server(directory: Path, size_bytes: int, stack: ExitStack) -> tuple[str, str]:
    target = nbdkit(directory, "target", "memory", str(size_bytes))
    return str(directory / "image.raw"), stack.enter_context(target)


def server_to_file(directory: Path, size_bytes: int, stack: ExitStack) -> tuple[str, str]:
    source = nbdkit(directory, "source", "-r", "file", str(directory / "image.raw"))
    return stack.enter_context(source), stack.enter_context(new_file(directory))


def server_to_server(directory: Path, size_bytes: int, stack: ExitStack) -> tuple[str, str]:
    source = nbdkit(directory, "source", "-r", "file", str(directory / "image.raw"))
    target = nbdkit(directory, "target", "memory", str(size_bytes))
    return stack.enter_context(source), stack.enter_context(target)


WAYS: dict[str, Way] = {
    "file-to-server": file_to_server,
    "server-to-file": server_to_file,
    "server-to-server": server_to_server,
}


def main() -> None:
    """Make the image, measure, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("way", nargs="*", choices=[[], *WAYS])
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.directory) as name:
        directory = Path(name)
        write_image(directory / "image.raw", options.mib * MIB)
        for way in options.way or WAYS:
            print(json.dumps(_measure(way, directory, options)), flush=True)


def _measure(way: str, directory: Path, options: argparse.Namespace) -> dict[str, object]:
    runs: dict[str, list[float]] = {tool: [] for tool in TOOLS}
    processor: dict[str, list[float]] = {tool: [] for tool in TOOLS}
    for _ in range(options.repeats):
        for tool, words in TOOLS.items():
            with ExitStack() as stack:
                source, target = WAYS[way](directory, options.mib * MIB, stack)
                before, started = os.times(), time.monotonic()
                subprocess.run([*words, source, target], cwd=ROOT, check=True)
                runs[tool].append(time.monotonic() - started)
                after = os.times()
                user_s = after.children_user - before.children_user
                processor[tool].append(user_s + after.children_system - before.children_system)
    medians = {tool: statistics.median(took) for tool, took in runs.items()}
    return describe_machine() | {
        "way": way, "mib": options.mib, "repeats": options.repeats,
        "load": round(os.getloadavg()[0], 1),
        "mib_s": {tool: round(options.mib / took) for tool, took in medians.items()},
        "seconds": {tool: [round(one, 3) for one in took] for tool, took in runs.items()},
        "cpu_s": {tool: round(statistics.median(one), 3) for tool, one in processor.items()},
        "ratio": round(medians["nbdcopy"] / medians["cenote"], 2),
    }  # fmt: skip


if __name__ == "__main__":
    main()
