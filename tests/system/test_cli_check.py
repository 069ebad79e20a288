"""`cenote check` on real pools, good and damaged."""

import json
import random
from pathlib import Path

import pytest

from tests.system.daemon_process import Daemon, qemu_io
from tests.system.processes import cenote

pytestmark = pytest.mark.system

CONFIG = """\
format = 1
[[member]]
path = "member.img"
size = "256M"
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "pool.toml"
    path.write_text(CONFIG)
    return str(path)


def test_a_good_pool_is_clean(home: Path, config: str) -> None:
    with Daemon(home, config) as daemon:
        daemon.json("volume", "create", "root", "--size", "64M")
        assert qemu_io(daemon.uri("root"), "write -P 1 0 4M", "flush").code == 0
        busy = cenote(home, "check", config)
        assert busy.code == 18, busy
        assert cenote(home, "check").code == 5
    for words in (["check"], ["check", config]):  # the home remembers its configuration
        result = cenote(home, *words)
        assert (result.code, result.err) == (0, "")
        assert result.out.endswith("clean\n")
    report = json.loads(cenote(home, "check", "--json").out)
    assert report["clean"] is True
    assert report["damage"] == []


def test_damage_is_found_and_told_by_the_exit_status(
    home: Path, config: str, tmp_path: Path
) -> None:
    with Daemon(home, config) as daemon:
        daemon.json("volume", "create", "root", "--size", "64M")
        noise = tmp_path / "noise"
        noise.write_bytes(random.Random(1).randbytes(4 << 20))
        assert qemu_io(daemon.uri("root"), f"write -s {noise} 0 4M", "flush").code == 0
    member = tmp_path / "member.img"
    data = member.read_bytes()
    needle = noise.read_bytes()[2 << 20 : (2 << 20) + 64]
    where = data.index(needle)
    with member.open("r+b") as file:
        file.seek(where)
        file.write(bytes(64))
    result = cenote(home, "check")
    assert result.code == 1, result
    assert "damage: " in result.out
    assert json.loads(cenote(home, "check", "--json").out)["clean"] is False


def test_no_pool_at_all(home: Path) -> None:
    result = cenote(home, "check")
    assert result.code == 31
    assert "no pool is at" in result.err
