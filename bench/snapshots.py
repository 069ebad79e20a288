"""Cost of a thousand snapshots and of two hundred clones: reading, creating, deleting, memory.

usage: python -m bench.snapshots [chain|clones]... [--snapshots N] [--clones N] [--mib N]
           [--image-mib N] [--directory DIR]

chain: two volumes get the same writes, a block of every page before each snapshot of one of them.
Reads of both are compared by the processor time of the daemon's read path, in turns; reads of the
map from disk are counted. Snapshots are made while fio writes at full speed through the NBD server;
see `bench.snapshot_load`.

clones: of one image of incompressible data. Prints one JSON line per figure.
"""

import argparse
import gc
import random
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import trio

from bench.figures import milliseconds, seconds_of, show
from bench.snapshot_load import measure_under_load
from blockdev.file import FileDevice
from storage.format.pages import PAGE_BLOCKS
from storage.pool import MemberDevice, Pool, create_pool, open_pool
from storage.verify.check import check_pool
from storage.volumes.volume import Volume

BLOCK = 4096
MIB = 1 << 20
PAGE_BYTES = PAGE_BLOCKS * BLOCK
HOT_BLOCKS = 100
"""Blocks of each page that are overwritten again and again, so that snapshots hold old versions."""
READS = 20_000
ROUNDS = 11


