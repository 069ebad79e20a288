"""Makes the plan of a run from one seed: plain data, of which shrinking leaves out parts."""

import random
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import pairwise

from tests.crash.harness import MIB, Shape

SHAPES = (
    Shape("one", 1, ("a",), 24 * MIB),
    Shape("one-small", 1, ("a",), 12 * MIB),
    Shape("two", 2, ("a", "b"), 20 * MIB),
    Shape("two-of-three", 2, ("a", "b", "c"), 16 * MIB),
    Shape("three", 3, ("a", "b", "c"), 16 * MIB),
    Shape("striped", 1, ("a", "b"), 12 * MIB),
)
BY_NAME = {shape.name: shape for shape in SHAPES}

FAULTS = {
    "write once": 3, "writes": 2, "flush once": 4, "flushes": 1, "read once": 2, "reads": 1,
    "allocate once": 1, "no space": 2, "dead": 2, "dead for a while": 2, "cache lost": 3, "slow": 3,
}  # fmt: skip
"""Faults that a device reports, with their weights; all durable data has to survive them."""

UNREADABLE = {"read once", "reads", "dead", "dead for a while", "cache lost"}
"""Faults that may fail reads."""

SINCE = {"flatten": 10_000_000}
"""The first seed that plans an action: earlier seeds, with their findings, stay the same."""

LIES = {"rot": 4, "lost write": 3, "misdirected write": 3}
"""Faults that a device does not report, with their weights: on one member only, and only where
other members have copies."""


@dataclass(frozen=True)
class Item:
    """One action or one fault; `number` names it in a command that repeats the run."""

    number: int
    kind: str
    seed: int
    at: int = 0
    """Of a fault: the number of the device operation of its life before which it is planted."""
    member: int = 0


@dataclass(frozen=True)
class LifePlan:
    """One life: from an opening of the pool to a stop or a power cut."""

    seed: int
    clients: tuple[tuple[Item, ...], ...]
    faults: tuple[Item, ...]
    absent: int | None = None
    """A member that is not attached, if the pool can open without it."""
    ends: str = "cut"
    """The next life begins after a power cut somewhere in this one (`cut`) or its stop (`stop`)."""
    crash_points: int = 40


@dataclass(frozen=True)
class Plan:
    """One run: a pool and its lives."""

    seed: int
    shape: Shape
    lives: tuple[LifePlan, ...]
    lying: int | None = None
    """The member that `LIES` are planned for; None for no member."""
    settings: dict[str, float] = field(default_factory=dict)

    @property
    def degrades(self) -> bool:
        """Members fail or are missing: for a while some data has fewer copies than it should."""
        return any(life.faults or life.absent is not None for life in self.lives)

    def items(self) -> list[Item]:
        return [
            item for life in self.lives for items in (*life.clients, life.faults) for item in items
        ]

    def only(self, kept: set[int], lives: int | None = None) -> "Plan":
        """The same run with these items only, and its first lives only."""

        def some(items: tuple[Item, ...]) -> tuple[Item, ...]:
            return tuple(item for item in items if item.number in kept)

        return replace(
            self,
            lives=tuple(
                replace(life, clients=tuple(map(some, life.clients)), faults=some(life.faults))
                for life in self.lives[:lives]
            ),
        )


def make_plan(
    seed: int, weights: dict[str, int], *, shape: str | None = None, size: float = 1.0
) -> Plan:
    """Plan a run from its seed. `weights` are those of the actions; `size` scales their number."""
    weights = {kind: weight for kind, weight in weights.items() if seed >= SINCE.get(kind, 0)}
    rng = random.Random(f"plan {seed}")
    chosen = BY_NAME[shape] if shape else rng.choice(SHAPES)
    members = len(chosen.hosts)
    redundant = chosen.copies > 1
    style = rng.choice(["honest", "honest", "lying" if redundant else "honest", "calm"])
    lying = rng.randrange(members) if style == "lying" else None
    numbers = iter(range(1 << 30))
    lives = []
    for _ in range(rng.randint(2, 5)):
        clients = tuple(
            tuple(_actions(rng, weights, numbers, max(1, round(rng.randint(5, 30) * size))))
            for _ in range(rng.choice([1, 1, 2, 3, 4]))
        )
        lives.append(
            LifePlan(
                rng.getrandbits(32), clients, tuple(_faults(rng, style, lying, members, numbers)),
                absent=rng.randrange(members) if redundant and rng.random() < 0.2 else None,
                ends=rng.choice(["cut", "cut", "cut", "stop"]),
            )
        )  # fmt: skip
    return Plan(seed, chosen, tuple(lives), lying, _settings(rng))


def _actions(
    rng: random.Random, weights: dict[str, int], numbers: Iterable[int], count: int
) -> list[Item]:
    kinds = rng.choices(list(weights), list(weights.values()), k=count)
    return [
        Item(number, kind, rng.getrandbits(32))
        for kind, number in zip(kinds, numbers, strict=False)
    ]


def _faults(
    rng: random.Random, style: str, lying: int | None, members: int, numbers: Iterable[int]
) -> list[Item]:
    if style == "calm" or rng.random() < 0.4:
        return []
    known = FAULTS | LIES if lying is not None else FAULTS
    kinds = rng.choices(list(known), list(known.values()), k=rng.choice([1, 1, 2, 3]))
    return [
        Item(
            number, kind, rng.getrandbits(32), at=rng.randint(1, rng.choice([30, 300, 300])),
            member=rng.randrange(members) if lying is None else lying,
        )
        for kind, number in zip(kinds, numbers, strict=False)
    ]  # fmt: skip


def _settings(rng: random.Random) -> dict[str, float]:
    return {
        "flush_interval_s": rng.choice([0.2, 1.0, 5.0]),
        "checkpoint_interval_s": rng.choice([3.0, 20.0, 60.0]),
        "checkpoint_records": rng.choice([40, 400, 1_000_000]),
        "checkpoint_commits": rng.choice([6, 60, 16_384]),
        "buffer_bytes": rng.choice([1, 8, 64]) * MIB,
    }


def spell(numbers: Iterable[int]) -> str:
    """Write numbers as `1,4-7`."""
    ordered = sorted(numbers)
    if not ordered:
        return "none"
    starts = [ordered[0]] + [b for a, b in pairwise(ordered) if b > a + 1]
    ends = [a for a, b in pairwise(ordered) if b > a + 1] + [ordered[-1]]
    return ",".join(
        str(start) if start == end else f"{start}-{end}"
        for start, end in zip(starts, ends, strict=True)
    )


def unspell(text: str) -> set[int]:
    """The inverse of `spell`."""
    found: set[int] = set()
    for part in text.split(",") if text != "none" else ():
        start, _, end = part.partition("-")
        found.update(range(int(start), int(end or start) + 1))
    return found
