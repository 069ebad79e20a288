"""Snapshots between two real daemons: chains, pipes, kills, and who sets the pace."""

import json
import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.system.daemon_process import CENOTE, Daemon, qemu_io, tool
from tests.system.processes import PATIENCE_S, POLL_S, Result, clean_environment

pytestmark = pytest.mark.system

KIB, MIB = 1 << 10, 1 << 20
IDLE_LOOKS = 50


@contextmanager
def daemon(folder: Path, size: str = "4G") -> Iterator[Daemon]:
    folder.mkdir(exist_ok=True)
    config = folder / "pool.toml"
    if not config.exists():
        config.write_text(f'format = 1\n[[member]]\npath = "member.img"\nsize = "{size}"\n')
    with Daemon(folder / "home", str(config)) as running:
        yield running


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[Daemon, Daemon]]:
    with daemon(tmp_path / "a") as ours, daemon(tmp_path / "b") as theirs:
        yield ours, theirs


def command(daemon: Daemon, *words: str) -> list[str]:
    return [*CENOTE, "--home", str(daemon.home), *words]


def pipe(sender: list[str], receiver: list[str]) -> tuple[Result, Result]:
    """`sender | receiver`, as a shell runs it."""
    environment = clean_environment()
    with (
        subprocess.Popen(
            sender, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as first,
        subprocess.Popen(
            receiver, env=environment, stdin=first.stdout, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        ) as second,
    ):  # fmt: skip
        assert first.stdout is not None
        first.stdout.close()
        out, err = second.communicate(timeout=PATIENCE_S)
        assert first.stderr is not None
        said = first.stderr.read().decode()
        return Result(first.wait(PATIENCE_S), "", said), Result(second.returncode, out, err)


def random_file(path: Path, size: int, seed: int) -> Path:
    path.write_bytes(random.Random(seed).randbytes(size))
    return path


def fill(daemon: Daemon, name: str, file: Path) -> None:
    copied = tool("nbdcopy", "--flush", str(file), daemon.uri(name))
    assert copied.code == 0, copied


def assert_same(ours: Daemon, name: str, theirs: Daemon, other: str) -> None:
    compared = tool(
        "qemu-img", "compare", "-f", "raw", "-F", "raw", ours.uri(name), theirs.uri(other)
    )
    assert compared.code == 0, compared
    assert "Images are identical" in compared.out


def test_a_chain_between_two_daemons(two: tuple[Daemon, Daemon], tmp_path: Path) -> None:
    """Goal: a volume is replicated snapshot by snapshot, by the means that people have: a file, a
    pipe, and directly; always identical, and each stream as long as what changed.

    Method: QEMU writes, nbdcopy and qemu-img look. Snapshots in between are deleted on the way.
    """
    ours, theirs = two
    ours.json("volume", "create", "root", "--size", "256M")
    fill(ours, "root", random_file(tmp_path / "image", 40 * MIB, 1))
    ours.json("snapshot", "create", "root@one")
    stream = tmp_path / "one.stream"
    with stream.open("wb") as file:
        subprocess.run(
            command(ours, "send", "root@one"), env=clean_environment(), stdout=file, check=True
        )
    assert 40 * MIB < stream.stat().st_size < 40 * MIB + 100 * KIB
    with stream.open("rb") as file:
        received = subprocess.run(
            command(theirs, "receive", "copy", "--json"), env=clean_environment(), stdin=file,
            capture_output=True, check=True,
        )  # fmt: skip
    assert json.loads(received.stdout)["received"] == "copy@one"
    assert_same(ours, "root@one", theirs, "copy")

    assert qemu_io(
        ours.uri("root"), "write -P 7 100M 64k", "write -P 8 5M 4k", "discard 10M 1M", "flush"
    ).code == 0  # fmt: skip
    ours.json("snapshot", "create", "root@between")
    assert qemu_io(ours.uri("root"), "write -P 9 200M 8k", "flush").code == 0
    ours.json("snapshot", "create", "root@two")
    ours.json("snapshot", "delete", "root@between", "--yes")
    sent, got = pipe(
        command(ours, "send", "root@two", "--since", "root@one", "--json"),
        command(theirs, "receive", "copy", "--json"),
    )
    assert (sent.code, got.code) == (0, 0), (sent, got)
    told = json.loads(sent.err)
    assert (told["data_bytes"], told["zero_bytes"]) == (76 * KIB, MIB)
    assert told["stream_bytes"] < 2 * KIB  # patterns compress well
    assert json.loads(got.out)["stream_bytes"] == told["stream_bytes"]
    for name in ("one", "two"):
        assert_same(ours, f"root@{name}", theirs, f"copy@{name}")
    assert_same(ours, "root", theirs, "copy")

    # Directly, and the other way round: the copy is used, and sent back.
    changed = random_file(tmp_path / "changed", MIB, 2)
    fill(theirs, "copy", changed)
    theirs.json("snapshot", "create", "copy@three")
    back = theirs.json(
        "send", "copy@three", "--since", "copy@two", "--to", str(ours.home), "--as", "root"
    )
    assert back["received"] == "root@three"
    assert MIB <= back["stream_bytes"] < MIB + 10 * KIB
    assert_same(ours, "root", theirs, "copy@three")
    again = theirs.run("send", "copy@three", "--to", str(ours.home), "--as", "root")
    assert again.code == 32
    assert "root has this snapshot already, as root@three" in again.err


def test_a_missing_base_and_a_volume_in_use_are_said(two: tuple[Daemon, Daemon]) -> None:
    ours, theirs = two
    ours.json("volume", "create", "root", "--size", "1M")
    for name in ("one", "two"):
        ours.json("snapshot", "create", f"root@{name}")
    uuid = ours.json("snapshot", "list")[0]["uuid"]
    _, got = pipe(
        command(ours, "send", "root@two", "--since", "root@one"),
        command(theirs, "receive", "root", "--json"),
    )
    assert got.code == 35
    assert json.loads(got.err)["error"] == "BaseMissingError"
    assert f"the difference to root@one ({uuid})" in got.err
    assert theirs.json("volume", "list") == []
    assert theirs.run("receive", "root", "--token").code == 31
    for words, code in (
        (("send", "root@none"), 31),
        (("send", "root@one", "--since", "root@none"), 31),
        (("send", "root"), 30),
        (("send", "root@one", "--resume", "x"), 30),
        (("send", "root@one", "--as", "y"), 2),
        (("send", "root@one", "--to", str(ours.home.parent)), 3),
    ):
        assert ours.run(*words).code == code, words


def kill(daemon: Daemon) -> None:
    daemon.kill()
    daemon.process.returncode = 0  # killed as it should be


def feed(daemon: Daemon, stream: bytes) -> "subprocess.Popen[bytes]":
    """`cenote receive root` that has got so much, and waits for more."""
    receiving = subprocess.Popen(
        command(daemon, "receive", "root"),
        env=clean_environment(), stdin=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert receiving.stdin is not None
    receiving.stdin.write(stream)
    receiving.stdin.flush()
    return receiving


def send_bytes(daemon: Daemon, *words: str) -> bytes:
    return subprocess.run(
        command(daemon, "send", "root@one", *words),
        env=clean_environment(), stdout=subprocess.PIPE, check=True,
    ).stdout  # fmt: skip


def arrived(daemon: Daemon, at_least: int) -> tuple[int, str]:
    """Position and token, once so much has arrived."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        result = daemon.run("receive", "root", "--token", "--json")
        if result.code == 0:
            found = json.loads(result.out)
            if found["position_bytes"] >= at_least:
                return found["position_bytes"], found["token"]
        assert time.monotonic() < deadline, result
        time.sleep(POLL_S)


def test_receiving_survives_kills(tmp_path: Path) -> None:
    """Goal: whatever is killed on the way, the target is what it was, and receiving goes on from
    where it got, until it is whole.

    Method: 160 MiB that do not compress. Kill the receiving daemon, then the receiving command,
    then the sending daemon; at the end send directly.
    """
    size = 160 * MIB
    image = random_file(tmp_path / "image", size, 3)
    with daemon(tmp_path / "a") as ours:
        ours.json("volume", "create", "root", "--size", str(size))
        fill(ours, "root", image)
        ours.json("snapshot", "create", "root@one")
        stream = send_bytes(ours)
        with daemon(tmp_path / "b") as receiver:
            receiving = feed(receiver, stream[: 100 * MIB])
            first, _ = arrived(receiver, 64 * MIB)
            kill(receiver)
            # In the middle of a request, or between two.
            failed = receiving.communicate(timeout=PATIENCE_S)[1]
            assert b"does not answer" in failed or b"no daemon is running" in failed
            assert receiving.returncode == 3
        with daemon(tmp_path / "b") as receiver:
            assert receiver.json("snapshot", "list") == []
            assert tool("nbdinfo", receiver.uri("root+receiving")).code != 0
            said = receiver.run("volume", "list").out
            assert "root+receiving is not whole: root@one is being received, " in said
            position, token = arrived(receiver, first)
            rest = send_bytes(ours, "--resume", token)
            assert len(stream) - len(rest) > position - 200 * KIB
            receiving = feed(receiver, rest[: 30 * MIB])
            receiving.kill()
            receiving.communicate(timeout=PATIENCE_S)
            position, token = arrived(receiver, position + 28 * MIB)
            with subprocess.Popen(
                command(ours, "send", "root@one", "--resume", token),
                env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            ) as sending:  # fmt: skip
                assert sending.stdout is not None
                part = sending.stdout.read(MIB)
                kill(ours)
                part += sending.stdout.read()
                assert sending.wait(PATIENCE_S) == 3
                assert sending.stderr is not None
                assert b"ended the stream early" in sending.stderr.read()
            _, err = feed(receiver, part).communicate(timeout=PATIENCE_S)
            assert b"the stream ends early" in err
            assert b"go on with cenote send ... --resume 1." in err
            before, _ = arrived(receiver, position + MIB // 2)
            with daemon(tmp_path / "a") as again:
                told = again.json("send", "root@one", "--to", str(receiver.home))
                assert told["start_bytes"] == before
            assert [v["name"] for v in receiver.json("volume", "list")] == ["root"]
    with daemon(tmp_path / "b") as receiver:
        compared = tool("qemu-img", "compare", "-f", "raw", str(image), receiver.uri("root@one"))
        assert compared.code == 0, compared


def test_a_slow_reader_sets_the_pace(tmp_path: Path) -> None:
    """Goal: the daemon holds a few MiB of a stream that nobody reads, not all of it."""
    size = 96 * MIB
    with daemon(tmp_path / "a") as ours:
        ours.json("volume", "create", "root", "--size", str(size))
        fill(ours, "root", random_file(tmp_path / "image", size, 4))
        ours.json("snapshot", "create", "root@one")
        with subprocess.Popen(
            command(ours, "send", "root@one"),
            env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ) as sending:  # fmt: skip
            assert sending.stdout is not None
            assert sending.stdout.read(MIB)
            before = resident_bytes(ours)
            wait_until_idle(ours.process.pid, sending.pid)
            assert resident_bytes(ours) - before < 24 * MIB
            assert resident_bytes_of(sending.pid) < 120 * MIB
            # Its snapshot is in use, and it goes on once somebody reads.
            assert ours.run("snapshot", "delete", "root@one", "--yes").code == 33
            rest = len(sending.stdout.read())
            assert rest > size - 2 * MIB
            assert sending.wait(PATIENCE_S) == 0
        ours.json("snapshot", "delete", "root@one", "--yes")


def resident_bytes(daemon: Daemon) -> int:
    return resident_bytes_of(daemon.process.pid)


def resident_bytes_of(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no such process")


def wait_until_idle(*pids: int) -> None:
    """Wait until processes have used no time of a processor for so many looks in a row."""
    deadline = time.monotonic() + PATIENCE_S
    before, looks = 0, 0
    while looks < IDLE_LOOKS:
        assert time.monotonic() < deadline, "they are never idle"
        time.sleep(POLL_S)
        ticks = sum(map(processor_ticks, pids))
        before, looks = ticks, looks + 1 if ticks == before else 0


def processor_ticks(pid: int) -> int:
    """User's and system's time of a process, in hundredths of a second."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
