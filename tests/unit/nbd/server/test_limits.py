"""Limits, hang-ups and stops. Numbers in docstrings are those of docs/nbd.md."""

from pathlib import Path

import pytest
import trio
import trio.testing

from nbd.server.limits import Limits
from nbd.server.server import NEGOTIATION_S
from tests.unit.hang import HANG_S
from tests.unit.nbd.devices import SlowDevice, serving
from tests.unit.nbd.server.test_status import selecting
from tests.unit.nbd.wire import (
    ACK,
    DISC,
    EINVAL,
    ERR_SHUTDOWN,
    ESHUTDOWN,
    FLUSH,
    MIB,
    PAYLOAD_LEN,
    READ,
    WRITE,
    extended_request,
    info_data,
    option,
    request,
    running,
    write,
)


async def test_disc_finishes_requests_in_flight(tmp_path: Path) -> None:
    """53."""
    device = SlowDevice()
    async with running(tmp_path, serving(lambda: device)) as run:
        client = await run.entered()
        await client.send(write(0, b"last", cookie=1) + request(DISC) + request(READ, 0, 1))
        await device.until_started(1)
        device.gate.set()
        assert await client.simple() == (1, 0, b"")
        assert await client.ended()
        await run.idle()
    assert device.events == ["write"]


async def test_a_write_of_a_dead_connection_never_lands(tmp_path: Path) -> None:
    device = SlowDevice()
    async with running(tmp_path, serving(lambda: device)) as run:
        client = await run.entered()
        await client.send(write(0, b"stale") + request(READ, 0, 4))
        await device.until_started(2)
        await client.stream.aclose()
        await run.idle()
        device.gate.set()
        await trio.testing.wait_all_tasks_blocked()
    assert device.events == []


@pytest.mark.parametrize(
    "hangs_up_after",
    [
        b"",
        b"\0\0",
        b"\0\0\0\3",
        b"\0\0\0\3" + option(2),  # 7: without waiting for the acknowledgement
        b"\0\0\0\3" + option(1, b""),
        b"\0\0\0\3" + option(7, info_data(b"")),
        b"\0\0\0\3" + option(7, info_data(b""))[:-1],
        b"\0\0\0\3" + option(7, info_data(b"")) + write(0, b"xyz")[:-1],
        b"\0\0\0\3" + option(7, info_data(b"")) + request(READ, 0, MIB) * 50,
        b"\0\0\0\7",
        b"\0\0\0\3" + option(7, info_data(b"")) + b"garbage" * 10,
    ],
)
async def test_clients_that_hang_up_or_send_garbage_do_no_harm(
    tmp_path: Path, hangs_up_after: bytes
) -> None:
    """2, 30, and a crash of other servers: a client that hangs up after EXPORT_NAME."""
    async with running(tmp_path) as run:
        client = await run.connect()
        await client.send(hangs_up_after)
        await client.stream.aclose()
        await run.idle()
        assert await (await run.entered()).read(0, 4) == bytes(4)


async def test_half_open_negotiations_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """14, CVE-2024-7409."""
    async with running(tmp_path, limits=Limits(handshake_s=10)) as run:
        client = await run.connect()
        await client.greet()
        assert await client.ended()
        slow = await run.connect()
        await slow.enter()
        await trio.sleep(100)
        assert await slow.read(0, 4) == bytes(4), "only negotiation is timed"
    assert "took too long" in caplog.text


async def test_too_many_connections_are_refused(tmp_path: Path) -> None:
    """14."""
    async with running(tmp_path, limits=Limits(connections_max=2)) as run:
        first, second = await run.entered(), await run.entered()
        assert await (await run.connect()).ended()
        assert await first.read(0, 4) == await second.read(0, 4) == bytes(4)
        await first.stream.aclose()
        with trio.fail_after(HANG_S):
            while len(run.server.clients()) == 2:
                await trio.sleep(0.001)
        await run.entered()


