"""Reconnecting after the server goes away. R4: no lost cache is ever hidden.

The mock clock jumps ahead whenever all tasks wait.
"""

import errno
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from blockdev.errors import CacheLostError, DeviceError
from nbd.client import ClientOptions
from tests.unit.nbd.client.scripted import (
    CAN_FLUSH,
    CAN_MULTI,
    EVERYTHING,
    FLUSH,
    HAS_FLAGS,
    READ,
    READ_ONLY,
    WRITE,
    Peer,
    Request,
)
from tests.unit.nbd.client.serving import content, opened
from tests.unit.nbd.wire import FUA, MIB

OPTIONS = ClientOptions()


class Gate:
    """Holds up requests of some kinds until it is opened, or the connection ends."""

    def __init__(self, *kinds: int) -> None:
        self.kinds = kinds
        self.held = 0
        self.open = False

    async def __call__(self, peer: Peer, request: Request) -> bool:
        if self.open or request.kind not in self.kinds:
            return False
        self.held += 1
        await trio.sleep_forever()
        return True

    async def until(self, count: int) -> None:
        while self.held < count:
            await trio.sleep(0.001)


# Requests that are sent again


@pytest.mark.parametrize("kind", [READ, WRITE, FLUSH])
async def test_requests_in_flight_are_sent_again_if_nothing_is_lost(
    autojump_clock: MockClock, tmp_path: Path, kind: int
) -> None:
    gate = Gate(kind)
    async with opened(tmp_path, OPTIONS, patience_s=1000, answer=gate) as (server, device):
        async with trio.open_nursery() as nursery:
            if kind == READ:
                nursery.start_soon(device.read, 0, 4096)
            elif kind == WRITE:
                nursery.start_soon(device.write, 0, b"new")
            else:
                nursery.start_soon(device.flush)
            await gate.until(1)
            gate.open = True
            server.crash()
        assert device.reconnects == 1
        assert len(server.of(kind)) == 2
        if kind == WRITE:
            await device.flush()
            assert server.durable[:3] == b"new"


