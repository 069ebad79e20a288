"""The tree of layers, and what each keeps in memory.

A layer is the blocks written between two snapshots of one lineage. It has at most one parent, and
only a layer without children is written. A read looks into the overlays of the layer and
of its ancestors, then into the merged page.
"""

from collections.abc import Collection, Iterator, Sequence
from heapq import nsmallest
from itertools import islice

from storage.map.directory import PAGES_MAX, Directory, PageSet
from storage.map.overlay import Overlay
from storage.map.page import Page, PendingPage

FEW_PAGES = 8
"""So many are looked up one by one, which is quicker."""


class Layer:
    """One layer. Pages, pending changes and overlays are filled in by the map and the log."""

    __slots__ = (
        "_above",
        "children",
        "copied",
        "directory",
        "frozen_gained",
        "frozen_pending",
        "gained",
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
        self.copied = False
        """See LayerRecord."""
        self.directory = Directory()
        self.pending: dict[int, PendingPage] = {}
        """Durable changes since the last checkpoint, by page."""
        self.frozen_pending: dict[int, PendingPage] = {}
        """Those that the checkpoint under way is writing."""
        self.gained = 0
        self.frozen_gained = 0
        """Stored blocks that they brought, whatever they displaced."""
        self.pages: dict[int, Page] = {}
        """Merged pages in the cache, its own and those of ancestors it has not changed."""
        self.overlays: list[Overlay] = []
        """Buffers not yet durable that hold blocks of this layer, newest first."""
        self.inherited: list[Layer] = []
        """Ancestors that had overlays when this layer was made; pruned as they drain."""
        self._above: PageSet | None = None
        """At least the pages that ancestors have changed; made when it is asked for."""
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

    def is_unchanged(self) -> bool:
        """Whether the layer holds nothing, so that it reads as its parent does."""
        held = self.overlays or self.pending or self.frozen_pending
        return not held and next(self.directory.pages(), None) is None

    def mapped_pages(self, low: int, end: int, most: int = PAGES_MAX) -> list[int]:
        """The first pages of [low, end), at most so many, that this layer or one above it has
        changed, ascending. The others are zeroes but for what overlays hold.

        Cost: does not depend on how many layers there are above, but for the first call.
        """
        above = self._pages_above()
        if end - low <= FEW_PAGES:
            return [n for n in range(low, end) if n in above or self.owns(n)][:most]
        found = {*islice(above.between(low, end), most)}
        found.update(changed_pages([self], low, end, most))
        return sorted(found)[:most]

    def owner(self, page: int) -> "Layer | None":
        """The nearest layer at or above this one that has changed the page."""
        if page not in self._pages_above():
            return self if self.owns(page) else None
        return next((up for up in self.ancestry() if up.owns(page)), None)

    def _pages_above(self) -> PageSet:
        """The pages that ancestors have changed, and maybe some that none has any more.

        The set is handed down from layer to layer: it is the newest that is asked for.
        """
        if self._above is None:
            self._above, between = PageSet(), []
            up = self.parent
            while up is not None:
                between.append(up)
                if up._above is not None:
                    self._above, up._above = up._above, None
                    break
                up = up.parent
            for layer in between:
                self._above.add_stored(layer.directory)
                self._above.add(layer.pending)
                self._above.add(layer.frozen_pending)
        return self._above

    def changed_above(self, page: int) -> None:
        """A layer above this one has changed a page since this one was made."""
        if self._above is not None:
            self._above.add((page,))

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

    def drained_overlays(self) -> list[Overlay]:
        """The overlays a read has to look at, newest first, its own before inherited ones."""
        if not self.inherited:
            return self.overlays
        self.inherited = [up for up in self.inherited if up.overlays]
        found = list(self.overlays)
        for up in self.inherited:
            found += up.overlays
        return found


def changed_pages(layers: Sequence[Layer], low: int, end: int, most: int = PAGES_MAX) -> list[int]:
    """The first pages of [low, end), at most so many, that any of these layers has changed,
    ascending.

    Cost: some 10 us for each layer; more with pages that wait for a checkpoint.
    """
    if end - low <= FEW_PAGES:
        few = [n for n in range(low, end) if any(layer.owns(n) for layer in layers)]
        return few[:most]
    found: set[int] = set()
    for layer in layers:
        found.update(islice(layer.directory.pages(low, end), most))
        for pending in (layer.pending, layer.frozen_pending):
            found.update(nsmallest(most, within(pending, low, end)))
    return sorted(found)[:most]


def apart(one: Layer, other: Layer | None) -> list[Layer]:
    """The layers that one of two stands on, or is, and the other does not: only where these
    changed something can the two differ."""
    mine = list(one.ancestry())
    theirs = [] if other is None else list(other.ancestry())
    common = {*mine} & {*theirs}
    return [layer for layer in (*mine, *theirs) if layer not in common]


def within(numbers: Collection[int], low: int, end: int) -> Collection[int]:
    """The keys of a dictionary that lie in [low, end), found whichever way is shorter."""
    if len(numbers) < end - low:
        return [number for number in numbers if low <= number < end]
    return [number for number in range(low, end) if number in numbers]
