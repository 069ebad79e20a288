"""Commands about space and members, against the real API over a fake pool."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from admin.cli import main
from admin.fullness import Fullness, step_of, warning_of
from admin.home import Home
from tests.unit.admin.fake_pool import POOL, FakePool, Served

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("CENOTE_HOME", str(home.path))
    monkeypatch.setattr(sys, "stdin", io.StringIO())

    def run(*words: str) -> tuple[int, str, str]:
        code = main.main(list(words))
        return code, *capsys.readouterr()

    return run


def cells(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_the_space_of_the_pool(served: Served, run: Run) -> None:
    code, out, _ = run("pool", "df")
    assert code == 0
    lines = cells(out)
    assert out.splitlines()[0] == "as of commit 7, 2 commits since"
    rows = {line[0]: line[1:] for line in lines[2:] if line}
    assert rows["data"] == ["1", "MiB", "compressed", "from", "3", "MiB"]
    assert rows["free"][:6] == ["1", "GiB", "64", "MiB", "in", "reserve,"]
    assert rows["free"][6:] == ["1", "MiB", "promised"]
    assert " ".join(rows["/m"]) == "left 8 GiB 96 MiB 32 MiB 1 GiB 64 MiB 1 MiB"
    found = json.loads(run("pool", "df", "--json", "--now")[1])
    assert found["unique_bytes"] + found["shared_bytes"] + found["deleted_bytes"] == 1 << 20
    assert found["members"][0]["uuid"] == str(POOL)
    assert served.pool.calls == [("checkpoint",)]


def test_the_space_of_volumes(served: Served, run: Run) -> None:
    assert "no volumes" in run("volume", "df")[1]
    run("volume", "create", "root", "--size", "1G")
    run("snapshot", "create", "root@one")
    run("volume", "create", "other", "--size", "1G")
    assert run("volume", "set", "root", "--reserve", "10G", "--cap", "50G")[0] == 0
    lines = run("volume", "df")[1].splitlines()
    assert lines[0] == "as of commit 7"
    assert lines[1].split()[:3] == ["volume", "size", "mapped"]
    assert [line.split()[0] for line in lines[2:]] == ["root", "root@one", "other"]
    assert lines[2].split()[-4:] == ["10", "GiB", "50", "GiB"]
    assert lines[3].split()[-2:] == ["-", "-"]
    found = json.loads(run("volume", "df", "root", "--json")[1])
    assert [line["name"] for line in found] == ["root", "root@one"]
    assert (found[0]["reserve_bytes"], found[0]["cap_bytes"]) == (10 << 30, 50 << 30)
    assert "cap_bytes" not in found[1]
    assert run("volume", "df", "nothing")[0] == 31
    assert run("volume", "df", "root", "--now")[0] == 0
    assert ("checkpoint",) in served.pool.calls


def test_reservations_and_caps_are_sizes(served: Served, run: Run) -> None:
    run("volume", "create", "root", "--size", "1G")
    code, _, err = run("volume", "set", "root", "--cap", "5GB")
    assert (code, err.startswith("cenote: --cap: ambiguous")) == (2, True)
    assert run("volume", "set", "root", "--reserve", "0", "--cap", "1G")[0] == 0
    [call] = [call for call in served.pool.calls if call[0] == "note"]
    assert call[2] == str({"space": {"reserve_bytes": 0, "cap_bytes": 1 << 30}})


def test_members_are_added_grown_and_listed(served: Served, run: Run, tmp_path: Path) -> None:
    new = tmp_path / "new.img"
    code, out, _ = run("member", "add", str(new), "--size", "8G", "--host", "shelf")
    assert (code, out) == (0, f"added member {new}, 8 GiB, host shelf, {POOL}\n")
    assert json.loads(run("member", "grow", str(POOL), "--json")[1])["size_bytes"] == 1 << 35
    assert run("member", "grow", str(new), "--size", "16G")[0] == 0
    assert served.members.calls == [
        ("add", str(new), 8 << 30, "shelf", False),
        ("grow", str(POOL), None),
        ("grow", str(new), 16 << 30),
    ]
    lines = cells(run("member", "list")[1])
    assert " ".join(lines[0]) == "member host state size free errors repaired uuid"
    assert lines[1][-3:] == ["3", "3", str(POOL)]
    assert json.loads(run("member", "list", "--json")[1])[0]["slots_free"] == 128


def test_a_device_with_data_needs_force_and_yes(served: Served, run: Run) -> None:
    code, _, err = run("member", "add", "/disks/data")
    assert (code, "--force" in err) == (8, True)
    code, _, err = run("member", "add", "/disks/data", "--force")
    assert (code, "--yes" in err) == (7, True)
    assert run("member", "add", "/disks/data", "--force", "--yes")[0] == 0
    assert served.members.calls[-1] == ("add", "/disks/data", None, "local", True)


def test_sizes_of_members_are_checked(served: Served, run: Run) -> None:
    assert run("member", "add", "/x", "--size", "8GB")[0] == 2
    assert run("member", "grow", "/x", "--size", "lots")[0] == 2
    assert served.members.calls == []


def test_status_of_a_full_pool_warns_and_advises(served: Served, run: Run) -> None:
    assert "warning" not in run("pool", "status")[1]
    served.pool.free_bytes = (1 << 33) // 12
    out = run("pool", "status")[1]
    assert "warning the pool is 91 % full" in out
    assert "cenote member add" in out
    found = json.loads(run("pool", "status", "--json")[1])
    assert found["used_percent"] == 91
    assert found["warning"].startswith("the pool is 91 % full")
    served.pool.free_bytes = 0
    assert "warning the pool is full: writers get ENOSPC" in run("pool", "status")[1]


def test_each_step_of_use_is_announced_once() -> None:
    fullness = Fullness()
    used = [79, 80, 81, 79, 82, 90, 96, 94, 96, 91, 95, 87, 90, 77, 80]
    passed = [percent for percent in used if fullness.passed(percent)]
    assert passed == [80, 90, 96, 95, 90, 80]
    assert [step_of(percent) for percent in (0, 79, 80, 94, 100)] == [0, 0, 80, 90, 95]


def test_promised_space_counts_as_used() -> None:
    pool = FakePool()
    pool.free_bytes = (1 << 33) // 2
    pool.promised_bytes = (1 << 33) // 2
    assert pool.info().used_percent == 100
    assert "full: writers get ENOSPC" in (warning_of(pool.info()) or "")
    pool.promised_bytes = 0
    assert pool.info().used_percent == 50
    assert warning_of(pool.info()) is None
