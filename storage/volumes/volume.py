"""A volume as a block device: any offset and length, over a layer.

Whole blocks go straight to the log. A partial block is read, merged and written; while that
is under way, other writes to the block wait, so none is lost.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

import trio
from typing_extensions import Buffer

from blockdev.device import BlockDevice, Extent, check_range
from blockdev.errors import ClosedError, DeviceError, ReadOnlyError
from storage.format.entry import BLOCK_BYTES, BLOCK_SHIFT
from storage.log.intake import Intake
from storage.map.extents import Extents
from storage.map.layer import Layer
from storage.map.reader import Reader
from storage.throttle import Limits, Throttle
from storage.volumes.contexts import Contexts
from storage.volumes.quota import Quota, Quotas

T = TypeVar("T")

BLOCK_MASK = BLOCK_BYTES - 1
CACHE_BYTES_MAX = 256 << 20
"""The most that `cache` reads: a second or two of reading; a client may ask for 4 GiB."""
TRY_BYTES_MAX = 1 << 20
"""Larger requests take the waiting path: done at once they would hold up the others for long."""


class VolumeState:
    """The state that all open handles of one volume share."""

    def __init__(self, name: str, layer: Layer, size_bytes: int):
        self.name = name
        self.layer = layer
        self.size_bytes = size_bytes
        self.handles = 0
        self.closed = False
        """Set when the last handle is closed: a write that still waits must fail, as the layer may
        be dropped by now."""
        self.busy: list[tuple[int, int, trio.Event]] = []
        """Writes under way that may suspend: blocks [first, end), and the event of their end. Other
        writes to these blocks wait, so that no write is lost when a partial block is merged."""
        self.throttle: Throttle | None = None
        """Delays requests; None without limits, which costs one comparison per request."""
        self.quota: Quota | None = None
        """Counts writes; None without reservations and caps."""

    def limit(self, limits: Limits) -> None:
        """Set the limits of the volume from now on."""
        if self.throttle is not None and self.throttle.limits != limits:
            self.throttle.change(limits)
        if limits.unlimited:
            self.throttle = None
        elif self.throttle is None:
            self.throttle = Throttle(limits)

    def overlap(self, first: int, end: int) -> trio.Event | None:
        """The event that ends a write under way to some of these blocks, or None."""
        return next((e for start, stop, e in self.busy if start < end and first < stop), None)

    @asynccontextmanager
    async def writing(self, first: int, end: int) -> AsyncIterator[None]:
        """Wait for earlier writes to these blocks, then keep later ones waiting."""
        while (event := self.overlap(first, end)) is not None:
            await event.wait()
        mine = (first, end, trio.Event())
        self.busy.append(mine)
        try:
            yield
        finally:
            self.busy.remove(mine)
            mine[2].set()


class Volume(BlockDevice):
    """One open handle of a volume, or, read-only, of a snapshot."""

    block_bytes = 1
    physical_bytes = BLOCK_BYTES

    def __init__(
        self, state: VolumeState, intake: Intake, reader: Reader, status: Extents,
        contexts: Contexts, quotas: Quotas, *, read_only: bool, on_close: Callable[[], None],
    ):  # fmt: skip
        self.read_only = read_only
        self._state = state
        self._intake = intake
        self._reader = reader
        self._extents = status
        self._contexts = contexts
        self._quotas = quotas
        self._on_close = on_close
        self._closed = False
        state.handles += 1

    @property
    def size_bytes(self) -> int:  # type: ignore[override]
        """Current size; grows when the volume is resized."""
        return self._state.size_bytes

    @property
    def layer(self) -> Layer:
        """The layer that it reads and writes now; a snapshot of the volume replaces it."""
        return self._state.layer

    # -- reading

    def try_read(self, offset: int, length: int) -> Buffer | None:
        """As the interface says; pages and data must be in memory or in the page cache."""
        self._check(offset, length)
        if length > TRY_BYTES_MAX or not length or self._state.throttle is not None:
            return None
        if not (offset | length) & BLOCK_MASK:
            return self._reader.try_read(
                self._state.layer, offset >> BLOCK_SHIFT, length >> BLOCK_SHIFT
            )
        first, count = _blocks_around(offset, length)
        data = self._reader.try_read(self._state.layer, first, count)
        return None if data is None else _cut(data, offset - (first << BLOCK_SHIFT), length)

    try_view = try_read  # without a call in between

    async def read(self, offset: int, length: int) -> Buffer:
        """As the interface says; blocks never written are zeroes."""
        self._check(offset, length)
        if not length:
            return b""
        await self._pass(length)
        first, count = _blocks_around(offset, length)
        data = await self._ask(lambda layer: self._reader.read(layer, first, count))
        return _cut(data, offset - (first << BLOCK_SHIFT), length)

    async def extents(self, offset: int, length: int) -> list[Extent]:
        """Runs of data and holes, from the block map, exact to the block."""
        self._check(offset, length)
        return await self._ask(lambda layer: self._extents.extents(layer, offset, length))

    def try_extents(self, offset: int, length: int) -> list[Extent] | None:
        """As the interface says; the pages of the map must be in memory."""
        self._check(offset, length)
        return self._extents.try_extents(self._state.layer, offset, length)

    @property
    def contexts(self) -> tuple[str, ...]:
        """As the interface says; see `storage.volumes.contexts`."""
        return self._contexts.names(self._state.name)

    async def status(self, context: str, offset: int, length: int) -> list[tuple[int, int]]:
        """As the interface says; NotFoundError when its snapshot is gone."""
        self._check(offset, length)
        name, status = self._state.name, self._contexts.status
        return await self._ask(lambda layer: status(name, layer, context, offset, length))

    async def cache(self, offset: int, length: int) -> None:
        """Read the stored blocks at the beginning of the range, so that page caches of
        members hold them. Errors are left for `read` to report.
        """
        self._check(offset, length)
        end = offset + min(length, CACHE_BYTES_MAX)
        with suppress(DeviceError):
            while offset < end:
                for extent in await self.extents(offset, end - offset):
                    stop = offset + extent.length_bytes
                    while not extent.zero and offset < stop:
                        step = min(stop - offset, TRY_BYTES_MAX)
                        if self.try_read(offset, step) is None:
                            await self.read(offset, step)
                        await trio.lowlevel.checkpoint()
                        offset += step
                    offset = stop

    async def _ask(self, question: Callable[[Layer], Awaitable[T]]) -> T:
        """Ask about the volume's layer, and again if a snapshot replaced it meanwhile: the old
        layer may have been merged since, and be empty.
        """
        while True:
            layer = self._state.layer
            try:
                answer = await question(layer)
            except DeviceError:
                if layer is self._state.layer:
                    raise
            else:
                if layer is self._state.layer:
                    return answer

    # -- writing

    def try_write(self, offset: int, data: Buffer) -> bool:
        """As the interface says; whole blocks into the open buffer."""
        length = memoryview(data).nbytes
        self._check_write(offset, length)
        if (offset | length) & BLOCK_MASK or not 0 < length <= TRY_BYTES_MAX:
            return False
        state = self._state
        if state.throttle is not None:
            return False
        block, count = offset >> BLOCK_SHIFT, length >> BLOCK_SHIFT
        if state.busy and state.overlap(block, block + count) is not None:
            return False
        quota = state.quota
        if quota is None:
            return self._intake.try_put(state.layer, block, count, data)
        if quota.room < length or not self._intake.try_put(state.layer, block, count, data):
            return False
        quota.room -= length
        return True

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        """As the interface says; with `fua` the log is flushed."""
        view = memoryview(data).cast("B")
        self._check_write(offset, len(view))
        await self._pass(len(view))
        head = min(-offset & BLOCK_MASK, len(view))
        if head:
            await self._merge(offset, view[:head])
        whole = len(view) - head & ~BLOCK_MASK
        if whole:
            block, count = offset + head >> BLOCK_SHIFT, whole >> BLOCK_SHIFT
            async with self._state.writing(block, block + count):
                await self._put(block, count, view[head : head + whole])
        if tail := len(view) - head - whole:
            await self._merge(offset + head + whole, view[len(view) - tail :])
        if fua:
            await self._intake.flush()

    async def write_zeroes(
        self,
        offset: int,
        length: int,
        *,
        fua: bool = False,
        no_hole: bool = False,
        fast: bool = False,
    ) -> None:
        """As the interface says. Volumes are thin: `no_hole` is accepted, space is not held."""
        self._check_write(offset, length)
        await self._pass(0)
        end = offset + length
        first, last = -(-offset >> BLOCK_SHIFT), end >> BLOCK_SHIFT
        if end == self.size_bytes:
            last = max(last, -(-end >> BLOCK_SHIFT))
        if first >= last:
            if length:
                await self._merge_zeroes(offset, length)
        else:
            if offset < first << BLOCK_SHIFT:
                await self._merge_zeroes(offset, (first << BLOCK_SHIFT) - offset)
            async with self._state.writing(first, last):
                await self._intake.put_zeroes(self._state, first, last)
            if end > last << BLOCK_SHIFT:
                await self._merge_zeroes(last << BLOCK_SHIFT, end - (last << BLOCK_SHIFT))
        if fua:
            await self._intake.flush()

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        """As the interface says; whole blocks in the range read as zeroes afterwards."""
        self._check_write(offset, length)
        await self._pass(0)
        first, last = -(-offset >> BLOCK_SHIFT), offset + length >> BLOCK_SHIFT
        if first < last:
            async with self._state.writing(first, last):
                await self._intake.put_zeroes(self._state, first, last)
        if fua:
            await self._intake.flush()

    async def flush(self) -> None:
        """As the interface says; covers all volumes, as they share one log."""
        if self._closed:
            raise ClosedError("volume is closed")
        await self._intake.flush()

    # -- partial blocks

    async def _merge_zeroes(self, offset: int, length: int) -> None:
        while length:
            step = min(length, BLOCK_BYTES - (offset & BLOCK_MASK))
            await self._merge(offset, bytes(step))
            offset += step
            length -= step

    async def _merge(self, offset: int, data: Buffer) -> None:
        """Write part of one block. Cancelled, the block has its old or new content."""
        block = offset >> BLOCK_SHIFT
        state = self._state
        async with state.writing(block, block + 1):
            old = await self._ask(lambda layer: self._reader.read(layer, block, 1))
            merged = bytearray(memoryview(old))
            within = offset & BLOCK_MASK
            view = memoryview(data)
            merged[within : within + len(view)] = view
            await self._put(block, 1, merged)

    async def _put(self, block: int, count: int, data: Buffer) -> None:
        """Put whole blocks into the log's buffer, if the volume may hold more."""
        quota = self._state.quota
        if quota is None:
            await self._intake.put(self._state, block, count, data)
            return
        length = count << BLOCK_SHIFT
        await self._quotas.take(quota, length)
        try:
            await self._intake.put(self._state, block, count, data)
        finally:
            quota.held -= length

    # -- life

    async def _pass(self, length: int) -> None:
        """Wait until the limits let a request pass. Raises ClosedError if closed meanwhile."""
        if self._state.throttle is not None:
            await self._state.throttle.take(length)
            self._check(0, 0)

    def _check(self, offset: int, length: int) -> None:
        if self._closed:
            raise ClosedError("volume is closed")
        if offset < 0 or length < 0 or offset + length > self._state.size_bytes:
            check_range(self, offset, length)

    def _check_write(self, offset: int, length: int) -> None:
        if self.read_only:
            raise ReadOnlyError("snapshots are read-only; make a clone to write")
        self._check(offset, length)

    async def close(self) -> None:
        """Close the handle; does not flush."""
        if not self._closed:
            self._closed = True
            self._state.handles -= 1
            self._state.closed = not self._state.handles
            self._on_close()


def _blocks_around(offset: int, length: int) -> tuple[int, int]:
    first = offset >> BLOCK_SHIFT
    return first, (offset + length + BLOCK_MASK >> BLOCK_SHIFT) - first


def _cut(data: Buffer, start: int, length: int) -> Buffer:
    view = memoryview(data)
    return data if len(view) == length else view[start : start + length]
