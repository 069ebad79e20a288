"""Fixtures: the real control API serving a fake pool from a thread, and commands against it."""

import io
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
import trio

from admin.api.server import serve_api
from admin.cli import main
from admin.config.scrub import ScrubConfig
from admin.daemon.scheduler import Scheduler
from admin.daemon.scrubbing import Scrubbing
from admin.home import Home, find_home
from storage.catalogue.schedule import Schedule
from tests.unit.admin.fake_pool import (
    POOL,
    FakeClients,
    FakeMembers,
    FakePool,
    Served,
    client_info,
    daemon_info,
)
from tests.unit.admin.fake_scrubs import MemoryKeeper
from tests.unit.hang import HANG_S


@pytest.fixture
def home(tmp_path: Path) -> Home:
    found = find_home(tmp_path / "h")
    found.path.mkdir(mode=0o700)
    return found


CONFIGURED = {"nightly": Schedule(86400, {"daily": 7}, ("root", "db-*"))}

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command against the home of the test: exit status, stdout, stderr."""
    monkeypatch.setenv("CENOTE_HOME", str(home.path))
    monkeypatch.setattr(sys, "stdin", io.StringIO())

    def run(*words: str) -> tuple[int, str, str]:
        code = main.main(list(words))
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def served(home: Home) -> Iterator[Served]:
    pool = FakePool()
    clients = FakeClients(pool)
    members = FakeMembers()
    clients.connected.append(client_info(1, "a\x07b"))
    now = partial(datetime.now, UTC)
    scheduler = Scheduler(pool, CONFIGURED, now)
    ready = threading.Event()
    stops: list[Callable[[], None]] = []

    async def main() -> None:
        stop = trio.Event()
        token = trio.lowlevel.current_trio_token()
        stops.append(lambda: token.run_sync_soon(stop.set))
        async with trio.open_nursery() as background:
            await serve(stop, background)
            background.cancel_scope.cancel()

    async def serve(stop: trio.Event, background: trio.Nursery) -> None:
        async with trio.open_nursery() as nursery:
            daemon = daemon_info(home)
            scrubs = Scrubbing(POOL, pool.scrubber, ScrubConfig(), MemoryKeeper(), now)
            background.start_soon(scrubs.run)
            await nursery.start(
                serve_api, pool, daemon, clients, members, scheduler, scrubs, home, stop
            )
            ready.set()

    thread = threading.Thread(target=trio.run, args=(main,))
    thread.start()
    assert ready.wait(HANG_S)
    yield Served(pool, members, clients, home, scheduler)
    stops[0]()
    thread.join(HANG_S)
    assert not thread.is_alive()
