"""Compares our daemon with qemu-nbd: the same workload on each in turn, one JSON line per result.

usage: python -m bench.run [WORKLOAD...] [--mib N] [--seconds S] [--repeats N] [--directory DIR]

Both serve files of one directory, on a disk, through Unix sockets, with a warm page cache;
both have a write cache, and flush when asked. Runs alternate, so that other load of the
machine affects both. `ratio` is ours to theirs.
"""

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path

from bench.machine import describe_machine
from bench.targets import Figure, Target, cenote, measure, qemu_nbd, write_random_file
from bench.workloads import MIB, WORKLOADS, Workload


def main() -> None:
    """Set both up, measure, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("workload", nargs="*", choices=[[], *(w.name for w in WORKLOADS)])
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"))
    options = parser.parse_args()
    chosen = [w for w in WORKLOADS if not options.workload or w.name in options.workload]
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.directory) as name:
        directory = Path(name)
        filling = directory / "filling"
        write_random_file(filling, options.mib * MIB)
        with (
            cenote(directory, filling) as (ours, _),
            qemu_nbd(directory, filling) as theirs,
        ):
            for workload in chosen:
                _compare(workload, (ours, theirs), directory, options)


def _compare(
    workload: Workload, targets: tuple[Target, ...], directory: Path, options: argparse.Namespace
) -> None:
    size_bytes = options.mib * MIB
    runs: dict[str, list[Figure]] = {target.name: [] for target in targets}
    for seed in range(options.repeats):
        for target in targets:
            runs[target.name].append(
                measure(target, workload, directory, size_bytes, options.seconds, seed + 1)
            )
    medians = {name: statistics.median(f.iops for f in figures) for name, figures in runs.items()}
    first, *others = targets
    for target in targets:
        figures = runs[target.name]
        line = describe_machine() | {
            "workload": workload.name, "target": target.name, "volume": workload.kind,
            "pattern": workload.pattern, "block_bytes": workload.block_bytes,
            "depth": workload.depth, "fsync": int(workload.every_write_flushed),
            "mib": options.mib, "seconds": options.seconds, "repeats": options.repeats,
            "load": round(os.getloadavg()[0], 1),
            "iops": round(medians[target.name]),
            "mib_s": round(statistics.median(f.mib_s for f in figures), 1),
            "p99_us": round(statistics.median(f.p99_us for f in figures)),
            "iops_min": round(min(f.iops for f in figures)),
            "iops_max": round(max(f.iops for f in figures)),
        }  # fmt: skip
        if target is first:
            line["ratio"] = round(medians[first.name] / medians[others[0].name], 2)
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
