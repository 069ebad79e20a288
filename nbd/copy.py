"""Copies one device onto another: many requests in flight, holes kept, verified on request.

The source is cut into slots of one request. A slot that the source reports as zeroes is never
read; in the other slots, longer runs of zeroes are found. Zeroes become holes at the destination,
and are skipped where it holds zeroes already.

    planner   asks the source for its extents, hands out pieces in order
    workers   one per request in flight: read, look for zeroes, write

Memory: `requests_max` times `request_bytes`, three times that at worst; digests take 16 bytes a
slot, which is 64 MiB per TiB of 256 KiB slots.
"""

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

import trio
import xxhash
from typing_extensions import Buffer

from blockdev.device import BlockDevice
from blockdev.errors import UnsupportedError

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in total."""

ZERO_RUN_BYTES = 128 << 20
"""Zeroes of one request: quick where the device makes holes, not too long where it writes them."""
LOOK_BYTES = 1 << 30
"""Range of one request for extents; a device may answer for less."""
GRAIN_BYTES = 32 << 10
"""Shorter runs of zeroes are copied as data: a request of their own would cost more."""
MISMATCHES_MAX = 16
"""Most offsets that a verification returns: enough for a person to look at."""
_READ_BYTES = 256 << 10  # of one read that checks for zeroes; a multiple of every block size
_DIGEST_BYTES = 16
_NO_DIGEST = bytes(_DIGEST_BYTES)


@dataclass(frozen=True, slots=True)
class CopySettings:
    """How to copy. `requests_max` are in flight; `request_bytes` is a multiple of both devices'
    blocks. `destination_is_zero`: all of it reads as zeroes. `digests`: keep a digest of each
    copied slot, for `verify`.
    """

    requests_max: int = 64
    request_bytes: int = 256 << 10
    destination_is_zero: bool = False
    digests: bool = False


@dataclass(slots=True)
class CopyCounts:
    """Bytes copied as data, bytes zeroed, and bytes skipped because they were zeroes already."""

    copied_bytes: int = 0
    zeroed_bytes: int = 0
    skipped_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Piece:
    """A range handed to a worker: one slot of data, or any number of slots of zeroes."""

    offset: int
    length: int
    zero: bool


class Copy:
    """One copy; `run` once, then `verify` if digests were asked for.

    Args:
        source: all of it is copied.
        destination: at least as large; bytes past the end of the source stay as they are.
    """

    def __init__(
        self,
        source: BlockDevice,
        destination: BlockDevice,
        settings: CopySettings,
        progress: Progress = lambda done, total: None,
    ) -> None:
        assert source.size_bytes <= destination.size_bytes
        assert settings.request_bytes % max(source.block_bytes, destination.block_bytes) == 0
        self.size_bytes = source.size_bytes
        self.counts = CopyCounts()
        self._source = source
        self._destination = destination
        self._settings = settings
        self._progress = progress
        self._done_bytes = 0
        slots = -(-self.size_bytes // settings.request_bytes)
        self._digests = bytearray(_DIGEST_BYTES * slots if settings.digests else 0)
        self._mismatches: list[int] = []
        self._clean = settings.destination_is_zero
        self._zeroes_as_data = False

    async def run(self) -> CopyCounts:
        """Copy the source; the copy is durable on return.

        Raises:
            DeviceError: a device failed; the destination holds part of the copy, as it does
                after cancellation.
        """
        # Costs one request for extents if it is not zero: the first extent of data settles it.
        whole = Piece(0, self.size_bytes, zero=True)
        self._clean = self._clean or await _is_zero(self._destination, whole)
        planner = Planner(self._source, self.size_bytes, self._settings.request_bytes)
        await self._work(planner.plan, self._copy)
        await self._destination.flush()
        return self.counts

    async def verify(self) -> list[int]:
        """Read the destination and compare it with the digests of the source.

        Returns the offsets of differing pieces, ascending, at most MISMATCHES_MAX.

        Raises:
            DeviceError: the destination cannot be read.
        """
        assert self._settings.digests

        async def plan(hand_out: Callable[[Piece], Awaitable[None]]) -> None:
            for piece in self._copied():
                await hand_out(piece)

        self._done_bytes = 0
        await self._work(plan, self._compare)
        return sorted(self._mismatches)[:MISMATCHES_MAX]

    # -- planner and workers

    async def _work(
        self,
        plan: Callable[[Callable[[Piece], Awaitable[None]]], Awaitable[None]],
        act: Callable[[Piece], Awaitable[None]],
    ) -> None:
        workers = self._settings.requests_max
        send, receive = trio.open_memory_channel[Piece](workers)

        async def work() -> None:
            async for piece in receive:
                await act(piece)
                self._done_bytes += piece.length
                self._progress(self._done_bytes, self.size_bytes)

        self._progress(0, self.size_bytes)
        try:
            async with trio.open_nursery() as nursery:
                for _ in range(workers):
                    nursery.start_soon(work)
                async with send:
                    await plan(send.send)
        except BaseExceptionGroup as group:
            failures = group.subgroup(Exception)
            if failures is None:
                raise  # cancelled
            raise _first_leaf(failures) from None

    async def _copy(self, piece: Piece) -> None:
        destination = self._destination
        if piece.zero:
            if self._clean or await _is_zero(destination, piece):
                self.counts.skipped_bytes += piece.length
            else:
                await self._write_zeroes(piece.offset, piece.length)
            return
        data = await self._source.read(piece.offset, piece.length)
        self._remember(piece, data)
        view = memoryview(data).cast("B")
        for start, end, zero in runs(view, self._destination.block_bytes):
            if not zero:
                await destination.write(piece.offset + start, view[start:end])
                self.counts.copied_bytes += end - start
            elif self._clean:
                self.counts.skipped_bytes += end - start
            else:
                await self._write_zeroes(piece.offset + start, end - start)

    async def _write_zeroes(self, offset: int, length: int) -> None:
        destination = self._destination
        self.counts.zeroed_bytes += length
        if not self._zeroes_as_data:
            try:
                return await destination.write_zeroes(offset, length)
            except UnsupportedError:
                self._zeroes_as_data = True
        step_max = self._settings.request_bytes
        while length:
            step = min(length, step_max)
            await destination.write(offset, bytes(step))
            offset, length = offset + step, length - step

    # -- verifying

    def _remember(self, piece: Piece, data: Buffer) -> None:
        if self._digests:
            at = piece.offset // self._settings.request_bytes * _DIGEST_BYTES
            self._digests[at : at + _DIGEST_BYTES] = xxhash.xxh3_128_digest(data)

    def _digest(self, piece: Piece) -> bytes:
        at = piece.offset // self._settings.request_bytes * _DIGEST_BYTES
        return bytes(self._digests[at : at + _DIGEST_BYTES])

    def _copied(self) -> Iterator[Piece]:
        """Yield the pieces that `run` copied: slots with a digest, and runs of zero slots."""
        slot_bytes = self._settings.request_bytes
        start = 0  # of a run of zeroes
        for offset in range(0, self.size_bytes, slot_bytes):
            length = min(slot_bytes, self.size_bytes - offset)
            piece = Piece(offset, length, zero=False)
            data = self._digest(piece) != _NO_DIGEST
            if start < offset and (data or offset - start >= ZERO_RUN_BYTES):
                yield Piece(start, offset - start, zero=True)
                start = offset
            if data:
                yield piece
                start = offset + length
        if start < self.size_bytes:
            yield Piece(start, self.size_bytes - start, zero=True)

    async def _compare(self, piece: Piece) -> None:
        destination = self._destination
        if not piece.zero:
            data = await destination.read(piece.offset, piece.length)
            same = xxhash.xxh3_128_digest(data) == self._digest(piece)
        else:
            same = await _is_zero(destination, piece) or await self._reads_zero(destination, piece)
        if not same:
            self._mismatches.append(piece.offset)

    async def _reads_zero(self, device: BlockDevice, piece: Piece) -> bool:
        for offset in range(piece.offset, piece.offset + piece.length, _READ_BYTES):
            length = min(_READ_BYTES, piece.offset + piece.length - offset)
            view = memoryview(await device.read(offset, length)).cast("B")
            if not all(zero for _, _, zero in runs(view, GRAIN_BYTES)):
                return False
        return True


class Planner:
    """Cuts a source into slots of data and runs of slots that are zeroes, in order."""

    def __init__(self, source: BlockDevice, size_bytes: int, slot_bytes: int) -> None:
        self._source = source
        self._size = size_bytes
        self._slot = slot_bytes
        self._handed = 0  # all before this offset was handed out; a multiple of a slot

    async def plan(self, hand_out: Callable[[Piece], Awaitable[None]]) -> None:
        """Hand out all pieces. Raises as the source's `extents`."""
        position = zero_from = 0  # all from `zero_from` to `position` is zeroes
        while position < self._size:
            reach = min(LOOK_BYTES, self._size - position)
            for extent in await self._source.extents(position, reach):
                end = position + extent.length_bytes
                if not extent.zero:
                    await self._zeroes(zero_from, position, hand_out)
                    await self._data_until(end - end % self._slot, hand_out)
                    zero_from = end
                position = end
        await self._zeroes(zero_from, self._size, hand_out)
        await self._data_until(self._size, hand_out)

    async def _zeroes(
        self, start: int, end: int, hand_out: Callable[[Piece], Awaitable[None]]
    ) -> None:
        """Hand out the slots that lie in a run of zeroes, after the slots of data before it."""
        first = -(-start // self._slot) * self._slot
        last = end if end == self._size else end - end % self._slot
        if first >= last:
            return
        await self._data_until(first, hand_out)
        step = max(self._slot, ZERO_RUN_BYTES - ZERO_RUN_BYTES % self._slot)
        for offset in range(first, last, step):
            await hand_out(Piece(offset, min(step, last - offset), zero=True))
        self._handed = last

    async def _data_until(self, end: int, hand_out: Callable[[Piece], Awaitable[None]]) -> None:
        while self._handed < end:
            length = min(self._slot, end - self._handed)
            piece = Piece(self._handed, length, zero=False)
            self._handed += length
            await hand_out(piece)


def runs(data: memoryview, block_bytes: int = 1) -> Iterator[tuple[int, int, bool]]:
    """Cut bytes into runs of data and of zeroes; yield start, end, whether it is zeroes."""
    start, zero = 0, False
    grain_bytes = max(GRAIN_BYTES, block_bytes)
    for at in range(0, len(data), grain_bytes):
        grain = data[at : at + grain_bytes]
        # Most data shows in its first or last byte; comparing views would go item by item.
        now = not grain[0] and not grain[-1] and bytes(grain) == bytes(len(grain))
        if at and now != zero:
            yield start, at, zero
            start = at
        zero = now
    if start < len(data):
        yield start, len(data), zero


async def _is_zero(device: BlockDevice, piece: Piece) -> bool:
    """Whether the device reports that the whole piece reads as zeroes."""
    offset, end = piece.offset, piece.offset + piece.length
    while offset < end:
        for extent in await device.extents(offset, end - offset):
            if not extent.zero:
                return False
            offset += extent.length_bytes
    return True


def _first_leaf(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
