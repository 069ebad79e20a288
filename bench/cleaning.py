"""Cost of cleaning in a pool that is 80 % full, overwritten ten times with random 4 KiB writes.

usage: python -m bench.cleaning [uniform|zipf]... [--mib N] [--rounds N] [--quick]
           [--directory DIR] [--output FILE.json] [--plot FILE.svg]

The volume fills 80 % of the slots outside the reserve with bytes that do not compress, at the
segment size that a pool of that size gets. One client writes as fast as it may, to blocks drawn
evenly or by Zipf's law (theta 0.99). The figures are the bytes of log, moved blocks and metadata
written to segments for each byte that became durable in a commit, and the longest time of a write.
In the end every block is compared, and the pool checked. Prints one JSON line per figure.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import trio
from numpy.typing import NDArray

from bench.machine import describe_machine
from bench.plot import Line, chart
from blockdev.file import FileDevice
from storage.format.commit import Records
from storage.pool import MemberDevice, Pool, create_pool, open_pool
from storage.verify.check import check_pool
from storage.volumes.volume import Volume

BLOCK = 4096
MIB = 1 << 20
FULL = 0.8
THETA = 0.99
POINTS_PER_ROUND = 10
YIELD_EVERY = 64
"""Writes after which other tasks run, as in a server that takes all writes received so far."""
NOISE_BLOCKS = 4096
TARGETS = {"uniform": 3.0, "zipf": 2.3}


@dataclass(frozen=True)
class Point:
    """One interval of the curve; log, moved and metadata are bytes per byte committed."""

    volumes_written: float
    log: float
    moved: float
    metadata: float
    worst_stall_s: float
    writes_per_s: float


class Counters:
    """Counts the bytes that clients' commits held and that the pool wrote."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._committed = 0
        honest = pool.blockmap.apply

        def apply(records: Records) -> None:
            self._committed += BLOCK * sum(len(each.blocks) for each in records.extents)
            honest(records)

        pool.blockmap.apply = apply  # type: ignore[method-assign]

    def now(self) -> NDArray[np.int64]:
        """Return the bytes so far, shape (4,): committed, log, moved, metadata."""
        pool = self._pool
        log, moved = pool.log.bytes_written, pool.cleaner._mover.bytes_written
        meta = pool.checkpointer._meta.bytes_written
        return np.array([self._committed, log, moved, meta], dtype=np.int64)


