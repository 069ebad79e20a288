"""The home of a daemon: its path, its lock and the record of its pool."""

import os
import stat
from pathlib import Path
from uuid import UUID

import pytest

from admin.daemon.pool_record import MemberRecord, PoolRecord, read_record, write_record
from admin.errors import AlreadyRunningError, HomeError
from admin.home import Home, find_home, hold, holder


def test_how_the_home_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CENOTE_HOME", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert find_home().path == Path("/var/lib/cenote")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    assert find_home().path == Path("/home/me/.local/share/cenote")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert find_home().path == Path("/data/cenote")
    monkeypatch.setenv("CENOTE_HOME", "/chosen")
    assert find_home().path == Path("/chosen")
    monkeypatch.chdir(tmp_path)
    assert find_home(Path("here")).path == tmp_path / "here"


def test_a_path_that_no_socket_can_have_is_refused() -> None:
    longest = 107 - len("/control.sock")
    find_home(Path("/" + "x" * (longest - 1)))
    with pytest.raises(HomeError, match=r"too long.*bytes=108 max=107"):
        find_home(Path("/" + "x" * longest))


def test_one_daemon_at_a_time(tmp_path: Path) -> None:
    home = Home(tmp_path / "deep" / "home")
    assert holder(home) is None
    with hold(home):
        assert stat.S_IMODE(home.path.stat().st_mode) == 0o700
        assert holder(home) == str(os.getpid())
        with pytest.raises(AlreadyRunningError, match=f"process {os.getpid()}"), hold(home):
            pass
    assert holder(home) is None
    with hold(home):
        pass


def test_a_home_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HomeError, match="cannot use"), hold(Home(tmp_path / "file" / "home")):
        pass


def test_the_record_of_the_pool_is_read_as_written(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.pool_dir.mkdir()
    assert read_record(home) is None
    record = PoolRecord(UUID(int=1), "then", None, [MemberRecord(UUID(int=2), "/a")])
    write_record(home, record)
    assert read_record(home) == record
    (home.pool_dir / "pool.json").write_text("{}")
    with pytest.raises(HomeError, match="damaged"):
        read_record(home)
