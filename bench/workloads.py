"""The workloads, by name: the options of fio, and the kind of volume.

`plain` is a volume against a raw file behind qemu-nbd, both filled with bytes that do not
compress; `thin` is a clone of such a volume against a qcow2 overlay of such a file.

The first runs fill both, and they stay full: later runs rewrite clusters that the overlay has
allocated already, which is its easy case. `iops_min` shows its speed with fresh clusters.
"""

from dataclasses import dataclass
from typing import Literal

KIB = 1 << 10
MIB = 1 << 20


@dataclass(frozen=True)
class Workload:
    """One pattern of requests."""

    name: str
    kind: Literal["plain", "thin"]
    pattern: str
    block_bytes: int
    depth: int
    every_write_flushed: bool = False

    @property
    def reads(self) -> bool:
        """Whether the workload measures reads."""
        return "read" in self.pattern

    def fio_job(self, uri: str, size_bytes: int, seconds: float, seed: int) -> list[str]:
        """Return the options of fio for one run."""
        job = [
            f"--name={self.name}", "--ioengine=nbd", f"--uri={uri}", f"--rw={self.pattern}",
            f"--bs={self.block_bytes}", f"--iodepth={self.depth}", f"--size={size_bytes}",
            "--time_based", f"--runtime={seconds}", "--ramp_time=1", f"--randseed={seed}",
            "--norandommap", "--randrepeat=0", "--refill_buffers", "--output-format=json",
        ]  # fmt: skip
        if self.reads:
            # Otherwise fio fills buffers even for reads, which costs the client time.
            job.remove("--refill_buffers")
        if self.every_write_flushed:
            # Not fdatasync: fio's nbd engine refuses it (3.33). Both are one NBD flush.
            job.append("--fsync=1")
        return job


WORKLOADS = (
    Workload("random-read-4k", "plain", "randread", 4 * KIB, 32),
    Workload("random-write-4k", "thin", "randwrite", 4 * KIB, 32),
    Workload("sequential-read-1m", "plain", "read", MIB, 4),
    Workload("sequential-write-1m", "plain", "write", MIB, 4),
    Workload("write-flush-4k", "thin", "randwrite", 4 * KIB, 1, every_write_flushed=True),
)
