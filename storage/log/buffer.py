"""The write buffer: collects the blocks, zero ranges and operations of one commit.

Blocks are appended to one flat piece of memory in order of arrival; an index per layer says
where each block is. Of a block written again while the buffer is open, only the newest version is
stored (R9: the index is kept per layer). A sealed buffer never changes (R1).

The index is also the overlay: readers look into the buffers of a layer, newest first,
before they look into the map, until the commit is durable and applied to the map.
"""

import numpy as np
import trio
from typing_extensions import Buffer

from blockdev.errors import DeviceError
from storage.format.commit import LayerMoves, Placed
from storage.format.entry import BLOCK_BYTES
from storage.log.encoded import EncodedCommit
from storage.map.overlay import Overlay


class WriteBuffer:
    """Blocks, zero ranges, operations and moves on their way to one commit."""

    __slots__ = (
        "capacity",
        "claim_bytes",
        "done",
        "encoded",
        "encoding",
        "error",
        "layers",
        "memory_bytes",
        "moves",
        "opened_at",
        "operations",
        "placed",
        "records",
        "used",
        "view",
        "wanted",
        "written_bytes",
    )  # fmt: skip

    def __init__(self, capacity_blocks: int, opened_at: float):
        self.capacity = capacity_blocks
        self.memory_bytes = capacity_blocks * BLOCK_BYTES
        # Not zeroed first: that would touch all of it once more (0.9 ms for 4 MiB).
        self.view: memoryview = np.empty(self.memory_bytes, dtype=np.uint8).data
        self.claim_bytes = 0
        """Bytes of the pool's space that are set aside for its commit until that is written."""
        self.written_bytes = 0
        """Bytes of its commit once that is written; 0 before."""
        self.used = 0
        """Blocks of memory taken; overwritten ones count once, zeroed ones still count."""
        self.records = 0
        """Zero ranges, which take room in the record table."""
        self.opened_at = opened_at
        self.layers: dict[int, Overlay] = {}
        self.operations: list[bytes] = []
        self.moves: list[LayerMoves] = []
        self.placed: list[Placed] = []
        self.wanted = False
        """Set when its commit is to be flushed without waiting for more."""
        self.done = trio.Event()
        """Set when durable, or failed: see `error`."""
        self.error: DeviceError | None = None
        self.encoded: EncodedCommit | None = None
        self.encoding: trio.Event | None = None

    @property
    def empty(self) -> bool:
        """Whether there is nothing to commit."""
        return not (self.layers or self.operations or self.moves)

    def layer(self, number: int) -> Overlay:
        """This buffer's overlay of a layer, made at first use."""
        part = self.layers.get(number)
        if part is None:
            part = self.layers[number] = Overlay(self.view)
        return part

    def put(self, part: Overlay, block: int, count: int, data: Buffer) -> bool:
        """Append `count` whole blocks; False, with nothing changed, when they do not fit.

        Cost: one copy, and one dictionary item per block.
        """
        index = part.index
        if count == 1:
            place = index.get(block)
            if place is None:
                place = self.used
                if place >= self.capacity:
                    return False
                self.used = place + 1
                index[block] = place
            start = place * BLOCK_BYTES
            self.view[start : start + BLOCK_BYTES] = memoryview(data)
            return True
        place = self.used
        if place + count > self.capacity:
            return False
        # An overwritten block's old place is left behind as a hole, never referred to again.
        self.used = place + count
        start = place * BLOCK_BYTES
        self.view[start : start + count * BLOCK_BYTES] = memoryview(data)
        index.update(zip(range(block, block + count), range(place, place + count), strict=True))
        return True
