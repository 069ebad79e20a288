"""Time to open a pool with 64 GiB mapped: after a clean stop, and after a kill
with the longest tail of the log that the checkpoint policy allows.

usage: python -m bench.open_time [--gib N] [--repeats N] [--profile] [--directory DIR]

The map is real: real checkpoints write its pages, and each entry names another place. The data
that the map names does not exist: the file is sparse, and commits are written without payload,
except for the last ones, whose payload replay verifies. Prints one JSON line per figure.
"""

import argparse
import cProfile
import json
import os
import pstats
import random
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import trio
from typing_extensions import Buffer

from bench.machine import describe_machine
from blockdev.file import FileDevice
from storage.format import commit
from storage.format.commit import LayerExtents, Records
from storage.format.entry import RAW, SEGMENT_SHIFT
from storage.members.segments import State
from storage.pool import (
    REPLAY_COST_MAX,
    MemberDevice,
    Pool,
    PoolSettings,
    create_pool,
    open_pool,
)
from storage.settings import CHECKPOINT_COMMITS, CHECKPOINT_RECORDS

BLOCK_BYTES = 4096
BATCH_BLOCKS = 1 << 20
VOLUME = "data"
KEPT_BYTES = 64 << 20
"""Bytes of last commits kept with payload. Replay verifies payload written after the last commit
known as durable: 16 MiB at most."""
NO_CHECKPOINTS = PoolSettings(
    checkpoint_interval_s=1e9, checkpoint_records=1 << 40, checkpoint_commits=1 << 40
)


@dataclass(frozen=True)
class Tail:
    """The commits in the log behind the newest checkpoint."""

    name: str
    commits: int
    blocks_per_commit: int


COMMITS_MAX = REPLAY_COST_MAX * CHECKPOINT_COMMITS
RECORDS_MAX = REPLAY_COST_MAX * CHECKPOINT_RECORDS
"""Number at which writers wait for the checkpoint under way; records and commits count together."""

