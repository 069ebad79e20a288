"""Models the content of a pool while several clients work on it at once, and after a power cut.

The model assumes only this of the engine: one log orders all steps, a change of the catalogue
takes effect when it is called, a write somewhere between call and return, block by block. So a pool
that opens after a cut must show its content of one instant, the same for all volumes, not before
the last step that was acknowledged as durable.
"""

from dataclasses import dataclass, field, replace

from tests.crash.model import BLOCK, ZERO_BLOCK, Image, State
from tests.sim.timeline import NEVER, Timeline, Version, View, common


@dataclass(frozen=True)
class Snap:
    """A snapshot. `line` lists the snapshots that are its ancestors, by number, oldest first."""

    number: int
    view: View
    size_bytes: int
    line: tuple[int, ...]


@dataclass(frozen=True)
class Vol:
    """A volume at one time, with `line` as for a snapshot; while it shrinks it has two `sizes`."""

    timeline: Timeline
    sizes: tuple[int, ...]
    snaps: dict[str, Snap] = field(default_factory=dict)
    line: tuple[int, ...] = ()

    @property
    def size_bytes(self) -> int:
        return self.sizes[-1]


Names = dict[str, Vol]


@dataclass(frozen=True)
class Mark:
    """A moment: a recovery after a cut at `now` must show an instant from `floor` to `now`."""

    now: int
    floor: int
    epochs: "list[tuple[int, Names]]"
    """Every catalogue since the content of the pool was last certain, each with its start time."""


class Wrong(AssertionError):
    """The pool shows content that the model does not allow."""


class Write:
    """A write under way."""

    __slots__ = ("first", "model", "start", "timeline", "versions")

    def __init__(self, model: "Model", start: int, timeline: Timeline, first: int):
        self.model = model
        self.start = start
        self.timeline = timeline
        self.first = first
        """Index of its first block."""
        self.versions: list[Version] = []

    def returned(self, *, fua: bool = False) -> None:
        now = self.model.tick()
        for version in self.versions:
            version.last = min(version.last, now)
            version.done = min(version.done, now)
            if fua:
                version.durable = now
        if self.versions[0].data is None:
            for block, version in enumerate(self.versions, self.first):
                self.timeline.forget_zero(block, version)
        if fua:
            self.model.is_durable(self.start)

    def failed(self) -> None:
        """The write was cancelled or refused: its blocks may be written, but none later."""
        now = self.model.tick()
        for version in self.versions:
            version.last = min(version.last, now)


