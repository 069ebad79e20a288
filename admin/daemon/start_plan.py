"""Decides whether a start opens a pool or creates one, so that no data is overwritten.

Pure: takes the content of each member's path; returns a plan, or refuses and says how to go on.

    members' paths with a superblock        decision
    some; all other paths are absent        open; storage refuses if an absent member is needed
    some; another path has other content    refuse: the member of that path was replaced
    none; this home served a pool           refuse: the disks are not mounted
    none; one path holds other data         refuse, unless --format names it
    none; all absent, empty or named        create
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from uuid import UUID

from admin.config.load import MemberConfig
from admin.daemon.pool_record import PoolRecord
from admin.errors import ConfigError, RefusedError
from storage.errors import ForeignMemberError, InvalidArgumentError, MissingMemberError


class Content(Enum):
    """The kinds of content at the path of a member."""

    ABSENT = auto()
    """The path does not exist."""
    EMPTY = auto()
    """A file without data: of no size, or all holes."""
    POOL = auto()
    """A member of some pool."""
    OTHER = auto()
    """A disk, or a file with data, without a superblock."""


@dataclass(frozen=True, slots=True)
class Found:
    """The content at the path of `member`; `pool` is set when it has a superblock."""

    member: MemberConfig
    content: Content
    pool: UUID | None = None
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """Create a pool on the members `use`, or open it with them and without the `absent` ones."""

    create: bool
    use: list[Found]
    absent: list[Found]


def make_plan(
    found: Sequence[Found],
    record: PoolRecord | None,
    *,
    format_paths: Collection[Path] = (),
    without: Collection[UUID] = (),
) -> Plan:
    """Decide whether a start opens or creates the pool.

    Raises:
        MissingMemberError: the path of a member holds something else, or all members are missing.
        ForeignMemberError: the members belong to different pools.
        RefusedError: creating might overwrite data, or this home served another pool.
        ConfigError: a file is to be created and its size is not given.
        InvalidArgumentError: `format_paths` names a path that is no member's.
    """
    pools = {one.pool: one.member.path for one in found if one.pool is not None}
    if not pools:
        _check_creation(found, record, format_paths, without)
        return Plan(create=True, use=list(found), absent=[])
    if len(pools) > 1:
        facts = ", ".join(f"{path} of pool {pool}" for pool, path in pools.items())
        raise ForeignMemberError(f"members of different pools in one configuration: {facts}")
    (pool,) = pools
    if record is not None and record.pool != pool:
        raise RefusedError(
            f"this home served another pool: it served {record.pool}, the members belong to "
            f"{pool}; choose another --home for this one"
        )
    if format_paths:
        raise RefusedError(f"--format is for new pools; the members belong to pool {pool} already")
    for one in found:
        if one.content in (Content.EMPTY, Content.OTHER):
            new = "; if creating the pool was interrupted, delete its files and start again"
            raise MissingMemberError(
                f"{one.member.path} exists and is no member of pool {pool}, as the others are; "
                "put the member back, or open without it: --without with its path or UUID"
                + (new if record is None else "")
            )
    return Plan(
        create=False,
        use=[one for one in found if one.content is Content.POOL],
        absent=[one for one in found if one.content is Content.ABSENT],
    )


def set_aside(found: Sequence[Found]) -> tuple[list[Found], list[Found]]:
    """Separate devices whose adding was interrupted before they got a superblock of this pool.

    Returns the members, then the devices to leave out.
    """
    pools = {one.pool for one in found if one.pool is not None and not one.member.joining}
    kept: list[Found] = []
    aside: list[Found] = []
    for one in found:
        is_member = one.content is Content.POOL and one.pool in pools
        (kept if is_member or not one.member.joining else aside).append(one)
    return kept, aside


def resolve_without(words: Sequence[str], record: PoolRecord | None) -> dict[UUID, str | None]:
    """The members that `--without` names, by UUID or path, with the path where that is known.

    Raises:
        InvalidArgumentError: a path is not that of a member which this home has served.
    """
    known = record.members if record else []
    resolved: dict[UUID, str | None] = {}
    for word in words:
        try:
            uuid = UUID(word)
        except ValueError:
            path = str(Path(word).expanduser().absolute())
            match = [member for member in known if member.path == path]
            if not match:
                names = ", ".join(f"{member.uuid} ({member.path})" for member in known)
                raise InvalidArgumentError(
                    f"--without: no member was ever at {path}; known: {names or 'none'}"
                ) from None
            resolved[match[0].uuid] = path
        else:
            paths = [member.path for member in known if member.uuid == uuid]
            resolved[uuid] = paths[0] if paths else None
    return resolved


def _check_creation(
    found: Sequence[Found],
    record: PoolRecord | None,
    format_paths: Collection[Path],
    without: Collection[UUID],
) -> None:
    places = ", ".join(str(one.member.path) for one in found)
    if record is not None:
        raise MissingMemberError(
            f"pool {record.pool} was here before, and its members are missing (not mounted?): "
            f"{places}; if it is gone for good, remove pool/pool.json in the home to start anew"
        )
    if without:
        raise MissingMemberError(f"no pool to open without a member: none is at {places}")
    for one in found:
        path = one.member.path
        if one.content is Content.OTHER and path not in format_paths:
            raise RefusedError(
                f"{path} holds no pool and might hold data; move it away, name another path, "
                f"or give it up to the new pool: --format {path}"
            )
        if one.content is Content.ABSENT and path.is_relative_to("/dev"):
            raise RefusedError(f"{path} is not there; attach the disk")
        if one.content is Content.ABSENT and not path.parent.is_dir():
            raise RefusedError(f"{path.parent} does not exist (not mounted?); create it first")
        sized = one.member.size_bytes is not None or one.size_bytes > 0
        if not sized and one.content is not Content.OTHER:
            raise ConfigError(f'{path} is to be created; give its size in the file: size = "8G"')
    for path in format_paths:
        if path not in [one.member.path for one in found]:
            raise InvalidArgumentError(f"--format: not a member of this configuration: {path}")
