"""The tree of layers, as plain data: who stands on whom, and what became of those that are gone.

A layer lives as long as a name, or another layer, needs it. Names and children are counted as they
change, so nothing here looks at all layers but what checkpoints ask for.
"""

from collections.abc import Mapping
from typing import NamedTuple

from storage.catalogue.records import LayerRecord
from storage.format.values import whole


class LayerChanges(NamedTuple):
    """What an operation did to the tree: layers made, parents first, layers that get copies of what
    they inherit, layers that stand on nothing any more, and layers that die."""

    made: list[int]
    copied: list[int]
    severed: list[int]
    dropped: list[int]


class Lineage:
    """All layers at one commit."""

    def __init__(self) -> None:
        self.layers: dict[int, LayerRecord] = {}
        self.next_layer = 1
        self.aliases: dict[int, tuple[int, int]] = {}
        """Merged layers: which one has their blocks now, and the first segment whose record tables
        cannot name them any more."""
        self.changes = LayerChanges([], [], [], [])
        """Of the operation that is carried out."""

    def merging(self) -> dict[int, int]:
        """Layers without a name that one other stands on, and which that is."""
        layers = self.layers
        return {
            record.parent: number
            for number, record in layers.items()
            if record.parent and layers[record.parent].merges
        }

    def remove(self, gone: Mapping[int, int | None], segment: int) -> None:
        """Take out layers that store nothing; what stands on one then stands on its parent. Of
        those that were merged into another one, segments before `segment` may still name them.
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
        """Where the blocks of a layer went that is not there any more, or None."""
        alias = self.aliases.get(number)
        return None if alias is None else alias[0]

    def forget_aliases(self, oldest_segment: int) -> None:
        """Drop the aliases that no segment needs; there is none before `oldest_segment`."""
        self.aliases = {n: a for n, a in self.aliases.items() if a[1] > oldest_segment}

    def new_head(self, number: int, parent: int) -> int:
        """Make a layer for a volume to go on in, above another, or above none (0)."""
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
        """Take a name off a layer. If neither a name nor another layer needs it now, it dies, and
        then its ancestors."""
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

    def _heir(self, number: int) -> int:
        """A layer, or which one has its blocks now: a checkpoint that was under way when an
        operation named it may have merged it since.
        """
        while number not in self.layers and number in self.aliases:
            number, _ = self.aliases[number]
        return number

    def copies(self, number: int) -> None:
        """Let a layer get copies of what it inherits."""
        number = self._heir(number)
        if number in self.layers:
            self.layers[number].copied = True
            self.changes.copied.append(number)

    def sever(self, number: int) -> None:
        """Let a layer stand on nothing any more. What it stood on dies if nothing else needs it."""
        number = self._heir(number)
        above = self.layers[number].parent
        self.layers[number].parent = 0
        self.changes.severed.append(number)
        if above:
            self.layers[above].children -= 1
            self._drop_unused(above)
