"""How a session looks at its socket."""

import fcntl
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from nbd.server.receiver import Receiver

TRIES = 20


class Watched:
    """A socket that counts how often it is asked, and how much it gave each time."""

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


def test_looking_for_nothing_does_not_receive(room: memoryview) -> None:
    """Goal: a `recv` that finds nothing costs more than all else of a small request."""
    with connected() as (_, watched, looking):
        assert looking.look(room, TRIES) is None
        assert watched.counts == []
        assert looking.look(room, 1) is None
        assert looking.look(room, 0) is None
        assert watched.counts == [0]


def test_what_is_there_is_received_and_counted(room: memoryview) -> None:
    with connected() as (client, _, looking):
        for tries in (TRIES, 1):
            client.send(b"request")
            assert looking.look(room, tries) == 7
            assert bytes(room[:7]) == b"request"
        assert looking.received_bytes == 14


def test_the_end_is_found_by_the_look_after_sleep(room: memoryview) -> None:
    """Goal: whoever slept until the socket was readable hears of the end; nobody spins on it."""
    with connected() as (client, _, looking):
        client.close()
        assert looking.look(room, TRIES) is None
        assert looking.look(room, 1) == 0


def test_a_beginning_is_waited_with_for_what_follows_at_once(
    room: memoryview, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: a header and the payload that follows it are received in one."""
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


def test_a_beginning_that_stays_alone_is_received_after_a_moment(room: memoryview) -> None:
    """Goal: a client that sends half a request and rests holds nobody up."""
    with connected() as (client, _, looking):
        client.send(b"header")
        assert looking.look(room, TRIES, enough=7) == 6