class Model:
    """All steps since the content of the pool was last certain."""

    def __init__(self) -> None:
        self.now = 0
        self.floor = 0
        self.flattens = False
        """Whether a flatten began: volumes may lose ancestors in `line` at a time unknown to us."""
        self._epochs: list[tuple[int, Names]] = [(0, {})]
        self._snaps = 0

    @property
    def names(self) -> Names:
        """The volumes as clients see them now."""
        return self._epochs[-1][1]

    def names_since(self, at: int) -> Names:
        """The volumes right after the change at `at`."""
        return next(names for start, names in self._epochs if start == at)

    def tick(self) -> int:
        self.now += 1
        return self.now

    def mark(self) -> Mark:
        return Mark(self.now, self.floor, self._epochs)

    def is_durable(self, through: int) -> None:
        """Every step that had returned by `through` survives any power cut from now on."""
        self.floor = max(self.floor, through)

    # -- reads and writes

    def write(self, name: str, offset: int, length: int, data: bytes | None) -> Write:
        """Note a write before it is called; it writes zeroes if `data` is None."""
        timeline = self.names[name].timeline
        write = Write(self, self.tick(), timeline, offset // BLOCK)
        end = offset + length
        for block in range(offset // BLOCK, -(-end // BLOCK)):
            first = block * BLOCK
            low, high = max(offset - first, 0), min(end - first, BLOCK)
            part = None if data is None else data[first + low - offset : first + high - offset]
            version = Version(write.start, low, high, part)
            timeline.put(block, version)
            write.versions.append(version)
        return write

    def check_read(self, name: str, offset: int, data: bytes, since: int) -> None:
        """Check the bytes of a read that was called at `since` and returns now. Raises Wrong."""
        now = self.tick()
        volume, _, snap = name.partition("@")
        vol = self.names[volume]
        view = vol.snaps[snap].view if snap else None
        end = offset + len(data)
        for block in range(offset // BLOCK, -(-end // BLOCK)):
            first = block * BLOCK
            low, high = max(offset - first, 0), min(end - first, BLOCK)
            part = data[first + low - offset : first + high - offset]
            if view is not None:
                good = view.matches(block, low, part)
                if good and len(part) == BLOCK:
                    view.pin(block, part)
            else:
                spans = vol.timeline.spans(block, low, part)
                good = any(start <= now and since < stop for start, stop in spans)
                vol.timeline.was_read(block, low, part, now)
            if not good:
                raise Wrong(f"{name} reads wrong: block={block} bytes={part[:16].hex()}...")

    # -- the catalogue: each change takes effect at once

    def change(self, names: Names) -> int:
        """Replace the catalogue now; return the time."""
        self._epochs.append((self.tick(), names))
        return self.now

    def take_back(self, at: int) -> None:
        """Drop the last change, of time `at`, because the pool refused it."""
        assert self._epochs[-1][0] == at
        self._epochs.pop()

    def _with(self, name: str, vol: Vol) -> int:
        return self.change({**self.names, name: vol})

    def _snap(self, vol: Vol) -> Snap:
        self._snaps += 1
        return Snap(self._snaps, View(vol.timeline, self.now + 1), vol.size_bytes, vol.line)

    def create(self, name: str, size_bytes: int) -> int:
        return self._with(name, Vol(Timeline(), (size_bytes,)))

    def delete(self, name: str) -> int:
        return self.change({n: vol for n, vol in self.names.items() if n != name})

    def resize(self, name: str, *sizes: int) -> int:
        return self._with(name, replace(self.names[name], sizes=sizes))

    def rename(self, name: str, new: str) -> int:
        names = dict(self.names)
        names[new] = names.pop(name)
        return self.change(names)

    def snapshot(self, volumes: list[str], name: str) -> int:
        names = dict(self.names)
        for volume in volumes:
            vol = names[volume]
            snap = self._snap(vol)
            line = (*vol.line, snap.number)
            names[volume] = replace(vol, snaps={**vol.snaps, name: snap}, line=line)
        return self.change(names)

    def delete_snapshot(self, volume: str, name: str) -> int:
        vol = self.names[volume]
        kept = {n: snap for n, snap in vol.snaps.items() if n != name}
        return self._with(volume, replace(vol, snaps=kept))

    def rename_snapshot(self, volume: str, name: str, new: str) -> int:
        vol = self.names[volume]
        snaps = {(new if n == name else n): snap for n, snap in vol.snaps.items()}
        return self._with(volume, replace(vol, snaps=snaps))

    def rollback(self, volume: str, name: str) -> int:
        vol = self.names[volume]
        snap = vol.snaps[name]
        line = (*snap.line, snap.number)
        rolled = replace(vol, timeline=Timeline(snap.view), sizes=(snap.size_bytes,), line=line)
        return self._with(volume, rolled)

    def clone(self, volume: str, name: str | None, new: str) -> int:
        vol = self.names[volume]
        if name is None:
            view = View(vol.timeline, self.now + 1)
            return self._with(new, Vol(Timeline(view), vol.sizes, line=vol.line))
        snap = vol.snaps[name]
        line = (*snap.line, snap.number)
        return self._with(new, Vol(Timeline(snap.view), (snap.size_bytes,), line=line))

    def promotable(self, name: str) -> str | None:
        """The one volume whose snapshots a promotion moves; None if there are none or several, or
        if names of snapshots clash."""
        mine = self.names[name]
        sources = [n for n in self.names if n != name and self.shared(name, n)]
        if len(sources) != 1 or self.shared(name, sources[0]).keys() & mine.snaps.keys():
            return None
        return sources[0]

    def shared(self, name: str, source: str) -> dict[str, Snap]:
        """The snapshots of `source` that are ancestors of a volume."""
        line = self.names[name].line
        return {n: s for n, s in self.names[source].snaps.items() if s.number in line}

    def promote(self, name: str, source: str) -> int:
        moving = self.shared(name, source)
        left = {n: s for n, s in self.names[source].snaps.items() if n not in moving}
        vol, other = self.names[name], self.names[source]
        return self.change(
            {
                **self.names,
                source: replace(other, snaps=left),
                name: replace(vol, snaps={**moving, **vol.snaps}),
            }
        )

    # -- after a power cut

    @staticmethod
    def explain(found: State, mark: Mark) -> Names:
        """Return the catalogue of the instant that a pool shows after a cut at `mark`.

        Raises:
            Wrong: no allowed instant explains the content.
        """
        why: list[str] = []
        end = NEVER
        for start, names in reversed(mark.epochs):
            if start <= mark.now and end > mark.floor:
                window = (max(start, mark.floor), min(end, mark.now + 1))
                difference = _difference(names, found, window, mark.now)
                if difference is None:
                    return names
                why.append(f"at {window[0]} to {window[1]}: {difference}")
            end = start
        raise Wrong(f"no instant explains the pool, floor={mark.floor} now={mark.now}: {why[:5]}")

    def settle(self, found: State, names: Names) -> None:
        """Start over from this content, which is certain now; drop all earlier steps."""
        settled: Names = {}
        for name, volume in found.items():
            was = names[name]
            snaps = {
                n: replace(was.snaps[n], view=View(Timeline(None, dict(image.blocks)), NEVER - 1))
                for n, image in volume.snapshots.items()
            }
            timeline = Timeline(None, dict(volume.head.blocks))
            settled[name] = Vol(timeline, (volume.head.size_bytes,), snaps, was.line)
        self._epochs = [(self.tick(), settled)]
        self.floor = self.now


def _difference(
    names: Names, found: State, window: tuple[int, int], crashed: int
) -> str | None:  # fmt: skip
    """Describe why this catalogue in this window does not explain `found`; None if it does."""
    wanted = {n: (vol.sizes, list(vol.snaps)) for n, vol in names.items()}
    if found.keys() != names.keys() or any(
        found[n].head.size_bytes not in sizes or list(found[n].snapshots) != snaps
        for n, (sizes, snaps) in wanted.items()
    ):
        have = {n: (v.head.size_bytes, list(v.snapshots)) for n, v in found.items()}
        return f"names {have} are not {wanted}"
    pinned: list[tuple[View, int]] = []
    try:
        for name, vol in names.items():
            for snap_name, snap in vol.snaps.items():
                image = found[name].snapshots[snap_name]
                differs = _differing_block(snap, image, pinned)
                if differs is not None:
                    return f"{name}@{snap_name} differs: {differs}"
        spans = [window]
        for name, vol in names.items():
            image = found[name].head
            for number in sorted(vol.timeline.touched() | image.blocks.keys()):
                data = image.blocks.get(number, ZERO_BLOCK)
                known = vol.timeline.spans(number, 0, data, crashed)
                spans = common(spans, known)
                if not spans:
                    return f"{name} differs: block={number} {data[:16].hex()} was at {known}"
    finally:
        for view, number in pinned:
            del view.pins[number]
    return None


def _differing_block(snap: Snap, image: Image, pinned: list[tuple[View, int]]) -> str | None:
    if image.size_bytes != snap.size_bytes:
        return f"size {image.size_bytes} is not {snap.size_bytes}"
    view = snap.view
    timeline = view.timeline
    if timeline.base is None and not timeline.versions and timeline.blocks == image.blocks:
        return None
    for number in sorted(view.timeline.touched() | image.blocks.keys()):
        block = image.blocks.get(number, ZERO_BLOCK)
        if not view.matches(number, 0, block):
            return f"block={number} {block[:16].hex()}"
        if number not in view.pins:
            view.pin(number, block)
            pinned.append((view, number))
    return None
