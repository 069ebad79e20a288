"""Every example in pool-configs/ runs as it stands and keeps what is written."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

from admin.config.load import load_config
from tests.system.daemon_process import Daemon, qemu_io, tool
from tests.system.processes import PATIENCE_S, POLL_S, ROOT, cenote

pytestmark = pytest.mark.system

TLS_EXAMPLE = "tls-and-rules.toml"
EXAMPLES = [
    "single-file.toml",
    "several-disks.toml",
    "two-copies.toml",
    "three-copies.toml",
    "snapshots.toml",
    TLS_EXAMPLE,
]


def example_in(directory: Path, example: str) -> Path:
    """Copy an example, with the certificates that its text tells how to make."""
    config = Path(shutil.copy(ROOT / "pool-configs" / example, directory))
    if example == TLS_EXAMPLE:
        text = config.read_text()
        assert '"0.0.0.0:10809"' in text
        config.write_text(text.replace('"0.0.0.0:10809"', '"127.0.0.1:0"'))
        authority = trustme.CA()
        server = authority.issue_cert("localhost")
        authority.cert_pem.write_to_path(directory / "ca.pem")
        server.cert_chain_pems[0].write_to_path(directory / "server.pem")
        server.private_key_pem.write_to_path(directory / "server.key")
        for name in ("web.example", "other.example"):
            client = authority.issue_cert(name, common_name=name)
            keep = directory / name
            keep.mkdir()
            authority.cert_pem.write_to_path(keep / "ca-cert.pem")
            client.cert_chain_pems[0].write_to_path(keep / "client-cert.pem")
            client.private_key_pem.write_to_path(keep / "client-key.pem")
    return config


def test_every_example_is_here() -> None:
    assert sorted(path.name for path in (ROOT / "pool-configs").iterdir()) == sorted(EXAMPLES)


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_keeps_what_is_written(example: str, tmp_path: Path) -> None:
    config = example_in(tmp_path, example)
    home = tmp_path / "home"
    with Daemon(home, str(config)) as daemon:
        assert daemon.ready["created"] is True
        daemon.json("volume", "create", "root", "--size", "128M")
        uri = daemon.uri("root")
        write = qemu_io(uri, "write -P 7 1M 5M", "write -P 9 120M 64k", "flush")
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
            daemon.uri("root"), "read -P 7 1M 5M", "read -P 9 120M 64k", "read -P 0 6M 114M"
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


def test_snapshots_are_made_and_deleted_by_schedule(tmp_path: Path) -> None:
    """Also by one that is set by command, which is there again after a restart."""
    config = example_in(tmp_path, "snapshots.toml")
    home = tmp_path / "home"
    without = tmp_path / "without.toml"
    without.write_text(config.read_text().partition("[[schedule]]")[0])
    with Daemon(home, str(without)) as daemon:  # all volumes are there when the schedules begin
        for name in ("shop", "db-1", "db-2", "other"):
            daemon.json("volume", "create", name, "--size", "64M")
        assert cenote(home, "volume", "set", "shop", "--label", "tier=gold").code == 0
        assert daemon.json("schedule", "list") == []
    with Daemon(home, str(config)) as daemon:
        daemon.json(
            "schedule", "set", "mine", "--volume", "other", "--every", "1h", "--keep", "last=2"
        )
        wait_for(lambda: {one["volume"] for one in daemon.json("snapshot", "list")}, {
            "shop", "db-1", "db-2", "other",
        })  # fmt: skip
        for _ in range(3):
            daemon.json("schedule", "run", "mine")
        made = daemon.json("snapshot", "list", "other")
        assert len(made) == 2
        assert all(one["name"].startswith("auto-20") for one in made)
        assert [one["schedule"] for one in made] == ["mine", "mine"]
        of_dbs = [daemon.json("snapshot", "list", name) for name in ("db-1", "db-2")]
        assert [one["name"] for one in of_dbs[0]] == [one["name"] for one in of_dbs[1]]
        refused = cenote(home, "schedule", "remove", "gold")
        assert refused.code == 32
        assert "in the configuration" in refused.err
    with Daemon(home) as daemon:
        schedules = {one["name"]: one for one in daemon.json("schedule", "list")}
        assert {name: one["source"] for name, one in schedules.items()} == {
            "gold": "configuration", "databases": "configuration", "mine": "command",
        }  # fmt: skip
        assert schedules["mine"]["snapshots"] == 2
        assert schedules["gold"]["matches"] == ["shop"]
        assert all(one["last_error"] is None for one in schedules.values())
        assert cenote(home, "schedule", "remove", "mine").code == 0
        assert len(daemon.json("snapshot", "list", "other")) == 2


def wait_for(look: Callable[[], object], wanted: object) -> None:
    """Look again and again until it is as wanted."""
    deadline = time.monotonic() + PATIENCE_S
    while (found := look()) != wanted:
        assert time.monotonic() < deadline, f"{found!r}, not {wanted!r}"
        time.sleep(POLL_S)


def test_certificates_decide_who_may_use_what(tmp_path: Path) -> None:
    config = example_in(tmp_path, TLS_EXAMPLE)
    with Daemon(tmp_path / "home", str(config)) as daemon:
        for name in ("golden1", "web1", "other"):
            daemon.json("volume", "create", name, "--size", "64M")
        daemon.json("snapshot", "create", "other@one")
        port = daemon.uri("", endpoint=1).rpartition(":")[2].strip("/")
        assert daemon.uri("web1", endpoint=1) == f"nbds://127.0.0.1:{port}/web1"

        def uri(export: str, pki: str) -> str:
            return f"nbds://localhost:{port}/{export}?tls-certificates={tmp_path / pki}"

        source = tmp_path / "source"
        source.write_bytes(b"w" * (64 << 20))
        copied = tool("nbdcopy", str(source), uri("web1", "web.example"))
        assert copied.code == 0, copied
        back = tool("nbdcopy", uri("web1", "web.example"), str(tmp_path / "back"))
        assert back.code == 0, back
        assert (tmp_path / "back").read_bytes() == source.read_bytes()
        golden = tool("nbdinfo", uri("golden1", "other.example"))
        assert golden.code == 0, golden
        assert "is_read_only: true" in golden.out
        for export, pki in (("web1", "other.example"), ("other", "web.example")):
            refused = tool("nbdinfo", uri(export, pki))
            assert refused.code != 0, refused
        assert tool("nbdinfo", uri("other@one", "web.example")).code != 0
        listed = tool("nbdinfo", "--list", uri("", "web.example")).out
        names = [line for line in listed.splitlines() if line.startswith("export=")]
        assert names == ['export="golden1":', 'export="web1":']
        assert tool("nbdinfo", f"nbd://localhost:{port}/golden1").code != 0, "without TLS"
        assert tool("nbdinfo", uri("golden1", "none")).code != 0, "without a certificate"
        exports = {one["name"]: one for one in daemon.json("client", "list", "--exports")}
        assert exports["web1"]["written_bytes"] == 64 << 20
    assert "export refused: peer=127.0.0.1:" in daemon.log
