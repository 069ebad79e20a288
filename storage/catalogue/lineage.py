"""The tree of layers, as plain data: parents, and where the blocks of merged layers are now.

A layer without names and children dies. A layer with one child and no name is merged into the child
by checkpoints. Names and children are counted as they change, so operations never look at all
layers; only `merging` and `remove` do.
"""

from collections.abc import Mapping
from typing import NamedTuple

from storage.catalogue.records import LayerRecord
from storage.format.values import whole


class LayerChanges(NamedTuple):
    """The layers that one operation changed, by number."""

    made: list[int]
    """New layers, parents first."""
    copied: list[int]
    """Layers that get copies of what they inherit."""
    severed: list[int]
    """Layers that were cut off from their parents."""
    dropped: list[int]
    """Layers that die."""


class Lineage:
    """All layers at one commit."""

    def __init__(self) -> None:
        self.layers: dict[int, LayerRecord] = {}
        self.next_layer = 1
        self.aliases: dict[int, tuple[int, int]] = {}
        """By merged layer: the layer that has its blocks now, and the number of the first segment
        whose record tables cannot name the merged layer any more."""
        self.changes = LayerChanges([], [], [], [])
        """The changes of the operation that is being carried out."""

    def merging(self) -> dict[int, int]:
        """Return the only child of each layer that has one child and no name, by that layer."""
        layers = self.layers
        return {
            record.parent: number
            for number, record in layers.items()
            if record.parent and layers[record.parent].merges
        }

    def remove(self, gone: Mapping[int, int | None], segment: int) -> None:
        """Remove layers that store nothing any more; their children go to their parents.

        Args:
            gone: layers, each with the layer that it was merged into, or None.
            segment: segments before this number may still name the merged layers.
        """
        removed = {number: self.layers.pop(number) for number in gone if number in self.layers}
        for record in self.layers.values() if removed else ():
            while record.parent in removed:
                record.parent = removed[record.parent].parent
        for number, into in gone.items():
            if into in self.layers and number in removed:
                self.layers[into].copied |= removed[number].copied
        lost = {number for number, into in gone.items() if into is None}
        self.aliases = {n: alias for n, alias in self.aliases.items() if alias[0] not in lost}
        self.aliases |= {n: (into, segment) for n, into in gone.items() if into is not None}

    def merged_into(self, number: int) -> int | None:
        """Return the layer that a removed layer was merged into, or None."""
        alias = self.aliases.get(number)
        return None if alias is None else alias[0]

    def forget_aliases(self, oldest_segment: int) -> None:
        """Drop the aliases that no segment needs; no segment is older than `oldest_segment`."""
        self.aliases = {n: a for n, a in self.aliases.items() if a[1] > oldest_segment}

    def new_head(self, number: int, parent: int) -> int:
        """Make a head for a volume, a child of `parent` or, with 0, of none; return its number.

        Raises:
            KeyError, ValueError: the number does not fit, or the parent is unknown or dying.
        """
        if whole(number) <= parent or number in self.layers:
            raise KeyError(number)
        if parent and self.layers[parent].dying:
            raise KeyError(number)
        if parent:
            self.layers[parent].children += 1
        self.layers[number] = LayerRecord(parent, names=1)
        self.next_layer = max(self.next_layer, number + 1)
        self.changes.made.append(number)
        return number

    def unname(self, number: int) -> None:
        """Take a name off a layer. A layer without names and children dies, and then each ancestor
        that has none left."""
        self.layers[number].names -= 1
        self._drop_unused(number)

    def _drop_unused(self, number: int) -> None:
        while number and self.layers[number].unused:
            record = self.layers[number]
            self.layers[number] = LayerRecord(0, dying=True)
            self.changes.dropped.append(number)
            number = record.parent
            if number:
                self.layers[number].children -= 1

    def _surviving(self, number: int) -> int:
        """Return the layer that has the blocks of a layer now: a checkpoint that was under way when
        an operation named the layer may have merged it since.
        """
        while number not in self.layers and number in self.aliases:
            number, _ = self.aliases[number]
        return number

    def copies(self, number: int) -> None:
        """Record that a layer gets copies of what it inherits."""
        number = self._surviving(number)
        if number in self.layers:
            self.layers[number].copied = True
            self.changes.copied.append(number)

    def sever(self, number: int) -> None:
        """Cut a layer off from its parent, which dies if nothing else needs it."""
        number = self._surviving(number)
        parent = self.layers[number].parent
        self.layers[number].parent = 0
        self.changes.severed.append(number)
        if parent:
            self.layers[parent].children -= 1
            self._drop_unused(parent)
