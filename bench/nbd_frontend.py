"""Our NBD server over memory, side by side with nbdkit memory and qemu-nbd on a file.

Drives each with fio's NBD engine over a Unix socket. Servers take turns within
every repeat, so that a busy neighbour hits all alike. Prints one JSON line per
server and workload; `ratio` is ours to the better of the others.

usage: python -m bench.nbd_frontend [--repeats N] [--seconds S] [--only WORD]
"""

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
SIZE_BYTES = 256 << 20
OURS = "cenote"


@dataclass(frozen=True)
class Workload:
    """What fio does; `rw`, `bs` and `depth` as fio means them."""

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


@dataclass(frozen=True)
class Sample:
    """One run of fio."""

    iops: float
    p99_us: float
    cpu_us: float
    """Processor time of the server per request: it tells more than iops when others are busy."""


@contextmanager
def started(command: list[str], path: Path) -> Iterator[int]:
    """Run a server until the block ends; yield its process once its socket exists."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while not path.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"server did not start: command={command}")
            time.sleep(0.05)
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def servers(folder: Path) -> dict[str, tuple[list[str], Path]]:
    """Return each server's command and socket."""
    image = folder / "raw.img"
    image.write_bytes(b"\x5a" * SIZE_BYTES)
    paths = {name: folder / f"{name}.sock" for name in (OURS, "nbdkit-memory", "qemu-nbd-raw")}
    ours, nbdkit, qemu = paths.values()
    commands = [
        [sys.executable, "-m", "bench.nbd_target", str(ours), str(SIZE_BYTES)],
        ["nbdkit", "--foreground", "--unix", str(nbdkit), "memory", str(SIZE_BYTES)],
        [
            "qemu-nbd", "--format=raw", "--persistent", "--shared=16", f"--socket={qemu}",
            str(image),
        ],
    ]  # fmt: skip
    return {
        name: (command, path) for (name, path), command in zip(paths.items(), commands, strict=True)
    }


def cpu_s(process: int) -> float:
    """Return what a process has used so far (proc(5): utime and stime of stat)."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(path: Path, process: int, workload: Workload, seconds: float, folder: Path) -> Sample:
    """Run fio once; nobody else's output mixes with its report."""
    report = folder / "fio.json"
    cpu_before = cpu_s(process)
    subprocess.run(
        [
            "fio", "--name=bench", "--ioengine=nbd", f"--uri=nbd+unix:///?socket={path}",
            f"--rw={workload.rw}", f"--bs={workload.bs}", f"--iodepth={workload.depth}",
            "--time_based", f"--runtime={seconds}", "--output-format=json", f"--output={report}",
        ],
        check=True, stdout=subprocess.DEVNULL, cwd=folder,
    )  # fmt: skip
    text = report.read_text()
    job = json.loads(text[text.index("{") :])["jobs"][0]
    side = job["read" if "read" in workload.rw else "write"]
    cpu_us = (cpu_s(process) - cpu_before) * 1e6 / side["total_ios"]
    return Sample(side["iops"], side["clat_ns"]["percentile"]["99.000000"] / 1000, cpu_us)


def fill(path: Path, folder: Path) -> None:
    """Write the whole device once, so that nobody serves pages that do not exist."""
    image = folder / "raw.img"
    subprocess.run(["nbdcopy", str(image), f"nbd+unix:///?socket={path}"], check=True, cwd=folder)


def report(
    workload: Workload, samples: dict[str, list[Sample]], arguments: dict[str, float]
) -> None:
    """Print one line per server."""
    medians = {
        name: statistics.median(sample.iops for sample in runs) for name, runs in samples.items()
    }
    best = max(iops for name, iops in medians.items() if name != OURS)
    for name, runs in samples.items():
        row = {
            "bench": "nbd_frontend",
            "workload": workload.name,
            "server": name,
            "commit": commit(),
            "machine": f"{platform.machine()} {os.cpu_count()} cpus linux {platform.release()}",
            **arguments,
            "median_iops": round(medians[name]),
            "min_iops": round(min(sample.iops for sample in runs)),
            "max_iops": round(max(sample.iops for sample in runs)),
            "p99_us": round(statistics.median(sample.p99_us for sample in runs), 1),
            "cpu_us_per_request": round(statistics.median(sample.cpu_us for sample in runs), 2),
        }
        if name == OURS:
            row["ratio"] = round(medians[name] / best, 2)
        print(json.dumps(row), flush=True)


def commit() -> str:
    """Return the commit measured, marked when our sources differ from it."""
    command = ["git", "describe", "--always", "--abbrev=10"]
    name = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "nbd", "blockdev"], cwd=ROOT)
    return name.strip() + ("-dirty" if changed.returncode else "")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--only", default="", help="workloads whose name contains this")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        running = servers(folder)
        processes = {
            server: stack.enter_context(started(command, path))
            for server, (command, path) in running.items()
        }
        fill(running["nbdkit-memory"][1], folder)
        for workload in WORKLOADS:
            if options.only not in workload.name:
                continue
            samples: dict[str, list[Sample]] = {server: [] for server in running}
            for _ in range(options.repeats):
                for server, (_, path) in running.items():
                    samples[server].append(
                        measure(path, processes[server], workload, options.seconds, folder)
                    )
            report(workload, samples, {"repeats": options.repeats, "seconds": options.seconds})


if __name__ == "__main__":
    main()
