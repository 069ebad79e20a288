"""Lets the layers of the map follow those of the catalogue."""

from collections.abc import Iterable

from storage.catalogue.catalogue import Catalogue
from storage.catalogue.lineage import LayerChanges
from storage.map.blockmap import BlockMap
from storage.map.layer import Layer


def make_layers(numbers: Iterable[int], catalogue: Catalogue, blockmap: BlockMap) -> None:
    """Make layers that the catalogue has and the map has not; parents come first."""
    for number in numbers:
        record = catalogue.layers[number]
        parent = blockmap.layers[record.parent] if record.parent else None
        layer = blockmap.layers[number] = Layer(number, parent)
        layer.copied = record.copied


def follow(changes: LayerChanges, blockmap: BlockMap) -> None:
    """Do to the map's layers what a durable operation did to the catalogue's; new ones are there.

    Those that are severed keep their pages in memory, as what these hold does not change. Those
    that are dropped leave the tree; what they stored is given back by checkpoints.
    """
    for number in changes.copied:
        blockmap.layers[number].copied = True
    for number in changes.severed:
        layer = blockmap.layers[number]
        if layer.parent is not None:
            layer.parent.children.remove(layer)
            layer.parent = None
        blockmap.generation += 1
    for number in changes.dropped:
        layer = blockmap.layers[number]
        if layer.parent is not None:
            layer.parent.children.remove(layer)
            layer.parent = None
        for child in layer.children:
            child.parent = None
        layer.children = []
        blockmap.drop_layer_pages(layer)
