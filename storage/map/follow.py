"""Keeps the map's tree of layers in step with the catalogue's."""

from collections.abc import Iterable

from storage.catalogue.catalogue import Catalogue
from storage.catalogue.lineage import LayerChanges
from storage.map.blockmap import BlockMap
from storage.map.layer import Layer


def make_layers(numbers: Iterable[int], catalogue: Catalogue, blockmap: BlockMap) -> None:
    """Make the layers `numbers`, which the catalogue has and the map lacks; parents come first."""
    for number in numbers:
        record = catalogue.layers[number]
        parent = blockmap.layers[record.parent] if record.parent else None
        layer = blockmap.layers[number] = Layer(number, parent)
        layer.copied = record.copied


def follow(changes: LayerChanges, blockmap: BlockMap) -> None:
    """Apply a durable operation's changes to the map's layers; the layers that it made exist.

    Severed layers keep their cached pages, as the content of these does not change. Dropped layers
    leave the tree; checkpoints give back their blocks.
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
