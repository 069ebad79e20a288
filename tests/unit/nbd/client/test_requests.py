"""The device against a scripted server: cutting, errors, connections, cancellation."""

import errno
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from blockdev.device import Extent
from blockdev.errors import (
    DeviceError,
    NoSpaceError,
    OutOfRangeError,
    ReadOnlyError,
    UnsupportedError,
)
from nbd.client import ClientOptions, open_nbd
from tests.unit.nbd.client.scripted import (
    CACHE,
    CAN_MULTI,
    EVERYTHING,
    READ,
    STATUS,
    TRIM,
    WRITE,
    ZEROES,
    Peer,
    Request,
    Scripted,
    option_reply,
    scripted,
    status,
)
from tests.unit.nbd.client.serving import content, opened
from tests.unit.nbd.wire import MIB

GIB = 1 << 30
MODES = ["simple", "structured", "extended"]


# Splitting


async def test_payloads_are_cut_to_the_limit_in_whole_blocks(tmp_path: Path) -> None:
    sizes = (512, 512, 10_000)
    async with opened(tmp_path, sizes=sizes, size=MIB + 100) as (server, device):
        assert device.block_bytes == 512
        assert device.size_bytes == MIB
        data = bytes(range(256)) * 400
        await device.write(512, data)
        assert await content(device, 512, len(data)) == data
        for request in server.requests:
            assert request.length <= 9728
            assert request.length % 512 == request.offset % 512 == 0
        assert len(server.of(READ)) == len(server.of(WRITE)) == 11
        for work in (device.read(1, 512), device.write(0, b"x"), device.trim(0, 100)):
            with pytest.raises(OutOfRangeError):
                await work


@pytest.mark.parametrize("mode", MODES)
async def test_long_requests_without_payload(tmp_path: Path, mode: str) -> None:
    size = 1 << 43
    async with opened(tmp_path, modes=(mode,), size=size) as (server, device):
        await device.trim(0, 10 * GIB)
        await device.write_zeroes(GIB, 10 * GIB)
        expected = 1 if mode == "extended" else 3
        for kind in (TRIM, ZEROES):
            parts = server.of(kind)
            assert len(parts) == expected
            assert sum(part.length for part in parts) == 10 * GIB
        await device.write_zeroes(0, 10 * GIB, no_hole=True)
        assert len(server.of(ZEROES)) == expected + 10
        await device.extents(0, size)
        assert await device.extents(0, 0) == []
        if mode != "simple":
            (asked,) = server.of(STATUS)
            assert asked.length == (1 << 40 if mode == "extended" else 2**32 - 2**16)


@pytest.mark.parametrize("error", [errno.EINVAL, errno.EOVERFLOW])
async def test_a_trim_that_is_too_long_for_the_server_is_cut(tmp_path: Path, error: int) -> None:
    """51: some hold the range in memory."""

    async def answer(peer: Peer, request: Request) -> bool:
        if request.kind == TRIM and request.length > 32 * MIB:
            await peer.done(request, error)
            return True
        return False

    async with opened(tmp_path, size=GIB, answer=answer) as (server, device):
        await device.trim(0, GIB)
        assert len(server.of(TRIM)) == 33
        await device.trim(0, GIB)
        assert len(server.of(TRIM)) == 65  # the device remembers the limit


async def test_cache_requests_are_no_longer_than_reads(tmp_path: Path) -> None:
    """Servers refuse longer ones: the data goes through buffers of theirs."""
    async with opened(tmp_path, size=100 * MIB) as (server, device):
        await device.cache(0, 100 * MIB)
        assert [request.length for request in server.of(CACHE)] == [32 * MIB] * 3 + [4 * MIB]


async def test_empty_requests_are_not_sent(tmp_path: Path) -> None:
    async with opened(tmp_path) as (server, device):
        assert await content(device, 0, 0) == b""
        await device.write(MIB, b"", fua=True)
        await device.write_zeroes(0, 0)
        await device.trim(0, 0)
        await device.cache(0, 0)
        assert await device.extents(0, 0) == []
        assert not server.requests


async def test_concurrent_requests_go_out_in_one_call(tmp_path: Path) -> None:
    sends = []
    async with opened(tmp_path) as (_, device):
        await trio.testing.wait_all_tasks_blocked()
        (connection,) = device._requests._link.connections  # type: ignore[union-attr]
        sendmsg = connection._sock.sendmsg

        class Counting:
            def __getattr__(self, name: str) -> Any:
                return getattr(connection._sock, name)

            def sendmsg(self, buffers: list[Any]) -> int:
                sends.append(len(buffers))
                return sendmsg(buffers)

        connection._stream = Counting()
        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(device.write, number * 512, b"x" * 512)
    assert sends[0] == 100
    assert len(sends) == 2  # and DISC