class Run:
    """One pool, filled and overwritten."""

    def __init__(self, directory: Path, kind: str, options: argparse.Namespace) -> None:
        self._file = directory / "member.img"
        self._kind = kind
        self._size = options.mib * MIB
        self._rounds = options.rounds
        self._rng = np.random.default_rng(1)
        self._noise = self._rng.bytes((NOISE_BLOCKS + 1) * BLOCK)
        self._written = 0
        self.points: list[Point] = []

    async def run(self) -> dict[str, object]:
        """Fill, overwrite, verify and check the pool; return the figures."""
        device = FileDevice.create(self._file, self._size)
        offered = [MemberDevice(device, "member", "here")]
        await create_pool(offered, copies=1)
        began = time.monotonic()
        async with open_pool(offered) as pool:
            usable = pool.table.total_segments() - pool.space.reserve_segments
            self._blocks = int(usable * FULL) * pool.table.segment_bytes // BLOCK
            segment_bytes = pool.table.segment_bytes
            await pool.management.create_volume("v", self._blocks * BLOCK)
            volume = pool.open_export("v")
            self._versions = np.zeros(self._blocks, dtype=np.int64)
            await self._write(volume, np.arange(self._blocks))
            await volume.flush()
            counters = Counters(pool)
            before = counters.now()
            await self._overwrite(volume, counters)
            await volume.flush()
            committed, *parts = (counters.now() - before).tolist()
            await self._verify(volume)
            await volume.close()
        report = await check_pool(offered)
        assert not report.damage, report.damage[:3]
        await device.close()
        rounds = self._rounds * self._blocks * BLOCK
        log, moved, metadata = (round(part / committed, 3) for part in parts)
        stalls = sorted(point.worst_stall_s for point in self.points)
        return {
            "name": f"cleaning, {self._kind}", "pool_mib": self._size // MIB,
            "segment_mib": segment_bytes // MIB, "live": FULL, "rounds": self._rounds,
            "written_per_byte": round(sum(parts) / committed, 3), "target": TARGETS[self._kind],
            "log": log, "moved": moved, "metadata": metadata,
            "committed_share": round(committed / rounds, 3),
            "worst_stall_s": stalls[-1], "p95_of_worst_s": stalls[len(stalls) * 95 // 100],
            "writes_per_s": round(statistics.median(p.writes_per_s for p in self.points)),
            "seconds": round(time.monotonic() - began), "load": round(os.getloadavg()[0], 1),
            "verified_blocks": self._blocks, "damage": 0,
        }  # fmt: skip

    # -- writing

    async def _overwrite(self, volume: Volume, counters: Counters) -> None:
        size = self._blocks // POINTS_PER_ROUND
        draw = self._zipf() if self._kind == "zipf" else None
        for number in range(self._rounds * POINTS_PER_ROUND):
            if draw is None:
                blocks = self._rng.integers(0, self._blocks, size)
            else:
                ranks = np.searchsorted(draw[0], self._rng.random(size))
                blocks = draw[1][np.minimum(ranks, self._blocks - 1)]
            before, began = counters.now(), time.monotonic()
            worst_s = await self._write(volume, blocks)
            seconds = time.monotonic() - began
            committed, *parts = (counters.now() - before).tolist()
            log, moved, metadata = (round(part / max(committed, 1), 3) for part in parts)
            done = (number + 1) / POINTS_PER_ROUND
            rate = round(size / seconds)
            self.points.append(Point(done, log, moved, metadata, round(worst_s, 3), rate))

    def _zipf(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return the cumulative probability of the ranks, and the block of each rank."""
        shares = 1 / np.arange(1, self._blocks + 1) ** THETA
        return np.cumsum(shares / shares.sum()), self._rng.permutation(self._blocks)

    async def _write(self, volume: Volume, blocks: NDArray[np.int64]) -> float:
        """Write blocks in order; return the longest time of one write, in seconds."""
        worst_s = 0.0
        for i, block in enumerate(blocks.tolist()):
            self._written += 1
            self._versions[block] = self._written
            data = self._data(self._written)
            began = time.monotonic()
            if not volume.try_write(block * BLOCK, data):
                await volume.write(block * BLOCK, data)
            if i % YIELD_EVERY == 0:
                await trio.lowlevel.checkpoint()
            worst_s = max(worst_s, time.monotonic() - began)
        return worst_s

    def _data(self, version: int) -> bytes:
        start = version * 2654435761 % (NOISE_BLOCKS * BLOCK)
        return self._noise[start : start + BLOCK - 8] + version.to_bytes(8, "little")

    async def _verify(self, volume: Volume) -> None:
        for block, version in enumerate(self._versions.tolist()):
            found = await volume.read(block * BLOCK, BLOCK)
            assert bytes(found) == self._data(version), f"wrong bytes: {block=}"


def draw_plot(curves: dict[str, list[Point]], rounds: int) -> str:
    """Draw, as SVG, the bytes written per byte committed, and the part that the cleaner moved."""
    lines = []
    for kind, points in curves.items():
        total = [(p.volumes_written, p.log + p.moved + p.metadata) for p in points]
        moved = [(p.volumes_written, p.moved) for p in points]
        lines += [Line(f"{kind}, all", total), Line(f"{kind}, moved", moved, dashed=True)]
    title = "Bytes written to segments per byte committed, 80 % alive"
    return chart(title, "times the volume was overwritten", lines, x_max=rounds, y_max=4)


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", nargs="*", choices=[[], *TARGETS])
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="256 MiB, overwritten three times")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"))
    parser.add_argument("--output", type=Path, help="figures and curves as JSON")
    parser.add_argument("--plot", type=Path, help="the curves as SVG")
    options = parser.parse_args()
    if options.quick:
        options.mib, options.rounds = 256, 3
    curves, figures = {}, []
    for kind in options.kind or TARGETS:
        with tempfile.TemporaryDirectory(prefix="bench-", dir=options.directory) as name:
            run = Run(Path(name), kind, options)
            figures.append(describe_machine() | trio.run(run.run))
        curves[kind] = run.points
        print(json.dumps(figures[-1]), flush=True)
    if options.output:
        kept = {kind: [asdict(point) for point in points] for kind, points in curves.items()}
        options.output.write_text(json.dumps({"figures": figures, "curves": kept}, indent=1))
    if options.plot:
        options.plot.write_text(draw_plot(curves, options.rounds))


if __name__ == "__main__":
    main()
