"""What backup tools see of snapshots: bitmaps and depths, by QEMU's and libnbd's own programs."""

import json
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nbd.client import ClientOptions, open_nbd
from tests.system.daemon_process import Daemon, qemu_io, tool
from tests.system.processes import PATIENCE_S, wait_for_path

pytestmark = pytest.mark.system

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
DEPTH = "qemu:allocation-depth"
BITMAP = "qemu:dirty-bitmap:"

Run = tuple[int, int, int]
"""Offset, length and state."""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A volume of 1 GiB with two snapshots, and changes that are not durable since."""
    folder = tmp_path_factory.mktemp("changed")
    config = folder / "pool.toml"
    config.write_text('format = 1\n[[member]]\npath = "member.img"\nsize = "2G"\n')
    with Daemon(folder / "home", str(config)) as running:
        running.json("volume", "create", "root", "--size", "1G")
        uri = running.uri("root")
        assert qemu_io(uri, "write -P 1 0 1M", "write -P 1 512M 4k", "flush").code == 0
        running.json("snapshot", "create", "root@one")
        assert qemu_io(uri, "write -P 2 64k 64k", "discard 512M 4k", "flush").code == 0
        running.json("snapshot", "create", "root@two")
        assert qemu_io(uri, "write -P 3 8k 4k", "write -P 3 900M 64k").code == 0
        yield running


def map_of(uri: str, context: str) -> list[Run]:
    told = tool("nbdinfo", f"--map={context}", "--json", uri)
    assert told.code == 0, told
    return [(one["offset"], one["length"], one["type"]) for one in json.loads(told.out)]


def dirty(runs: list[Run]) -> list[tuple[int, int]]:
    assert sum(length for _, length, _ in runs) == GIB
    assert all(state in (0, 1) for _, _, state in runs)
    return [(offset, length) for offset, length, state in runs if state]


SINCE_ONE = [(64 * KIB, 64 * KIB), (512 * MIB, 4 * KIB)]
SINCE_TWO = [(8 * KIB, 4 * KIB), (900 * MIB, 64 * KIB)]


def test_nbdinfo_shows_what_changed(daemon: Daemon) -> None:
    uri, second = daemon.uri("root"), daemon.uri("root@two")
    assert dirty(map_of(uri, BITMAP + "two")) == SINCE_TWO
    assert dirty(map_of(uri, BITMAP + "one")) == sorted([*SINCE_ONE, *SINCE_TWO])
    assert dirty(map_of(second, BITMAP + "one")) == SINCE_ONE
    assert dirty(map_of(second, BITMAP + "two")) == []
    shown = tool("nbdinfo", f"--map={BITMAP}two", uri)
    assert "dirty" in shown.out
    assert "clean" in shown.out
    listed = json.loads(tool("nbdinfo", "--json", uri).out)["exports"][0]["contexts"]
    assert listed == ["base:allocation", DEPTH, f"{BITMAP}one", f"{BITMAP}two"]


def test_nbdinfo_shows_how_deep_blocks_lie(daemon: Daemon) -> None:
    runs = map_of(daemon.uri("root@two"), DEPTH)
    assert [run for run in runs if run[2]] == [
        (0, 64 * KIB, 2), (64 * KIB, 64 * KIB, 1), (128 * KIB, MIB - 128 * KIB, 2),
        (512 * MIB, 4 * KIB, 1),
    ]  # fmt: skip
    shown = tool("nbdinfo", f"--map={DEPTH}", daemon.uri("root@two")).out
    for words in ("absent", "local", "backing depth 2"):
        assert words in shown
    head = map_of(daemon.uri("root"), DEPTH)
    assert [run for run in head if run[2] == 1] == [(8 * KIB, 4 * KIB, 1), (900 * MIB, 64 * KIB, 1)]


def test_depths_are_those_of_qemu(daemon: Daemon, tmp_path: Path) -> None:
    """The same writes to an image with two backing files, served by qemu-nbd."""
    files = [str(tmp_path / f"{name}.qcow2") for name in ("one", "two", "head")]
    writes = [
        ["write -P 1 0 1M", "write -P 1 512M 4k"],
        ["write -P 2 64k 64k", "discard 512M 4k"],
        ["write -P 3 8k 4k", "write -P 3 900M 64k"],
    ]
    for index, (file, commands) in enumerate(zip(files, writes, strict=True)):
        backing = ["-b", files[index - 1], "-F", "qcow2"] if index else []
        made = tool("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k",
                    *backing, file, "1G")  # fmt: skip
        assert made.code == 0, made
        words = [word for command in commands for word in ("-c", command)]
        assert tool("qemu-io", "-f", "qcow2", *words, file).code == 0
    socket = tmp_path / "qemu.sock"
    with subprocess.Popen(
        ["qemu-nbd", "--read-only", "-A", "-f", "qcow2", "-k", str(socket), files[-1]]
    ) as server:
        wait_for_path(socket, server)
        theirs = map_of(f"nbd+unix:///?socket={socket}", DEPTH)
        server.wait(PATIENCE_S)  # it stops after its last client
    assert map_of(daemon.uri("root"), DEPTH) == theirs


def qemu_map(daemon: Daemon, export: str, context: str) -> list[tuple[int, int]]:
    """Ranges with bit 0 set, which QEMU takes for holes when it is told to look at a bitmap."""
    options = (
        f"driver=nbd,export={export},server.type=unix,"
        f"server.path={daemon.home}/nbd.sock,x-dirty-bitmap={context}"
    )
    told = tool("qemu-img", "map", "--output=json", "--image-opts", options)
    assert told.code == 0, told
    runs: list[dict[str, Any]] = json.loads(told.out)
    return [(one["start"], one["length"]) for one in runs if not one["data"]]


def test_qemu_img_sees_the_bitmap(daemon: Daemon) -> None:
    assert qemu_map(daemon, "root@two", BITMAP + "one") == SINCE_ONE
    assert qemu_map(daemon, "root", BITMAP + "two") == SINCE_TWO
    missing = tool(
        "qemu-img", "map", "--image-opts",
        f"driver=nbd,export=root,server.type=unix,server.path={daemon.home}/nbd.sock,"
        f"x-dirty-bitmap={BITMAP}none",
    )  # fmt: skip
    assert missing.code != 0
    assert "none" in missing.err


ALL_AT_ONCE = """
import nbd, sys
h = nbd.NBD()
h.set_opt_mode(True)
h.connect_uri(sys.argv[1])
listed = []
for query in ("qemu:", "qemu:dirty-bitmap:"):
    names = []
    h.clear_meta_contexts()
    h.add_meta_context(query)
    h.opt_list_meta_context(lambda name: names.append(name))
    listed.append(names)
