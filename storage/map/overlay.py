"""What a write buffer holds of one layer, in memory until its commit is durable."""

from storage.format.entry import BLOCK_BYTES


class Overlay:
    """What one buffer holds of one layer; `view` is the memory of the whole buffer.

    It does not refer to its buffer: in a cycle, 4 MiB would wait for the garbage collector.
    """

    __slots__ = ("index", "view", "zeroes")

    def __init__(self, view: memoryview):
        self.view = view
        self.index: dict[int, int] = {}
        """Block number to place in the buffer, in blocks."""
        self.zeroes: list[tuple[int, int]] = []
        """[first, end) ranges that read zero unless the index has the block: a range comes
        before every block of the index that lies in it."""

    def block(self, place: int) -> memoryview:
        """The memory of one block."""
        start = place * BLOCK_BYTES
        return self.view[start : start + BLOCK_BYTES]

    def covers_with_zero(self, block: int) -> bool:
        """Whether a zero range of this buffer holds the block."""
        return any(first <= block < end for first, end in self.zeroes)

    def put_zeroes(self, first: int, end: int) -> None:
        """Zero [first, end): what this buffer holds of it is forgotten."""
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
