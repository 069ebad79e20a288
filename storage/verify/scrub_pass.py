"""The state of a scrub: progress, counts and findings. Plain values, kept as JSON."""

from dataclasses import dataclass, field
from enum import StrEnum

FINDINGS_MAX = 1000
"""Findings kept in full; a destroyed member would fill memory. All are counted, and logged."""

HELD_MAX = 8
"""Volumes and snapshots named for one damaged place; an image may have a thousand clones."""

GAPS_MAX = 1000
"""Gaps kept; later ones are not read as pages name their extents."""


class Stage(StrEnum):
    """The stages of a pass, in this order."""

    SUPERBLOCKS = "superblocks"
    SEGMENTS = "segments"
    TABLES = "tables"
    PAGES = "pages"
    DONE = "done"


class Outcome(StrEnum):
    """The outcome of a damaged place."""

    REPAIRED = "repaired"
    UNREPAIRED = "unrepaired"
    """A good copy exists, but could not be written over the bad one."""
    LOST = "lost"
    """No copy is good."""


@dataclass(frozen=True, slots=True)
class Held:
    """A range of a volume `VOL` or of a snapshot `VOL@SNAP`, in bytes."""

    export: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Finding:
    """One damaged place: a piece of a segment whose copies on `members` are bad."""

    what: str
    """`data`, or the kind of metadata."""
    members: list[str]
    segment: int
    """0 for a place outside of segments; then `offset` counts from the start of the member."""
    offset: int
    length: int
    problem: str
    outcome: Outcome
    holds: list[Held] = field(default_factory=list)
    """The ranges that read it, at most `HELD_MAX`; empty for metadata that is about no volume."""

    @property
    def where(self) -> str:
        """The place, its members and the ranges that read it, as text."""
        place = f"segment={self.segment} " if self.segment else ""
        held = "".join(f" {h.export}[{h.offset}+{h.length}]" for h in self.holds)
        return (
            f"{place}offset={self.offset} bytes={self.length} member={','.join(self.members)}{held}"
        )


@dataclass(frozen=True, slots=True)
class Gap:
    """A part of a segment that has no good header and record table on any copy; only the map names
    the live extents in it."""

    segment: int
    start: int
    end: int


@dataclass(slots=True)
class ScrubPass:
    """One pass over a pool: everything that was live when it began is read, unless it was written
    anew meanwhile. A pass that was stopped continues from these values.
    """

    end_segment: int
    """Segments from this number on were begun after the pass."""
    stage: Stage = Stage.SUPERBLOCKS
    segment: int = 0
    """Segments with smaller numbers are done."""
    layer: int = 0
    chunk: int = 0
    """Pages of layers before this one, and of this one before this chunk of 1,024, are done."""
    done_bytes: int = 0
    """Bytes done of those to be read; pieces that died meanwhile count as well."""
    map_bytes: int = 0
    """The part of these that MapScrub did: metadata, and extents in gaps."""
    read_bytes: int = 0
    seconds: float = 0.0
    """Time that the pass took: waits for its rate count, stops do not."""
    found: int = 0
    repaired: int = 0
    unrepaired: int = 0
    lost: int = 0
    harmless: int = 0
    """Damaged places that hold nothing alive; they are freed with their segment."""
    findings: list[Finding] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    """Members that were not read, or not to the end, and why."""
    gaps: list[Gap] = field(default_factory=list)

    def add(self, finding: Finding) -> None:
        """Count a finding, and keep it while there is room."""
        self.found += 1
        match finding.outcome:
            case Outcome.REPAIRED:
                self.repaired += 1
            case Outcome.UNREPAIRED:
                self.unrepaired += 1
            case Outcome.LOST:
                self.lost += 1
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(finding)

    def skip(self, why: str) -> None:
        """Note a member that is not read."""
        if why not in self.skipped:
            self.skipped.append(why)
