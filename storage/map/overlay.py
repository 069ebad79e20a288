"""Overlays: the blocks of one layer in a write buffer, in memory until its commit is durable."""

from storage.format.entry import BLOCK_BYTES


class Overlay:
    """The blocks and zero ranges of one layer in one buffer; `view` is the buffer's whole memory.

    An overlay does not refer to its buffer: in a reference cycle, 4 MiB would wait for the garbage
    collector.
    """

    __slots__ = ("index", "view", "zeroes")

    def __init__(self, view: memoryview):
        self.view = view
        self.index: dict[int, int] = {}
        """Block number to place in the buffer, in blocks."""
        self.zeroes: list[tuple[int, int]] = []
        """Ranges [first, end) whose blocks read as zeroes unless the index has them: all blocks of
        the index that lie in a range were written after it."""

    def block(self, place: int) -> memoryview:
        """The memory of one block."""
        start = place * BLOCK_BYTES
        return self.view[start : start + BLOCK_BYTES]

    def covers_with_zero(self, block: int) -> bool:
        """Whether a zero range of this buffer holds the block."""
        return any(first <= block < end for first, end in self.zeroes)

    def put_zeroes(self, first: int, end: int) -> None:
        """Zero the blocks [first, end), and remove them from the index."""
        index = self.index
        if len(index) < end - first:
            stale = [block for block in index if first <= block < end]
        else:
            stale = [block for block in range(first, end) if block in index]
        for block in stale:
            del index[block]
        if self.zeroes and self.zeroes[-1][1] == first:
            self.zeroes[-1] = (self.zeroes[-1][0], end)
        else:
            self.zeroes.append((first, end))
