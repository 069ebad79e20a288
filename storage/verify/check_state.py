"""The state that the parts of a check share: the opened pool, counts and findings."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from storage.info import Damage
from storage.map.usage import Usage
from storage.recovery.opening import Opened

Progress = Callable[[str, int, int], None]

DAMAGE_MAX = 1000
"""Findings kept; a destroyed member would fill memory with them."""


@dataclass
class Check:
    """One check of one stopped pool."""

    opened: Opened
    was_clean: bool
    progress: Progress
    damage: list[Damage] = field(default_factory=list)
    extents: dict[int, dict[int, tuple[int, int]]] = field(default_factory=dict)
    """The extents that entries name, by segment: offset to (stored bytes, check)."""
    live: Counter[int] = field(default_factory=Counter)
    """Counted live bytes by segment."""
    usage: Usage = field(default_factory=Usage)
    """Counted blocks and bytes of each layer."""
    pages: int = 0
    commits: int = 0
    verified: int = 0
    """Number of extents verified."""
    bytes_verified: int = 0

    def add(self, what: str, where: str, *, repairable: bool = False) -> None:
        """Keep a finding, while there are fewer than `DAMAGE_MAX`."""
        if len(self.damage) < DAMAGE_MAX:
            self.damage.append(Damage(what, where, repairable))
