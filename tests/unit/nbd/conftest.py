"""Fixtures of the tests in this folder: certificates, and sockets for TLS."""

import socket
from collections.abc import Iterator

import pytest

from tests.unit.nbd.certificates import Certificates
from tests.unit.nbd.secured import Pair


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def sockets() -> Iterator[Pair]:
    """The server's and the client's socket, with the smallest buffers of the kernel."""
    pair = socket.socketpair()
    for sock in pair:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    with pair[0], pair[1]:
        yield pair
