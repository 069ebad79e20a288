"""Computes when one volume may read as given bytes, while several writes to it are under way.

Time is a count of events. A write takes effect at one instant between its call and its return,
maybe at another instant for each block. So the content of a block tells at which times the volume
could have held it: after the write of that content began, and before a later write had certainly
replaced it. Spans of time are [first, end).
"""

from itertools import pairwise

from tests.crash.model import BLOCK, ZERO_BLOCK

NEVER = 1 << 62
Span = tuple[int, int]
ALWAYS: list[Span] = [(0, NEVER)]


class Version:
    """The part of one write in one block: bytes [low, high), zeroes if `data` is None."""

    __slots__ = ("data", "done", "durable", "high", "last", "low", "start")

    def __init__(self, start: int, low: int, high: int, data: bytes | None):
        self.start = start
        self.last = NEVER
        """Latest time at which the write may take effect."""
        self.done = NEVER
        """Time by which the write has certainly taken effect; NEVER for one that failed."""
        self.durable = NEVER
        """Time at which the write was acknowledged as durable by itself (FUA)."""
        self.low = low
        self.high = high
        self.data = data

    def reads_as(self, low: int, found: bytes) -> bool:
        """Whether the bytes of this version from `low` on are those found."""
        if self.data is None:
            return found == ZERO_BLOCK[: len(found)]
        if len(found) == len(self.data):
            return self.data == found
        return self.data[low - self.low : low - self.low + len(found)] == found


class Timeline:
    """The content of one volume from its beginning, or from a snapshot of another, on."""

    __slots__ = ("base", "blocks", "partial", "versions")

    def __init__(self, base: "View | None" = None, blocks: dict[int, bytes] | None = None):
        self.base = base
        self.blocks = blocks or {}
        """The blocks at the beginning when there is no base; all other blocks are zeroes."""
        self.versions: dict[int, list[Version]] = {}
        self.partial: set[int] = set()
        """Blocks that some write covers only in part."""

    def touched(self) -> set[int]:
        """Every block that may hold other bytes than zeroes."""
        found = self.versions.keys() | self.blocks.keys()
        return found if self.base is None else found | self.base.timeline.touched()

    def _holds(self, block: int) -> bool:
        if block in self.versions or block in self.blocks:
            return True
        return self.base is not None and self.base.timeline._holds(block)

    def put(self, block: int, version: Version) -> None:
        self.versions.setdefault(block, []).append(version)
        if version.high - version.low < BLOCK:
            self.partial.add(block)

    def forget_zero(self, block: int, version: Version) -> None:
        """Drop a write of zeroes to a block that held only zeroes before."""
        versions = self.versions[block]
        if versions == [version]:
            del self.versions[block]
            if self._holds(block):
                self.versions[block] = versions

    def spans(self, block: int, low: int, found: bytes, crashed: int = -1) -> list[Span]:
        """Return the spans of time in which the bytes from `low` on could have been those found.

        After a power cut at `crashed`, a write durable by itself by then counts from its start.
        """
        versions = self.versions.get(block)
        if not versions:
            return ALWAYS if self._began_as(block, low, found) else []
        if block not in self.partial:
            return self._region(block, versions, low, found, crashed)
        high = low + len(found)
        edges = {low, high}
        for version in versions:
            edges.update(at for at in (version.low, version.high) if low < at < high)
        result = ALWAYS
        for first, end in pairwise(sorted(edges)):
            part = found if end - first == len(found) else found[first - low : end - low]
            over = [v for v in versions if v.low <= first and end <= v.high]
            result = common(result, self._region(block, over, first, part, crashed))
        return result

    def _region(
        self, block: int, over: list[Version], low: int, found: bytes, crashed: int
    ) -> list[Span]:
        """As `spans`, for a part of a block that each write in `over` covers whole."""
        spans = []
        if self._began_as(block, low, found):
            spans.append((0, min((_certain(v, crashed) for v in over), default=NEVER)))
        for version in over:
            if version.reads_as(low, found):
                end = NEVER
                for later in over:
                    if later.start > version.last:
                        end = min(end, _certain(later, crashed))
                if version.start < end:
                    spans.append((version.start, end))
        return spans if len(spans) < 2 else joined(spans)

    def _began_as(self, block: int, low: int, found: bytes) -> bool:
        if self.base is not None:
            return self.base.matches(block, low, found)
        return _part(self.blocks.get(block, ZERO_BLOCK), low, len(found)) == found

    def was_read(self, block: int, low: int, found: bytes, at: int) -> None:
        """The write whose bytes a read returned at `at` is certain by then, if only one matches."""
        versions = self.versions.get(block)
        if not versions or self._began_as(block, low, found):
            return
        same = [
            v
            for v in versions
            if v.low <= low and low + len(found) <= v.high and v.reads_as(low, found)
        ]
        if len(same) == 1 and same[0].done > at:
            same[0].done = at
            same[0].last = min(same[0].last, at)


class View:
    """A timeline at one instant: a snapshot. A block that was once read keeps its content."""

    __slots__ = ("at", "pins", "timeline")

    def __init__(self, timeline: Timeline, at: int):
        self.timeline = timeline
        self.at = at
        self.pins: dict[int, bytes] = {}

    def matches(self, block: int, low: int, found: bytes) -> bool:
        """Whether the bytes of a block from `low` on may be those found."""
        pinned = self.pins.get(block)
        if pinned is not None:
            return (
                pinned == found if len(found) == BLOCK else pinned[low : low + len(found)] == found
            )
        spans = self.timeline.spans(block, low, found)
        return any(first <= self.at < end for first, end in spans)

    def pin(self, block: int, found: bytes) -> None:
        """Fix the content of a whole block that was read."""
        self.pins.setdefault(block, found)


def _part(block: bytes, low: int, length: int) -> bytes:
    return block if length == BLOCK else block[low : low + length]


def _certain(version: Version, crashed: int) -> int:
    """Return the time from which on a write has certainly taken effect."""
    return version.start if version.durable <= crashed else version.done


def joined(spans: list[Span]) -> list[Span]:
    """Return the same times as spans in order that do not overlap."""
    spans.sort()
    found = spans[:1]
    for first, end in spans[1:]:
        if first > found[-1][1]:
            found.append((first, end))
        elif end > found[-1][1]:
            found[-1] = (found[-1][0], end)
    return found


def common(one: list[Span], other: list[Span]) -> list[Span]:
    """Return the times that lie in both lists of spans."""
    if one is ALWAYS:
        return other
    found = [(max(a, c), min(b, d)) for a, b in one for c, d in other]
    return [(first, end) for first, end in found if first < end]
