"""The command line against the real API over a fake pool."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from admin import __version__
from admin.cli.commands.common import program
from admin.cli.exit_codes import exit_codes
from admin.home import Home, hold
from tests.unit.admin.conftest import Run
from tests.unit.admin.fake_pool import Served
from tests.unit.hang import HANG_S


def test_volumes_and_snapshots_from_creation_to_deletion(served: Served, run: Run) -> None:
    uri = f"nbd+unix:///root?socket={served.home.nbd_socket}"
    assert run("volume", "list") == (
        0,
        "no volumes; make one: cenote volume create NAME --size 20G\n",
        "",
    )
    assert run("volume", "create", "root", "--size", "20G") == (
        0,
        f"created volume root, 20 GiB, {uri}\n",
        "",
    )
    assert run("snapshot", "create", "root@clean")[:2] == (0, "created snapshot root@clean\n")
    assert run("clone", "root@clean", "test")[0] == 0
    _, out, _ = run("volume", "list")
    assert [line.split()[:6] for line in out.splitlines()] == [
        ["volume", "size", "origin", "snapshots", "clients", "created"],
        ["root", "20", "GiB", "-", "1", "0"],
        ["test", "20", "GiB", "root@clean", "0", "0"],
    ]
    assert "root@clean" in run("snapshot", "list", "root")[1]
    assert run("snapshot", "list", "test")[1] == "no snapshots\n"
    assert run("volume", "resize", "test", "--size", "40G")[0] == 0
    assert run("snapshot", "rollback", "root@clean", "--yes")[0] == 0
    assert run("snapshot", "delete", "root@clean", "-y")[1] == "deleted snapshot root@clean\n"
    assert run("volume", "delete", "root", "--yes")[1] == "deleted volume root\n"
    assert served.pool.calls == [("rollback", "root", "clean"), ("delete_volume", "root")]


def test_clients_are_listed_and_disconnected(served: Served, run: Run) -> None:
    run("volume", "create", "root", "--size", "1G")
    served.clients.connect(7, "root")
    served.clients.connect(8, "root")
    lines = run("client", "list")[1].splitlines()
    head = "id client user certificate tls export requests read written errors since"
    assert " ".join(lines[0].split()) == head
    rows = [line.split() for line in lines]
    assert rows[2][:6] == ["7", "unix:pid=7", "1000", "-", "no", "root"]
    listed = json.loads(run("client", "list", "--json")[1])
    assert [(one["number"], one["export"]) for one in listed][1:] == [(7, "root"), (8, "root")]
    assert run("client", "list", "--exports")[1].splitlines()[2].split()[:3] == ["root", "1", "5"]
    assert run("client", "disconnect", "7") == (
        0,
        "disconnected 1 client\n  7  unix:pid=7 uid=1000, root\n",
        "",
    )
    gone = json.loads(run("client", "disconnect", "--export", "root", "--json")[1])
    assert [one["number"] for one in gone["disconnected"]] == [8]
    assert run("client", "disconnect", "--all")[1].startswith("disconnected 1 client\n  1  unix")
    assert run("client", "disconnect", "--all")[:2] == (0, "disconnected 0 clients\n")
    assert run("client", "list")[1] == "no clients\n"
    assert run("client", "list", "--exports")[1] == "no export had a client yet\n"


def test_a_refusal_names_the_clients_of_a_volume(served: Served, run: Run) -> None:
    run("volume", "create", "root", "--size", "1G")
    run("snapshot", "create", "root@s")
    served.clients.connect(7, "root")
    code, _, err = run("snapshot", "rollback", "root@s", "--yes")
    assert code == 33
    assert err == (
        "cenote: volume root is in use by client 7 (unix:pid=7 uid=1000); stop it, disconnect it "
        "(cenote client disconnect --export root), or repeat with --disconnect\n"
    )
    assert run("snapshot", "rollback", "root@s", "--yes", "--disconnect")[0] == 0
    for number in range(10, 15):
        served.clients.connect(number, "root@s")
    code, _, err = run("snapshot", "delete", "root@s", "--yes")
    assert code == 33
    assert "client 10 (unix:pid=10 uid=1000), 11 (" in err
    assert " and 2 more; stop" in err
    code, _, err = run("volume", "delete", "root", "--snapshots", "--yes")
    assert code == 33
    assert "(cenote client disconnect --export root@s)" in err
    assert run("volume", "delete", "root", "--snapshots", "--yes", "--disconnect")[0] == 0
    assert served.pool.calls == [("rollback", "root", "s"), ("delete_volume", "root")]


def test_resizing_names_clients_that_see_the_old_size(served: Served, run: Run) -> None:
    run("volume", "create", "root", "--size", "1G")
    served.clients.connect(7, "root", 1 << 30)
    code, out, _ = run("volume", "resize", "root", "--size", "2G")
    assert code == 0
    assert out.splitlines()[0].startswith("resized volume root, 2 GiB, nbd+unix:///root?")
    assert "until they connect anew" in out.splitlines()[1]
    assert out.splitlines()[2:] == ["  7  unix:pid=7 uid=1000, sees 1 GiB"]
    resized = json.loads(run("volume", "resize", "root", "--size", "3G", "--json")[1])
    assert [one["number"] for one in resized["stale_clients"]] == [7]
    assert json.loads(run("client", "disconnect", "7", "--json")[1])["disconnected"]
    assert len(run("volume", "resize", "root", "--size", "4G")[1].splitlines()) == 1


def test_results_and_errors_as_json(served: Served, run: Run) -> None:
    _, out, err = run("volume", "create", "root", "--size", "20G", "--json")
    made = json.loads(out)
    assert (made["name"], made["size_bytes"], err) == ("root", 20 << 30, "")
    assert made["uri"].startswith("nbd+unix:///root?")
    assert [volume["name"] for volume in json.loads(run("--json", "volume", "list")[1])] == ["root"]
    pool = json.loads(run("pool", "status", "--json")[1])
    assert (pool["health"], pool["members"][0]["state"]) == ("ok", "in sync")
    assert pool["daemon"]["process"] == 42
    deleted = json.loads(run("volume", "delete", "root", "-y", "--json")[1])
    assert deleted == {"kind": "volume", "deleted": "root"}
    code, out, err = run("volume", "delete", "root", "-y", "--json")
    assert (code, out) == (31, "")
    assert json.loads(err) == {
        "error": "NotFoundError",
        "message": "no such volume: root",
        "errno": 2,
        "exit_code": 31,
    }


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["volume", "delete", "none", "--yes"], 31, "no such volume: none"),
        (["volume", "delete", "root"], 7, "repeat with --yes"),
        (["volume", "delete", "kept", "--yes"], 33, "kept has snapshots (1); delete them first"),
        (["volume", "delete", "kept", "--yes", "--disconnect"], 33, "with it: --snapshots"),
        (["snapshot", "rollback", "kept@no", "--yes", "--disconnect"], 31, "has no snapshot 'no'"),
        (["snapshot", "rollback", "kept@no"], 31, "has no snapshot 'no'"),
        (["snapshot", "delete", "kept@no"], 31, "has no snapshot 'no'"),
        (["snapshot", "delete", "none@s"], 31, "no such volume: none"),
        (["client", "disconnect"], 2, "say whom to disconnect"),
        (["client", "disconnect", "1", "--all"], 2, "say whom to disconnect"),
        (["client", "disconnect", "1", "9"], 31, "no client has the number 9; see: cenote client"),
        (["snapshot", "delete", "kept@s"], 7, "repeat with --yes"),
        (["snapshot", "rollback", "kept@s"], 7, "repeat with --yes"),
        (["volume", "create", "root", "--size", "1G"], 32, "volume exists: root"),
        (["volume", "create", "x", "--size", "0"], 2, "--size: size must be more than zero"),
        (["volume", "create", "x", "--size", "-5G"], 2, "--size: size must be more than zero"),
        (["volume", "create", "x", "--size", "5000"], 2, "the nearest is 4K or 8K"),
        (["volume", "create", "x"], 2, "--size"),
        (["volume", "create", "a/b", "--size", "1G"], 30, "use letters, digits"),
        (["volume", "explode"], 2, "No such command 'explode'"),
        (["volume", "list", "--colour"], 2, "--colour"),
        (["snapshot", "create", "root"], 30, "write VOLUME@SNAPSHOT"),
        (["clone", "root@none", "new"], 31, "no such snapshot: root@none"),
        (["help", "cooking"], 2, "no such topic: 'cooking'; known: exit-codes"),
    ],
)
def test_mistakes_have_an_exit_status_and_one_line(
    served: Served, run: Run, words: list[str], code: int, message: str
) -> None:
    run("volume", "create", "root", "--size", "1G")
    run("volume", "create", "kept", "--size", "1G")
    run("snapshot", "create", "kept@s")
    got, out, err = run(*words)
    assert (got, out) == (code, "")
    assert err.startswith("cenote: ")
    assert err.count("\n") == 1
    assert message in err
    got, out, err = run(*words, "--json")
    assert (got, out) == (code, "")
    assert json.loads(err)["exit_code"] == code
    assert served.pool.calls == []


def test_no_daemon(run: Run, home: Home, tmp_path: Path) -> None:
    code, out, err = run("volume", "list")
    assert (code, out) == (3, "")
    assert err == f"cenote: no daemon is running for {home.path}; start it: cenote serve\n"
    elsewhere = tmp_path / "else where"
    for words in (["--home", str(elsewhere), "pool", "status"], ["pool", "status", "--home"]):
        words = words if words[0] == "--home" else [*words, str(elsewhere)]
        code, _, err = run(*words)
        assert (code, err.split("start it: ")[1]) == (3, f"cenote serve --home '{elsewhere}'\n")


def test_check_leaves_a_served_pool_alone(run: Run, home: Home) -> None:
    with hold(home):
        code, _, err = run("check")
    assert code == 5
    assert "stop it first" in err


def test_control_characters_and_markup_are_printed_as_text(served: Served, run: Run) -> None:
    _, out, _ = run("pool", "status")
    assert r"/dev/\x1b[31mred" in out
    assert "[bold]left" in out
    assert r"a\x07b" in run("client", "list")[1]
    served.pool.raises = ValueError("\x1b[31m\n[bold]")
    _, _, err = run("volume", "create", "a", "--size", "1G")
    assert "\x1b" not in err
    assert "[bold]" in err


def test_a_table_in_a_pipe_is_not_cut(
    served: Served, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    name = "x" * 127
    run("volume", "create", name, "--size", "1G")
    assert name in run("volume", "list")[1]


@pytest.mark.parametrize("words", [["version"], ["version", "--json"], ["volume", "list"]])
def test_a_pipe_without_a_reader_ends_a_command_quietly(
    served: Served, run: Run, words: list[str]
) -> None:
    """Not with 1, which means damage; and without a complaint of Python."""
    run("volume", "create", "root", "--size", "1G")
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "admin", *words],
        stdout=writer, stderr=subprocess.PIPE, cwd=Path(__file__).parents[4],
        env={**os.environ, "CENOTE_HOME": str(served.home.path)}, check=False,
    )  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + 13, b"")


def test_version_matches_the_project(run: Run) -> None:
    project = (Path(__file__).parents[4] / "pyproject.toml").read_text()
    assert f'\nversion = "{__version__}"\n' in project
    assert run("version")[1].startswith(f"cenote {__version__} (Python 3.")
    assert json.loads(run("version", "--json")[1])["version"] == __version__


def test_every_exit_status_is_explained_once(run: Run) -> None:
    codes = exit_codes()
    assert {0, 1, 2, 3, 4, 5, 10, 20, 31} <= set(codes)
    assert all(meaning for _, meaning in codes.values())
    _, out, _ = run("help", "exit-codes")
    assert len(out.splitlines()) == len(codes)
    listed = json.loads(run("help", "exit-codes", "--json")[1])
    assert [one["exit_code"] for one in listed] == sorted(codes)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["serve"],
        ["pool"],
        ["pool", "status"],
        ["volume"],
        ["volume", "create"],
        ["client", "list"],
        ["nbd", "info"],
        ["nbd", "copy"],
        ["client", "disconnect"],
        ["snapshot", "rollback"],
        ["snapshot", "list"],
        ["volume", "tree"],
        ["volume", "flatten"],
        ["schedule", "set"],
        ["schedule", "list"],
        ["schedule", "run"],
        ["clone"],
        ["send"],
        ["receive"],
        ["check"],
    ],
)
def test_help_has_examples(run: Run, words: list[str]) -> None:
    code, out, _ = run(*words, "--help")
    assert code == 0
    assert "Usage: cenote" in out
    if words not in (["pool"], ["volume"]):
        assert "Examples:" in out


def test_commands_start_without_the_libraries_of_the_daemon() -> None:
    """Goal: client commands answer at once.

    Method: run some that need no daemon and some that find none, and list the modules imported.
    """
    script = (
        "import sys; from admin.cli.main import main; main(sys.argv[1:]); "
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    slow = {"fastapi", "starlette", "hypercorn", "httpx", "numpy", "trio", "lz4", "rich", "tomllib"}
    for words in (["--help"], ["volume", "list"], ["nbd", "copy", "--help"], ["send", "--help"]):
        done = subprocess.run(
            [sys.executable, "-c", script, "--home", "/nonexistent", *words],
            cwd=Path(__file__).parents[4],
            capture_output=True,
            text=True,
            check=True,
        )
        loaded = set(done.stdout.splitlines()[-1].split())
        assert "typer" in loaded
        assert not loaded & slow


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("\n", 7), ("no\n", 7)])
def test_deleting_asks_on_a_terminal(served: Served, run: Run, answer: str, code: int) -> None:
    run("volume", "create", "root", "--size", "1G")
    run("snapshot", "create", "root@a")
    ours, theirs = pty.openpty()
    try:
        with subprocess.Popen(
            [sys.executable, "-m", "admin", "volume", "delete", "root", "--snapshots"],
            stdin=theirs,
            stderr=theirs,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[4],
            env={**os.environ, "CENOTE_HOME": str(served.home.path)},
        ) as process:
            question = b""
            while b"[y/N] " not in question:
                question += os.read(ours, 1024)
            os.write(ours, answer.encode())
            assert process.wait(HANG_S) == code
    finally:
        os.close(ours)
        os.close(theirs)
    assert b"Delete volume root, 1 GiB and its snapshots (1)?" in question
    assert served.pool.calls == ([("delete_volume", "root")] if code == 0 else [])


def test_renaming_properties_and_groups_of_snapshots(served: Served, run: Run) -> None:
    for name in ("a", "b"):
        assert run("volume", "create", name, "--size", "1G")[0] == 0
    assert run("snapshot", "create", "a@s", "b@s")[0] == 0
    assert {(one.volume, one.name) for one in served.pool.snapshots()} == {("a", "s"), ("b", "s")}
    assert "one name" in run("snapshot", "create", "a@x", "b@y")[2]
    assert run("snapshot", "rename", "a@s", "t")[1] == "renamed snapshot to a@t\n"
    assert run("clone", "a", "c")[0] == 0
    assert run("volume", "rename", "c", "d")[1].startswith("renamed volume to d, ")
    code, out, err = run("volume", "promote", "d")
    assert (code, err) == (0, "")
    assert out.startswith("promoted volume d, ")
    words = ["--description", "gold", "--label", "k=v", "--label", "x=", "--protect"]
    limits = ["--iops", "500", "--bandwidth", "8M", "--burst", "0"]
    assert run("volume", "set", "a", *words, *limits)[0] == 0
    assert run("snapshot", "set", "a@t", "--unprotect")[0] == 0
    assert "nothing to change" in run("volume", "set", "a")[2]
    assert "KEY=VALUE" in run("volume", "set", "a", "--label", "k")[2]
    assert run("volume", "resize", "a", "--size", "512M", "--shrink")[0] != 0, "it asks"
    assert run("volume", "resize", "a", "--size", "512M", "--shrink", "--yes")[0] == 0
    notes = {
        "description": "gold",
        "labels": {"k": "v", "x": ""},
        "protected": True,
        "limits": {"requests_per_s": 500, "bytes_per_s": 8 << 20, "burst_s": 0.0},
    }
    assert served.pool.calls == [
        ("promote", "d"),
        ("note", "a", str(notes)),
        ("note", "a@t", str({"protected": False})),
        ("shrink", "a"),
    ]


def test_suggested_commands_are_found_by_the_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They start with the path that was typed, unless `cenote` is in PATH."""
    monkeypatch.setattr("sys.argv", [".venv/bin/cenote", "serve"])
    monkeypatch.setenv("PATH", str(tmp_path))
    assert program() == ".venv/bin/cenote"
    (tmp_path / "cenote").touch(0o755)
    assert program() == "cenote"
    monkeypatch.setattr("sys.argv", ["/usr/lib/python3/pytest/__main__.py"])
    assert program() == "cenote"
