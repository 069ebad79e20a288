"""`cenote nbd info` and `cenote nbd copy` between files, our daemon, qemu-nbd and nbdkit."""

import json
import os
import pty
import random
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.system.daemon_process import CENOTE, Daemon
from tests.system.processes import (
    PATIENCE_S,
    Result,
    cenote,
    clean_environment,
    wait_for_path,
)

pytestmark = pytest.mark.system

MIB = 1 << 20
SIZE = 128 * MIB + 8192


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    config = tmp_path / "pool.toml"
    config.write_text('format = 1\n[[member]]\npath = "member.img"\nsize = "2G"\n')
    with Daemon(tmp_path / "home", str(config)) as daemon:
        yield daemon


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A sparse file with data at its ends, and some in odd places."""
    path = tmp_path / "source"
    rng = random.Random(1)
    with path.open("wb") as file:
        file.write(rng.randbytes(3 * MIB + 17))
        for offset in (64 * MIB - 5, 100 * MIB, 100 * MIB + 70_000, SIZE - 4096):
            file.seek(offset)
            file.write(rng.randbytes(4096))
    assert path.stat().st_size == SIZE
    return path


def run(tmp_path: Path, *words: str) -> Result:
    return cenote(tmp_path / "home", "nbd", *words)


def copied(tmp_path: Path, *words: str) -> dict[str, object]:
    result = run(tmp_path, "copy", *words, "--json")
    assert result.code == 0, result
    report: dict[str, object] = json.loads(result.out)
    return report


@contextmanager
def server(tmp_path: Path, *words: str) -> Iterator[str]:
    """Run nbdkit or qemu-nbd on a Unix socket; yield the URI."""
    path = tmp_path / f"{words[0]}.sock"
    sock = ["-U" if words[0] == "nbdkit" else "-k", str(path)]
    fore = ["-f"] if words[0] == "nbdkit" else []
    with subprocess.Popen(
        [words[0], *fore, *sock, *words[1:]], stderr=subprocess.DEVNULL, cwd=tmp_path
    ) as process:
        try:
            wait_for_path(path, process)
            yield f"nbd+unix:///?socket={path}"
        finally:
            process.kill()


def same(one: Path, two: Path) -> bool:
    return subprocess.run(["cmp", str(one), str(two)], check=False).returncode == 0


@pytest.mark.parametrize("size", ["64K", "256K", "32M"])
def test_there_and_back(daemon: Daemon, source: Path, tmp_path: Path, size: str) -> None:
    daemon.json("volume", "create", "root", "--size", str(SIZE))
    there = copied(tmp_path, str(source), daemon.uri("root"), "--verify", "--request-size", size)
    assert (there["size_bytes"], there["verified"], there["zeroed_bytes"]) == (SIZE, True, 0)
    back = tmp_path / "back"
    told = copied(tmp_path, daemon.uri("root"), str(back), "--verify", "--connections", "2")
    assert told["copied_bytes"] == there["copied_bytes"]
    assert same(source, back)
    assert back.stat().st_blocks * 512 < 5 * MIB, "the copy is not sparse"
    info = json.loads(run(tmp_path, "info", daemon.uri("root"), "--map", "--json").out)
    (export,) = info["exports"]
    assert export["size_bytes"] == SIZE
    assert export["map"]["data_bytes"] + export["map"]["hole_bytes"] == SIZE
    assert 3 * MIB < export["map"]["data_bytes"] < 5 * MIB
    assert {"flush", "write-zeroes"} <= set(export["flags"])
    assert export["contexts"] == ["base:allocation", "qemu:allocation-depth"]


def test_zeroes_replace_what_was_there(daemon: Daemon, source: Path, tmp_path: Path) -> None:
    daemon.json("volume", "create", "root", "--size", "150M")
    full = tmp_path / "full"
    full.write_bytes(b"\xff" * (150 * MIB))
    copied(tmp_path, str(full), daemon.uri("root"))
    there = copied(tmp_path, str(source), daemon.uri("root"), "--verify")
    assert there["verified"] is True
    back = tmp_path / "back"
    copied(tmp_path, daemon.uri("root"), str(back))
    with back.open("rb") as file:
        file.seek(SIZE)
        assert file.read() == b"\xff" * (150 * MIB - SIZE), "beyond the source"
    os.truncate(back, SIZE)
    assert same(source, back)


@pytest.mark.parametrize(
    "words",
    [
        ("qemu-nbd", "-t", "-f", "raw", "-e", "8", "--allocation-depth", "target"),
        ("nbdkit", "file", "target"),
        ("nbdkit", "--filter=nozero", "--filter=noextents", "file", "target"),
        ("nbdkit", "--filter=blocksize-policy", "file", "target", "blocksize-minimum=4096",
         "blocksize-preferred=4096", "blocksize-maximum=65536", "blocksize-error-policy=error"),
    ],
    ids=["qemu-nbd", "nbdkit", "plain", "blocks"],
)  # fmt: skip
def test_other_servers(source: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    target, back = tmp_path / "target", tmp_path / "back"
    with target.open("wb") as file:
        file.write(b"\xee" * (70 * MIB))
        file.truncate(SIZE)
    with server(tmp_path, *words) as uri:
        there = copied(tmp_path, str(source), uri, "--verify")
        assert there["verified"] is True
        copied(tmp_path, uri, str(back), "--verify")
    assert same(source, target)
    assert same(source, back)


def test_files_to_files(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    copied(tmp_path, str(source), str(target), "--verify")
    assert same(source, target)
    refused = run(tmp_path, "copy", str(source), str(target))
    assert refused.code == 7
    assert "--yes" in refused.err
    with target.open("r+b") as file:
        file.write(b"other")
    copied(tmp_path, str(source), str(target), "--verify", "--yes")
    assert same(source, target)
    empty = tmp_path / "empty"
    empty.touch()
    copied(tmp_path, str(source), str(empty))
    assert same(source, empty)


def test_a_destination_that_forgets_is_found_out(source: Path, tmp_path: Path) -> None:
    with server(tmp_path, "nbdkit", "null", "300M") as uri:
        result = run(tmp_path, "copy", str(source), uri, "--verify", "--json")
        assert result.code == 1, result
        report = json.loads(result.out)
        assert report["verified"] is False
        assert report["mismatches"][0] == 0
        said = run(tmp_path, "copy", str(source), uri, "--verify", "-q")
        assert "the copy differs from what was read, near these offsets: 0, " in said.out


def test_a_source_that_fails_leaves_no_file(tmp_path: Path) -> None:
    words = ("nbdkit", "--filter=error", "pattern", "64M", "error=EIO", "error-pread-rate=5%")
    with server(tmp_path, *words) as uri:
        result = run(tmp_path, "copy", uri, str(tmp_path / "target"))
    assert result.code == 10, result
    assert "server says EIO: command=READ offset=" in result.err
    assert not (tmp_path / "target").exists()


def test_an_interrupted_copy_leaves_no_file(tmp_path: Path) -> None:
    """Goal: Ctrl-C ends a copy, without a traceback and without half a file."""
    target = tmp_path / "target"
    words = ("nbdkit", "--filter=delay", "pattern", "64M", "rdelay=3600")
    with (
        server(tmp_path, *words) as uri,
        subprocess.Popen(
            # A shell lets what it starts in the background ignore SIGINT; that would be inherited.
            ["env", "--default-signal=INT", *CENOTE, "nbd", "copy", uri, str(target)],
            env=clean_environment(),
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        wait_for_path(target, process)
        process.send_signal(signal.SIGINT)
        try:
            _, said = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
    assert process.returncode != 0
    assert "Traceback" not in said
    assert not target.exists()


def test_mistakes_are_named_before_anything_is_written(
    daemon: Daemon, source: Path, tmp_path: Path
) -> None:
    daemon.json("volume", "create", "small", "--size", "64M")
    daemon.json("snapshot", "create", "small@one")
    small = daemon.uri("small")
    odd = tmp_path / "odd"
    odd.write_bytes(b"x" * 5000)
    with server(
        tmp_path, "nbdkit", "--filter=blocksize-policy", "null", "64M", "blocksize-minimum=4096",
        "blocksize-preferred=4096", "blocksize-error-policy=error",
    ) as blocks:  # fmt: skip
        for words, code, said in (
            ((str(source), small), 2, "too small, nothing was written"),
            ((str(odd), blocks), 2, "does not end with a block of 4096 bytes"),
            ((str(odd), str(odd)), 2, "source and destination are the same"),
            ((small, small), 2, "source and destination are the same"),
            ((str(odd), str(tmp_path / "no" / "file")), 2, "no such directory"),
            ((str(tmp_path / "none"), small), 10, "No such file"),
            ((small, daemon.uri("small@one")), 13, "export is read-only"),
            ((daemon.uri("none"), str(tmp_path / "x")), 40, "no such export: name='none'"),
            ((str(odd), "http://localhost/x"), 40, "not the scheme of an NBD URI"),
            ((str(odd), "nbd://127.0.0.1:1/x"), 40, "server is not reached"),
            ((str(odd), small, "--request-size", "100K"), 2, "expected a power of two"),
            ((str(odd), small, "--request-size", "64M"), 2, "from 64K to 32M"),
            ((str(odd), small, "--requests", "0"), 2, "--requests"),
        ):
            result = run(tmp_path, "copy", *words)
            assert (result.code, result.out) == (code, ""), result
            assert said in result.err
            assert result.err.count("\n") == 1
    assert not (tmp_path / "x").exists()
    exports = daemon.json("client", "list", "--exports")
    assert [(one["name"], one["written_bytes"]) for one in exports] == [
        ("small", 0),
        ("small@one", 0),
    ]


def test_info_of_all_and_of_none(daemon: Daemon, tmp_path: Path) -> None:
    for name in ("one", "two"):
        daemon.json("volume", "create", name, "--size", "64M")
    daemon.json("snapshot", "create", "two@then")
    told = run(tmp_path, "info", daemon.uri(""), "--map")
    assert told.code == 0, told
    assert [line for line in told.out.splitlines() if line.startswith("export")] == [
        "export    one",
        "export    two",
        "export    two@then",
    ]
    assert "  size      64 MiB (67108864), read-only" in told.out
    assert "  map       0 B data, 0 B zeroes, 64 MiB holes, 1 extent" in told.out
    none = run(tmp_path, "info", daemon.uri("none"), "--json")
    assert none.code == 40
    assert json.loads(none.err)["error"] == "ServerError"


def test_a_terminal_sees_progress(source: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    words = [*CENOTE, "nbd", "copy", str(source)]
    try:
        for target, quiet in (("loud", []), ("quiet", ["--quiet"])):
            subprocess.run(
                [*words, str(tmp_path / target), "--verify", *quiet],
                env=clean_environment(TERM="xterm"),
                stderr=theirs,
                stdout=subprocess.DEVNULL,
                check=True,
                timeout=PATIENCE_S,
            )
            os.write(theirs, b"end")
            seen = b""
            while not seen.endswith(b"end"):
                seen += os.read(ours, 1 << 16)
            assert (b"verifying" in seen, b"100%" in seen) == (not quiet, not quiet)
    finally:
        os.close(ours)
        os.close(theirs)
