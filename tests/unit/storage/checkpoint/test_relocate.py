"""Metadata segments are freed although pages that live long lie in each of them."""

import numpy as np
import pytest

from blockdev.device import BlockDevice
from blockdev.errors import ChecksumError, DeviceError
from storage.checkpoint import relocate
from storage.checkpoint.metadata_writer import MetaWriter
from storage.checkpoint.relocate import FOOTPRINT_MAX
from storage.format.entry import Words
from storage.map.blockmap import BlockMap
from storage.map.layer import Layer
from storage.map.page_reader import Merged
from storage.members.segment_io import Failure, SegmentIO
from storage.members.segments import Role, State
from storage.pool import Pool, PoolSettings
from tests.unit.storage.pools import MIB, assert_clean, new_members, opened, write

BLOCK = 4096
PAGE_BLOCKS = 1024
ONLY_WHEN_ASKED = PoolSettings(checkpoint_interval_s=1e9, checkpoint_records=1 << 40)


def full_segments(pool: Pool) -> int:
    """The number of metadata segments that are full and not freed yet."""
    writing = pool.checkpointer._meta.segment
    return sum(
        1
        for segment in pool.table.all()
        if segment.role is Role.META and segment.state is State.SEALED and segment is not writing
    )


class Written:
    """A volume of which every page is mapped, by blocks that compress well, and its content: each
    block repeats one word, made of its number and of how often it was written."""

    def __init__(self, pool: Pool, pages: int) -> None:
        self._pool = pool
        self.pages = pages
        self._rng = np.random.default_rng(5)
        self._versions = np.zeros(pages * PAGE_BLOCKS, dtype=np.uint64)

    async def fill(self) -> None:
        await self._pool.management.create_volume("v", self.pages * PAGE_BLOCKS * BLOCK)
        device = self._pool.open_export("v")
        for first in range(0, self.pages * PAGE_BLOCKS, 256):
            await self._write(device, first, 256)
        await device.close()
        await self._checkpoint()

    async def overwrite(self, rounds: int) -> list[float]:
        """Before each checkpoint write to a third of the pages, to low numbers more often. Returns
        for each by how many segments the full ones exceeded twice the live bytes of the map."""
        excess = []
        device = self._pool.open_export("v")
        for _ in range(rounds):
            for page in (self.pages * self._rng.random(self.pages // 3) ** 3).astype(int).tolist():
                first = page * PAGE_BLOCKS + int(self._rng.integers(0, PAGE_BLOCKS - 60))
                await self._write(device, first, 60)
            await self._checkpoint()
            allowed = FOOTPRINT_MAX * self._pool.checkpointer.usage.map_bytes / MIB
            excess.append(full_segments(self._pool) - allowed)
        await device.close()
        return excess

    async def is_whole(self, pool: Pool) -> None:
        """Check that every block reads as it was written."""
        device = pool.open_export("v")
        for first in range(0, self.pages * PAGE_BLOCKS, 256):
            data = await device.read(first * BLOCK, 256 * BLOCK)
            words = np.frombuffer(bytes(data), dtype="<u8").reshape(256, -1)
            assert (words == self._words(first, 256)[:, None]).all(), f"{first=}"
        await device.close()

    async def _write(self, device: BlockDevice, first: int, count: int) -> None:
        self._versions[first : first + count] += np.uint64(1)
        words = np.repeat(self._words(first, count), BLOCK // 8)
        await device.write(first * BLOCK, words.tobytes())

    def _words(self, first: int, count: int) -> Words:
        versions = self._versions[first : first + count]
        return np.arange(first, first + count, dtype=np.uint64) | versions << np.uint64(32)

    async def _checkpoint(self) -> None:
        await self._pool.flush()
        await self._pool.checkpoint()


def begin_a_metadata_segment(pool: Pool) -> None:
    """Make the next checkpoint find the metadata segment in use full."""
    pool.checkpointer._meta.offset = pool.table.segment_bytes
    pool.checkpointer._meta.keep()


async def filled(pool: Pool, pages: int) -> Written:
    written = Written(pool, pages)
    await written.fill()
    return written


async def test_metadata_takes_at_most_twice_its_live_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: however long a volume is written to, the full metadata segments take at most twice the
    live bytes of the map, plus two segments: the spare one, and one filled by the tables since.

    Method: without relocation, these writes pin ever more segments. With it, the bound holds after
    a few checkpoints, and goes on to hold.
    """
    members = await new_members(mib=256)
    async with opened(members, ONLY_WHEN_ASKED) as pool:
        written = await filled(pool, 240)
        relocator = pool.checkpointer.relocator
        with monkeypatch.context() as patch:
            patch.setattr(relocator, "_victims", lambda frozen, budget: set())
            assert max(await written.overwrite(50)) > 2
        assert not relocator.bytes_relocated
        assert max((await written.overwrite(40))[2:]) <= 2
        assert relocator.bytes_relocated > MIB // 8
    await assert_clean(members)
    async with opened(members) as pool:
        await written.is_whole(pool)


@pytest.mark.parametrize("copies", [1, 2])
async def test_deleting_all_volumes_frees_every_segment(copies: int) -> None:
    """Goal: when all volumes of a pool that was written, cleaned and relocated for long are
    deleted, the pool is as free as a new one, to the segment."""
    fresh = await new_members(count=copies, copies=copies, mib=128)
    async with opened(fresh, ONLY_WHEN_ASKED) as pool:
        for _ in range(8):
            await pool.checkpoint()
        new = pool.info().free_bytes
    members = await new_members(count=copies, copies=copies, mib=128)
    async with opened(members, ONLY_WHEN_ASKED) as pool:
        written = await filled(pool, 100)
        for name in ("one", "two"):
            await written.overwrite(8)
            await pool.cleaner.round()
            await pool.management.create_snapshot("v", name)
        await pool.management.clone("v", "one", "c")
        await write(pool, "c", 5 * BLOCK, b"c" * BLOCK)
        assert pool.cleaner.stats.segments
        for volume in ("c", "v"):
            await pool.management.delete_volume(volume, snapshots=True)
        for _ in range(8):
            await pool.checkpoint()
        assert pool.info().live_bytes == 0
        assert pool.info().free_bytes == new
    await assert_clean(members)


async def test_a_damaged_page_does_not_keep_checkpoints_from_working(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Goal: a page that cannot be read stays where it is; other pages are relocated."""
    members = await new_members(mib=256)
    honest = MetaWriter.fetch
    damaged: set[int] = set()

    async def fetch(self: MetaWriter, a: int, b: int, plain_bytes_max: int) -> bytes:
        if a in damaged:
            raise ChecksumError("planted")
        return await honest(self, a, b, plain_bytes_max)

    async with opened(members, ONLY_WHEN_ASKED) as pool:
        await filled(pool, 100)
        monkeypatch.setattr(MetaWriter, "fetch", fetch)
        layer = pool.blockmap.layers[max(pool.blockmap.layers)]
        row = layer.directory.get(99)
        assert row is not None
        damaged.add(row[0])
        monkeypatch.setattr(relocate, "SPARE_SEGMENTS", -1000)
        begin_a_metadata_segment(pool)
        for _ in range(3):
            await pool.checkpoint()
        assert pool.checkpointer.relocator.bytes_relocated > MIB // 4
        assert layer.directory.get(99) == row
        assert "keeps its segment" in caplog.text
        caplog.clear()
    await assert_clean(members)


async def test_a_checkpoint_that_fails_takes_no_segment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: segments begun by an attempt that failed are free again at once."""
    members = await new_members(count=2, copies=2, mib=64)
    async with opened(members, ONLY_WHEN_ASKED) as pool:
        await pool.management.create_volume("v", 16 * MIB)
        await write(pool, "v", 0, b"v" * BLOCK)
        await pool.flush()
        for _ in range(3):
            await pool.checkpoint()
        before = pool.info().free_bytes
        honest = SegmentIO.flush
        attempts = 0

        async def flush(self: SegmentIO, wanted: object) -> list[Failure]:
            nonlocal attempts
            attempts += 1
            for member in pool.roster.in_sync() if attempts <= 2 else ():
                member.losses += 1  # as if another flush had failed meanwhile
            return await honest(self, wanted)  # type: ignore[arg-type]

        monkeypatch.setattr(SegmentIO, "flush", flush)
        begin_a_metadata_segment(pool)
        await pool.checkpoint()
        monkeypatch.undo()
        assert attempts == 3
        for _ in range(3):
            await pool.checkpoint()
        assert pool.info().free_bytes == before
    await assert_clean(members)


async def test_a_page_that_moves_while_it_is_read_is_read_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Goal: between the two reads of a page, checkpoints may write the page elsewhere and free its
    old places; the reader notices and begins again."""
    members = await new_members(mib=64)
    async with opened(members, ONLY_WHEN_ASKED) as pool:
        await pool.management.create_volume("v", 16 * MIB)
        await write(pool, "v", 0, b"v" * BLOCK)
        await pool.flush()
        await pool.checkpoint()
        layer = pool.blockmap.layers[max(pool.blockmap.layers)]
        pool.blockmap.drop_layer_pages(layer)
        honest = BlockMap.read_merged
        calls = 0

        async def read_merged(self: BlockMap, up: Layer, number: int, *others: object) -> Merged:
            nonlocal calls
            calls += 1
            if calls == 1:
                await pool.checkpoint()
                raise DeviceError("map names a segment that does not exist")
            return await honest(self, up, number, *others)  # type: ignore[arg-type]

        monkeypatch.setattr(BlockMap, "read_merged", read_merged)
        device = pool.open_export("v")
        assert bytes(await device.read(0, BLOCK)) == b"v" * BLOCK
        assert calls == 2
        await device.close()
