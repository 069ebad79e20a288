"""Every example in pool-configs/ runs as it stands and keeps what is written."""

import shutil
from pathlib import Path

import pytest

from admin.config import load_config
from tests.system.daemon_process import ROOT, Daemon, cenote, qemu_io

pytestmark = pytest.mark.system

EXAMPLES = ["single-file.toml", "several-disks.toml", "two-copies.toml", "three-copies.toml"]


def test_every_example_is_here() -> None:
    assert sorted(path.name for path in (ROOT / "pool-configs").iterdir()) == sorted(EXAMPLES)


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_keeps_what_is_written(example: str, tmp_path: Path) -> None:
    config = Path(shutil.copy(ROOT / "pool-configs" / example, tmp_path))
    home = tmp_path / "home"
    with Daemon(home, str(config)) as daemon:
        assert daemon.ready["created"] is True
        daemon.json("volume", "create", "root", "--size", "1G")
        uri = daemon.uri("root")
        write = qemu_io(uri, "write -P 7 1M 5M", "write -P 9 1000M 64k", "flush")
        assert write.code == 0, write
        pool = daemon.json("pool", "status")
        asked = load_config(config)
        assert pool["copies"] == asked.pool.copies
        assert [(one["host"], one["state"]) for one in pool["members"]] == [
            (member.host, "in sync") for member in asked.members
        ]
    with Daemon(home) as daemon:  # which remembers its configuration
        assert daemon.ready["created"] is False
        assert daemon.ready["volumes"] == ["root"]
        read = qemu_io(
            daemon.uri("root"), "read -P 7 1M 5M", "read -P 9 1000M 64k", "read -P 0 6M 900M"
        )
        assert read.code == 0, read
    for member in asked.members:
        assert member.path.stat().st_blocks * 512 < 200 << 20, "the file is not sparse"


def test_two_copies_survive_the_loss_of_one(tmp_path: Path) -> None:
    config = Path(shutil.copy(ROOT / "pool-configs" / "two-copies.toml", tmp_path))
    home, left = tmp_path / "home", tmp_path / "left.img"
    with Daemon(home, str(config)) as daemon:
        daemon.json("volume", "create", "root", "--size", "1G")
        assert qemu_io(daemon.uri("root"), "write -P 7 0 8M", "flush").code == 0
    left.rename(tmp_path / "elsewhere.img")
    refused = cenote(home, "serve", str(config))
    assert refused.code == 24
    assert str(left) in refused.err
    assert "--without" in refused.err
    assert not left.exists(), "a member of an existing pool was made anew"
    with Daemon(home, str(config), "--without", str(left)) as daemon:
        assert daemon.ready["health"] == "degraded"
        assert qemu_io(daemon.uri("root"), "read -P 7 0 8M", "write -P 8 0 4M").code == 0
    with Daemon(home, str(config)) as daemon:  # now the other is recorded stale
        assert daemon.ready["health"] == "degraded"
        assert qemu_io(daemon.uri("root"), "read -P 8 0 4M", "read -P 7 4M 4M").code == 0
