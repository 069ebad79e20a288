"""Fixtures of the tests with real programs and gigabytes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.nbd_peers import Served, serving
from tests.system.pool_daemon import scratch_directory
from tests.system.remote_servers import KINDS, Kind, RemoteServer, remote_server


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory with a short path on a disk, removed right after the test."""
    with scratch_directory() as path:
        yield path


@pytest.fixture(params=["unix", "tcp"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Served]:
    with serving(tmp_path, request.param) as running:
        yield running


@pytest.fixture
def served_once(tmp_path: Path) -> Iterator[Served]:
    """For what does not depend on the kind of socket."""
    with serving(tmp_path, "unix") as running:
        yield running


EVERY_SERVER = [
    pytest.param((kind, tls), id=f"{kind.name}{'-tls' * tls}")
    for kind in KINDS
    for tls in (False, True)
]


@pytest.fixture(scope="module", params=EVERY_SERVER)
def remote(request: pytest.FixtureRequest) -> Iterator[RemoteServer]:
    """A server to be a client of; the tests of a module share it, and what it holds."""
    kind, tls = request.param
    assert isinstance(kind, Kind)
    with remote_server(kind, tls=tls) as server:
        yield server