async def test_half_open_connections_give_way_to_clients(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """14, CVE-2024-7409: the oldest of them first, and no client that entered an export."""
    caplog.set_level("INFO")
    async with running(tmp_path, limits=Limits(connections_max=3)) as run:
        working, silent, greeted = await run.entered(), await run.connect(), await run.connect()
        await greeted.greet()
        assert await (await run.connect()).ended(), "negotiations may be about to end"
        await trio.sleep(NEGOTIATION_S + 1)
        for ending in (silent, greeted):
            client = await run.entered()
            assert await client.read(0, 4) == bytes(4)
            await ending.receive(len(ending.buffer) + 18 * (ending is silent))
            assert await ending.ended()
        assert await (await run.connect()).ended(), "all clients have entered"
        assert await working.read(0, 4) == bytes(4)
    assert "others find no place" in caplog.text


async def test_requests_in_flight_are_bounded(tmp_path: Path) -> None:
    device = SlowDevice()
    limits = Limits(requests_in_flight_max=5)
    async with running(tmp_path, serving(lambda: device), limits) as run:
        client = await run.entered()
        await client.send(b"".join(request(READ, 0, 4, cookie=n) for n in range(20)))
        await device.until_started(5)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert device.started == 5
        device.gate.set()
        cookies = {(await client.simple(4))[0] for _ in range(20)}
        assert cookies == set(range(20))


async def test_bytes_in_flight_are_bounded(tmp_path: Path) -> None:
    device = SlowDevice()
    limits = Limits(bytes_in_flight_max=200_000)
    async with running(tmp_path, serving(lambda: device), limits) as run:
        client = await run.entered()
        async with trio.open_nursery() as nursery:
            stream = b"".join(write(0, bytes(100_000), cookie=n) for n in range(10))
            nursery.start_soon(client.send, stream)
            await device.until_started(2)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert device.started == 2
            device.gate.set()
            assert {(await client.simple())[0] for _ in range(10)} == set(range(10))


async def test_the_longest_payload_is_advertised_and_enforced(tmp_path: Path) -> None:
    """15, 52, 59: a longer payload is refused in step; with extended headers it ends the
    connection.
    """
    limits = Limits(payload_bytes_max=512 * 1024)
    async with running(tmp_path, limits=limits) as run:
        client = await run.connect()
        info = await client.enter()
        assert int.from_bytes(info[3][8:]) == limits.payload_bytes_max
        for length in (limits.payload_bytes_max + 1, MIB):
            await client.send(write(0, b"x" * length))
            assert await client.simple() == (7, EINVAL, b"")
            assert await client.read(0, length) == EINVAL
        await client.send(write(0, b"x" * limits.payload_bytes_max))
        assert await client.simple() == (7, 0, b"")
        assert await client.read(0, limits.payload_bytes_max) == b"x" * limits.payload_bytes_max
        modern = await selecting(run, extended=True)
        head = extended_request(WRITE, 0, limits.payload_bytes_max + 1, flags=PAYLOAD_LEN)
        await modern.send(head)
        assert await modern.ended()


async def test_requests_of_a_client_that_does_not_read_wait_in_the_socket(tmp_path: Path) -> None:
    """Unread replies are bounded, and all replies arrive once the client reads."""
    reads = 200
    async with running(tmp_path) as run:
        client = await run.entered()
        await client.send(b"".join(request(READ, 0, MIB, cookie=n) for n in range(reads)))
        await trio.testing.wait_all_tasks_blocked(0.01)
        (status,) = run.server.clients()
        assert status.counters.requests < 20
        for number in range(reads):
            assert (await client.simple(MIB))[:2] == (number, 0)


async def test_thousands_of_small_unread_replies_arrive_in_the_end(tmp_path: Path) -> None:
    """On AF_UNIX about a thousand block the sender; none may be lost or stuck."""
    count = 5000
    async with running(tmp_path) as run:
        client, other = await run.entered(), await run.entered()
        async with trio.open_nursery() as nursery:
            stream = b"".join(write(n, b"x", cookie=n) for n in range(count))
            nursery.start_soon(client.send, stream)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert await other.read(0, 4) == bytes(4), "other clients are served"
            for number in range(count):
                assert await client.simple() == (number, 0, b"")


async def test_stop_finishes_requests_and_refuses_the_rest(tmp_path: Path) -> None:
    """22, 55."""
    device = SlowDevice()
    limits = Limits(requests_in_flight_max=1)  # so that the second is not taken before the stop
    async with running(tmp_path, serving(lambda: device), limits) as run:
        client, negotiating = await run.entered(), await run.connect()
        await negotiating.greet()
        assert (await negotiating.option(3))[-1][0] == ACK
        await client.send(request(READ, 0, 4, cookie=1))
        await device.until_started(1)
        await client.send(request(READ, 0, 4, cookie=2))
        run.server.stop()
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(FileNotFoundError):
            await run.connect()
        assert await client.simple() == (2, ESHUTDOWN, b"")
        assert await negotiating.option(7, info_data(b"")) == [
            (ERR_SHUTDOWN, b"server is shutting down")
        ]
        await negotiating.send(option(2))
        device.gate.set()
        assert await client.simple(4) == (1, 0, bytes(4))
        assert await client.ended()
        await run.done.wait()
        assert not run.path.exists()


async def test_lingering_clients_do_not_hold_up_a_stop(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """55: such as one whose request never ends."""
    device = SlowDevice(4 * MIB)
    async with running(tmp_path, serving(lambda: device), Limits(grace_s=5)) as run:
        stuck = await run.entered()
        await stuck.send(request(FLUSH))
        await device.until_started(1)
        run.server.stop()
        began = trio.current_time()
        await run.done.wait()
        assert trio.current_time() - began == pytest.approx(5)
        assert await stuck.ended()
    assert "lingered" in caplog.text


async def test_idle_clients_are_closed_at_once_on_stop(tmp_path: Path) -> None:
    async with running(tmp_path, limits=Limits(grace_s=60)) as run:
        client = await run.entered()
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        run.server.stop()
        assert await client.ended()
        await run.done.wait()
        assert trio.current_time() == began
