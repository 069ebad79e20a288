"""Our NBD server over memory, side by side with nbdkit memory and qemu-nbd.

fio's NBD engine drives each server over a Unix socket. All serve as many bytes of memory, touched
before the first request: our server a mapping, nbdkit its memory plugin with all its
threads and with fewer, and qemu-nbd a raw file in a tmpfs. Servers take turns in short
slices, each round in another order, so that a busy neighbor affects all alike. Servers without a
turn sleep.

Prints one JSON line per server and workload. The line of our server also has `ratio`, of its
median to that of the better other server with default options, and `ratio_quartiles`, of the ratios
to that server within each round, which show disturbed rounds. `tuned_ratio` is to the best of all
other servers, with the number of threads that suits this very load.

usage: python -m bench.nbd_frontend [--repeats N] [--seconds S] [--only WORD] [--peers all]
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.machine import describe_machine

ROOT = Path(__file__).parent.parent
SIZE_BYTES = 256 << 20
OURS = "cenote"
MEMORY_FOLDER = "/dev/shm"


@dataclass(frozen=True)
class Workload:
    """One load by fio; `rw`, `bs` and `depth` are fio's."""

    rw: str
    bs: str
    depth: int

    @property
    def name(self) -> str:
        return f"{self.rw}-{self.bs}-qd{self.depth}"


WORKLOADS = [
    Workload("randread", "4k", 1),
    Workload("randwrite", "4k", 1),
    Workload("randread", "4k", 32),
    Workload("randwrite", "4k", 32),
    Workload("read", "1m", 1),
    Workload("write", "1m", 1),
    Workload("read", "1m", 8),
    Workload("write", "1m", 8),
]

NBDKIT = ["nbdkit", "--foreground", "--unix", "SOCKET"]
QEMU = ["qemu-nbd", "--format=raw", "--persistent", "--shared=16", "--socket=SOCKET"]
MEMORY = ["memory", str(SIZE_BYTES)]
PLAIN = {"nbdkit-memory": [*NBDKIT, *MEMORY], "qemu-nbd-raw": [*QEMU, "IMAGE"]}
TUNED = {
    # By default each request passes between nbdkit's sixteen threads.
    "nbdkit-memory-1-thread": [*NBDKIT, "--threads=1", *MEMORY],
    "nbdkit-memory-2-threads": [*NBDKIT, "--threads=2", *MEMORY],
}
MORE_PEERS = {
    # Other options of these servers. None of them wins by more than the noise, so they are
    # measured only with --peers all.
    "nbdkit-memory-malloc": [*NBDKIT, *MEMORY, "allocator=malloc"],
    "nbdkit-memory-malloc-1-thread": [*NBDKIT, "--threads=1", *MEMORY, "allocator=malloc"],
    "qemu-nbd-io_uring": [*QEMU, "--aio=io_uring", "IMAGE"],
    "qemu-nbd-unsafe": [*QEMU, "--cache=unsafe", "IMAGE"],
}


@dataclass(frozen=True)
class Server:
    """A running server."""

    process: int
    uri: str


@dataclass(frozen=True)
class Sample:
    """One run of fio."""

    iops: float
    p99_us: float
    cpu_us: float
    """Processor time of the server per request: on a busy machine it tells more than iops."""


@contextmanager
def started(name: str, words: list[str], folder: Path) -> Iterator[Server]:
    """Run a server until the block ends; yield it once its socket exists."""
    path = folder / f"{name}.sock"
    image = str(folder / "raw.img")
    command = [w.replace("SOCKET", str(path)).replace("IMAGE", image) for w in words]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while not path.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"server did not start: command={command}")
            time.sleep(0.05)
        yield Server(process.pid, f"nbd+unix:///?socket={path}")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def cpu_s(process: int) -> float:
    """Return the processor time of all threads of a process, ended ones included, in seconds.

    Source: clock_gettime(2), a process's CPU clock by its number; /proc counts only in 10 ms.
    """
    return time.clock_gettime(~process << 3 | 2)


