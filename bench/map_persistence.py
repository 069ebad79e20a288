"""Cost of persisting the map under uniform random 4 KiB writes: a volume of 1 TiB, at 1/64.

usage: python -m bench.map_persistence [--scale N] [--consolidated N] [--records N]
           [--directory DIR]

Volume, page cache and records per checkpoint are those of 1 TiB divided by the scale, so each
checkpoint finds as many changes of a page as with 1 TiB. All of the volume is mapped at scattered
places first; then it is written to until each page was written whole so many times. Data
is discarded on the way to the file, and the pool is so large that nothing is cleaned; pages that
checkpoints relocate are counted apart. Prints one JSON line.
"""

import argparse
import json
import os
import random
import tempfile
import time
from pathlib import Path

import numpy as np
import trio

from bench.machine import describe_machine
from bench.open_time import BATCH_BLOCKS, NO_CHECKPOINTS, HollowFile, map_batch
from storage.format.pages import CHUNK_PAGES, PAGE_BLOCKS
from storage.map.layer import Layer
from storage.pool import MemberDevice, Pool, PoolSettings, create_pool, open_pool
from storage.settings import CHECKPOINT_RECORDS

BLOCK = 4096
MAPPED_BYTES = 1 << 40
TARGET_WRITTEN, TARGET_READ = 1.15, 1.5


class Reads:
    """Counts the stored bytes of the map that are read, from the page cache or not."""

    def __init__(self, pool: Pool) -> None:
        self.bytes_read = 0
        honest = pool.segment_io.read_located

        async def read_located(a: int, b: int, plain_bytes_max: int) -> bytes:
            self.bytes_read += (b & 0xFFFF) + 1
            return await honest(a, b, plain_bytes_max)

        pool.segment_io.read_located = read_located  # type: ignore[method-assign]


class Consolidations:
    """Counts how often each page of a layer is written whole, by its hash, which a copy keeps."""

    def __init__(self, layer: Layer, pages: int) -> None:
        self._layer = layer
        self._known = self._hashes(pages)
        self.counts = np.zeros(pages, dtype=np.int64)

    def look(self) -> None:
        hashes = self._hashes(len(self.counts))
        self.counts += hashes != self._known
        self._known = hashes

    def _hashes(self, pages: int) -> np.ndarray:
        chunks = [self._layer.directory.chunk(n)[:, 1] for n in range(-(-pages // CHUNK_PAGES))]
        return np.concatenate(chunks)[:pages]


async def run(file: Path, options: argparse.Namespace) -> dict[str, object]:
    """Map the volume, write to it, and return the figures."""
    mapped_bytes = MAPPED_BYTES // options.scale
    blocks = mapped_bytes // BLOCK
    records = (options.records or CHECKPOINT_RECORDS) // options.scale
    cache_bytes = PoolSettings().page_cache_bytes // options.scale
    device = HollowFile.create(file, mapped_bytes * 4)
    offered = [MemberDevice(device, "member", "here")]
    await create_pool(offered, copies=1, segment_bytes=32 << 20)
    settings = PoolSettings(
        page_cache_bytes=cache_bytes, checkpoint_interval_s=NO_CHECKPOINTS.checkpoint_interval_s,
        checkpoint_records=NO_CHECKPOINTS.checkpoint_records,
        checkpoint_commits=NO_CHECKPOINTS.checkpoint_commits,
    )  # fmt: skip
    async with open_pool(offered, settings=settings) as pool:
        await pool.management.create_volume("data", mapped_bytes)
        for first in range(0, blocks, BATCH_BLOCKS):
            await map_batch(pool, first)
            await pool.checkpoint()
        (layer,) = pool.blockmap.layers.values()
        whole = Consolidations(layer, blocks // PAGE_BLOCKS)
        reads, volume = Reads(pool), pool.open_export("data")
        coin = random.Random(1)
        noise = coin.randbytes(2 * BLOCK)
        log, meta, relocator = pool.log, pool.checkpointer._meta, pool.checkpointer.relocator
        before = log.bytes_written, meta.bytes_written
        written = checkpoints = 0
        began = time.monotonic()
        while whole.counts.min() < options.consolidated:
            for _ in range(records):
                at, start = coin.randrange(blocks) * BLOCK, coin.randrange(BLOCK)
                data = noise[start : start + BLOCK]
                if not volume.try_write(at, data):
                    await volume.write(at, data)
            await volume.flush()
            await pool.checkpoint()
            whole.look()
            written += records * BLOCK
            checkpoints += 1
        assert not pool.cleaner.stats.segments, "the pool was too small"
        relocated = relocator.bytes_relocated / written
        log_share = (log.bytes_written - before[0]) / written
        map_share = (meta.bytes_written - before[1]) / written - relocated
        await volume.close()
        figures = {
            "name": "map persistence", "scale": options.scale, "mapped_gib": mapped_bytes >> 30,
            "page_cache_mib": round(cache_bytes / (1 << 20), 1), "records": records,
            "checkpoints": checkpoints, "written_gib": round(written / (1 << 30), 2),
            "consolidated_least": int(whole.counts.min()),
            "consolidated_mean": round(float(whole.counts.mean()), 1),
            "log": round(log_share, 4), "map": round(map_share, 4),
            "written_per_byte": round(log_share + map_share, 4), "target": TARGET_WRITTEN,
            "relocated": round(relocated, 4),
            "map_read_per_byte": round(reads.bytes_read / written, 4), "read_target": TARGET_READ,
            "map_live_mib": round(pool.checkpointer.usage.map_bytes / (1 << 20), 1),
            "seconds": round(time.monotonic() - began), "load": round(os.getloadavg()[0], 1),
        }  # fmt: skip
    device.settle()
    await device.close()
    return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--scale", type=int, default=64)
    parser.add_argument("--consolidated", type=int, default=3)
    parser.add_argument("--records", type=int, help="per checkpoint, at full scale")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.directory) as name:
        figures = trio.run(run, Path(name) / "member.img", options)
    print(json.dumps(describe_machine() | figures), flush=True)


if __name__ == "__main__":
    main()
