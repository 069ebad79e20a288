"""`HOME/pool/pool.json`: the record of the pool that this home serves.

Without it, a daemon started before its disks are mounted would find no members and make a new,
empty pool in their place. The record also names the members that were added by command: they are
opened at each start beside the members of the configuration, which may name them too.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from admin.api.wire import decode, encode
from admin.config.load import Config, MemberConfig, default_config, load_config
from admin.errors import HomeError
from admin.home import Home


@dataclass(frozen=True, slots=True)
class MemberRecord:
    """The UUID of a member and its last path."""

    uuid: UUID
    path: str


@dataclass(frozen=True, slots=True)
class AddedRecord:
    """A device that was added by command; it may or may not be a member until it has `joined`."""

    path: str
    host: str
    joined: bool


@dataclass(frozen=True, slots=True)
class PoolRecord:
    """The pool of a home.

    `created` is the time of the record, UTC, ISO 8601; `config` is None for the built-in
    configuration.
    """

    pool: UUID
    created: str
    config: str | None = None
    members: list[MemberRecord] = field(default_factory=list)
    added: list[AddedRecord] = field(default_factory=list)


def new_record(pool: UUID) -> PoolRecord:
    """A new record of a pool, without its members."""
    return PoolRecord(pool, datetime.now(UTC).isoformat(timespec="seconds"))


def read_record(home: Home) -> PoolRecord | None:
    """The record of the home, or None when it never served a pool.

    Raises:
        HomeError: the file exists and cannot be read or understood.
    """
    path = _path(home)
    try:
        return decode(PoolRecord, json.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HomeError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise HomeError(f"damaged: {path}: {error}; restore or remove it") from error


def write_record(home: Home, record: PoolRecord) -> None:
    """Replace the record; after a crash the old or the new one is there."""
    write_durably(_path(home), json.dumps(encode(record), indent=2) + "\n")


def write_durably(path: Path, text: str) -> None:
    """Replace a file; after a crash the old or the new one is there. Raises OSError."""
    fresh = path.with_suffix(".new")
    with fresh.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    sync_directory(path.parent)


def choose_config(home: Home, file: Path | None) -> Config:
    """The configuration to use: `file`, else the home's last one, else the built-in configuration;
    with the members that were added by command.

    Raises:
        ConfigError: the file is missing or wrong.
        HomeError: the record cannot be understood.
    """
    record = read_record(home)
    if file is None and record is not None and record.config is not None:
        file = Path(record.config)
    config = load_config(file) if file else default_config(home.pool_dir)
    return config if record is None else with_added(config, record.added)


def with_added(config: Config, added: Iterable[AddedRecord]) -> Config:
    """The configuration with the members added by command, each only once."""
    named = {os.path.realpath(member.path) for member in config.members}
    more = [
        MemberConfig(Path(one.path), None, one.host, joining=not one.joined)
        for one in added
        if os.path.realpath(one.path) not in named
    ]
    return replace(config, members=(*config.members, *more))


def sync_directory(directory: Path) -> None:
    """Make the names in `directory` durable."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _path(home: Home) -> Path:
    return home.pool_dir / "pool.json"
