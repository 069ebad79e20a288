"""The tree of layers, and what each keeps in memory.

A layer is the blocks written between two snapshots of one lineage. It has at most one parent, and
only a layer without children is written. A read looks into the overlays of the layer and
of its ancestors, then into the merged page.
"""

from collections.abc import Iterator

from storage.buffer import LayerBuffer
from storage.entry import Words
from storage.page import Page, PendingPage


class Directory:
    """Where the pages of one layer lie on disk: chunks of 1,024 rows of four words."""

    __slots__ = ("chunks", "located")

    def __init__(self) -> None:
        self.chunks: dict[int, Words] = {}
        self.located: dict[int, tuple[int, int]] = {}
        """Words A and B of each chunk as last written."""

    def get(self, page: int) -> list[int] | None:
        """[base A, base B, delta A, delta B], or None when the layer stores nothing there."""
        chunk = self.chunks.get(page >> 10)
        if chunk is None:
            return None
        row: list[int] = chunk[page & 1023].tolist()
        return row if row[0] or row[2] else None

    def pages(self) -> Iterator[int]:
        """Every page of which something is stored, ascending."""
        for number in sorted(self.chunks):
            chunk = self.chunks[number]
            used = (chunk[:, 0] != 0) | (chunk[:, 2] != 0)
            for row in used.nonzero()[0].tolist():
                yield number << 10 | row


class Layer:
    """One layer. Pages, pending changes and overlays are filled in by the map and the log."""

    __slots__ = (
        "children",
        "directory",
        "frozen_pending",
        "inherited",
        "number",
        "overlays",
        "pages",
        "parent",
        "pending",
    )

    def __init__(self, number: int, parent: "Layer | None"):
        self.number = number
        self.parent = parent
        self.children: list[Layer] = []
        self.directory = Directory()
        self.pending: dict[int, PendingPage] = {}
        """Durable changes since the last checkpoint, by page."""
        self.frozen_pending: dict[int, PendingPage] = {}
        """Those that the checkpoint under way is writing."""
        self.pages: dict[int, Page] = {}
        """Merged pages in the cache, its own and those of ancestors it has not changed."""
        self.overlays: list[LayerBuffer] = []
        """Buffers not yet durable that hold blocks of this layer, newest first."""
        self.inherited: list[Layer] = []
        """Ancestors that had overlays when this layer was made; pruned as they drain."""
        if parent is not None:
            parent.children.append(self)
            self.inherited = [up for up in (parent, *parent.inherited) if up.overlays]

    def owns(self, page: int) -> bool:
        """Whether the layer itself has changed the page."""
        return (
            page in self.pending
            or page in self.frozen_pending
            or self.directory.get(page) is not None
        )

    def ancestry(self) -> Iterator["Layer"]:
        """This layer, its parent, and so on up to the root."""
        layer: Layer | None = self
        while layer is not None:
            yield layer
            layer = layer.parent

    def descendants(self) -> Iterator["Layer"]:
        """All layers below this one."""
        stack = list(self.children)
        while stack:
            layer = stack.pop()
            yield layer
            stack += layer.children

    def drained_overlays(self) -> list[LayerBuffer]:
        """The overlays a read has to look at, newest first, its own before inherited ones."""
        if not self.inherited:
            return self.overlays
        self.inherited = [up for up in self.inherited if up.overlays]
        found = list(self.overlays)
        for up in self.inherited:
            found += up.overlays
        return found
