"""Reservations and caps: the space that a volume is promised, and the most that it may take.

Both count a volume's own data: the data in layers that only this volume reaches, itself or through
its snapshots, before compression. The count is exact at each checkpoint. In between, data written
since is added, and the data that it displaced is not subtracted yet: an upper bound, so no write
passes a cap. Near its cap a volume may have to wait for a checkpoint, at most one a second; a trim
gives room back by the next one. Own data grows without a write when the last other volume that
reached a layer is deleted; then writes fail until there is room again.

Promised space that a volume does not use yet is kept free: other volumes get ENOSPC before they
take it.

A write that fits the `room` of its volume costs one comparison. When the room is used up, it is
computed anew from all quotas. Without reservations and caps no volume has a quota.
"""

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

import trio

from blockdev.errors import NoSpaceError
from storage.catalogue.catalogue import Catalogue
from storage.errors import InvalidArgumentError
from storage.format.entry import BLOCK_SHIFT
from storage.log.budget import SpaceBudget
from storage.map.layer import Layer
from storage.map.usage import Usage
from storage.volumes.space import owners

ROOM_BYTES = 64 << 20
"""The most that a volume may take before its room is computed anew, if there are reservations."""

PRICE_SHIFT = 6
"""A 64th more than the data is kept free for a promise, for map pages and for the record tables of
writes under way."""

CHECKPOINT_EVERY_S = 1.0
"""Least seconds between two checkpoints for volumes near their caps."""

TRIES_MAX = 1000
"""Checkpoints for one write; each gives space back, or is the last."""


@dataclass(slots=True)
class Quota:
    """The reservation and the cap of one volume; 0 means none."""

    name: str
    reserve_bytes: int = 0
    cap_bytes: int = 0
    room: int = 0
    """Bytes that writes may take before it is computed anew."""
    held: int = 0
    """Bytes taken by writes under way, which may not be in a buffer yet."""
    layers: list[int] = field(default_factory=list)
    """Layers that only this volume reaches."""