TAILS = (
    Tail("kill, most commits", COMMITS_MAX, 1),
    Tail("kill, most records", -(-RECORDS_MAX // 1024), 1024),
    Tail("kill, half of both", COMMITS_MAX // 2, -(-RECORDS_MAX // COMMITS_MAX)),
)


class Abandoned(BaseException):
    """Ends a pool without a close, as a crash does."""


class HollowFile(FileDevice):
    """A file that stores header and table of each commit, and the payload of the newest only."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self._held: deque[tuple[int, bytes]] = deque()
        self._held_bytes = 0

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        view = memoryview(data).cast("B")
        header = commit.decode_header(view)
        if header is None:
            await super().write(offset, view)
            return
        self._held.append((offset, bytes(view)))
        self._held_bytes += len(view)
        while self._held_bytes > KEPT_BYTES:
            self._let_go()

    def _let_go(self) -> None:
        offset, data = self._held.popleft()
        self._held_bytes -= len(data)
        header = commit.decode_header(data)
        assert header is not None
        os.pwrite(self._fd, data[: commit.HEADER_BYTES + header.table_bytes], offset)

    def settle(self) -> None:
        """Write the commits held back, with their payload."""
        for offset, data in self._held:
            os.pwrite(self._fd, data, offset)
        self._held.clear()

    async def flush(self) -> None:
        """Do nothing, because no power is cut here."""

    async def allocate(self, offset: int, length: int) -> None:
        """Do nothing, so that the file stays sparse."""


class Harness:
    """Builds a pool in one file, and opens it."""

    def __init__(self, file: Path, mapped_bytes: int) -> None:
        self.file = file
        self.mapped_bytes = mapped_bytes
        self._rng = random.Random(1)

    # -- building

    async def build(self) -> None:
        """Make the pool and map its volume, with a checkpoint every million entries."""
        # This leaves room for the map and for all tails, none of which is cleaned.
        member_bytes = self.mapped_bytes * 5 // 4 + (128 << 30)
        device = HollowFile.create(self.file, member_bytes)
        offered = [MemberDevice(device, "member", "here")]
        await create_pool(offered, copies=1, segment_bytes=32 << 20)
        async with open_pool(offered, settings=NO_CHECKPOINTS) as pool:
            await pool.management.create_volume(VOLUME, self.mapped_bytes)
            for first in range(0, self.mapped_bytes // BLOCK_BYTES, BATCH_BLOCKS):
                await map_batch(pool, first)
                await pool.checkpoint()
        device.settle()
        await device.close()

    def leave(self, tail: Tail) -> None:
        """Leave the pool as a kill does, with such a tail, which one opening uses up."""
        self.close_cleanly()
        trio.run(self._add_tail, tail)
        self._sync()

    async def _add_tail(self, tail: Tail) -> None:
        device = HollowFile.open(self.file)
        data = random.Random(2).randbytes(BLOCK_BYTES)
        try:
            async with open_pool(
                [MemberDevice(device, "member", "here")], settings=NO_CHECKPOINTS
            ) as pool:
                volume = pool.open_export(VOLUME)
                for _ in range(tail.commits):
                    for _ in range(tail.blocks_per_commit):
                        offset = self._rng.randrange(self.mapped_bytes // BLOCK_BYTES)
                        await volume.write(offset * BLOCK_BYTES, data)
                    await volume.flush()
                raise Abandoned
        except BaseExceptionGroup as group:
            if group.subgroup(Abandoned) is None:
                raise
        device.settle()
        await device.close()

    # -- measuring

    def open_seconds(self, *, cold: bool) -> float:
        """Open the pool, and leave it as a kill does; return the seconds of the opening alone."""
        if cold:
            with self.file.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return trio.run(self._open)

    def _sync(self) -> None:
        """Flush the file, because the flushes of `HollowFile` do nothing."""
        with self.file.open("r+b") as file:
            os.fsync(file)

    async def _open(self) -> float:
        device = FileDevice.open(self.file)
        seconds = -1.0
        try:
            began = time.monotonic()
            async with open_pool([MemberDevice(device, "member", "here")]):
                seconds = time.monotonic() - began
                raise Abandoned
        except BaseExceptionGroup as group:
            if group.subgroup(Abandoned) is None:
                raise
        await device.close()
        return seconds

    def close_cleanly(self) -> None:
        """Open and close, so that nothing is left to replay."""
        trio.run(self._close_cleanly)
        self._sync()

    async def _close_cleanly(self) -> None:
        # A HollowFile, because the last checkpoint must not allocate its segments either.
        device = HollowFile.open(self.file)
        async with open_pool([MemberDevice(device, "member", "here")], settings=NO_CHECKPOINTS):
            pass
        device.settle()
        await device.close()


async def map_batch(pool: Pool, first: int) -> None:
    """Map a run of blocks to raw extents at scattered places, as replay of a commit does."""
    (layer,) = pool.blockmap.layers
    per_segment = pool.table.segment_bytes // BLOCK_BYTES
    segments = []
    for _ in range(BATCH_BLOCKS // per_segment):
        segment = await pool.table.allocate(announced_in=pool.durable_commit)
        segment.state = State.SEALED
        segment.used_bytes = pool.table.segment_bytes
        segment.last_commit = pool.durable_commit
        segments.append(segment.number)
    rng = np.random.default_rng(first)
    places = rng.permutation(BATCH_BLOCKS).astype(np.uint64)
    numbers = np.array(segments, dtype=np.uint64)[places // np.uint64(per_segment)]
    units = places % np.uint64(per_segment) * np.uint64(BLOCK_BYTES // 64)
    checks = rng.integers(0, 1 << 40, BATCH_BLOCKS, dtype=np.uint64)
    extents = LayerExtents(
        layer,
        blocks=np.arange(first, first + BATCH_BLOCKS, dtype=np.uint64),
        a=numbers << np.uint64(SEGMENT_SHIFT) | units << np.uint64(3) | np.uint64(RAW),
        b=checks << np.uint64(24) | np.uint64(BLOCK_BYTES - 1),
        hash_tops=np.zeros(BATCH_BLOCKS, dtype=np.uint64),
    )
    pool.blockmap.apply(Records(extents=[extents]))


def main() -> None:
    """Build, measure, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gib", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as name:
        harness = Harness(Path(name) / "member.img", options.gib << 30)
        trio.run(harness.build)
        _measure(harness, "clean stop", options, prepare=harness.close_cleanly)
        for tail in TAILS:
            _measure(
                harness, tail.name, options, prepare=partial(harness.leave, tail),
                commits=tail.commits, blocks_per_commit=tail.blocks_per_commit,
            )  # fmt: skip


def _measure(
    harness: Harness,
    name: str,
    options: argparse.Namespace,
    *,
    prepare: Callable[[], None],
    **parameters: object,
) -> None:
    figures: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(options.repeats):
        for cold in figures:
            prepare()
            figures[cold].append(harness.open_seconds(cold=cold))
    parameters["name"] = f"open after {name}"
    line = describe_machine() | parameters | {
        "mapped_gib": harness.mapped_bytes >> 30, "repeats": options.repeats,
        "warm_s": round(statistics.median(figures[False]), 3),
        "cold_s": round(statistics.median(figures[True]), 3),
        "worst_s": round(max(figures[False] + figures[True]), 3),
    }  # fmt: skip
    print(json.dumps(line), flush=True)
    if options.profile:
        prepare()
        profile = cProfile.Profile()
        profile.runcall(harness.open_seconds, cold=False)
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()
