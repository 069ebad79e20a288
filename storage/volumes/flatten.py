"""Flattening: copies into a clone all blocks that it inherits from other volumes, so that it is
independent of them.

The branch layers of a volume are its layers whose parents belong to other volumes. In the
background and page by page, blocks that a branch layer does not hold are read from its parent and
put into the log like any write. A copy changes no data that can be read, so flattening may stop at
any point: copied blocks stay, and are skipped the next time. Nothing suspends between the check
that a layer does not hold a block and the copy's place in the log, so a copy is never logged after
a client's write of the block, and no client waits for a copy.

A branch layer may be frozen and have descendants with pages on disk: deltas that count from the
bases of ancestors of the branch layer, and entries that name places of blocks of these ancestors.
Deltas and entries are good as long as the ancestors exist. So before the branch layer is cut off
from its parent

- it holds all blocks, durable and on disk: if a descendant's entry names a freed place, the block
  is looked up from its owner, which is the branch layer now;
- each of its pages has a base, so no descendant's delta counts from a base of an ancestor.

Checkpoints see to both. Then one operation cuts the layers off (R8: it is part of one commit).
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
"""Blocks copied between two turns of other tasks: 512 KiB, in some 300 us."""

PAGES_PER_TURN = 8
"""Pages between two turns of other tasks; a page without blocks to copy takes about 100 us."""

RETRY_S = 5.0
"""Seconds after an error until flattening is tried again."""

ROOM_KEPT = 20
"""Divisor of the pool's size: one part is left to clients, for which a full pool is an outage."""

Flags = NDArray[np.bool_]


class Flattener:
    """Flattens the volumes of one pool that are marked for it, one after the other."""

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
        """How far the flattening of a volume is; no pages before it has begun."""
        return self._progress.get(volume, Flattening(0, 0))

    def look(self) -> None:
        """Look at the marks of all volumes again; call it after a mark was changed."""
        self._look.set()

    async def run(self) -> None:
        """Flatten marked volumes until the pool takes no more writes."""
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
        """Flatten a volume, also if it is renamed meanwhile; stop if it is deleted or unmarked."""
        while (name := self._name(record)) is not None:
            # Then the map has all blocks that were written before the volume was cloned.
            await self._intake.flush()
            await trio.lowlevel.checkpoint()
            branches = self._branch_layers(name)
            if all([await self._copy(record, layer) for layer in branches]):
                await self._settle(branches)
                # Nothing suspends between this check and the operation's place in the log.
                if self._name(record) == name and self._is_complete(name, branches):
                    numbers = [layer.number for layer in branches]
                    log.info("flattened %s", name)
                    await self._carry_out({"op": "sever", "v": name, "layers": numbers})

    def _name(self, record: VolumeRecord) -> str | None:
        """The name of a volume; None if it was deleted or is not marked for flattening."""
        names = (name for name, each in self._live.volumes.items() if each is record)
        return next(names, None) if record.flattening else None

    def _branch_layers(self, name: str) -> list[Layer]:
        return [self._map.layers[n] for n in VolumeTree(self._live).branch_layers(name)]

    def _is_here(self, layer: Layer) -> bool:
        """Whether a layer takes copies: it exists, is not being deleted, and has a parent."""
        record = self._live.layers.get(layer.number)
        return (
            record is not None
            and not record.dying
            and self._map.layers.get(layer.number) is layer
            and layer.parent is not None
        )

    async def _settle(self, layers: list[Layer]) -> None:
        """Write checkpoints until all copies are on disk and each page of the layers has a base."""
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

    def _is_complete(self, name: str, layers: list[Layer]) -> bool:
        """Whether these are the branch layers of the volume still, and need no ancestor."""
        has_bases = all(layer.directory.has_bases for layer in layers)
        return has_bases and self._branch_layers(name) == layers

    # -- one layer

    async def _copy(self, record: VolumeRecord, layer: Layer) -> bool:
        """Copy all blocks that a layer inherits; False if layer, volume or mark are gone."""
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
        """Put the blocks that the layer does not hold into the log; False if some lack room."""
        own = await own_blocks(self._map, layer, number)
        # Nothing suspends from here on, so no copy is logged after a newer write of its block.
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
    """Which blocks of a page are in overlays of a layer, not durable yet; shape (1024,)."""
    held = np.zeros(PAGE_BLOCKS, dtype=np.bool_)
    first = number << PAGE_SHIFT
    for part in layer.overlays:
        for start, end in part.zeroes:
            held[max(start - first, 0) : max(end - first, 0)] = True
        for block in within(part.index, first, first + PAGE_BLOCKS):
            held[block - first] = True
    return held


def _batches(slots: list[int]) -> Iterator[list[int]]:
    """Split ascending slots into runs of neighbours of at most BATCH_BLOCKS."""
    run: list[int] = []
    for slot in slots:
        if run and (slot != run[-1] + 1 or len(run) == BATCH_BLOCKS):
            yield run
            run = []
        run.append(slot)
    if run:
        yield run
