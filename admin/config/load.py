"""The configuration file: TOML to frozen dataclasses, strictly.

    format = 1

    [pool]                      read when the pool is created
    copies = 2                  1, 2 or 3 copies of everything
    segment = "32M"             unit of allocation; chosen by the pool's size when absent

    [[member]]                  one or more
    path = "left.img"           relative to this file
    size = "8G"                 to create a file; not needed for disks
    host = "left"               copies avoid sharing a host

    [nbd], [[export]]           the NBD server and access to it: see `admin.config.nbd`

    [[schedule]]                automatic snapshots: see `admin.config.schedules`

    [scrub]                     regular verification of all data: see `admin.config.scrub`

    [cache]
    pages = "256M"              block map
    extents = "64M"             data that was read
    buffers = "64M"             data that is not written yet

`pool-configs/` has runnable examples.
"""

import os
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from admin.config.nbd import NbdConfig, read_nbd
from admin.config.schedules import read_schedules
from admin.config.scrub import ScrubConfig, read_scrub
from admin.config.tables import Table
from admin.errors import ConfigError
from admin.sizes import GIB, KIB, MIB, PIB, TIB
from storage.catalogue.schedule import Schedule

FORMAT = 1
LOCAL_HOST = "local"
"""The failure domain of members that name none: this machine."""
DEFAULT_MEMBER_BYTES = 64 * GIB
"""Larger than a first try needs; the file is sparse and takes only the space that is written."""


@dataclass(frozen=True, slots=True)
class PoolConfig:
    """How the pool is created; an existing pool keeps the values it was created with."""

    copies: int = 1
    segment_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class MemberConfig:
    """One file or disk; `size_bytes` is needed only to create a file."""

    path: Path
    size_bytes: int | None = None
    host: str = LOCAL_HOST
    joining: bool = False
    """A command that adds it was interrupted; its superblock tells whether it became a member."""


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """Memory for caches; the daemon itself takes some 100 MiB besides."""

    page_bytes: int = 256 * MIB
    extent_bytes: int = 64 * MIB
    buffer_bytes: int = 64 * MIB


@dataclass(frozen=True, slots=True)
class Config:
    """The whole configuration; `file` is None for the built-in default."""

    members: tuple[MemberConfig, ...]
    pool: PoolConfig = field(default_factory=PoolConfig)
    nbd: NbdConfig = field(default_factory=NbdConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    schedules: dict[str, Schedule] = field(default_factory=dict)
    scrub: ScrubConfig = field(default_factory=ScrubConfig)
    file: Path | None = None


def load_config(file: Path) -> Config:
    """Read a configuration file.

    Raises:
        ConfigError: the file cannot be read, or a key or value in it is not as expected.
    """
    try:
        values = tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not a text file in UTF-8: {error.reason}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: not valid TOML: {error}") from error
    root = Table(file, values)
    version = root.whole("format", 0, low=0, high=1 << 31) if root.has("format") else 0
    if version != FORMAT:
        newer = version > FORMAT
        root.fail("format", f"expected {FORMAT}" + (f"; {version} needs a newer Cenote" * newer))
    directory = file.absolute().parent
    pool, cache = root.table("pool"), root.table("cache")
    config = Config(
        members=_members(root, directory),
        pool=_pool(pool),
        nbd=read_nbd(root, directory),
        cache=_cache(cache),
        schedules=read_schedules(root),
        scrub=read_scrub(root),
        file=file,
    )
    for table in (root, pool, cache):
        table.finish()
    if config.pool.copies > len(config.members):
        pool.fail(
            "copies",
            f"{config.pool.copies} copies need as many members; "
            f"the file names {len(config.members)}",
        )
    return config


def default_config(pool_dir: Path) -> Config:
    """The configuration without a file: the pool is one sparse file in `pool_dir`.

    Its size is 64 GiB, or that of the whole file system if that is smaller.
    """
    existing = next(path for path in (pool_dir, *pool_dir.parents) if path.exists())
    system = os.statvfs(existing)
    room = system.f_frsize * system.f_blocks // MIB * MIB
    size_bytes = min(DEFAULT_MEMBER_BYTES, room)
    return Config(members=(MemberConfig(pool_dir / "member.img", size_bytes),))


def _members(root: Table, directory: Path) -> tuple[MemberConfig, ...]:
    members: list[MemberConfig] = []
    seen: dict[str, int] = {}
    for index, table in enumerate(root.tables("member")):
        path = directory / Path(table.text("path")).expanduser()
        size_bytes = table.size("size", low=MIB, high=4 * PIB, grain=4 * KIB)
        host = table.text("host", LOCAL_HOST)
        table.finish()
        # Two links may lead to one device, and two copies on one device would be lost together.
        first = seen.setdefault(os.path.realpath(path), index)
        if first != index:
            table.fail("path", f"the same file or disk as member[{first}]: {path}")
        members.append(MemberConfig(path, size_bytes, host))
    if not members:
        root.fail("member", 'is missing; name at least one: [[member]] with path = "..."')
    return tuple(members)


def _pool(table: Table) -> PoolConfig:
    copies = table.whole("copies", 1, low=1, high=3)
    segment_bytes = table.size("segment", low=MIB, high=256 * MIB)
    if segment_bytes is not None and segment_bytes & (segment_bytes - 1):
        table.fail("segment", "expected a power of two, such as 32M or 64M")
    return PoolConfig(copies, segment_bytes)


def _cache(table: Table) -> CacheConfig:
    default = CacheConfig()
    return CacheConfig(
        page_bytes=table.size("pages", low=MIB, high=TIB) or default.page_bytes,
        extent_bytes=table.size("extents", low=MIB, high=TIB) or default.extent_bytes,
        buffer_bytes=table.size("buffers", low=8 * MIB, high=TIB) or default.buffer_bytes,
    )
