"""Flattening: a clone gets copies of all that it inherits from other volumes, and stands alone.

In the background, beside everything else, and page by page: blocks that the volume's uppermost
layers do not have are read from the layer above, and put into the log like any write. A copy
changes nothing that can be read, so it does not matter when it is stopped, by whatever; what is
copied stays, and is skipped the next time. Between the look whether a layer has a block and the
copy's place in the log nothing suspends: a copy never comes behind a write of a client, and no
client waits for one.

The layer may be frozen, with others below that have pages on disk: deltas that count from bases
above, and entries that name where blocks of layers above are. Both are good as long as those are
there. So before the layer lets go of what is above it

- it has all blocks, durable and on disk: an entry below that names a place which is freed is
  looked up from its owner, and that is this layer now;
- each of its pages has a base, so no delta below counts from one above it any more.

Checkpoints see to both. Then one operation cuts the layer off (R8: it is part of one commit).
"""

import logging
from collections.abc import Awaitable, Callable, Iterator

import numpy as np
import trio
from numpy.typing import NDArray

from blockdev.errors import DeviceError, NoSpaceError
from storage.catalogue.catalogue import Catalogue
from storage.catalogue.operations import Operation
from storage.catalogue.records import VolumeRecord
from storage.catalogue.tree import VolumeTree
from storage.format.entry import BLOCK_SHIFT, KIND_MASK, RAW
from storage.format.pages import PAGE_BLOCKS, PAGE_SHIFT
from storage.info import Flattening
from storage.log.budget import SpaceBudget
from storage.log.intake import Intake
from storage.map.blockmap import BlockMap
from storage.map.directory import PAGES_MAX
from storage.map.layer import Layer, within
from storage.map.ownership import own_blocks
from storage.map.reader import Reader
from storage.volumes.quota import Quotas

log = logging.getLogger("cenote.storage")

BATCH_BLOCKS = 128
"""Read and put at once: 512 KiB, some 300 us; then others run."""

PAGES_PER_TURN = 8
"""Pages without anything to copy take about 100 us."""

RETRY_S = 5.0

ROOM_KEPT = 20
"""One part in so many of the pool is left to clients, for whom a full pool is an outage."""

Flags = NDArray[np.bool_]


