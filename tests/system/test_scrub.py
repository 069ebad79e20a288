"""`cenote scrub` of a served pool whose member files rot: repaired from a copy, or told."""

import json
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.system.daemon_process import Daemon, qemu_io
from tests.system.processes import POLL_S, cenote

pytestmark = pytest.mark.system

MIB = 1 << 20
SEGMENT = 'segment = "1M"'
BLOCK = 4096


def config(directory: Path, copies: int, more: str = "") -> str:
    lines = ["format = 1", more, "[pool]", f"copies = {copies}", SEGMENT]
    for number in range(copies):
        lines += ["[[member]]", f'path = "m{number}.img"', 'size = "256M"', f'host = "h{number}"']
    path = directory / "pool.toml"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def write_noise(daemon: Daemon, directory: Path, mib: int = 8) -> bytes:
    """Fill the beginning of the volume root with what does not compress; returns it."""
    daemon.json("volume", "create", "root", "--size", "64M")
    daemon.json("snapshot", "create", "root@empty")
    noise = directory / "noise"
    noise.write_bytes(random.Random(mib).randbytes(mib * MIB))
    assert qemu_io(daemon.uri("root"), f"write -s {noise} 0 {mib}M", "flush").code == 0
    daemon.json("snapshot", "create", "root@full")
    daemon.json("pool", "df", "--now")
    return noise.read_bytes()


def rot(member: Path, *blocks: bytes) -> list[int]:
    """Flip a bit of each block, wherever the member has it; returns where."""
    content = member.read_bytes()
    offsets = [content.index(block) for block in blocks]
    with member.open("r+b") as file:
        for at, block in zip(offsets, blocks, strict=True):
            file.seek(at + 100)
            file.write(bytes([block[100] ^ 1]))
        os.fsync(file.fileno())
    return offsets


def block_of(noise: bytes, number: int) -> bytes:
    return noise[number * BLOCK : (number + 1) * BLOCK]


def test_rot_of_one_copy_is_repaired_while_clients_read(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with Daemon(home, config(tmp_path, 2)) as daemon:
        noise = write_noise(daemon, tmp_path)
        bad = [*range(0, 2000, 77)]
        members = [(tmp_path / "m0.img", bad[::2]), (tmp_path / "m1.img", bad[1::2])]
        rotten = [rot(path, *(block_of(noise, n) for n in ns)) for path, ns in members]
        result = daemon.run("scrub", "start", "--wait", "--rate", "unlimited", "--json")
        assert result.code == 0, result
        report = json.loads(result.out)["current"]
        assert report["state"] == "done"
        found = report["result"]
        assert found["found"] == found["repaired"] == len(bad)
        held = {(h["export"], h["offset"] // BLOCK) for f in found["findings"] for h in f["holds"]}
        assert held == {(e, number) for number in bad for e in ("root", "root@full")}
        for (path, numbers), offsets in zip(members, rotten, strict=True):
            content = path.read_bytes()
            for number, at in zip(numbers, offsets, strict=True):
                assert content[at : at + BLOCK] == block_of(noise, number)
        assert daemon.json("scrub", "start", "--wait", "--rate", "unlimited")["current"]["result"][
            "found"
        ] == 0  # fmt: skip
        status = daemon.run("scrub", "status")
        assert "found     0: repaired 0" in status.out
        assert f"before    done {report['ended']}, found {len(bad)}" in status.out
        infos = daemon.json("pool", "status")["members"]
        assert sum(member["repaired"] for member in infos) == len(bad)
    assert "scrub: data is damaged, repaired" in daemon.log
    assert "scrub is done: " in daemon.log
    assert cenote(home, "check").code == 0


def test_rot_of_the_only_copy_is_told_and_never_read(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with Daemon(home, config(tmp_path, 1)) as daemon:
        noise = write_noise(daemon, tmp_path)
        rot(tmp_path / "m0.img", block_of(noise, 1000))
        result = daemon.run("scrub", "start", "--wait", "--rate", "unlimited")
        assert result.code == 1, result
        assert "lost 1" in result.out
        range_text = f"root {1000 * BLOCK}+{BLOCK}, root@full {1000 * BLOCK}+{BLOCK}"
        assert f"lost: data of {range_text} on " in result.out
        assert daemon.run("scrub", "status", "--json").code == 1
        read = qemu_io(daemon.uri("root"), f"read {1000 * BLOCK} {BLOCK}")
        assert "Input/output error" in read.out + read.err
        assert qemu_io(daemon.uri("root"), f"read {1001 * BLOCK} {BLOCK}").code == 0
        # Written anew, it is good: the place that is lost is nobody's after the snapshot is gone.
        assert qemu_io(daemon.uri("root"), f"write -P 7 {1000 * BLOCK} {BLOCK}", "flush").code == 0
        assert daemon.run("snapshot", "delete", "root@full", "--yes").code == 0
        daemon.json("pool", "df", "--now")
        result = daemon.run("scrub", "start", "--wait", "--rate", "unlimited")
        assert result.code == 0, result


def test_it_goes_on_after_a_kill_and_keeps_its_report(tmp_path: Path) -> None:
    home = tmp_path / "home"
    where = config(tmp_path, 1, '[scrub]\nevery = "never"\nrate = "2M"')
    with Daemon(home, where) as daemon:
        noise = write_noise(daemon, tmp_path, mib=24)
        rot(tmp_path / "m0.img", block_of(noise, 0))
        before = daemon.json("scrub", "start")
        assert before["rate_bytes"] == 2 * MIB
        while (now := daemon_result(daemon))["lost"] == 0 or now["segment"] < 3:
            time.sleep(POLL_S)
        daemon.json("volume", "create", "more", "--size", "1M")
    daemon = Daemon(home, where)  # after a stop
    with daemon_until_killed(daemon):
        assert daemon.run("scrub", "status", "--json").code == 1
        again = daemon_result(daemon)
        assert (again["lost"], again["segment"] >= 3) == (1, True)
        daemon.run("scrub", "start", "--rate", "unlimited", "--wait")
        done = daemon_result(daemon)
        assert done["lost"] == 1
        assert done["read_bytes"] < 2 * 24 * MIB
    with Daemon(home, where) as daemon:
        assert daemon_result(daemon) == done


@contextmanager
def daemon_until_killed(daemon: Daemon) -> Iterator[None]:
    daemon.__enter__()
    try:
        yield
    finally:
        daemon.kill()


def daemon_result(daemon: Daemon) -> dict[str, int]:
    result: dict[str, int] = json.loads(daemon.run("scrub", "status", "--json").out)["current"][
        "result"
    ]
    return result
