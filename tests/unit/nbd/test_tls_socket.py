"""A socket with TLS around it behaves like a plain non-blocking socket."""

import random
from contextlib import suppress

import pytest
import trio
from typing_extensions import Buffer

from nbd.server.sender import Sender
from nbd.tlssocket import ENCRYPT_BYTES_MAX, TlsSocket
from tests.unit.hang import HANG_S
from tests.unit.nbd.certificates import Certificates
from tests.unit.nbd.secured import Pair, connect, receive


async def test_receiving_raises_blocking_io_error_when_no_bytes_are_there(
    sockets: Pair, made: Certificates
) -> None:
    server, _ = await connect(sockets, made)
    with pytest.raises(BlockingIOError):
        server.recv_into(bytearray(10))
    with pytest.raises(BlockingIOError):
        server.recv(10)
    assert server.recv_into(bytearray()) == 0
    assert server.sendmsg([]) == 0
    assert server.send(b"") == 0


async def test_a_long_record_is_received_in_pieces(sockets: Pair, made: Certificates) -> None:
    server, client = await connect(sockets, made)
    client.send(bytes(range(100)))
    got = [await receive_at_most(server, 30) for _ in range(4)]
    assert b"".join(got) == bytes(range(100))
    assert list(map(len, got)) == [30, 30, 30, 10]
    with pytest.raises(BlockingIOError):
        server.recv(1)


async def receive_at_most(sock: TlsSocket, size: int) -> bytes:
    while True:
        try:
            return sock.recv(size)
        except BlockingIOError:
            await trio.lowlevel.wait_readable(sock)


async def test_close_notify_is_the_end_of_the_stream(sockets: Pair, made: Certificates) -> None:
    server, client = await connect(sockets, made)
    client.send(b"last words")
    client.close()
    client.close()
    assert client.fileno() == -1
    assert await receive(server) == b"last words"
    assert await receive(server) == b""
    assert await receive(server) == b""
    server.close()


async def test_an_end_without_close_notify_is_an_error(sockets: Pair, made: Certificates) -> None:
    """The connection is cut between two records: an attacker may cut it anywhere."""
    server, client = await connect(sockets, made)
    client.send(b"last words")
    sockets[1].close()
    assert await receive(server) == b"last words"
    for _ in range(2):
        with pytest.raises(ConnectionResetError, match="did not say goodbye"):
            await receive(server)
    server.close()


async def test_changed_bytes_are_an_error(sockets: Pair, made: Certificates) -> None:
    server, client = await connect(sockets, made)
    client.send(b"good")
    sockets[1].send(b"\x17\x03\x03\x00\x20" + bytes(32))
    await trio.lowlevel.wait_readable(server)
    assert server.recv(100) == b"good"
    for _ in range(2):
        with pytest.raises(OSError, match="TLS failed"):
            server.recv(100)
    server.close()


async def test_sending_to_a_peer_that_left_is_an_error(sockets: Pair, made: Certificates) -> None:
    server, _ = await connect(sockets, made)
    sockets[1].close()
    with pytest.raises(OSError, match="pipe"):
        server.send(b"hello")
    server.close()


async def test_bytes_count_as_sent_only_when_the_kernel_has_them(
    sockets: Pair, made: Certificates
) -> None:
    server, client = await connect(sockets, made)
    data = random.Random(1).randbytes(ENCRYPT_BYTES_MAX + 1000)
    for _ in range(2):
        with pytest.raises(BlockingIOError):
            server.send(data)
    with pytest.raises(BlockingIOError):
        server.recv(1)  # pushes too, and must not lose count
    got = b""
    sent = 0
    while not sent:
        with suppress(BlockingIOError):
            got += client.recv(1 << 20)
        with suppress(BlockingIOError):
            sent = server.send(data)
    assert sent == ENCRYPT_BYTES_MAX
    while len(got) < sent:
        got += await receive(client)
    assert got == data[:sent]
    with pytest.raises(BlockingIOError):
        client.recv(1)


async def test_a_finished_drain_has_sent_the_last_byte(sockets: Pair, made: Certificates) -> None:
    """Goal: `Sender` works over TLS: all replies arrive whole, the last byte included, without a
    further call.

    Method: queue replies of all sizes while others are sent, to a client that reads slowly.
    """
    server, client = await connect(sockets, made)
    rng = random.Random(2)
    replies: list[Buffer] = [rng.randbytes(rng.choice((1, 16, 4096, 70_000))) for _ in range(2500)]
    sender = Sender(server)
    expected = b"".join(replies)

    async def send() -> None:
        for start in range(0, len(replies), 500):
            sender.replies += replies[start : start + 500]
            await sender.drain()
            await trio.lowlevel.checkpoint()

    got = bytearray()
    with trio.fail_after(HANG_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            while len(got) < len(expected):
                got += await receive(client)
                await trio.lowlevel.checkpoint()
    assert got == expected
    assert not sender.replies


async def test_large_transfers_both_ways_at_once(sockets: Pair, made: Certificates) -> None:
    ends = await connect(sockets, made)
    rng = random.Random(3)
    sent = [rng.randbytes(3_000_000) for _ in ends]
    got = [bytearray(), bytearray()]

    async def send(index: int) -> None:
        left = memoryview(sent[index])
        while left:
            try:
                left = left[ends[index].sendmsg([left[:5], left[5:100_000], left[100_000:]]) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(ends[index])

    async def take(index: int) -> None:
        room = bytearray(50_000)
        while len(got[index]) < len(sent[1 - index]):
            try:
                count = ends[index].recv_into(room)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(ends[index])
                continue
            got[index] += room[:count]

    async with trio.open_nursery() as nursery:
        for index in range(2):
            nursery.start_soon(send, index)
            nursery.start_soon(take, index)
    assert got[::-1] == sent


async def test_a_server_gives_no_tickets(sockets: Pair, made: Certificates) -> None:
    """Their bytes would fill the socket of a client that never receives."""
    await connect(sockets, made)
    with pytest.raises(BlockingIOError):
        sockets[1].recv(1)
