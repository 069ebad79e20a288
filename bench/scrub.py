"""Speed of a scrub without a rate, and the cost of one at the default rate for clients.

usage: python -m bench.scrub [--mib N] [--copies N] [--seconds S] [--repeats N] [--directory DIR]

A volume of bytes that do not compress; 4 KiB random reads at depth 32 over a Unix socket, with a
warm page cache, without and with a scrub, in turn. Scrubs read around the page cache. Prints one
JSON line per figure; `ratio` is with a scrub to without.
"""

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from bench.machine import describe_machine
from bench.targets import Figure, Target, measure, write_random_file
from bench.workloads import MIB, WORKLOADS
from tests.system.pool_daemon import PoolDaemon, pool_daemon, run

READS = next(workload for workload in WORKLOADS if workload.name == "random-read-4k")


def main() -> None:
    """Set up, measure, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--copies", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.directory) as name:
        directory = Path(name)
        filling = directory / "filling"
        write_random_file(filling, options.mib * MIB)
        copies = options.copies
        with pool_daemon(directory, members=copies, copies=copies, member_size="64G") as daemon:
            daemon.start()
            daemon.create_volume("plain", options.mib * MIB)
            run("nbdcopy", "--flush", filling, daemon.uri("plain"), cwd=directory)
            filling.unlink()
            target = Target("cenote", {"plain": daemon.uri("plain")})
            _speed(daemon, options)
            _cost(daemon, target, directory, options)
            daemon.stop()


def _scrub(daemon: PoolDaemon, *words: str) -> Any:
    return daemon.cenote("scrub", *words)


def _line(options: argparse.Namespace, **figures: object) -> None:
    about = describe_machine() | {
        "mib": options.mib, "copies": options.copies, "repeats": options.repeats,
        "load": round(os.getloadavg()[0], 1),
    }  # fmt: skip
    print(json.dumps(about | figures), flush=True)


def _speed(daemon: PoolDaemon, options: argparse.Namespace) -> None:
    speeds = []
    for _ in range(options.repeats):
        words = ("start", "--fresh", "--rate", "unlimited", "--wait")
        result = _scrub(daemon, *words)["current"]["result"]
        assert result["found"] == 0, result
        speeds.append(result["read_bytes"] / result["seconds"] / MIB)
    _line(
        options, what="scrub without limit", mib_s=round(statistics.median(speeds)),
        mib_s_min=round(min(speeds)), mib_s_max=round(max(speeds)),
    )  # fmt: skip


def _cost(daemon: PoolDaemon, target: Target, directory: Path, options: argparse.Namespace) -> None:
    alone: list[Figure] = []
    beside: list[Figure] = []
    read_mib_s: list[float] = []
    size_bytes = options.mib * MIB
    for seed in range(options.repeats):
        alone.append(measure(target, READS, directory, size_bytes, options.seconds, seed + 1))
        _scrub(daemon, "start", "--fresh")
        beside.append(measure(target, READS, directory, size_bytes, options.seconds, seed + 1))
        scrub = _scrub(daemon, "stop")
        assert scrub["current"]["state"] == "stopped", "it ended before the measurement: more --mib"
        result = scrub["current"]["result"]
        read_mib_s.append(result["read_bytes"] / result["seconds"] / MIB)
    medians = [statistics.median(one.iops for one in runs) for runs in (alone, beside)]
    _line(
        options, what="random reads of 4 KiB at depth 32, beside a scrub at the default rate",
        seconds=options.seconds, iops_alone=round(medians[0]), iops=round(medians[1]),
        ratio=round(medians[1] / medians[0], 3),
        p99_us_alone=round(statistics.median(one.p99_us for one in alone)),
        p99_us=round(statistics.median(one.p99_us for one in beside)),
        scrub_mib_s=round(statistics.median(read_mib_s)),
    )  # fmt: skip


if __name__ == "__main__":
    main()
