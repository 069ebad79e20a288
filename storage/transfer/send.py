"""Sends a snapshot: reads the blocks that differ from another one, and makes a stream of them.

Memory is bounded by two windows: a worker thread encodes one while the next is read. The next
window is read only when the reader of the stream asks for more. Cost: the pages that
`storage.map.compare` looks at, and one read of each changed block.
"""

import logging
from collections.abc import AsyncGenerator, Iterator
from functools import partial

import trio
from typing_extensions import Buffer

from blockdev.errors import DeviceError
from storage.environment import Environment
from storage.format.entry import BLOCK_BYTES, BLOCK_SHIFT
from storage.map.blockmap import BlockMap
from storage.map.compare import DATA, SAME, ZEROES, Comparison
from storage.map.layer import Layer
from storage.map.runs import Run, walk
from storage.members.segments import SegmentTable
from storage.transfer.stream import DATA_BYTES_MAX, Encoder, StreamHeader
from storage.volumes.volume import Volume

log = logging.getLogger("cenote.storage")

WINDOW_BYTES = 2 << 20
"""Bytes of data in one window, which take some 4 ms to encode."""
WINDOW_PIECES = 512
"""Records in one window; a block without changed neighbours is a record of 4 KiB."""
PARALLEL_READS = 16
"""Pieces not in memory that are read at once, so that lone blocks fill a disk's queue, too."""
TURN_BYTES = 256 << 10
"""Bytes read from memory between two turns of other tasks."""

Piece = tuple[int, int, bool]
"""Offset and length in bytes, and whether it is zeroes."""
Window = list[tuple[Piece, Buffer]]


class Sending:
    """One stream that is sent; made by `Transfers.send`. It owns the two handles."""

    def __init__(
        self, header: StreamHeader, device: Volume, base: Volume | None,
        blockmap: BlockMap, table: SegmentTable, env: Environment,
    ):  # fmt: skip
        self.header = header
        self._device = device
        self._base = base
        self._env = env
        self._encoder = Encoder(header)
        self._differences = Differences(
            blockmap, table, device.layer, None if base is None else base.layer,
            header.start, header.size_bytes,
        )  # fmt: skip

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield the stream, in pieces of some MiB at most. When a device fails, the stream ends
        with a record that says so. After a cancellation it only ends early.
        """
        yield self._encoder.header()
        try:
            window = await self._next_window()
            while window:
                chunk, window = await self._encode_and_read(window)
                yield chunk
        except DeviceError as error:
            log.error("sending failed: %s@%s: %s", self.header.volume, self.header.name, error)
            yield self._encoder.failed(str(error))
            return
        yield self._encoder.end()

    async def close(self) -> None:
        """Close the handles."""
        await self._device.close()
        if self._base is not None:
            await self._base.close()

    async def _encode_and_read(self, window: Window) -> tuple[bytes, Window]:
        """Encode a window, and read the next one meanwhile; returns both."""
        chunk = b""
        failures: list[DeviceError] = []

        async def encode() -> None:
            nonlocal chunk
            chunk = await self._env.offload(partial(self._encode, window))

        following: Window = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(encode)
            try:
                following = await self._next_window()
            except DeviceError as error:
                failures.append(error)
        if failures:
            raise failures[0]
        return chunk, following

    def _encode(self, window: Window) -> bytes:
        encoder = self._encoder
        return b"".join(
            encoder.zeroes(offset, length) if zero else encoder.data(offset, data)
            for (offset, length, zero), data in window
        )

    # -- reading

    async def _next_window(self) -> Window:
        pieces = await self._differences.take()
        contents: list[Buffer] = [b""] * len(pieces)
        missing = []
        since_turn = 0
        for i, (offset, length, zero) in enumerate(pieces):
            if zero:
                continue
            data = self._device.try_read(offset, length)
            if data is None:
                missing.append(i)
                continue
            contents[i] = data
            since_turn += max(length, BLOCK_BYTES * 4)
            if since_turn >= TURN_BYTES:
                await trio.lowlevel.checkpoint()
                since_turn = 0
        if missing:
            await self._read_missing(pieces, missing, contents)
        return list(zip(pieces, contents, strict=True))

    async def _read_missing(
        self, pieces: list[Piece], missing: list[int], contents: list[Buffer]
    ) -> None:
        left = iter(missing)
        failures: list[DeviceError] = []

        async def read_some() -> None:
            for i in left:
                if failures:
                    return
                offset, length, _ = pieces[i]
                try:
                    contents[i] = await self._device.read(offset, length)
                except DeviceError as error:
                    failures.append(error)

        async with trio.open_nursery() as nursery:
            for _ in range(min(PARALLEL_READS, len(missing))):
                nursery.start_soon(read_some)
        if failures:
            raise failures[0]


class Differences:
    """Finds the pieces of a stream in order, window by window; data pieces fit one record."""

    def __init__(
        self, blockmap: BlockMap, table: SegmentTable, layer: Layer, base: Layer | None,
        start: int, end: int,
    ):  # fmt: skip
        self._map = blockmap
        self._table = table
        self._layer = layer
        self._base = base
        self._at = start >> BLOCK_SHIFT
        self._end = end >> BLOCK_SHIFT
        self._found: Iterator[Piece] = iter(())

    async def take(self) -> list[Piece]:
        """Return the next window; empty at the end. Raises as `storage.map.runs.walk`."""
        taken: list[Piece] = []
        data_bytes = 0
        while True:
            for piece in self._found:
                taken.append(piece)
                data_bytes += 0 if piece[2] else piece[1]
                if data_bytes >= WINDOW_BYTES or len(taken) >= WINDOW_PIECES:
                    return taken
            if self._at == self._end:
                return taken
            await self._look()

    async def _look(self) -> None:
        view = Comparison(self._map, self._table, self._layer, self._base, self._at, self._end)
        runs = await walk(view, self._at, self._end)
        self._found = _cut(self._at << BLOCK_SHIFT, runs)
        self._at += sum(blocks for blocks, _ in runs)


def _cut(offset: int, runs: list[Run]) -> Iterator[Piece]:
    for blocks, state in runs:
        length = blocks << BLOCK_SHIFT
        end = offset + length
        step = DATA_BYTES_MAX if state == DATA else length
        while state != SAME and offset < end:
            yield offset, min(step, end - offset), state == ZEROES
            offset += step
        offset = end
