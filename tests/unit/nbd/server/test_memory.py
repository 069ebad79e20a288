"""Memory of all clients together, reused buffers, and clients that reconnect."""

import copy
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from blockdev.errors import UnsupportedError
from blockdev.memory import MemoryDevice
from nbd.server.backlog import HANGUP_LOOK_S
from nbd.server.limits import Limits
from tests.unit.hang import HANG_S
from tests.unit.nbd.devices import FailingDevice, SlowDevice, serving
from tests.unit.nbd.server.test_status import selecting
from tests.unit.nbd.wire import (
    DISC,
    EINVAL,
    ENOTSUP,
    FAST_ZERO,
    FLUSH,
    MIB,
    READ,
    STATUS,
    ZEROES,
    Exports,
    RawClient,
    Running,
    request,
    running,
    write,
)

KIB = 1 << 10
PATIENCE_S = 2.0
TIGHT = Limits(memory_bytes_max=MIB, patience_s=PATIENCE_S)


class Shared(MemoryDevice):
    """One disk for all connections, which do not close it; see `sharing`."""

    async def close(self) -> None:
        pass


class SharedSlow(SlowDevice):
    """One slow disk for all connections, which do not close it."""

    def __init__(self, size_bytes: int) -> None:
        self._starts: list[int] = []
        super().__init__(size_bytes)

    @property
    def started(self) -> int:
        return len(self._starts)

    @started.setter
    def started(self, count: int) -> None:
        if count:
            self._starts.append(count)

    async def close(self) -> None:
        pass


def sharing(*devices: MemoryDevice) -> Exports:
    """Return exports whose connections get these devices in turn, later ones the last device."""
    left = list(devices)
    return serving(lambda: copy.copy(left.pop(0) if len(left) > 1 else left[0]))


async def until(true: Callable[[], bool]) -> None:
    with trio.fail_after(HANG_S):
        while not true():
            await trio.sleep(0.001)


def used_bytes(run: Running) -> int:
    return run.server._service.memory.used_bytes


