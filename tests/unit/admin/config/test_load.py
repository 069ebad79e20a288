"""Reading the configuration file: keys, defaults and mistakes."""

from pathlib import Path

import pytest

from admin.config.load import (
    CacheConfig,
    Config,
    MemberConfig,
    PoolConfig,
    default_config,
    load_config,
)
from admin.config.nbd import NbdConfig, TcpAddress
from admin.errors import ConfigError
from admin.sizes import GIB, MIB
from nbd.server.limits import Limits
from storage.catalogue.schedule import Schedule

MEMBER = '[[member]]\npath = "a.img"\nsize = "8G"\n'


def load(tmp_path: Path, text: str) -> Config:
    file = tmp_path / "pool.toml"
    file.write_text(text)
    return load_config(file)


GOOD = "volumes = ['db-*', 'web']\nlabels = {tier = 'gold'}\nevery = '1h'\nkeep = {daily = 7}\n"


def schedule(lines: str = "") -> str:
    return f"format = 1\n{MEMBER}[[schedule]]\nname = 'h'\n{lines}\n"


def test_schedules_are_read_by_name(tmp_path: Path) -> None:
    text = schedule(GOOD) + "[[schedule]]\nname = 'all'\nvolumes = '*'\nevery = '2w'\nkeep.last = 3"
    assert load(tmp_path, text).schedules == {
        "h": Schedule(3600, {"daily": 7}, ("db-*", "web"), {"tier": "gold"}),
        "all": Schedule(14 * 86400, {"last": 3}, ("*",)),
    }


def test_every_key_is_read(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        """
        format = 1
        [pool]
        copies = 2
        segment = "64M"
        [[member]]
        path = "left.img"
        size = "8G"
        host = "left"
        [[member]]
        path = "/dev/disk/by-id/right"
        [nbd]
        unix = false
        tcp = "[::1]:10810"
        connections = 7
        [cache]
        pages = "1G"
        extents = 33554432
        buffers = "16 MiB"
        """,
    )
    assert config == Config(
        members=(
            MemberConfig(tmp_path / "left.img", 8 * GIB, "left"),
            MemberConfig(Path("/dev/disk/by-id/right"), None, "local"),
        ),
        pool=PoolConfig(2, 64 * MIB),
        nbd=NbdConfig(unix=False, tcp=TcpAddress("::1", 10810), limits=Limits(connections_max=7)),
        cache=CacheConfig(GIB, 32 * MIB, 16 * MIB),
        file=tmp_path / "pool.toml",
    )


def test_defaults(tmp_path: Path) -> None:
    config = load(tmp_path, f"format = 1\n{MEMBER}")
    assert config.pool == PoolConfig()
    assert config.nbd == NbdConfig()
    assert config.cache == CacheConfig()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MEMBER, r"format: expected 1"),
        (f"format = 2\n{MEMBER}", r"format: expected 1; 2 needs a newer Cenote"),
        (f'format = "1"\n{MEMBER}', r"format: expected a whole number, got '1'"),
        ("format = 1", r"member: is missing"),
        ("format = 1\nmember = 3", r"member: expected one or more tables"),
        ("format = 1\n[member]\npath = 'a'", r"member: expected one or more tables"),
        (f"format = 1\ncopies = 2\n{MEMBER}", r"copies: unknown key; known: .*pool"),
        (f"format = 1\n[pol]\n{MEMBER}", r"pol: unknown key; did you mean 'pool'\?"),
        (f"format = 1\n{MEMBER}sise = 3", r"member\[0\].sise: unknown key; did you mean 'size'"),
        (f"format = 1\n{MEMBER}[pool]\ncopies = true", r"pool.copies: .*whole number, got true"),
        (f"format = 1\n{MEMBER}[pool]\ncopies = 4", r"pool.copies: expected 1 to 3, got 4"),
        (f"format = 1\n{MEMBER}[pool]\ncopies = 2", r"pool.copies: 2 copies need as many members"),
        (f"format = 1\n{MEMBER}[pool]\nsegment = '33'", r"pool.segment: expected 1M to 256M"),
        (f"format = 1\n{MEMBER}[pool]\nsegment = '3M'", r"pool.segment: expected a power of two"),
        (f"format = 1\n{MEMBER}[cache]\npages = 1.5", r"cache.pages: expected a size such as"),
        (f"format = 1\n{MEMBER}[cache]\npages = '5GB'", r"cache.pages: ambiguous unit"),
        (f"format = 1\n{MEMBER}[cache]\nbuffers = '4M'", r"cache.buffers: expected 8M to"),
        (f"format = 1\n{MEMBER}[nbd]\nunix = 1", r"nbd.unix: expected true or false, got 1"),
        (f"format = 1\n{MEMBER}[nbd]\nunix = false", r"nbd.unix: nothing would be served"),
        (f"format = 1\n{MEMBER}[nbd]\ntcp = '10809'", r"nbd.tcp: expected \"HOST:PORT\""),
        (f"format = 1\n{MEMBER}{MEMBER}", r"member\[1\].path: the same file or disk as member\[0"),
        ("format = 1\n[[member]]\nsize = '8G'", r"member\[0\].path: is missing; expected a string"),
        ("format = 1\n[[member]]\npath = ''", r"member\[0\].path: is empty"),
        ("format = 1\n[[member]]\npath = 'a'\nsize = -1", r"member\[0\].size: expected 1M to 4P"),
        ("format = 1\n[[member]]\npath = 'a'\nsize = 5000000", r"multiple of 4K; the nearest is"),
        (schedule(), r"schedule\[0\].every: is missing"),
        (schedule("every = '1x'"), r"schedule\[0\].every: not a length of time: '1x'; write"),
        (schedule("every = '1s'"), r"schedule 'h': a snapshot every 1 s is not possible"),
        (schedule("every = '1h'"), r"schedule 'h': say which snapshots to keep"),
        (schedule("every = '1h'\nkeep = {often = 1}"), r"schedule 'h': say which .*hourly"),
        (
            schedule("every = '1h'\nkeep = {daily = '7'}"),
            r"schedule\[0\].keep.daily: expected a wh",
        ),
        (schedule("every = '1h'\nkeep = {last = 1}"), r"schedule 'h': name volumes, or labels"),
        (schedule("every = '1h'\nkeep = {last = 1}\nvolume = 'v'"), r"did you mean 'volumes'"),
        (schedule("every = '1h'\nkeep = {last = 1}\nlabels = {a = 1}"), r"labels.a: expected a st"),
        (schedule(GOOD) + "[[schedule]]\nname = 'h'\n", r"schedule\[1\].name: two schedules are"),
        ("format = 1\nformat 1", r"not valid TOML: .*line 2"),
        ("format = ", r"not valid TOML"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 'pool.toml'}: ")


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.toml: cannot be read: No such file"):
        load_config(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"binary.toml: not a text file in UTF-8"):
        load_config(tmp_path / "binary.toml")


def test_one_device_by_two_names_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link.img").symlink_to("a.img")
    with pytest.raises(ConfigError, match="the same file or disk"):
        load(tmp_path, f"format = 1\n{MEMBER}[[member]]\npath = 'link.img'")


def test_the_default_is_one_sparse_file_that_fits(tmp_path: Path) -> None:
    config = default_config(tmp_path / "not" / "yet")
    (member,) = config.members
    assert member.path == tmp_path / "not" / "yet" / "member.img"
    assert member.size_bytes is not None
    assert 0 < member.size_bytes <= 64 * GIB
    assert member.size_bytes % MIB == 0
