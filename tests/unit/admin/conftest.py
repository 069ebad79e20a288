"""The real control API, serving a fake pool from a thread."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from admin.api_server import serve_api
from admin.home import Home, find_home
from admin.status import ClientInfo
from tests.unit.admin.fake_pool import CREATED, FakePool, Served, daemon_info


@pytest.fixture
def home(tmp_path: Path) -> Home:
    found = find_home(tmp_path / "h")
    found.path.mkdir(mode=0o700)
    return found


@pytest.fixture
def served(home: Home) -> Iterator[Served]:
    pool = FakePool()
    ready = threading.Event()
    stops: list[Callable[[], None]] = []

    async def main() -> None:
        stop = trio.Event()
        token = trio.lowlevel.current_trio_token()
        stops.append(lambda: token.run_sync_soon(stop.set))
        clients = [ClientInfo("unix:pid=1", "a\x07b", CREATED, 1, 2, 3, 4)]
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_api, pool, daemon_info(home), lambda: clients, home, stop)
            ready.set()

    thread = threading.Thread(target=trio.run, args=(main,))
    thread.start()
    assert ready.wait(10)
    yield Served(pool, home)
    stops[0]()
    thread.join(10)
    assert not thread.is_alive()
