"""Reports about volumes: one, all, their space and their tree."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from admin.api.values import ClientInfo
from admin.api.wire import encode
from admin.names import printable
from admin.reports.base import Report, line, rendered, table
from admin.sizes import human
from storage.info import NodeKind, TreeNode, VolumeInfo, VolumeSpace

PAGE_BYTES = 4 << 20
"""Bytes of a layer that one page of the map covers."""

_NO_VOLUMES = "no volumes; make one: cenote volume create NAME --size 20G"
_SPACE_COLUMNS = (
    "size", "mapped", "stored", "unique", "shared", "written", "own", "reserve", "cap",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class VolumeReport(Report):
    """One volume with the NBD URI of its export; `done` precedes it, as in `created volume`."""

    done: str
    volume: VolumeInfo
    uri: str | None

    def text(self) -> Iterator[str]:
        """One line."""
        yield line(f"{self.done} {_summary(self.volume, self.uri)}")

    def json_value(self) -> Any:
        """The volume's fields and `uri`."""
        return {**encode(self.volume), "uri": self.uri}


@dataclass(frozen=True, slots=True)
class ResizedReport(Report):
    """A volume that was resized, and the clients that still see its old size."""

    volume: VolumeInfo
    uri: str | None
    stale: list[ClientInfo]

    def text(self) -> Iterator[str]:
        """The volume, then a line for each stale client."""
        yield line(f"resized volume {_summary(self.volume, self.uri)}")
        if self.stale:
            yield line(
                "NBD cannot tell clients of it: they see the old size until they connect anew:"
            )
            for client in self.stale:
                yield line(f"  {client.number}  {client.identity}, sees {human(client.size_bytes)}")

    def json_value(self) -> Any:
        """The volume's fields, `uri` and `stale_clients`."""
        return {**encode(self.volume), "uri": self.uri, "stale_clients": encode(self.stale)}


@dataclass(frozen=True, slots=True)
class VolumesReport(Report):
    """Several volumes."""

    volumes: list[VolumeInfo]

    def text(self) -> Iterator[str]:
        """A table, then a line for each volume that is still being received."""
        if not self.volumes:
            yield line(_NO_VOLUMES)
            return
        yield table(
            ("volume", "size", "origin", "snapshots", "clients", "created"),
            [
                (
                    volume.name,
                    human(volume.size_bytes),
                    _origin(volume),
                    str(volume.snapshots),
                    str(volume.clients),
                    volume.created,
                )
                for volume in self.volumes
            ],
            right=("size", "snapshots", "clients"),
        )
        for volume in self.volumes:
            if (came := volume.receiving) is not None:
                percent = 100 * came.position_bytes // volume.size_bytes
                yield line(
                    f"{volume.name} is not whole: {came.snapshot} is being received, {percent} %"
                )

    def json_value(self) -> Any:
        """The list."""
        return encode(self.volumes)


@dataclass(frozen=True, slots=True)
class VolumeSpaceReport(Report):
    """The space that volumes and snapshots take, and the reservations and caps of the volumes.

    `limits` maps names of volumes to `reserve_bytes` and `cap_bytes`, as far as they are set.
    """

    lines: list[VolumeSpace]
    limits: dict[str, dict[str, int]]

    def text(self) -> Iterator[str]:
        """A table, each volume followed by its snapshots."""
        if not self.lines:
            yield line(_NO_VOLUMES)
            return
        yield line(f"as of commit {self.lines[0].commit}")
        rows = []
        for one in self.lines:
            limits = self.limits.get(one.name, {})
            sizes = (
                one.size_bytes, one.mapped_bytes, one.stored_bytes, one.unique_bytes,
                one.shared_bytes, one.written_bytes, one.own_bytes,
            )  # fmt: skip
            kept = [limits.get("reserve_bytes"), limits.get("cap_bytes")]
            rows.append(
                (one.name, *map(human, sizes), *("-" if not size else human(size) for size in kept))
            )
        yield table(("volume", *_SPACE_COLUMNS), rows, right=_SPACE_COLUMNS)

    def json_value(self) -> Any:
        """The list; the volumes in it have `reserve_bytes` and `cap_bytes`, 0 for none."""
        none = {"reserve_bytes": 0, "cap_bytes": 0}
        return [
            {**encode(one), **({**none, **self.limits[one.name]} if "@" not in one.name else {})}
            for one in self.lines
        ]


@dataclass(frozen=True, slots=True)
class DeletedReport(Report):
    """The name of a deleted thing; `kind` is `volume`, `snapshot` or `schedule`."""

    kind: str
    deleted: str

    def text(self) -> Iterator[str]:
        """One line."""
        yield line(f"deleted {self.kind} {self.deleted}")


@dataclass(frozen=True, slots=True)
class TreeReport(Report):
    """The tree of volumes, snapshots and clones.

        root  20 GiB
        ├── @clean  2026-11-23T23:51:48+00:00, protected
        │   └── test  20 GiB
        └── @noon  2026-11-24T12:00:00+00:00

    Snapshots are listed in their volume, oldest first, so that a thousand of them do not make a
    tree of a thousand levels; a clone is listed in the volume or snapshot that it was made from.
    """

    nodes: list[TreeNode]

    def text(self) -> Iterator[str]:
        """The tree, in the order of the list within each parent."""
        if not self.nodes:
            yield line(_NO_VOLUMES)
            return
        from rich.text import Text  # rich takes a while to import
        from rich.tree import Tree

        trees = {node.name: Tree(Text(printable(_words(node)))) for node in self.nodes}
        for node in self.nodes:
            if node.parent in trees:
                trees[node.parent].children.append(trees[node.name])
        for node in self.nodes:
            if node.parent not in trees:
                yield rendered(trees[node.name])

    def json_value(self) -> Any:
        """The list."""
        return encode(self.nodes)


def _summary(volume: VolumeInfo, uri: str | None) -> str:
    where = f", {uri}" if uri else ""
    return f"{volume.name}, {human(volume.size_bytes)}{where}"


def _origin(volume: VolumeInfo) -> str:
    how = volume.flattening
    if how is None:
        return volume.origin or "-"
    share = 100 * how.pages_done // how.pages if how.pages else 0
    return f"{volume.origin or '-'}, flattening, {share} %" + (how.error is not None) * ", waits"


def _words(node: TreeNode) -> str:
    protected = ", protected" if node.protected else ""
    left = f"{human(node.pages_left * PAGE_BYTES)} of its map left"
    match node.kind:
        case NodeKind.VOLUME:
            return f"{node.name}  {human(node.size_bytes)}{protected}"
        case NodeKind.SNAPSHOT:
            return f"@{node.name.partition('@')[2]}  {node.created}{protected}"
        case NodeKind.KEPT:
            return "(no name any more, kept for those that stand on it)"
        case NodeKind.MERGING:
            return f"(deleted, going into the one that stands on it, {left})"
    return f"(deleted, on its way back to free space, {left})"