# Answers


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("number", "error"),
    [
        (errno.EPERM, ReadOnlyError),
        (errno.EIO, DeviceError),
        (errno.ENOMEM, DeviceError),
        (errno.EINVAL, OutOfRangeError),
        (errno.ENOSPC, NoSpaceError),
        (errno.ENOTSUP, UnsupportedError),
        (9999, DeviceError),
    ],
)
async def test_errors_keep_their_meaning(
    tmp_path: Path, mode: str, number: int, error: type[DeviceError]
) -> None:
    async def answer(peer: Peer, request: Request) -> bool:
        await peer.done(request, number)
        return True

    async with opened(tmp_path, modes=(mode,), answer=answer) as (server, device):
        works: list[Coroutine[Any, Any, object]] = [
            device.read(0, 10),
            device.write(0, b"x"),
            device.flush(),
            device.trim(0, 5),
        ]
        if mode != "simple":
            works.append(device.extents(0, 10))
        for work in works:
            with pytest.raises(error, match="server says") as caught:
                await work
            assert type(caught.value) is error
        await device.cache(0, 10)  # a hint that fails does no harm
        assert len(server.peers) == 1


async def test_one_failed_piece_fails_the_whole_request(tmp_path: Path) -> None:
    """CVE-2022-0485: errors of reads in flight count."""

    async def answer(peer: Peer, request: Request) -> bool:
        if request.offset != 32 * MIB:
            return False
        await peer.done(request, errno.EIO)
        return True

    async with opened(tmp_path, size=96 * MIB, answer=answer) as (server, device):
        server.cache = bytearray(96 * MIB)
        server.durable = bytearray(96 * MIB)
        with pytest.raises(DeviceError):
            await device.read(0, 96 * MIB)


async def test_block_status_in_several_contexts(tmp_path: Path) -> None:
    contexts = {1: "base:allocation", 7: "qemu:dirty-bitmap:x"}

    async def answer(peer: Peer, request: Request) -> bool:
        if request.kind != STATUS:
            return False
        for number, runs in ((7, [(100, 1), (4096, 0)]), (1, [(4096, 0), (1 << 20, 3)])):
            kind, payload = status(peer.mode, number, runs)
            await peer.chunk(request, kind, payload, flags=number == 1)
        return True

    options = ClientOptions(contexts=tuple(contexts.values()), reconnect_s=0)
    async with opened(tmp_path, options, contexts=contexts, answer=answer) as (_, device):
        assert device.contexts == set(contexts.values())
        assert await device.extents(0, 8192) == [
            Extent(4096, hole=False, zero=False),
            Extent(4096, hole=True, zero=True),
        ]
        assert await device.status("qemu:dirty-bitmap:x", 0, 8192) == [(100, 1), (4096, 0)]
        with pytest.raises(UnsupportedError):
            await device.status("qemu:other", 0, 8192)


# Several connections


async def test_several_connections_where_the_server_shares_its_cache(tmp_path: Path) -> None:
    async def slow(peer: Peer, request: Request) -> None:
        if request.kind == READ:
            await trio.sleep(0.05)

    flags = EVERYTHING | CAN_MULTI
    async with opened(tmp_path, flags=flags, answer=slow) as (server, device):
        while device.connections < 4:
            await trio.sleep(0.001)
        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(device.read, number * 512, 512)
        assert trio.current_time() - started < 0.3  # 8 * 0.05 on a single one
        assert len(server.peers) == 4
    async with opened(tmp_path, name="again.sock", flags=EVERYTHING) as (_, device):
        await trio.sleep(0.02)
        assert device.connections == 1


async def test_a_server_may_refuse_further_connections(tmp_path: Path) -> None:
    async def only_one(peer: Peer, number: int, data: bytes) -> bool:
        if len(server.peers) == 1:
            return False
        await option_reply(peer, number, 2**31 + 2, b"one is enough")
        return True

    server = Scripted(tmp_path / "s", flags=EVERYTHING | CAN_MULTI, on_option=only_one)
    async with scripted(server), open_nbd(server.uri) as device:
        await trio.sleep(0.05)
        assert device.connections == 1
        await device.write(0, b"x")