async def test_new_requests_wait_for_the_server(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with opened(tmp_path, OPTIONS, patience_s=1000) as (server, device):
        server.away = True
        server.hang_up()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert device.connections == 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(device.write, 0, b"new")
            nursery.start_soon(device.read, 4096, 4096)
            await trio.sleep(20)
            assert not server.requests
            server.away = False
        assert await content(device, 0, 3) == b"new"


async def test_flushed_and_fua_writes_are_not_lost(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened(tmp_path, OPTIONS, patience_s=1000) as (server, device):
        await device.write(0, b"one")
        await device.flush()
        await device.write(10, b"two", fua=True)
        server.crash()
        await device.flush()
        assert await content(device, 0, 13) == b"one" + bytes(7) + b"two"


# Losses


async def test_a_lost_cache_is_reported_until_it_is_acknowledged(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened(tmp_path, OPTIONS, patience_s=1000) as (server, device):
        await device.write(0, b"kept")
        await device.flush()
        await device.write(0, b"lost")
        server.crash()
        for _ in range(2):
            with pytest.raises(CacheLostError):
                await device.flush()
            with pytest.raises(CacheLostError):
                await device.write(100, b"durable?", fua=True)
            with pytest.raises(CacheLostError):
                await device.read(2, 1)  # it would show "kept", though "lost" was answered
            with pytest.raises(CacheLostError):
                await device.extents(0, 8)  # a hole would be of the older content
        assert await content(device, 4, 1) == b"\0"
        assert len(await device.extents(4, 8)) == 1
        await device.write(200, b"more")  # usual writes go on
        flushes = len(server.of(FLUSH))
        device.acknowledge_cache_loss()
        await device.write(0, b"lost")
        await device.flush()
        assert len(server.of(FLUSH)) == flushes + 1
        assert server.durable[:4] == b"lost"
        server.crash()
        await device.flush()
        assert await content(device, 0, 4) == b"lost"


async def test_writes_and_flushes_in_flight_at_a_loss_fail_and_reads_go_on(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    gate = Gate(READ, WRITE, FLUSH)
    gate.open = True
    async with opened(tmp_path, OPTIONS, patience_s=1000, answer=gate) as (server, device):
        await device.write(0, b"lost")
        gate.open = False
        failed = []

        works = {
            "write": lambda: device.write(100, b"x"),
            "fua": lambda: device.write(200, b"x", fua=True),
            "flush": device.flush,
        }

        async def fails(what: str) -> None:
            with pytest.raises(CacheLostError):
                await works[what]()
            failed.append(what)

        async with trio.open_nursery() as nursery:
            for what in works:
                nursery.start_soon(fails, what)
            nursery.start_soon(device.read, 4096, 10)
            await gate.until(1)
            await trio.sleep(0.01)
            gate.open = True
            server.crash()
        assert sorted(failed) == ["flush", "fua", "write"]
        assert not server.of(FLUSH)[1:]


async def test_a_loss_while_flushing_on_another_connection_counts(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """One connection of four ends: the server's cache is in doubt, so all are ended."""
    gate = Gate(FLUSH)
    async with opened(
        tmp_path, OPTIONS, patience_s=1000, answer=gate, flags=EVERYTHING | CAN_MULTI
    ) as both:
        server, device = both
        while device.connections < 4:
            await trio.sleep(0.01)
        await device.write(0, b"lost?")
        async with trio.open_nursery() as nursery:

            async def flush() -> None:
                with pytest.raises(CacheLostError):
                    await device.flush()

            nursery.start_soon(flush)
            await gate.until(1)
            busy = next(peer for peer in server.peers if peer.stream.socket.fileno() >= 0)
            busy.hang_up()
        gate.open = True
        device.acknowledge_cache_loss()
        await device.write(0, b"again")
        await device.flush()
        while device.connections < 4:
            await trio.sleep(0.01)


async def test_two_losses_before_one_acknowledgement(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened(tmp_path, OPTIONS, patience_s=1000) as (server, device):
        await device.write(0, b"one")
        server.crash()
        with pytest.raises(CacheLostError):
            await device.flush()
        await device.write(100, b"two")
        server.crash()
        with pytest.raises(CacheLostError):
            await device.read(100, 1)
        device.acknowledge_cache_loss()
        await device.write(0, b"one")
        await device.write(100, b"two")
        await device.flush()
        assert server.durable[100:103] == b"two"


async def test_a_failed_write_is_not_counted_as_lost(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async def fail(peer: Peer, request: Request) -> bool:
        if request.kind == WRITE:
            await peer.done(request, errno.ENOSPC)
        return request.kind == WRITE

    async with opened(tmp_path, OPTIONS, patience_s=1000, answer=fail) as (server, device):
        with pytest.raises(DeviceError):
            await device.write(0, b"x")
        server.crash()
        await device.flush()


async def test_servers_with_fua_only_lose_nothing(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened(tmp_path, OPTIONS, patience_s=1000, flags=HAS_FLAGS | FUA * 8) as (
        server,
        device,
    ):
        await device.write(0, b"safe")
        server.crash()
        await device.flush()
        assert await content(device, 0, 4) == b"safe"


async def test_a_server_that_is_shutting_down_is_waited_for(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async def leave(peer: Peer, request: Request) -> bool:
        if len(server.requests) > 2:
            return False
        await peer.done(request, errno.ESHUTDOWN)
        return True

    async with opened(tmp_path, OPTIONS, patience_s=1000, answer=leave) as (server, device):
        await device.read(0, 10)
        assert device.reconnects == 2


# Giving up


async def test_a_server_that_stays_away_fails_the_device(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened(tmp_path, ClientOptions(reconnect_s=30), patience_s=1000) as (server, device):
        server.away = True
        server.hang_up()
        started = trio.current_time()
        for _ in range(2):
            with pytest.raises(DeviceError, match="did not come back"):
                await device.read(0, 10)
            assert 29 < trio.current_time() - started < 31


async def test_without_reconnecting_the_first_loss_fails_the_device(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened(tmp_path) as (server, device):
        server.hang_up()
        await trio.testing.wait_all_tasks_blocked(0.01)
        with pytest.raises(DeviceError, match="hung up"):
            await device.read(0, 10)


async def test_a_request_that_kills_the_server_is_not_sent_forever(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async def die(peer: Peer, request: Request) -> bool:
        if request.offset != 4096:
            return False
        server.crash()
        return True

    async with opened(tmp_path, OPTIONS, patience_s=1000, answer=die) as (server, device):
        with pytest.raises(DeviceError, match="too often"):
            await device.read(4096, 10)
        await device.read(0, 10)
        assert len(server.of(READ)) == 4


@pytest.mark.parametrize(
    ("change", "about"),
    [
        ({"size": MIB - 512}, "shrank"),
        ({"flags": EVERYTHING | READ_ONLY}, "read-only"),
        ({"flags": HAS_FLAGS | CAN_FLUSH}, "abilities"),
        ({"sizes": (512, 4096, 32 * MIB)}, "tighter"),
        ({"sizes": (1, 4096, 64 * 1024)}, "tighter"),
        ({"modes": ()}, "another form"),
        ({"contexts": {}}, "contexts"),
    ],
)
async def test_an_export_that_came_back_with_less_fails_the_device(
    autojump_clock: MockClock, tmp_path: Path, change: dict[str, object], about: str
) -> None:
    async with opened(tmp_path, OPTIONS, patience_s=1000) as (server, device):
        for name, value in change.items():
            setattr(server, name, value)
        server.hang_up()
        await trio.testing.wait_all_tasks_blocked(0.01)
        for _ in range(2):
            with pytest.raises(DeviceError, match=about):
                await device.read(0, 10)


async def test_an_export_that_grew_can_be_used_whole(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened(tmp_path, OPTIONS, patience_s=1000) as (server, device):
        server.size = 2 * MIB
        server.cache = server.durable = bytearray(2 * MIB)
        server.hang_up()
        await trio.sleep(5)
        assert device.size_bytes == 2 * MIB
        await device.write(2 * MIB - 1, b"x")
