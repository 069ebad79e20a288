"""How a session polls its socket and receives."""

import fcntl
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from nbd.server.receiver import Receiver

TRIES = 20


class Watched:
    """A socket that lists the calls of `recv_into`, each by the bytes that it gave."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.family = sock.family
        self.counts: list[int] = []

    def recv_into(self, buffer: memoryview, /) -> int:
        self.counts.append(0)
        self.counts[-1] = self._sock.recv_into(buffer)
        return self.counts[-1]

    def fileno(self) -> int:
        return self._sock.fileno()


@contextmanager
def connected() -> Iterator[tuple[socket.socket, Watched, Receiver]]:
    client, server = socket.socketpair()
    with client, server:
        server.setblocking(False)
        watched = Watched(server)
        yield client, watched, Receiver(watched)  # type: ignore[arg-type]


@pytest.fixture
def room() -> memoryview:
    return memoryview(bytearray(1 << 16))


def test_polling_an_empty_socket_calls_no_recv(room: memoryview) -> None:
    """Goal: spare the `recv` that finds no bytes, which costs more than a small request."""
    with connected() as (_, watched, looking):
        assert looking.look(room, TRIES) is None
        assert watched.counts == []
        assert looking.look(room, 1) is None
        assert looking.look(room, 0) is None
        assert watched.counts == [0]


def test_arrived_bytes_are_received_and_counted(room: memoryview) -> None:
    with connected() as (client, _, looking):
        for tries in (TRIES, 1):
            client.send(b"request")
            assert looking.look(room, tries) == 7
            assert bytes(room[:7]) == b"request"
        assert looking.received_bytes == 14


def test_the_end_of_the_stream_is_found_by_a_single_try(room: memoryview) -> None:
    """Goal: a session that slept until the socket was readable, and then tries once, finds the
    end; polling ignores the end, so that no session spins on it."""
    with connected() as (client, _, looking):
        client.close()
        assert looking.look(room, TRIES) is None
        assert looking.look(room, 1) == 0


def test_a_header_waits_shortly_for_its_payload(
    room: memoryview, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: a header and the payload that follows it are received in one call."""
    with connected() as (client, watched, looking):
        client.send(b"header")
        asked = fcntl.ioctl
        times = 0

        def ask(*arguments: object) -> object:
            nonlocal times
            times += 1
            if times == 3:
                client.send(b"payload")
            return asked(*arguments)  # type: ignore[call-overload]

        monkeypatch.setattr(fcntl, "ioctl", ask)
        assert looking.look(room, TRIES, enough=7) == 13
        assert watched.counts == [13]


def test_a_header_without_payload_is_received_after_a_moment(room: memoryview) -> None:
    """Goal: a client that sends half a request and pauses delays no other client."""
    with connected() as (client, _, looking):
        client.send(b"header")
        assert looking.look(room, TRIES, enough=7) == 6