class Quotas:
    """The quotas of all volumes; empty as long as no volume has a reservation or a cap.

    Args:
        usage: counts as of the last checkpoint.
        flush: makes all earlier writes durable.
        checkpoint: writes a checkpoint; returns whether another one gives more space back.
    """

    def __init__(
        self, live: Catalogue, layers: dict[int, Layer], usage: Callable[[], Usage],
        space: SpaceBudget, flush: Callable[[], Awaitable[None]],
        checkpoint: Callable[[], Awaitable[bool]],
    ) -> None:  # fmt: skip
        self._live = live
        self._layers = layers
        self._usage = usage
        self._space = space
        self._flush = flush
        self._checkpoint = checkpoint
        self._quotas: dict[str, Quota] = {}
        self._promising = False
        """Whether any volume has a reservation; then every volume has a quota."""
        self._lock = trio.Lock()
        self._checkpoints = 0
        self._gives_more = False
        self._checkpointed_at = -CHECKPOINT_EVERY_S
        self.changed()

    def of(self, name: str) -> Quota | None:
        """The quota of a volume; None when nothing limits it."""
        return self._quotas.get(name)

    def changed(self) -> None:
        """Adapt to changed volumes, layers or limits. Cost: a pass over the layers, or nothing."""
        volumes = self._live.volumes
        limits = {
            name: volume.notes.space for name, volume in volumes.items() if volume.notes.space
        }
        self._promising = any(space.get("reserve_bytes") for space in limits.values())
        names = volumes if self._promising else limits
        self._quotas = {name: self._quotas.get(name) or Quota(name) for name in names}
        if not names:
            return
        for quota in self._quotas.values():
            space = limits.get(quota.name, {})
            quota.reserve_bytes = space.get("reserve_bytes", 0)
            quota.cap_bytes = space.get("cap_bytes", 0)
            quota.room = 0
            quota.layers = []
        for layer, name in owners(self._live).items():
            if name in self._quotas:
                self._quotas[name].layers.append(layer)

    # -- counts

    def _own_layers(self, quota: Quota) -> Iterator[Layer]:
        for number in quota.layers:
            layer = self._layers.get(number)
            if layer is not None:
                yield layer

    def own_bytes(self, quota: Quota) -> int:
        """Bytes of a volume's own data: an upper bound, exact when no changes are pending."""
        usage = self._usage()
        blocks = 0
        for layer in self._own_layers(quota):
            blocks += layer.gained + layer.frozen_gained
            blocks += sum(len(part.index) for part in layer.overlays)
        return sum(usage.mapped_bytes(n) for n in quota.layers) + (blocks << BLOCK_SHIFT)

    def _promised(self, quota: Quota) -> int:
        return max(0, quota.reserve_bytes - self.own_bytes(quota)) if quota.reserve_bytes else 0

    def promised_bytes(self) -> int:
        """Bytes that all volumes are promised and do not hold yet."""
        return sum(map(self._promised, self._quotas.values()))

    def _is_exact(self, quota: Quota) -> bool:
        """Whether the bytes of a volume are exact, so that a checkpoint would not find fewer."""
        merging = self._live.merging()
        return not any(
            layer.pending or layer.frozen_pending or layer.overlays or layer.number in merging
            for layer in self._own_layers(quota)
        )

    def _free_bytes(self) -> int:
        free = self._space.free_bytes()
        return free - (free >> PRICE_SHIFT)

    # -- taking

    async def take(self, quota: Quota, length: int) -> None:
        """Take `length` bytes of room for a write, which has to subtract them from `held` when its
        blocks are in a buffer. May wait for checkpoints. Cancelled, it has taken nothing.

        Raises:
            NoSpaceError: the cap is reached, or all free space is promised to other volumes.
        """
        if length > quota.room:
            await self._make_room(quota, length)
        quota.room -= length
        quota.held += length

    async def _make_room(self, quota: Quota, length: int) -> None:
        if self._renew(quota, length) is None:
            return
        await self._flush()  # buffers may hold trims, and blocks written twice
        for _ in range(TRIES_MAX):
            refusal = self._renew(quota, length)
            if refusal is None:
                return
            exact = refusal.of_cap and self._is_exact(quota)
            if exact or not await self._count_anew():
                break
        refusal = self._renew(quota, length)
        if refusal is not None:
            raise NoSpaceError(refusal.message)

    async def _count_anew(self) -> bool:
        """Write one checkpoint for all waiting writes; returns whether another gives more back."""
        seen = self._checkpoints
        async with self._lock:
            if self._checkpoints == seen:
                wait_s = self._checkpointed_at + CHECKPOINT_EVERY_S - trio.current_time()
                await trio.sleep(max(0.0, wait_s))
                self._checkpointed_at = trio.current_time()
                self._checkpoints += 1
                self._gives_more = await self._checkpoint()
            return self._gives_more

    def _renew(self, quota: Quota, length: int) -> "_Refusal | None":
        """Compute the room of a volume anew: at least `length` bytes, or return why not."""
        room = ROOM_BYTES if self._promising else 1 << 62
        if quota.cap_bytes:
            own = self.own_bytes(quota)
            room = min(max(room, length), quota.cap_bytes - own - quota.held)
            if room < length:
                return _Refusal(
                    f"the volume is at its cap, trim it, delete snapshots, or raise the cap: "
                    f"volume={quota.name} cap={quota.cap_bytes} holds={own}", of_cap=True,
                )  # fmt: skip
        if self._promising:
            free = self._unclaimed(quota, length)
            if free < length:
                for other in self._quotas.values():
                    other.room = 0  # computed anew at the next write
                free = self._unclaimed(quota, length)
            if free < length:
                promised = self.promised_bytes()
                return _Refusal(
                    f"what is free is promised to other volumes: volume={quota.name} "
                    f"free={self._space.free_bytes()} promised={promised}", of_cap=False,
                )  # fmt: skip
            room = min(max(room, length), max(free // 2, length))
        quota.room = room
        return None

    def _unclaimed(self, quota: Quota, length: int) -> int:
        """Bytes that one volume may take. Within its promise it may take all that other volumes
        have not taken; beyond it, only space that is not promised to them either."""
        promised = self._promised(quota)
        within = length + quota.held <= promised
        free = self._free_bytes() - quota.held
        for other in self._quotas.values():
            if other is not quota:
                taken = other.room + other.held
                free -= taken if within else max(taken, self._promised(other))
        return min(free, promised - quota.held) if within else free

    # -- promising

    def check(self, name: str, space: dict[str, int]) -> None:
        """Refuse a new reservation or cap of a volume that cannot be kept.

        Args:
            space: the new `reserve_bytes` and `cap_bytes`, 0 for none.

        Raises:
            InvalidArgumentError: more is reserved than the cap allows.
            NoSpaceError: the pool cannot promise so much.
        """
        reserve, cap = space.get("reserve_bytes", 0), space.get("cap_bytes", 0)
        if cap and reserve > cap:
            raise InvalidArgumentError(
                f"a reservation above the cap is of no use: reserve={reserve} cap={cap}"
            )
        known = self._quotas.get(name) or self._unlimited(name)
        if reserve <= known.reserve_bytes:
            return
        wanted = max(0, reserve - self.own_bytes(known))
        others = self.promised_bytes() - self._promised(known)
        if wanted + others > self._free_bytes():
            raise NoSpaceError(
                f"the pool cannot promise so much: volume={name} wanted={wanted} "
                f"free={self._free_bytes()} promised_to_others={others}"
            )

    def _unlimited(self, name: str) -> Quota:
        mine = [layer for layer, owner in owners(self._live).items() if owner == name]
        return Quota(name, layers=mine)


@dataclass(frozen=True, slots=True)
class _Refusal:
    message: str
    of_cap: bool
