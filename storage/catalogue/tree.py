"""Who stands on whom: volumes, their snapshots and clones as a tree.

The tree of layers says it all, but not in users' words. Here each layer belongs to one volume:
the one whose head or snapshot it is, or, if it has no name, one that stands on it; of several
the one that the others were cloned from. So a volume stands on a layer of another, or on nothing.
"""

from collections import Counter
from collections.abc import Callable, Iterator

from storage.catalogue.catalogue import Catalogue
from storage.info import NodeKind, TreeNode


class VolumeTree:
    """The catalogue's layers by owner. Cost: a look at each layer."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self.owners: dict[int, str] = {}
        """Layer to volume; layers that wait to be given back have none."""
        self.names: dict[int, str] = {}
        """`VOL` and `VOL@SNAP` by layer."""
        for name, volume in catalogue.volumes.items():
            self._name(volume.head, name, name)
            for snapshot, record in volume.snapshots.items():
                self._name(record.layer, name, f"{name}@{snapshot}")
        for name in sorted(catalogue.volumes, key=self._generation):
            for layer in self._named(name):
                self._claim_above(layer, name)
        self._oldest = {owner: layer for layer, owner in sorted(self.owners.items(), reverse=True)}
        layers = catalogue.layers
        self.clones = Counter(
            record.parent
            for number, record in layers.items()
            if record.parent and self.owners[number] != self.owners[record.parent]
        )
        """How many layers of other volumes stand on each layer."""

    def _name(self, layer: int, owner: str, name: str) -> None:
        self.owners[layer] = owner
        self.names[layer] = name

    def _named(self, volume: str) -> Iterator[int]:
        record = self._catalogue.volumes[volume]
        yield record.head
        for snapshot in record.snapshots.values():
            yield snapshot.layer

    def _generation(self, volume: str) -> int:
        """How many volumes it was cloned from, one from another."""
        volumes = self._catalogue.volumes
        seen: set[str] = set()
        while volume in volumes and volume not in seen:
            seen.add(volume)
            volume = volumes[volume].origin.partition("@")[0]
        return len(seen)

    def _claim_above(self, layer: int, volume: str) -> None:
        layers = self._catalogue.layers
        up = layers[layer].parent
        while up and up not in self.owners:
            self.owners[up] = volume
            up = layers[up].parent

    def uppermost(self, volume: str) -> list[int]:
        """The layers of a volume that stand on layers of others: usually one, or none."""
        layers = self._catalogue.layers
        return sorted(
            number
            for number, owner in self.owners.items()
            if owner == volume
            and layers[number].parent
            and self.owners[layers[number].parent] != volume
        )

    def base(self, volume: str) -> int:
        """The layer of another volume that this one stands on, or 0: that of its oldest layer, as
        rolling back and promoting may leave it with several. So nobody stands on himself.
        """
        return self._catalogue.layers[self._oldest[volume]].parent


def tree(catalogue: Catalogue, pages_left: Callable[[int], int]) -> list[TreeNode]:
    """Everything that stands on something, each below what it is shown under.

    Args:
        pages_left: how many pages of its map a layer still has.
    """
    volume_tree = VolumeTree(catalogue)
    nodes = []
    for name, volume in catalogue.volumes.items():
        base = volume_tree.base(name)
        under = _label(volume_tree, base) if base else None
        nodes.append(
            TreeNode(name, NodeKind.VOLUME, under, volume.size_bytes, volume.created,
                     volume.notes.protected)
        )  # fmt: skip
        for snapshot, record in volume.snapshots.items():
            nodes.append(
                TreeNode(f"{name}@{snapshot}", NodeKind.SNAPSHOT, name, record.size_bytes,
                         record.created, record.notes.protected)
            )  # fmt: skip
    for number, layer in catalogue.layers.items():
        if number in volume_tree.names:
            continue
        kind = NodeKind.KEPT
        if layer.dying or layer.merges:
            kind = NodeKind.FREEING if layer.dying else NodeKind.MERGING
        left = 0 if kind is NodeKind.KEPT else pages_left(number)
        owner = volume_tree.owners.get(number)
        nodes.append(TreeNode(_label(volume_tree, number), kind, owner, pages_left=left))
    return nodes


def _label(volume_tree: VolumeTree, layer: int) -> str:
    return volume_tree.names.get(layer, f"#{layer}")
