"""Makes a failing run smaller: fewer lives, fewer faults, fewer actions, as long as it fails."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.sim.plan import Plan, spell

Fails = Callable[[Plan], str]
"""Runs a plan; returns its violation, or an empty string."""

TRIES_MAX = 300
"""Runs of smaller plans at most, of about a second each."""


@dataclass
class Shrunk:
    """The smallest failing plan that was found, and the arguments that run it again."""

    plan: Plan
    kept: set[int]
    lives: int
    violation: str

    @property
    def arguments(self) -> str:
        return f"--seed {self.plan.seed} --lives {self.lives} --only {spell(self.kept)}"


def shrink(whole: Plan, fails: Fails, violation: str, tries_max: int = TRIES_MAX) -> Shrunk:
    """Leave out lives and items as long as the plan fails; `violation` is the whole plan's."""
    kept = {item.number for item in whole.items()}
    best = Shrunk(whole, kept, len(whole.lives), violation)
    tries = 0

    def attempt(kept: set[int], lives: int) -> bool:
        nonlocal best, tries
        tries += 1
        plan = whole.only(kept, lives)
        found = fails(plan)
        if found:
            numbers = {item.number for item in plan.items()}
            best = Shrunk(plan, numbers, lives, found)
        return bool(found)

    for lives in range(1, len(whole.lives)):
        if attempt(kept, lives):
            break
    size = max(1, len(best.kept) // 2)
    while tries < tries_max:
        before = len(best.kept)
        for part in _parts(sorted(best.kept), size):
            if tries < tries_max and part & best.kept:
                attempt(best.kept - part, best.lives)
        if size > 1:
            size //= 2
        elif len(best.kept) == before:
            break
    return best


def _parts(numbers: list[int], size: int) -> list[set[int]]:
    """Cut into parts, the last first, because late items are needed least."""
    return [set(numbers[at : at + size]) for at in range(0, len(numbers), size)][::-1]