async def test_a_connection_with_fewer_contexts_is_not_used(tmp_path: Path) -> None:
    async def without_contexts(peer: Peer, number: int, data: bytes) -> bool:
        if number != 10 or len(server.peers) == 1:
            return False
        await option_reply(peer, number, 2**31 + 1)
        return True

    server = Scripted(tmp_path / "s", flags=EVERYTHING | CAN_MULTI, on_option=without_contexts)
    async with scripted(server), open_nbd(server.uri) as device:
        await trio.sleep(0.05)
        assert device.connections == 1
        for _ in range(4):
            await device.extents(0, MIB)


# Cancellation


async def test_a_request_that_was_not_sent_is_taken_back(tmp_path: Path) -> None:
    async with opened(tmp_path) as (server, device):
        with trio.CancelScope() as scope:
            scope.cancel()
            await device.write(0, b"x" * 512)
        assert not server.of(WRITE)
    gate = trio.Event()

    async def wait(peer: Peer, request: Request) -> None:
        await gate.wait()

    async with opened(tmp_path, name="again.sock", size=8 * MIB, answer=wait) as (server, device):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(device.write, 0, b"x" * 4 * MIB)
            await trio.testing.wait_all_tasks_blocked(0.01)
            nursery.start_soon(device.write, 0, b"x" * 4 * MIB)  # does not fit the socket
            await trio.testing.wait_all_tasks_blocked(0.01)
            with trio.move_on_after(0.01):
                await device.trim(0, 512)
            gate.set()
        assert not server.of(TRIM)


@pytest.mark.parametrize("newer", [WRITE, READ])
async def test_a_cancelled_write_never_lands_on_a_newer_one(tmp_path: Path, newer: int) -> None:
    gate = trio.Event()

    async def answer(peer: Peer, request: Request) -> bool:
        """Requests overtake the first write, as in a server with threads."""
        if request.kind != WRITE or request.data[:3] != b"old":
            return False

        async def later() -> None:
            await gate.wait()
            await server.answer_properly(peer, request)

        nursery.start_soon(later)
        return True

    async with (
        trio.open_nursery() as nursery,
        opened(tmp_path, answer=answer) as (server, device),
    ):
        with trio.move_on_after(0.02):
            await device.write(0, b"old" * 100)
        done = trio.Event()

        async def then() -> None:
            if newer == WRITE:
                await device.write(150, b"new" * 100)
            else:
                assert await content(device, 299, 1) == b"d"
            done.set()

        nursery.start_soon(then)
        await device.write(300, b"beside")  # no overlap, so it does not wait
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert not done.is_set()
        gate.set()
        await done.wait()
        if newer == WRITE:
            assert await content(device, 150, 3) == b"new"


async def test_the_buffer_of_a_cancelled_write_is_free_at_once(tmp_path: Path) -> None:
    """The payload announced to the server still goes out, with its old content."""
    size = 8 * MIB
    gate = trio.Event()

    async def wait(peer: Peer, request: Request) -> None:
        await gate.wait()

    async with opened(tmp_path, size=size, answer=wait) as (server, device):
        data = bytearray(b"a" * (size - 4096))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(device.flush)  # keeps the server from reading on
            await trio.testing.wait_all_tasks_blocked()
            with trio.move_on_after(0.02):
                await device.write(0, memoryview(data))
            data[:] = b"b" * len(data)
            gate.set()
        assert await content(device, 0, 10) == b"a" * 10
        assert set(server.cache[: len(data)]) == {ord("a")}


async def test_a_cancelled_read_leaves_the_connection_in_order(tmp_path: Path) -> None:
    async def slow(peer: Peer, request: Request) -> None:
        await trio.sleep(0.02)

    async with opened(tmp_path, answer=slow) as (server, device):
        for _ in range(3):
            with trio.move_on_after(0.005):
                await device.read(0, 500_000)
        assert await content(device, 0, 4) == bytes(4)
        assert len(server.peers) == 1


async def test_memory_in_flight_is_bounded(tmp_path: Path) -> None:
    options = ClientOptions(requests_max=10, bytes_in_flight_max=100_000, reconnect_s=0)
    gate = trio.Event()

    async def wait(peer: Peer, request: Request) -> None:
        await gate.wait()

    async with opened(tmp_path, options, answer=wait) as (_, device):
        (connection,) = device._requests._link.connections  # type: ignore[union-attr]
        async with trio.open_nursery() as nursery:
            for number in range(30):
                nursery.start_soon(device.read, number * 30_000, 30_000)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert len(connection.pending) == 3
            for _ in range(30):
                nursery.start_soon(device.trim, 0, 10)
            gate.set()