def measure(server: Server, workload: Workload, seconds: float, folder: Path) -> Sample:
    """Run fio once; its report goes to a file, which no other output mixes with."""
    report = folder / "fio.json"
    cpu_before = cpu_s(server.process)
    subprocess.run(
        [
            "fio", "--name=bench", "--ioengine=nbd", f"--uri={server.uri}",
            f"--rw={workload.rw}", f"--bs={workload.bs}", f"--iodepth={workload.depth}",
            "--time_based", f"--runtime={seconds * 1000:.0f}ms",
            "--output-format=json", f"--output={report}",
        ],
        check=True, stdout=subprocess.DEVNULL, cwd=folder,
    )  # fmt: skip
    text = report.read_text()
    job = json.loads(text[text.index("{") :])["jobs"][0]
    side = job["read" if "read" in workload.rw else "write"]
    cpu_us = (cpu_s(server.process) - cpu_before) * 1e6 / side["total_ios"]
    return Sample(side["iops"], side["clat_ns"]["percentile"]["99.000000"] / 1000, cpu_us)


def compare(
    servers: dict[str, Server], workload: Workload, options: argparse.Namespace, folder: Path
) -> dict[str, list[Sample]]:
    """Let the servers take turns; the first round only warms up."""
    samples: dict[str, list[Sample]] = {name: [] for name in servers}
    names = list(servers)
    for turn in range(options.repeats + 1):
        names.append(names.pop(0))
        order = names if turn % 2 else names[::-1]
        for name in order:
            sample = measure(servers[name], workload, options.seconds, folder)
            if turn:
                samples[name].append(sample)
    return samples


def report(workload: Workload, samples: dict[str, list[Sample]], facts: dict[str, object]) -> None:
    """Print one line per server."""
    medians = {
        name: statistics.median(sample.iops for sample in runs) for name, runs in samples.items()
    }
    for name, runs in samples.items():
        low, _, high = _quartiles([sample.iops for sample in runs])
        row = facts | {
            "workload": workload.name,
            "server": name,
            "load": round(os.getloadavg()[0], 1),
            "iops": round(medians[name]),
            "iops_quartiles": [round(low), round(high)],
            "p99_us": round(statistics.median(sample.p99_us for sample in runs), 1),
            "cpu_us": round(statistics.median(sample.cpu_us for sample in runs), 2),
        }
        if name == OURS:
            row |= _ratio(samples, medians, PLAIN) | {
                f"tuned_{key}": value
                for key, value in _ratio(samples, medians, medians.keys() - {OURS}).items()
            }
        print(json.dumps(row), flush=True)


def _ratio(
    samples: dict[str, list[Sample]], medians: dict[str, float], peers: Iterable[str]
) -> dict[str, object]:
    best = max(peers, key=medians.__getitem__)
    ratios = [a.iops / b.iops for a, b in zip(samples[OURS], samples[best], strict=True)]
    low, _, high = _quartiles(ratios)
    return {
        "best": best,
        "ratio": round(medians[OURS] / medians[best], 2),
        "ratio_quartiles": [round(low, 2), round(high, 2)],
    }


def _quartiles(values: list[float]) -> list[float]:
    return statistics.quantiles(values, n=4, method="inclusive")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each slice")
    parser.add_argument("--only", default="", help="workloads whose name contains this")
    parser.add_argument("--peers", choices=["usual", "all"], default="usual")
    options = parser.parse_args()
    facts = {"bench": "nbd_frontend"} | describe_machine()
    facts |= {"repeats": options.repeats, "seconds": options.seconds}
    with tempfile.TemporaryDirectory(dir=MEMORY_FOLDER) as name, ExitStack() as stack:
        folder = Path(name)
        image = folder / "raw.img"
        image.write_bytes(b"\x5a" * SIZE_BYTES)
        commands = {OURS: [sys.executable, "-m", "bench.nbd_target", "SOCKET", str(SIZE_BYTES)]}
        commands |= PLAIN | TUNED | (MORE_PEERS if options.peers == "all" else {})
        servers = {
            server: stack.enter_context(started(server, words, folder))
            for server, words in commands.items()
        }
        for server, running in servers.items():
            # Write all memory once, because unwritten memory is not allocated yet.
            if server.startswith("nbdkit"):
                subprocess.run(["nbdcopy", image, running.uri], check=True, cwd=folder)
        for workload in WORKLOADS:
            if options.only in workload.name:
                report(workload, compare(servers, workload, options, folder), facts)


if __name__ == "__main__":
    main()