assert listed == [
    ["qemu:allocation-depth", "qemu:dirty-bitmap:one", "qemu:dirty-bitmap:two"],
    ["qemu:dirty-bitmap:one", "qemu:dirty-bitmap:two"],
], listed
h.clear_meta_contexts()
wanted = ["qemu:dirty-bitmap:two", "base:allocation", "qemu:allocation-depth"]
for name in wanted:
    h.add_meta_context(name)
h.opt_go()
assert all(h.can_meta_context(name) for name in wanted)
found = {}
def take(context, offset, entries, error):
    found[context] = entries[:4]
h.block_status(1 << 20, 0, take)
assert found == {
    "base:allocation": [1 << 20, 0],
    "qemu:allocation-depth": [8192, 3, 4096, 1],
    "qemu:dirty-bitmap:two": [8192, 0, 4096, 1],
}, found
"""


def test_libnbd_asks_for_several_contexts_at_once(daemon: Daemon) -> None:
    asked = tool("/usr/bin/python3", "-c", ALL_AT_ONCE, daemon.uri("root"))
    assert asked.code == 0, asked


async def test_our_client_asks_in_64_bits(daemon: Daemon) -> None:
    options = ClientOptions(
        read_only=True, connections=1, reconnect_s=0, contexts=("base:allocation", BITMAP + "one")
    )
    async with open_nbd(daemon.uri("root@two"), options=options) as device:
        assert device.contexts == {"base:allocation", BITMAP + "one"}
        assert await device.status(BITMAP + "one", 0, GIB) == [
            (64 * KIB, 0), (64 * KIB, 1), (512 * MIB - 128 * KIB, 0), (4 * KIB, 1),
            (512 * MIB - 4 * KIB, 0),
        ]  # fmt: skip


def test_an_incremental_backup_by_its_bitmap(daemon: Daemon, tmp_path: Path) -> None:
    """Goal: what backup tools do: a full copy of one snapshot, later only what the bitmap says of
    the next; the patched copy is that next one."""
    coin = random.Random(1)
    daemon.json("volume", "create", "disk", "--size", "64M")
    image, next_image = tmp_path / "disk.img", tmp_path / "next.img"
    image.write_bytes(coin.randbytes(8 * MIB))
    assert tool("nbdcopy", "--flush", str(image), daemon.uri("disk")).code == 0
    daemon.json("snapshot", "create", "disk@full")
    assert tool("nbdcopy", daemon.uri("disk@full"), str(image)).code == 0
    commands = [
        f"write -P {coin.randrange(1, 256)} {coin.randrange(16000) * 4}k 4k" for _ in range(40)
    ]
    assert qemu_io(daemon.uri("disk"), *commands, "discard 2M 1M", "flush").code == 0
    daemon.json("snapshot", "create", "disk@next")
    assert tool("nbdcopy", daemon.uri("disk@next"), str(next_image)).code == 0
    runs = map_of(daemon.uri("disk@next"), BITMAP + "full")
    copied = 0
    with image.open("r+b") as backup, next_image.open("rb") as there:
        for offset, length, state in runs:
            if state:
                there.seek(offset)
                backup.seek(offset)
                backup.write(there.read(length))
                copied += length
    assert image.read_bytes() == next_image.read_bytes()
    assert copied <= 40 * 4 * KIB + MIB


def test_a_bitmap_goes_with_its_snapshot(daemon: Daemon) -> None:
    """A client that selected it is told so, and its other contexts go on."""
    daemon.json("volume", "create", "brief", "--size", "1M")
    daemon.json("snapshot", "create", "brief@gone")
    script = """
import nbd, subprocess, sys
h = nbd.NBD()
h.add_meta_context("qemu:dirty-bitmap:gone")
h.connect_uri(sys.argv[1])
h.block_status(4096, 0, lambda *_: 0)
print("ready", flush=True)
sys.stdin.readline()
try:
    h.block_status(4096, 0, lambda *_: 0)
except nbd.Error as error:
    print(error.errno, bytes(h.pread(4, 0)))
"""
    with subprocess.Popen(
        ["/usr/bin/python3", "-c", script, daemon.uri("brief")],
        cwd="/", stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as client:  # fmt: skip
        assert client.stdout is not None
        assert client.stdin is not None
        assert client.stdout.readline() == "ready\n"
        daemon.json("snapshot", "delete", "brief@gone", "--yes")
        client.stdin.write("\n")
        client.stdin.flush()
        assert client.stdout.readline() == "EIO b'\\x00\\x00\\x00\\x00'\n"