async def half_a_write(run: Running, length: int = MIB) -> RawClient:
    client = await run.entered()
    before = used_bytes(run)
    await client.send(write(0, bytes(length))[: 28 + length // 2])
    await until(lambda: used_bytes(run) == before + length)
    return client


async def test_a_client_with_a_stalled_payload_is_dropped_only_when_others_wait(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path, limits=TIGHT) as run:
        stalled = await half_a_write(run)
        await trio.sleep(10 * PATIENCE_S)
        assert len(run.server.clients()) == 1, "no other client needs the memory"
        other = await run.entered()
        await other.send(write(0, b"x" * (128 * KIB)))
        assert await other.simple() == (7, 0, b"")
        assert await stalled.ended()
        assert used_bytes(run) == 0
    assert "holds memory that others need" in caplog.text


async def test_a_client_with_unread_replies_is_dropped_only_when_others_wait(
    tmp_path: Path,
) -> None:
    device = SharedSlow(4 * MIB)
    device.gate.set()
    async with running(tmp_path, sharing(device), TIGHT) as run:
        lazy = await run.entered()
        await lazy.send(request(READ, 0, 4 * MIB, cookie=1))
        await until(lambda: used_bytes(run) == 4 * MIB)
        await trio.sleep(10 * PATIENCE_S)
        assert len(run.server.clients()) == 1
        other = await run.entered()
        assert await other.read(0, 4 * MIB) == bytes(4 * MIB)
        assert len(run.server.clients()) == 1


async def test_clients_that_wait_for_the_device_are_never_dropped(tmp_path: Path) -> None:
    """Their memory is held because of the device, also the memory of payloads to be received."""
    device = SharedSlow(4 * MIB)
    async with running(tmp_path, sharing(device), TIGHT) as run:
        clients = [await run.entered() for _ in range(3)]
        async with trio.open_nursery() as nursery:
            for client in clients:
                stream = b"".join(write(0, bytes(MIB), cookie=n) for n in range(3))
                nursery.start_soon(client.send, stream)
            await until(lambda: device.started > 0)
            await trio.sleep(10 * PATIENCE_S)
            assert len(run.server.clients()) == 3
            device.gate.set()
            for client in clients:
                assert {(await client.simple())[:2] for _ in range(3)} == {(n, 0) for n in range(3)}
        await until(lambda: used_bytes(run) == 0)


async def test_payloads_that_arrived_do_not_wait_for_memory(tmp_path: Path) -> None:
    """All memory is in payloads that arrived: each must be served without further memory."""
    limits = Limits(memory_bytes_max=2 * MIB, patience_s=PATIENCE_S)
    async with running(tmp_path, limits=limits) as run:
        clients = [await half_a_write(run) for _ in range(2)]
        for client in clients:
            await client.send(bytes(MIB // 2))
        for client in clients:
            assert await client.simple() == (7, 0, b"")
        assert len(run.server.clients()) == 2
        await until(lambda: used_bytes(run) == 0)


async def test_the_bound_holds_for_streams_of_equal_payloads(tmp_path: Path) -> None:
    device = SharedSlow(4 * MIB)
    limits = Limits(memory_bytes_max=2 * MIB, patience_s=60)
    async with running(tmp_path, sharing(device), limits) as run:
        clients = [await run.entered() for _ in range(4)]
        async with trio.open_nursery() as nursery:
            for client in clients:
                stream = b"".join(write(0, bytes(256 * KIB), cookie=n) for n in range(20))
                nursery.start_soon(client.send, stream)
            await until(lambda: device.started > 3)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert used_bytes(run) <= 2 * MIB + 256 * KIB
            device.gate.set()
            for client in clients:
                assert {(await client.simple())[0] for _ in range(20)} == set(range(20))
        await until(lambda: used_bytes(run) == 0)


async def test_waiting_block_status_counts_towards_bytes_in_flight(tmp_path: Path) -> None:
    device = SlowDevice(1 << 30)

    async def extents(offset: int, length: int) -> list[object]:
        await device._pass("extents")
        return []

    device.extents = extents  # type: ignore[assignment, method-assign]
    limits = Limits(bytes_in_flight_max=4 * MIB)
    async with running(tmp_path, sharing(device), limits) as run:
        client = await selecting(run)
        await client.send(b"".join(request(STATUS, 0, 1 << 30, cookie=n) for n in range(100)))
        await device.until_started(4)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert device.started == 4, "each may have an answer of a MiB"


@pytest.mark.parametrize("leaves", ["unread", "half", "garbage", "large"])
async def test_memory_is_given_back_however_a_client_leaves(tmp_path: Path, leaves: str) -> None:
    device = SharedSlow(4 * MIB)
    async with running(tmp_path, sharing(device)) as run:
        client = await run.entered()
        await client.send(write(0, bytes(300_000)) + request(READ, 0, 200_000))
        await device.until_started(2)
        if leaves == "unread":
            device.gate.set()
        elif leaves == "half":
            await client.send(write(0, bytes(300_000))[:1000])
            await until(lambda: used_bytes(run) == 800_000)
        elif leaves == "garbage":
            await client.send(b"\0" * 100)
        await client.stream.aclose()
        await run.idle()
        memory = run.server._service.memory
        assert (memory.used_bytes, memory._holders, memory._watch) == (0, {}, None)


async def test_buffers_in_use_are_not_used_again(tmp_path: Path) -> None:
    """Waiting writes keep their payloads while other writes of the same size are served."""
    disk = Shared(8 * MIB)
    slow = SharedSlow(8 * MIB)
    async with running(tmp_path, sharing(slow, disk)) as run:
        waiting, dying, quick = [await run.entered() for _ in range(3)]
        size = 200_000
        for number in range(4):
            await waiting.send(write(number * MIB, bytes([number + 1]) * size, cookie=number))
        await slow.until_started(4)
        await dying.send(write(0, b"\xee" * size)[: size // 2])
        await dying.stream.aclose()
        for number in range(20):
            await quick.send(write(0, bytes([100 + number]) * size))
            assert await quick.simple() == (7, 0, b"")
        slow.gate.set()
        assert {(await waiting.simple())[0] for _ in range(4)} == {0, 1, 2, 3}
        for number in range(4):
            assert await waiting.read(number * MIB, size) == bytes([number + 1]) * size


class Stuck(Shared):
    """Writes of 0xaa wait; all other writes land at once."""

    def __init__(self) -> None:
        super().__init__(MIB)
        self.gate = trio.Event()
        self.waiting: list[int] = []

    def try_write(self, offset: int, data: object) -> bool:
        return bytes(data)[:1] != b"\xaa" and super().try_write(offset, data)  # type: ignore[arg-type, call-overload]

    async def write(self, offset: int, data: object, *, fua: bool = False) -> None:
        self.waiting.append(offset)
        await self.gate.wait()
        super().try_write(offset, data)  # type: ignore[arg-type]


async def test_old_writes_do_not_land_after_writes_of_a_client_that_reconnected(
    tmp_path: Path,
) -> None:
    """The old connection is full, so the server does not read from it and misses its end."""
    disk = Stuck()
    limits = Limits(requests_in_flight_max=2)
    async with running(tmp_path, sharing(disk), limits) as run:
        old = await run.entered()
        await old.send(write(0, b"\xaa" * 512) * 5)
        await until(lambda: len(disk.waiting) == 2)
        await trio.testing.wait_all_tasks_blocked(0.01)
        await old.stream.aclose()
        new = await run.entered()
        await new.send(write(0, b"new!" * 128))
        assert await new.simple() == (7, 0, b"")
        disk.gate.set()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert await new.read(0, 512) == b"new!" * 128


async def test_settling_a_connection_that_just_ended_returns_at_once(tmp_path: Path) -> None:
    """The connection ends after the server listed it for a client that reconnects."""
    async with running(tmp_path) as run:
        await run.entered()
        (ending,) = run.server._connections
        await run.server.disconnect(lambda client: True, "wanted")
        began = trio.current_time()
        await ending.settle()
        assert trio.current_time() == began


async def test_a_half_close_after_disc_is_no_hang_up(tmp_path: Path) -> None:
    """53: libnbd sends DISC behind requests in flight, and shuts down its sending side."""
    device = SharedSlow(MIB)
    limits = Limits(requests_in_flight_max=2)
    async with running(tmp_path, sharing(device), limits) as run:
        client = await run.entered()
        stream = b"".join(write(n, b"x", cookie=n) for n in range(9)) + request(DISC)
        await client.send(stream)
        client.stream.socket.shutdown(socket.SHUT_WR)
        await device.until_started(2)
        await trio.sleep(2 * HANGUP_LOOK_S + 0.1)
        device.gate.set()
        assert {(await client.simple())[0] for _ in range(9)} == set(range(9))
        assert await client.ended()
        await run.idle()


async def test_requests_before_disc_are_carried_out_for_a_client_that_left(tmp_path: Path) -> None:
    """53: the first answer cannot be sent; the other requests are carried out all the same."""
    device = SharedSlow(MIB)
    async with running(tmp_path, sharing(device)) as run:
        client = await run.entered()
        await client.send(write(0, b"a") + write(1, b"b") + request(DISC))
        await device.until_started(2)
        await client.stream.aclose()
        await trio.testing.wait_all_tasks_blocked(0.01)
        device.gate.set()
        await run.idle()
    assert device.events == ["write", "write"]


async def test_a_client_that_leaves_with_unread_replies_can_be_dropped(tmp_path: Path) -> None:
    """Even after DISC, when other clients need the memory of its replies."""
    device = SharedSlow(4 * MIB)
    device.gate.set()
    async with running(tmp_path, sharing(device), TIGHT) as run:
        lazy = await run.entered()
        await lazy.send(request(READ, 0, 4 * MIB) + request(DISC))
        await until(lambda: used_bytes(run) == 4 * MIB)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert used_bytes(run) == 4 * MIB
        other = await run.entered()
        assert await other.read(0, 4 * MIB) == bytes(4 * MIB)


async def test_only_fast_zeroes_are_answered_as_unsupported(tmp_path: Path) -> None:
    """44."""

    class Unable(FailingDevice):
        async def write_zeroes(self, offset: int, length: int, **how: bool) -> None:
            raise self._error

    device = Unable(UnsupportedError("no"), at_once=False)
    async with running(tmp_path, sharing(device)) as run:
        client = await run.entered()
        assert await client.ask(ZEROES, 0, 512, flags=FAST_ZERO) == ENOTSUP
        assert await client.ask(ZEROES, 0, 512) == EINVAL
        assert await client.ask(FLUSH) == EINVAL
