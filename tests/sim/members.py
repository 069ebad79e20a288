"""Chooses the members that a pool is opened with, and says whether it must refuse to open."""

import random
from collections.abc import Collection
from dataclasses import dataclass
from uuid import UUID

from blockdev.simulation.disk import SimulatedDisk
from storage.format import superblock
from storage.format.superblock import RING_SLOTS, SUPERBLOCK_BYTES, Superblock
from storage.members.member import MemberDevice, closing_offset
from tests.crash.harness import Shape
from tests.sim.disks import SimWorld


@dataclass(frozen=True)
class Attached:
    """A choice of members. `without` names the members that the pool is forced to open without."""

    members: tuple[MemberDevice, ...]
    absent: frozenset[int] = frozenset()
    without: tuple[UUID, ...] = ()
    refused: bool = False
    """A member is missing that the attached members call in sync: the pool must not open."""


def newest(disks: Collection[SimulatedDisk]) -> Superblock | None:
    """Return the newest superblock on these disks; None if there is none."""
    found = []
    for disk in disks:
        places = [slot * SUPERBLOCK_BYTES for slot in range(RING_SLOTS)]
        for place in (*places, closing_offset(disk.size_bytes)):
            sb = superblock.decode(disk._visible.read(place, SUPERBLOCK_BYTES))
            if sb is not None:
                found.append(sb)
    return max(found, key=lambda sb: sb.order, default=None)


def stale(world: SimWorld) -> set[int]:
    """Return the indices of the members that the newest superblock calls stale."""
    sb = newest(world.disks)
    rows = () if sb is None else sb.members
    return {i for i, row in enumerate(rows) if row.stale_since is not None}


def everybody(world: SimWorld, shape: Shape) -> Attached:
    return Attached(_offered(world, shape, frozenset()))


def lacking(world: SimWorld, shape: Shape, absent: Collection[int]) -> Attached:
    """Choose all but some members, without force: refused unless the superblocks of the members
    present call the absent members stale."""
    gone = frozenset(absent)
    sb = newest([disk for i, disk in enumerate(world.disks) if i not in gone])
    refused = sb is None or any(sb.members[i].stale_since is None for i in gone)
    return Attached(_offered(world, shape, gone), gone, refused=refused)


def forced(world: SimWorld, shape: Shape, absent: int) -> Attached | None:
    """Choose all but one member, by force. None unless every member's own superblock calls all
    members in sync, because only then the other members have all data.
    """
    found = [newest([disk]) for disk in world.disks]
    rows = [row for sb in found if sb is not None for row in sb.members]
    if None in found or any(row.stale_since is not None for row in rows):
        return None
    if len({sb.epoch for sb in found if sb is not None}) > 1:
        return None
    gone = frozenset({absent})
    return Attached(_offered(world, shape, gone), gone, (rows[absent].uuid,))


def choose(world: SimWorld, shape: Shape, rng: random.Random, lying: int | None) -> Attached:
    """Choose mostly all members; sometimes leave out stale members, or members in sync."""
    dice = rng.random()
    if shape.copies == 1 or dice < 0.7:
        return everybody(world, shape)
    absent = rng.randrange(len(shape.hosts)) if lying is None else lying
    if dice < 0.8:
        return forced(world, shape, absent) or lacking(world, shape, [absent])
    if dice < 0.9 and (known := stale(world)):
        return lacking(world, shape, known)
    some = rng.sample(range(len(shape.hosts)), rng.randint(1, len(shape.hosts) - 1))
    return lacking(world, shape, some)


def _offered(world: SimWorld, shape: Shape, gone: frozenset[int]) -> tuple[MemberDevice, ...]:
    return tuple(
        MemberDevice(disk, f"disk{i}", host)
        for i, (disk, host) in enumerate(zip(world.disks, shape.hosts, strict=True))
        if i not in gone
    )
