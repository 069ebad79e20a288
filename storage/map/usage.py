"""Counts the blocks and bytes that each layer stores, exactly at every checkpoint.

Every stored block belongs to one layer, so the counts of all layers add up to all data, and with
the bytes of the map to all live bytes of the segments. Counts move with the blocks:

    a layer that is merged      counts as part of the child that it is merged into, from the first
                                checkpoint on, though its pages follow piece by piece
    a layer that is dying       (deleted, without children) counts as DELETED, together with all
                                other dying layers

A checkpoint changes a copy and stores it; between checkpoints the counts are those of the last one.
"""

from collections.abc import Iterator

import numpy as np

from storage.errors import DamagedError
from storage.format.entry import BLOCK_BYTES, KIND_MASK, RAW, Words, shares_of

DELETED = 0
"""In place of a layer's number: all dying layers, whose blocks checkpoints still give back."""

ROW_BYTES = 24


class Usage:
    """Blocks and stored bytes by layer, and the bytes of the map."""

    def __init__(self) -> None:
        self._layers: dict[int, tuple[int, int]] = {}
        self.map_bytes = 0
        """Stored bytes of pages and directories; each checkpoint writes root and tables anew, so
        they count as dead."""

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        """Yield (layer, blocks, stored bytes) of every layer that stores anything."""
        for number, (blocks, stored_bytes) in self._layers.items():
            yield number, blocks, stored_bytes

    def stored_bytes(self, layer: int) -> int:
        """Bytes that the blocks of a layer take on a member, compressed."""
        return self._layers.get(layer, (0, 0))[1]

    def mapped_bytes(self, layer: int) -> int:
        """Bytes that the stored blocks of a layer hold, uncompressed."""
        return self._layers.get(layer, (0, 0))[0] * BLOCK_BYTES

    @property
    def data_bytes(self) -> int:
        """Stored bytes of all layers together."""
        return sum(stored_bytes for _, stored_bytes in self._layers.values())

    def add(self, layer: int, entries: Words, sign: int = 1) -> None:
        """Count entries, shape (n, 2), for a layer, or take them off with `sign` -1."""
        blocks = int(((entries[:, 0] & np.uint64(KIND_MASK)) >= np.uint64(RAW)).sum())
        stored_bytes = int(shares_of(entries[:, 0], entries[:, 1]).sum())
        self._change(layer, sign * blocks, sign * stored_bytes)

    def move(self, layer: int, to: int) -> None:
        """Add the counts of a layer to those of another one, and forget them."""
        self._change(to, *self._layers.pop(layer, (0, 0)))

    def _change(self, layer: int, blocks: int, stored_bytes: int) -> None:
        before = self._layers.get(layer, (0, 0))
        after = before[0] + blocks, before[1] + stored_bytes
        if any(after):
            self._layers[layer] = after
        else:
            self._layers.pop(layer, None)

    def copy(self) -> "Usage":
        """An independent copy."""
        made = Usage()
        made._layers = dict(self._layers)
        made.map_bytes = self.map_bytes
        return made

    def pack(self) -> bytes:
        """The layers as a checkpoint stores them; see `storage.format.checkpoint_root`."""
        return np.array([*self], dtype="<i8").tobytes()

    @classmethod
    def unpack(cls, data: bytes, map_bytes: int) -> "Usage":
        """The inverse of `pack`.

        Raises:
            DamagedError: the size is wrong.
        """
        if len(data) % ROW_BYTES:
            raise DamagedError("usage table has the wrong size")
        made = cls()
        made.map_bytes = map_bytes
        for layer, blocks, stored_bytes in np.frombuffer(data, dtype="<i8").reshape(-1, 3).tolist():
            made._layers[layer] = (blocks, stored_bytes)
        return made
