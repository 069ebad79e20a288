"""The tree of volumes, their snapshots and their clones, made from the tree of layers.

Each layer is assigned to one volume. A layer with a name belongs to the volume whose head or
snapshot it is. A layer without a name belongs to a volume that descends from it; if several do, to
the volume that the others were cloned from. So each volume is a child of a layer of another volume,
or has no parent.
"""

from collections import Counter
from collections.abc import Callable, Iterator

from storage.catalogue.catalogue import Catalogue
from storage.info import NodeKind, TreeNode


class VolumeTree:
    """Assigns the catalogue's layers to volumes. Cost: one pass over the layers."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self.owners: dict[int, str] = {}
        """The volume of each layer, by layer; dying layers have none."""
        self.names: dict[int, str] = {}
        """`VOL` and `VOL@SNAP` by layer."""
        for name, volume in catalogue.volumes.items():
            self._name(volume.head, name, name)
            for snapshot, record in volume.snapshots.items():
                self._name(record.layer, name, f"{name}@{snapshot}")
        for name in sorted(catalogue.volumes, key=self._generation):
            for layer in self._named(name):
                self._claim_ancestors(layer, name)
        self._oldest = {owner: layer for layer, owner in sorted(self.owners.items(), reverse=True)}
        layers = catalogue.layers
        self.clones = Counter(
            record.parent
            for number, record in layers.items()
            if record.parent and self.owners[number] != self.owners[record.parent]
        )
        """By layer, the number of its children that belong to other volumes."""

    def _name(self, layer: int, owner: str, name: str) -> None:
        self.owners[layer] = owner
        self.names[layer] = name

    def _named(self, volume: str) -> Iterator[int]:
        record = self._catalogue.volumes[volume]
        yield record.head
        for snapshot in record.snapshots.values():
            yield snapshot.layer

    def _generation(self, volume: str) -> int:
        """Return the length of a volume's chain of origins, itself included."""
        volumes = self._catalogue.volumes
        seen: set[str] = set()
        while volume in volumes and volume not in seen:
            seen.add(volume)
            volume = volumes[volume].origin.partition("@")[0]
        return len(seen)

    def _claim_ancestors(self, layer: int, volume: str) -> None:
        layers = self._catalogue.layers
        ancestor = layers[layer].parent
        while ancestor and ancestor not in self.owners:
            self.owners[ancestor] = volume
            ancestor = layers[ancestor].parent

    def branch_layers(self, volume: str) -> list[int]:
        """The layers of a volume whose parents belong to other volumes: usually one, or none."""
        layers = self._catalogue.layers
        return sorted(
            number
            for number, owner in self.owners.items()
            if owner == volume
            and layers[number].parent
            and self.owners[layers[number].parent] != volume
        )

    def base(self, volume: str) -> int:
        """The parent of the volume's oldest layer, a layer of another volume, or 0 if it has none.

        Rollback and promotion may leave a volume with several layers whose parents belong to other
        volumes. The oldest one counts, so no volume descends from itself.
        """
        return self._catalogue.layers[self._oldest[volume]].parent


def tree(catalogue: Catalogue, pages_left: Callable[[int], int]) -> list[TreeNode]:
    """Return a node for each volume, each snapshot and each layer without a name.

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
