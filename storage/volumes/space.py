"""Computes the space of volumes and snapshots from the counts of their layers.

The data of a layer is reached by the names of the layer and of all its descendants. The layers that
only one name reaches are found in one pass from the newest layer to the oldest, as parents are
older than children and have smaller numbers.
"""

from collections.abc import Iterable

from storage.catalogue.catalogue import Catalogue
from storage.checkpoint.stock import Stock
from storage.info import VolumeSpace
from storage.map.usage import Usage


def owners(catalogue: Catalogue, *, by_snapshot: bool = False) -> dict[int, str | None]:
    """By layer, the only volume that reaches it, itself or through its snapshots; None if several
    volumes do.

    With `by_snapshot`, heads (`VOL`) and snapshots (`VOL@SNAP`) count separately. Dying layers are
    left out. Cost: one pass over the layers.
    """
    found: dict[int, str | None] = {}

    def note(layer: int, name: str | None) -> None:
        found[layer] = name if found.get(layer, name) == name else None

    for name, volume in catalogue.volumes.items():
        note(volume.head, name)
        for snapshot, record in volume.snapshots.items():
            note(record.layer, f"{name}@{snapshot}" if by_snapshot else name)
    for number in sorted(found.keys() | catalogue.layers.keys(), reverse=True):
        record_of = catalogue.layers[number]
        if number in found and record_of.parent:
            note(record_of.parent, found[number])
    return found


class SpaceTree:
    """The space of names: sums over a catalogue's layers and their ancestors."""

    def __init__(self, catalogue: Catalogue, usage: Usage) -> None:
        self._catalogue = catalogue
        self._usage = usage
        self._by_volume = owners(catalogue)
        self._by_name = owners(catalogue, by_snapshot=True)
        self._with_ancestors: dict[int, tuple[int, int]] = {0: (0, 0)}
        """Mapped and stored bytes of each layer and its ancestors together."""
        for number in sorted(catalogue.layers):
            mapped, stored = self._with_ancestors.get(catalogue.layers[number].parent, (0, 0))
            mapped += usage.mapped_bytes(number)
            self._with_ancestors[number] = mapped, stored + usage.stored_bytes(number)

    def unique_and_shared_bytes(self) -> tuple[int, int]:
        """Stored bytes of layers that one volume reaches, and of layers that several reach."""
        unique = shared = 0
        for number, name in self._by_volume.items():
            if name is None:
                shared += self._usage.stored_bytes(number)
            else:
                unique += self._usage.stored_bytes(number)
        return unique, shared

    def of(self, name: str, commit: int) -> list[VolumeSpace]:
        """The space of a volume, then of its snapshots, oldest first."""
        record = self._catalogue.volumes[name]
        layers = [record.head, *(each.layer for each in record.snapshots.values())]
        own, joints = self._walk(layers, self._by_volume, name)
        if len(joints) > 1:  # they may have common ancestors, which count once
            shared, _ = self._walk(list(joints), dict.fromkeys(self._by_volume), None)
            mapped, stored = self._sum(own + shared)
        else:
            mapped, stored = self._sum(own)
            for joint in joints:
                mapped += self._with_ancestors[joint][0]
                stored += self._with_ancestors[joint][1]
        found = [self._line(name, record.size_bytes, record.head, own, (mapped, stored), commit)]
        for snapshot, each in record.snapshots.items():
            label = f"{name}@{snapshot}"
            alone, _ = self._walk([each.layer], self._by_name, label)
            sums = self._with_ancestors[each.layer]
            found.append(self._line(label, each.size_bytes, each.layer, alone, sums, commit))
        return found

    def _line(
        self, name: str, size_bytes: int, layer: int, own: list[int], sums: tuple[int, int],
        commit: int,
    ) -> VolumeSpace:  # fmt: skip
        mapped, stored = sums
        own_mapped, unique = self._sum(own)
        return VolumeSpace(
            name=name, size_bytes=size_bytes, mapped_bytes=mapped, stored_bytes=stored,
            unique_bytes=unique, shared_bytes=stored - unique,
            written_bytes=self._usage.stored_bytes(layer), own_bytes=own_mapped, commit=commit,
        )  # fmt: skip

    def _walk(
        self, layers: list[int], owner: dict[int, str | None], name: str | None
    ) -> tuple[list[int], set[int]]:
        """The layers of one owner among `layers` and their ancestors, each once; and the nearest
        ancestors that have another owner."""
        seen: dict[int, None] = {}
        others = set()
        for layer in layers:
            while layer and layer not in seen and owner[layer] == name:
                seen[layer] = None
                layer = self._catalogue.layers[layer].parent
            if layer and layer not in seen:
                others.add(layer)
        return list(seen), others

    def _sum(self, layers: list[int]) -> tuple[int, int]:
        mapped = sum(self._usage.mapped_bytes(n) for n in layers)
        return mapped, sum(self._usage.stored_bytes(n) for n in layers)


def volume_spaces(
    stock: Stock, usage: Usage, live: Catalogue, names: Iterable[str]
) -> list[VolumeSpace]:
    """The space of volumes, each followed by its snapshots. Cost: a pass over the layers."""
    tree = SpaceTree(live, usage)
    return [line for name in names for line in tree.of(name, stock.commit)]
