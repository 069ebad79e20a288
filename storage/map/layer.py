"""The tree of layers, and the state that each layer keeps in memory.

A layer holds the blocks written between two snapshots of one lineage. It has at most one parent,
and clients write only to a layer without children. A read looks into the overlays of the layer and
of its ancestors, then into the layer's merged page.
"""

from collections.abc import Collection, Iterator, Sequence
from heapq import nsmallest
from itertools import islice

from storage.map.directory import PAGES_MAX, Directory, PageSet
from storage.map.overlay import Overlay
from storage.map.page import Page, PendingPage

FEW_PAGES = 8
"""Up to so many pages are looked up one by one, which is faster."""


class Layer:
    """One layer. The map fills in pages and pending changes, the log fills in overlays."""

    __slots__ = (
        "_ancestor_pages",
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
        """As in `LayerRecord`: the layer got copies of blocks that it inherits."""
        self.directory = Directory()
        self.pending: dict[int, PendingPage] = {}
        """Durable changes since the last checkpoint, by page."""
        self.frozen_pending: dict[int, PendingPage] = {}
        """Changes that the checkpoint under way is writing, by page."""
        self.gained = 0
        self.frozen_gained = 0
        """Stored blocks that pending and frozen changes brought, whatever they displaced."""
        self.pages: dict[int, Page] = {}
        """Cached merged pages: the layer's own, and pages of ancestors that it has not changed."""
        self.overlays: list[Overlay] = []
        """Overlays of this layer in buffers that are not durable yet, newest first."""
        self.inherited: list[Layer] = []
        """Ancestors that had overlays when this layer was made; removed once they have none."""
        self._ancestor_pages: PageSet | None = None
        """At least the pages that ancestors have changed; made at first use."""
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
        """The first `most` pages of [low, end) that this layer or an ancestor has changed,
        ascending. The other pages read as zeroes, except for blocks in overlays.

        Cost: independent of the number of ancestors, except for the first call.
        """
        of_ancestors = self._pages_of_ancestors()
        if end - low <= FEW_PAGES:
            return [n for n in range(low, end) if n in of_ancestors or self.owns(n)][:most]
        found = {*islice(of_ancestors.between(low, end), most)}
        found.update(changed_pages([self], low, end, most))
        return sorted(found)[:most]

    def owner(self, page: int) -> "Layer | None":
        """This layer if it has changed the page, else its nearest ancestor that has, or None."""
        if page not in self._pages_of_ancestors():
            return self if self.owns(page) else None
        return next((up for up in self.ancestry() if up.owns(page)), None)

    def _pages_of_ancestors(self) -> PageSet:
        """The pages that ancestors have changed, and maybe some that no ancestor stores any more.

        The set is taken from the nearest ancestor that has one, which loses it; that ancestor's
        pages and those of the layers between are added. Mostly the newest layer asks.
        """
        if self._ancestor_pages is None:
            self._ancestor_pages, between = PageSet(), []
            up = self.parent
            while up is not None:
                between.append(up)
                if up._ancestor_pages is not None:
                    self._ancestor_pages, up._ancestor_pages = up._ancestor_pages, None
                    break
                up = up.parent
            for layer in between:
                self._ancestor_pages.add_stored(layer.directory)
                self._ancestor_pages.add(layer.pending)
                self._ancestor_pages.add(layer.frozen_pending)
        return self._ancestor_pages

    def note_ancestor_change(self, page: int) -> None:
        """Note a page that an ancestor has changed since this layer was made."""
        if self._ancestor_pages is not None:
            self._ancestor_pages.add((page,))

    def ancestry(self) -> Iterator["Layer"]:
        """Yield this layer, its parent, and so on to the root."""
        layer: Layer | None = self
        while layer is not None:
            yield layer
            layer = layer.parent

    def descendants(self) -> Iterator["Layer"]:
        """Yield all descendants, in no order."""
        stack = list(self.children)
        while stack:
            layer = stack.pop()
            yield layer
            stack += layer.children

    def drained_overlays(self) -> list[Overlay]:
        """The overlays that a read has to look at: the layer's own, newest first, then those of
        its ancestors. Ancestors that have no overlays left are removed from `inherited`.
        """
        if not self.inherited:
            return self.overlays
        self.inherited = [up for up in self.inherited if up.overlays]
        found = list(self.overlays)
        for up in self.inherited:
            found += up.overlays
        return found


def changed_pages(layers: Sequence[Layer], low: int, end: int, most: int = PAGES_MAX) -> list[int]:
    """The first `most` pages of [low, end) that any of these layers has changed, ascending.

    Cost: some 10 us for each layer; more with changes that wait for a checkpoint.
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
    """The layers that are in the ancestry of only one of the two, where each layer belongs to its
    own ancestry: the two can differ only in pages that these layers have changed."""
    mine = list(one.ancestry())
    theirs = [] if other is None else list(other.ancestry())
    common = {*mine} & {*theirs}
    return [layer for layer in (*mine, *theirs) if layer not in common]


def within(numbers: Collection[int], low: int, end: int) -> Collection[int]:
    """The keys of a dictionary that lie in [low, end); costs the smaller of the two sizes."""
    if len(numbers) < end - low:
        return [number for number in numbers if low <= number < end]
    return [number for number in range(low, end) if number in numbers]