def main() -> None:
    """Build, measure, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("part", nargs="*", choices=[[], "chain", "clones"])
    parser.add_argument("--snapshots", type=int, default=1000)
    parser.add_argument("--clones", type=int, default=200)
    parser.add_argument("--mib", type=int, default=256, help="size of each volume of the chain")
    parser.add_argument("--image-mib", type=int, default=1024)
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"))
    options = parser.parse_args()
    for part, measure in (("chain", Chain), ("clones", Clones)):
        if not options.part or part in options.part:
            with tempfile.TemporaryDirectory(prefix="bench-", dir=options.directory) as name:
                trio.run(measure(Path(name), options).run)


@asynccontextmanager
async def opened(directory: Path) -> AsyncIterator[tuple[Pool, list[MemberDevice]]]:
    """Open the pool of a directory, and create it first if there is none."""
    file = directory / "member.img"
    device = FileDevice.open(file) if file.exists() else FileDevice.create(file, 32 << 30)
    offered = [MemberDevice(device, "member", "here")]
    if not file.stat().st_blocks:
        await create_pool(offered, copies=1, segment_bytes=32 * MIB)
    async with open_pool(offered) as pool:
        yield pool, offered
    report = await check_pool(offered)
    assert not report.damage, report.damage[:3]
    await device.close()


async def fill(pool: Pool, name: str, size_bytes: int, rng: random.Random) -> None:
    """Make a volume full of bytes that do not compress."""
    await pool.management.create_volume(name, size_bytes)
    device = pool.open_export(name)
    for offset in range(0, size_bytes, MIB):
        await device.write(offset, rng.randbytes(MIB))
    await device.close()


@contextmanager
def counting(pool: Pool) -> Iterator[list[int]]:
    """Count the pieces of the map that are read from disk, in the first item of the list."""
    count, real = [0], pool.segment_io.read_located

    async def counted(a: int, b: int, plain_bytes_max: int) -> bytes:
        count[0] += 1
        return await real(a, b, plain_bytes_max)

    pool.segment_io.read_located = counted  # type: ignore[method-assign]
    yield count
    pool.segment_io.read_located = real  # type: ignore[method-assign]


async def read_us(device: Volume, seed: int) -> float:
    """Return the processor time of one random read of 4 KiB, in microseconds; all is in memory."""
    rng = random.Random(seed)
    offsets = [rng.randrange(device.size_bytes // BLOCK) * BLOCK for _ in range(READS)]
    slow = 0
    began = time.process_time()
    for offset in offsets:
        if device.try_read(offset, BLOCK) is None:
            slow += 1
            await device.read(offset, BLOCK)
    return (time.process_time() - began) / READS * 1e6


async def stored_bytes(pool: Pool) -> int:
    """Return the stored bytes of all blocks, without the map; call it right after a checkpoint."""
    total = 0
    for layer in pool.blockmap.layers.values():
        for number in layer.directory.pages():
            row = layer.directory.get(number)
            assert row is not None
            entries = await pool.blockmap.own_entries(row, number)
            kinds = entries[:, 0] & 7
            assert not (kinds == 4).any(), "the model knows of raw blocks only"
            total += BLOCK * int((kinds == 3).sum())
    return total


async def settle(pool: Pool) -> None:
    """Run checkpoints until the space of all deleted layers is free."""
    await pool.checkpoint()
    while pool.checkpointer.has_more_to_free:
        await pool.checkpoint()


class Chain:
    """Measures a volume with many snapshots beside one without."""

    def __init__(self, directory: Path, options: argparse.Namespace) -> None:
        self._directory = directory
        self._size = options.mib * MIB
        self._count = options.snapshots
        self._rng = random.Random(1)
        self._versions: dict[int, int] = {}
        self._images: dict[str, dict[int, int]] = {}
        self._written = 0

    async def run(self) -> None:
        """All figures of this part."""
        async with opened(self._directory) as (pool, _):
            await self._build(pool)
            await self._warm(pool)
        async with opened(self._directory) as (pool, _):
            await self._cold(pool)
            await self._delete(pool)
            await measure_under_load(pool, "deep", self._directory)

    async def _build(self, pool: Pool) -> None:
        for name in ("plain", "deep"):
            await fill(pool, name, self._size, self._rng)
        self._versions = dict.fromkeys(range(self._size // BLOCK), 0)
        plain, deep = pool.open_export("plain"), pool.open_export("deep")
        for i in range(self._count):
            for first in range(0, self._size // BLOCK, PAGE_BLOCKS):
                block = first + self._rng.randrange(HOT_BLOCKS)
                data = self._rng.randbytes(BLOCK)
                self._written += 1
                self._versions[block] = self._written
                await plain.write(block * BLOCK, data)
                await deep.write(block * BLOCK, data)
            await pool.management.create_snapshot("deep", f"s{i}")
            self._images[f"s{i}"] = dict(self._versions)
        await plain.close()
        await deep.close()
        await settle(pool)

    async def _warm(self, pool: Pool) -> None:
        devices = {name: pool.open_export(name) for name in ("plain", "deep")}
        figures: dict[str, list[float]] = {name: [] for name in devices}
        for seed in range(ROUNDS + 1):
            for name, device in devices.items():
                figures[name].append(await read_us(device, seed))
        plain, deep = (statistics.median(figures[name][1:]) for name in ("plain", "deep"))
        show(
            "random reads, warm", snapshots=self._count, mib=self._size // MIB, rounds=ROUNDS,
            plain_us=round(plain, 2), deep_us=round(deep, 2), ratio=round(deep / plain, 3),
        )  # fmt: skip
        for device in devices.values():
            await device.close()

    async def _cold(self, pool: Pool) -> None:
        names = ["plain", "deep", f"deep@s{self._count // 2}"]
        reads: dict[str, list[int]] = {name: [] for name in names}
        for name in names:
            device = pool.open_export(name)
            for offset in range(0, self._size, PAGE_BYTES):
                with counting(pool) as count:
                    await device.read(offset, BLOCK)
                reads[name].append(count[0])
            await device.close()
        show(
            "page reads for one block, cold", snapshots=self._count,
            **{f"{name}_{word}": round(f(reads[name]), 2) for name in names
               for word, f in (("mean", statistics.mean), ("max", max))},
        )  # fmt: skip

    async def _delete(self, pool: Pool) -> None:
        before = await stored_bytes(pool)
        device_before = pool.info().live_bytes
        took = []
        began = time.monotonic()
        for i in range(0, self._count, 2):
            started = time.monotonic()
            await pool.management.delete_snapshot("deep", f"s{i}")
            took.append(time.monotonic() - started)
            del self._images[f"s{i}"]
        deleting = time.monotonic() - began
        with counting(pool) as count:
            await settle(pool)
        kept = set(self._versions.items())
        for image in self._images.values():
            kept |= image.items()
        expected = (len(kept) + self._size // BLOCK) * BLOCK
        after = await stored_bytes(pool)
        show(
            "every second snapshot deleted", snapshots=self._count, before_bytes=before,
            after_bytes=after, expected_bytes=expected, exact=after == expected,
            with_map_before=device_before, with_map_after=pool.info().live_bytes,
            layers=len(pool.blockmap.layers), delete_ms=round(statistics.median(took) * 1e3, 2),
            delete_all_s=round(deleting, 2), merged_s=round(time.monotonic() - began - deleting, 1),
            map_reads=count[0],
        )  # fmt: skip


class Clones:
    """Measures many clones of one image."""

    def __init__(self, directory: Path, options: argparse.Namespace) -> None:
        self._directory = directory
        self._size = options.image_mib * MIB
        self._count = options.clones

    async def run(self) -> None:
        """All figures of this part."""
        async with opened(self._directory) as (pool, _):
            await fill(pool, "image", self._size, random.Random(2))
            await pool.management.create_snapshot("image", "clean")
            await settle(pool)
        async with opened(self._directory) as (pool, _):
            await self._create(pool)
            await self._read(pool)

    async def _create(self, pool: Pool) -> None:
        took = [await self._clone(pool, f"c{i}") for i in range(self._count)]
        tracemalloc.start()
        await self._clone(pool, "more")  # because the newest write buffer of 4 MiB stays in memory
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        for i in range(self._count):
            await self._clone(pool, f"more{i}")
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        await settle(pool)
        show(
            "clones created", clones=self._count, image_mib=self._size // MIB,
            create_ms=milliseconds(took), bytes_each=round(grown / self._count),
        )  # fmt: skip

    async def _clone(self, pool: Pool, name: str) -> float:
        return await seconds_of(lambda: pool.management.clone("image", "clean", name))

    async def _read(self, pool: Pool) -> None:
        map_reads, places, rng = [], set(), random.Random(3)
        offsets = [rng.randrange(self._size // BLOCK) * BLOCK for _ in range(2000)]
        real = pool.segment_io.try_read

        def noting(number: int, offset: int, length: int) -> memoryview | None:
            if length == BLOCK and not offset % BLOCK:  # all other reads are pieces of the map
                places.add((number, offset))
            return real(number, offset, length)

        times = []
        for i in range(self._count):
            device = pool.open_export(f"c{i}")
            pool.segment_io.try_read = noting  # type: ignore[method-assign]
            with counting(pool) as count:
                for offset in offsets:
                    await device.read(offset, BLOCK)
            map_reads.append(count[0])
            if i in (0, self._count - 1):
                pool.segment_io.try_read = real  # type: ignore[method-assign]
                times.append(statistics.median([await read_us(device, n) for n in range(ROUNDS)]))
            await device.close()
        pool.segment_io.try_read = real  # type: ignore[method-assign]
        show(
            "clones read", clones=self._count, blocks_each=len(offsets),
            places_read=len(places), map_reads_first=map_reads[0],
            map_reads_others=sum(map_reads[1:]), first_us=round(times[0], 2),
            last_us=round(times[1], 2),
        )  # fmt: skip


if __name__ == "__main__":
    main()
