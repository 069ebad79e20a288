"""Models the content of a pool: every step of a workload in order, and every state in between.

A step is the smallest change that a power cut leaves whole: one block, one zero range, one change
of the catalogue. The pool has one log, so after a cut all volumes together show the
result of the first n steps, for one n that covers every step acknowledged as durable.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

BLOCK = 4096
ZERO_BLOCK = bytes(BLOCK)


@dataclass
class Image:
    """The bytes of a volume or a snapshot; blocks of zeroes are left out."""

    size_bytes: int
    blocks: dict[int, bytes] = field(default_factory=dict)

    def copy(self) -> "Image":
        return Image(self.size_bytes, dict(self.blocks))

    def put(self, block: int, data: bytes) -> None:
        if data == ZERO_BLOCK:
            self.blocks.pop(block, None)
        else:
            self.blocks[block] = data

    def read(self, offset: int, length: int) -> bytes:
        first, end = offset // BLOCK, -(-(offset + length) // BLOCK)
        data = b"".join(self.blocks.get(block, ZERO_BLOCK) for block in range(first, end))
        start = offset - first * BLOCK
        return data[start : start + length]


@dataclass
class VolumeModel:
    """One volume with its snapshots, oldest first."""

    head: Image
    snapshots: dict[str, Image] = field(default_factory=dict)


State = dict[str, VolumeModel]


@dataclass(frozen=True)
class Step:
    """One step: `label` is for messages, `apply` changes a state."""

    label: str
    apply: Callable[[State], None]


class History:
    """The steps that a workload began, in the order of the log.

    The first `floor` steps were acknowledged as durable. `tip` is the state after all steps.
    """

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.floor = 0
        self.tip: State = {}

    def begin(self, step: Step) -> None:
        """Note a step before the engine is asked for it."""
        step.apply(self.tip)
        self.steps.append(step)

    def is_durable(self, through: int) -> None:
        """The first `through` steps were acknowledged as durable."""
        self.floor = max(self.floor, through)

    def explain(self, found: State) -> int | None:
        """Return how many steps lead to this state, at least `floor`; None when no number does.

        Of several answers this is the highest: the steps between them changed nothing.
        """
        answer = None
        for count, state in self._states():
            if count >= self.floor and state == found and list(state) == list(found):
                answer = count
        return answer

    def settle(self, count: int) -> None:
        """Drop the steps after the first `count`: a recovery showed the state without them."""
        del self.steps[count:]
        self.floor = count
        *_, (_, self.tip) = self._states()

    def _states(self) -> Iterator[tuple[int, State]]:
        state: State = {}
        yield 0, state
        for count, step in enumerate(self.steps, 1):
            step.apply(state)
            yield count, state

    def differences(self, found: State) -> str:
        """Describe, for messages, how a state differs from that of the floor and from the tip."""
        floor: State = {}
        for step in self.steps[: self.floor]:
            step.apply(floor)
        since = [step.label for step in self.steps[self.floor :]]
        return (
            f"floor={self.floor} of {len(self.steps)} steps; "
            f"against the floor: {_difference(floor, found)}; "
            f"against the tip: {_difference(self.tip, found)}; steps since: {since[:40]}"
        )

    def copy(self) -> "History":
        """Return an independent copy, to crash the same life several ways."""
        return self.back_when(len(self.steps), self.floor)

    def back_when(self, steps: int, floor: int) -> "History":
        """Return an independent copy of this history as of so many steps and that floor."""
        made = History()
        made.steps = self.steps[:steps]
        made.floor = floor
        *_, (_, made.tip) = made._states()
        return made


def _difference(expected: State, found: State) -> list[str]:
    if list(expected) != list(found):
        return [f"volumes {list(expected)} != {list(found)}"]
    lines: list[str] = []
    for name, wanted in expected.items():
        got = found[name]
        if list(wanted.snapshots) != list(got.snapshots):
            lines.append(f"{name}: snapshots {list(wanted.snapshots)} != {list(got.snapshots)}")
            continue
        images = [(name, wanted.head, got.head)]
        images += [(f"{name}@{s}", wanted.snapshots[s], got.snapshots[s]) for s in got.snapshots]
        for label, one, other in images:
            if one.size_bytes != other.size_bytes:
                lines.append(f"{label}: size {one.size_bytes} != {other.size_bytes}")
            differ = [
                block
                for block in sorted({*one.blocks, *other.blocks})
                if one.blocks.get(block) != other.blocks.get(block)
            ]
            if differ:
                lines.append(f"{label}: blocks {differ[:20]}")
    return lines[:12]


# The steps


def put_block(volume: str, block: int, data: bytes) -> Step:
    return Step(f"{volume}[{block}]", lambda state: state[volume].head.put(block, data))


def merge(volume: str, offset: int, data: bytes) -> Step:
    """Write part of one block."""

    def apply(state: State) -> None:
        head = state[volume].head
        block, within = divmod(offset, BLOCK)
        old = head.blocks.get(block, ZERO_BLOCK)
        head.put(block, old[:within] + data + old[within + len(data) :])

    return Step(f"{volume}:{offset}+{len(data)}", apply)


def zero_blocks(volume: str, first: int, end: int) -> Step:
    def apply(state: State) -> None:
        blocks = state[volume].head.blocks
        for block in range(first, end):
            blocks.pop(block, None)

    return Step(f"{volume}[{first}:{end}]=0", apply)


def create(volume: str, size_bytes: int) -> Step:
    def apply(state: State) -> None:
        state[volume] = VolumeModel(Image(size_bytes))
        _sort(state)

    return Step(f"create {volume}", apply)


def delete(volume: str) -> Step:
    return Step(f"delete {volume}", lambda state: _remove(state, volume))


def resize(volume: str, size_bytes: int) -> Step:
    def apply(state: State) -> None:
        state[volume].head.size_bytes = size_bytes

    return Step(f"resize {volume}", apply)


def snapshot(volume: str, name: str) -> Step:
    def apply(state: State) -> None:
        state[volume].snapshots[name] = state[volume].head.copy()

    return Step(f"snapshot {volume}@{name}", apply)


def delete_snapshot(volume: str, name: str) -> Step:
    def apply(state: State) -> None:
        del state[volume].snapshots[name]

    return Step(f"delete {volume}@{name}", apply)


def rollback(volume: str, name: str) -> Step:
    def apply(state: State) -> None:
        state[volume].head = state[volume].snapshots[name].copy()

    return Step(f"rollback {volume}@{name}", apply)


def rename(volume: str, new: str) -> Step:
    def apply(state: State) -> None:
        state[new] = state.pop(volume)
        _sort(state)

    return Step(f"rename {volume} {new}", apply)


def rename_snapshot(volume: str, name: str, new: str) -> Step:
    def apply(state: State) -> None:
        old = state[volume].snapshots
        state[volume].snapshots = {(new if n == name else n): each for n, each in old.items()}

    return Step(f"rename {volume}@{name} {new}", apply)


def promote(volume: str, source: str, moving: list[str]) -> Step:
    """Snapshots of `source` move to `volume`, before the snapshots that it has."""

    def apply(state: State) -> None:
        moved = {name: state[source].snapshots.pop(name) for name in moving}
        state[volume].snapshots = {**moved, **state[volume].snapshots}

    return Step(f"promote {volume} over {source}", apply)


def clone(volume: str, name: str, new: str) -> Step:
    def apply(state: State) -> None:
        state[new] = VolumeModel(state[volume].snapshots[name].copy())
        _sort(state)

    return Step(f"clone {volume}@{name} {new}", apply)


def fork(volume: str, new: str) -> Step:
    """Clone a volume as it is now."""

    def apply(state: State) -> None:
        state[new] = VolumeModel(state[volume].head.copy())
        _sort(state)

    return Step(f"clone {volume} {new}", apply)


def group(volumes: list[str], name: str) -> Step:
    """A snapshot of several volumes at once: one step."""

    def apply(state: State) -> None:
        for volume in volumes:
            state[volume].snapshots[name] = state[volume].head.copy()

    return Step(f"snapshot {volumes}@{name}", apply)


def shrink(volume: str, size_bytes: int) -> list[Step]:
    """The range behind the new size is zeroed, then the size changes."""
    return [
        Step(f"zero {volume} behind {size_bytes}", lambda state: _cut(state, volume, size_bytes)),
        resize(volume, size_bytes),
    ]


def _cut(state: State, volume: str, size_bytes: int) -> None:
    blocks = state[volume].head.blocks
    for block in [block for block in blocks if block >= size_bytes // BLOCK]:
        del blocks[block]


def _remove(state: State, volume: str) -> None:
    del state[volume]


def _sort(state: State) -> None:
    """Volumes are listed by name."""
    ordered = sorted(state.items())
    state.clear()
    state.update(ordered)