class Flattener:
    """Flattens the volumes of one pool that are to be, one after the other."""

    def __init__(
        self, live: Catalogue, blockmap: BlockMap, reader: Reader, intake: Intake,
        space: SpaceBudget, quotas: Quotas, whole: set[int],
        checkpoint: Callable[[], Awaitable[None]],
        carry_out: Callable[[Operation], Awaitable[None]],
    ):  # fmt: skip
        self._live = live
        self._map = blockmap
        self._reader = reader
        self._intake = intake
        self._space = space
        self._quotas = quotas
        self._whole = whole
        self._checkpoint = checkpoint
        self._carry_out = carry_out
        self._progress: dict[str, Flattening] = {}
        self._look = trio.Event()

    def progress(self, volume: str) -> Flattening:
        """How far it is."""
        return self._progress.get(volume, Flattening(0, 0))

    def look(self) -> None:
        """Something is to be flattened, or not any more."""
        self._look.set()

    async def run(self) -> None:
        """Flatten for ever, as long as the pool takes writes."""
        while self._intake.failure is None:
            look = self._look = trio.Event()
            failed = False
            for name, record in list(self._live.volumes.items()):
                if record.flattening:
                    failed |= not await self._try(name, record)
            with trio.move_on_after(RETRY_S if failed else np.inf):
                await look.wait()

    async def _try(self, name: str, record: VolumeRecord) -> bool:
        try:
            await self._flatten(record)
        except DeviceError as error:
            done = self.progress(name)
            if self._intake.failure is None and done.error is None:
                log.warning("flattening %s is interrupted: %s", name, error)
            self._progress[name] = Flattening(done.pages_done, done.pages, str(error))
            return False
        self._progress.pop(name, None)
        return True

    # -- one volume

    async def _flatten(self, record: VolumeRecord) -> None:
        """Flatten a volume, whatever it is called by now, or see that it is not to be any more."""
        while (name := self._name(record)) is not None:
            # What was written before it was cloned is in the map then, and can be seen there.
            await self._intake.flush()
            await trio.lowlevel.checkpoint()
            uppermost = self._uppermost(name)
            if all([await self._copy(record, layer) for layer in uppermost]):
                await self._settle(uppermost)
                # From here to the log nothing suspends.
                if self._name(record) == name and self._stand_alone(name, uppermost):
                    numbers = [layer.number for layer in uppermost]
                    log.info("flattened %s", name)
                    await self._carry_out({"op": "sever", "v": name, "layers": numbers})

    def _name(self, record: VolumeRecord) -> str | None:
        """What it is called; None when it is gone, or not to be flattened."""
        names = (name for name, each in self._live.volumes.items() if each is record)
        return next(names, None) if record.flattening else None

    def _uppermost(self, name: str) -> list[Layer]:
        return [self._map.layers[n] for n in VolumeTree(self._live).branch_layers(name)]

    def _is_here(self, layer: Layer) -> bool:
        """Whether copies may go into a layer: it is there, and stands on one of another volume."""
        record = self._live.layers.get(layer.number)
        return (
            record is not None
            and not record.dying
            and self._map.layers.get(layer.number) is layer
            and layer.parent is not None
        )

    async def _settle(self, layers: list[Layer]) -> None:
        """Have all copies on disk, and a base in each page of these layers."""
        if not layers:
            return
        self._whole.update(layer.number for layer in layers)
        try:
            await self._intake.flush()
            await self._checkpoint()
            while any(self._is_here(layer) and not layer.directory.has_bases for layer in layers):
                await self._checkpoint()
        finally:
            self._whole.difference_update(layer.number for layer in layers)

    def _stand_alone(self, name: str, layers: list[Layer]) -> bool:
        """Whether it still are these layers that inherit, and nothing is left that they need."""
        has_bases = all(layer.directory.has_bases for layer in layers)
        return has_bases and self._uppermost(name) == layers

    # -- one layer

    async def _copy(self, record: VolumeRecord, layer: Layer) -> bool:
        """Copy what a layer inherits; False when it went away, or the volume is not wanted."""
        parent = layer.parent
        numbers = parent.mapped_pages(0, PAGES_MAX) if parent is not None else []
        for done, number in enumerate(numbers):
            name = self._name(record)
            if name is None or not self._is_here(layer):
                return False
            self._progress[name] = Flattening(done, len(numbers))
            await self._copy_page(name, layer, number)
            if done % PAGES_PER_TURN == 0:
                await trio.lowlevel.checkpoint()
        return True

    async def _copy_page(self, name: str, layer: Layer, number: int) -> None:
        parent = layer.parent
        if parent is None:
            return
        page = await self._map.page(parent, number)
        stored: Flags = (page.entries[:, 0] & np.uint64(KIND_MASK)) >= np.uint64(RAW)
        own = await own_blocks(self._map, layer, number)
        for slots in _batches((stored & ~own).nonzero()[0].tolist()):
            self._refuse_if_full()
            first = number << PAGE_SHIFT | slots[0]
            data = memoryview(await self._reader.read(parent, first, len(slots)))
            quota, length = self._quotas.of(name), len(slots) << BLOCK_SHIFT
            if quota is not None:
                await self._quotas.take(quota, length)
            try:
                while not await self._put(layer, number, slots, data):
                    await self._intake.wait_for_room()
            finally:
                if quota is not None:
                    quota.held -= length
            await trio.lowlevel.checkpoint()

    async def _put(self, layer: Layer, number: int, slots: list[int], data: memoryview) -> bool:
        """Put what the layer has not; False when not all could be put."""
        own = await own_blocks(self._map, layer, number)
        # From here on nothing suspends: what is put comes behind nothing that is newer.
        if not self._is_here(layer):
            return True
        own |= _in_overlays(layer, number)
        for i, slot in enumerate(slots):
            if not own[slot]:
                piece = data[i << BLOCK_SHIFT : (i + 1) << BLOCK_SHIFT]
                if not self._intake.try_put(layer, number << PAGE_SHIFT | slot, 1, piece):
                    return False
        return True

    def _refuse_if_full(self) -> None:
        kept = self._space.capacity_bytes // ROOM_KEPT
        if self._space.free_bytes() < kept:
            raise NoSpaceError(f"copies wait for room: the last {kept} bytes are for clients")


def _in_overlays(layer: Layer, number: int) -> Flags:
    """Which blocks of a page a layer has that are not durable yet, shape (1024,)."""
    held = np.zeros(PAGE_BLOCKS, dtype=np.bool_)
    first = number << PAGE_SHIFT
    for part in layer.overlays:
        for start, end in part.zeroes:
            held[max(start - first, 0) : max(end - first, 0)] = True
        for block in within(part.index, first, first + PAGE_BLOCKS):
            held[block - first] = True
    return held


def _batches(slots: list[int]) -> Iterator[list[int]]:
    """Runs of neighbours, cut to the size of a batch."""
    run: list[int] = []
    for slot in slots:
        if run and (slot != run[-1] + 1 or len(run) == BATCH_BLOCKS):
            yield run
            run = []
        run.append(slot)
    if run:
        yield run
