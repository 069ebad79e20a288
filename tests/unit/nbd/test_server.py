"""The server over real Unix sockets. Numbers in docstrings are those of the checklist."""

import errno
import logging
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing
from typing_extensions import Buffer

from blockdev.errors import BusyError, DeviceError, NoSpaceError
from blockdev.memory import MemoryDevice
from nbd.limits import Limits
from nbd.listeners import listen_tcp, listen_unix
from nbd.server import Server
from tests.unit.nbd.wire import (
    ACK,
    CACHE,
    DF,
    DISC,
    EINVAL,
    EIO,
    ENOSPC,
    EPERM,
    ERR_POLICY,
    ERR_SHUTDOWN,
    ERR_UNKNOWN,
    ESHUTDOWN,
    FLUSH,
    FUA,
    MIB,
    NO_HOLE,
    READ,
    SERVER,
    TRIM,
    WRITE,
    ZEROES,
    Exports,
    RawClient,
    info_data,
    option,
    request,
    running,
    write,
)


class SlowDevice(MemoryDevice):
    """Never answers at once; requests wait for `gate`. Notes what happened, in order."""

    def __init__(self, size_bytes: int = MIB, **options: int) -> None:
        super().__init__(size_bytes, **options)
        self.gate = trio.Event()
        self.started = 0
        self.events: list[str] = []

    async def _pass(self, what: str) -> None:
        self.started += 1
        await self.gate.wait()
        self.events.append(what)

    def try_read(self, offset: int, length: int) -> bytes:
        return None  # type: ignore[return-value]

    def try_write(self, offset: int, data: Buffer) -> bool:
        return False

    async def read(self, offset: int, length: int) -> bytes:
        await self._pass("read")
        return super().try_read(offset, length)

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        await self._pass("write fua" if fua else "write")
        super().try_write(offset, data)

    async def flush(self) -> None:
        await self._pass("flush")

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        await self._pass("trim fua" if fua else "trim")

    async def write_zeroes(
        self, offset: int, length: int, *, fua: bool = False, no_hole: bool = False
    ) -> None:
        await self._pass(f"zeroes{' fua' * fua}{' no_hole' * no_hole}")

    async def until_started(self, count: int) -> None:
        with trio.fail_after(5):
            while self.started < count:
                await trio.sleep(0.001)


class FailingDevice(MemoryDevice):
    """Everything raises; at once or when awaited."""

    def __init__(self, error: Exception, *, at_once: bool) -> None:
        super().__init__(MIB)
        self._error = error
        self._at_once = at_once

    def try_read(self, offset: int, length: int) -> bytes:
        if self._at_once:
            raise self._error
        return None  # type: ignore[return-value]

    def try_write(self, offset: int, data: Buffer) -> bool:
        if self._at_once:
            raise self._error
        return False

    async def read(self, offset: int, length: int) -> bytes:
        raise self._error

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        raise self._error

    async def flush(self) -> None:
        raise self._error


def serving(device: Callable[[], MemoryDevice]) -> Exports:
    return Exports({"": device})


async def test_everything_works(tmp_path: Path) -> None:
    """3, 9, 28, 43: and counters tell it."""
    async with running(tmp_path) as run:
        client = await run.connect()
        info = await client.enter(structured=False)
        assert info[0] == struct.pack(">QH", MIB, 1 | 4 | 8 | 32 | 64 | 256)
        assert info[3] == struct.pack(">III", 1, 4096, 32 * MIB)
        assert await client.ask(WRITE, 1000, 5, data=b"hello") == 0
        assert await client.ask(WRITE, 2000, 5, flags=FUA, data=b"there") == 0
        assert await client.read(999, 7) == b"\0hello\0"
        assert await client.ask(ZEROES, 1001, 3, flags=NO_HOLE) == 0
        assert await client.ask(TRIM, 2000, 5) == 0
        assert await client.ask(FLUSH) == 0
        assert await client.read(1000, 5) == b"h\0\0\0o"
        (status,) = run.server.clients()
        assert status.peer.startswith("unix:pid=")
        assert status.export == ""
        counters = status.counters
        assert (counters.requests, counters.read_bytes) == (7, 12)
        assert (counters.written_bytes, counters.errors) == (10, 0)
        await client.send(request(DISC))
        assert await client.ended()
        await run.idle()


async def test_structured_replies(tmp_path: Path) -> None:
    """31, 32, 35: READ is structured, errors too; the rest may be simple."""
    async with running(tmp_path) as run:
        client = await run.connect()
        info = await client.enter(structured=True)
        assert int.from_bytes(info[0][8:]) & 128
        await client.send(request(READ, 4096, 8, flags=DF))
        assert await client.chunk() == (7, 1, 1, struct.pack(">Q", 4096) + bytes(8))
        await client.send(request(READ, MIB, 8))
        cookie, flags, kind, payload = await client.chunk()
        assert (cookie, flags, kind, payload[:4]) == (7, 1, 0x8001, b"\0\0\0\x16")
        await client.send(request(READ, 0, 0))
        assert await client.chunk() == (7, 1, 0, b"")
        await client.send(write(0, b"x"))
        assert await client.simple() == (7, 0, b"")


async def test_refused_requests_stay_in_step(tmp_path: Path) -> None:
    """37, 39, 50, 51, 52."""
    async with running(tmp_path) as run:
        client = await run.entered()
        assert await client.ask(WRITE, MIB - 2, 4, data=b"abcd") == ENOSPC
        assert await client.ask(WRITE, 2**64 - 2, 4, data=b"abcd") == ENOSPC
        assert await client.ask(WRITE, 0, 100_000, flags=1 << 9, data=bytes(100_000)) == EINVAL
        assert await client.ask(WRITE, 0, 33 * MIB, data=bytes(33 * MIB)) == EINVAL
        assert await client.read(2**64 - 1, 2) == EINVAL
        assert await client.ask(CACHE, 0, 1) == EINVAL
        assert await client.ask(999, 0, 1) == EINVAL
        assert await client.ask(TRIM, 0, 2**32 - 1) == EINVAL
        assert await client.ask(ZEROES, 0, 2**32 - 1) == ENOSPC
        for kind in (READ, WRITE, TRIM, ZEROES):
            assert await client.ask(kind, 0, 0) == 0
        assert await client.read(0, 4) == bytes(4)
        assert run.server.clients()[0].counters.errors == 9


async def test_read_only(tmp_path: Path) -> None:
    """28, 38."""

    def device() -> MemoryDevice:
        memory = MemoryDevice(MIB)
        memory.read_only = True
        return memory

    async with running(tmp_path, serving(device)) as run:
        client = await run.connect()
        info = await client.enter()
        assert int.from_bytes(info[0][8:]) == 1 | 2 | 4 | 8 | 256
        assert await client.ask(WRITE, 0, 4, data=b"abcd") == EPERM
        assert await client.ask(WRITE, 0, 4, flags=FUA, data=b"abcd") == EPERM
        assert await client.ask(ZEROES, 0, 4) == EPERM
        assert await client.ask(TRIM, 0, 4) == EPERM
        assert await client.read(0, 4) == bytes(4)


async def test_sectors(tmp_path: Path) -> None:
    """15: the minimum is advertised and enforced."""
    async with running(tmp_path, serving(lambda: MemoryDevice(MIB, block_bytes=512))) as run:
        client = await run.connect()
        info = await client.enter()
        assert info[3] == struct.pack(">III", 512, 4096, 32 * MIB)
        assert await client.read(0, 100) == EINVAL
        assert await client.ask(WRITE, 100, 512, data=bytes(512)) == EINVAL
        assert await client.read(512, 512) == bytes(512)


async def test_listing_and_info_keep_no_handle(tmp_path: Path) -> None:
    exports = Exports({"a": lambda: MemoryDevice(MIB), "b": lambda: MemoryDevice(2 * MIB)})
    async with running(tmp_path, exports) as run:
        client = await run.connect()
        await client.greet()
        assert [data for _, data in await client.option(3)] == [b"\0\0\0\1a", b"\0\0\0\1b", b""]
        assert exports.opened == []
        described = await client.option(6, info_data(b"b", 2))
        assert described[1] == (3, b"\0\2about b")
        assert len(exports.opened) == len(exports.closed) == 1
        assert (await client.option(7, info_data(b"c")))[0][0] == ERR_UNKNOWN
        assert (await client.option(7, info_data(b"")))[0][0] == ERR_UNKNOWN
        assert (await client.option(7, info_data(b"a")))[-1][0] == ACK
        assert run.server.clients()[0].export == "a"
        await client.stream.aclose()
        await run.idle()


async def test_an_export_that_does_not_open(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def device() -> MemoryDevice:
        raise BusyError("somebody else has it")

    async with running(tmp_path, serving(device)) as run:
        client = await run.connect()
        await client.greet()
        ((kind, text),) = await client.option(7, info_data(b""))
        assert kind == ERR_POLICY
        assert b"somebody else has it" in text
        assert (await client.option(3))[0][0] == SERVER
    assert "does not open" in caplog.text


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (NoSpaceError("full"), ENOSPC),
        (DeviceError("broken"), EIO),
        (OSError(errno.EDQUOT, "quota"), ENOSPC),
        (ValueError("a bug"), EIO),
    ],
)
async def test_device_errors_are_answered_and_logged(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    expected: int,
    at_once: bool,
) -> None:
    """54."""
    exports = serving(lambda: FailingDevice(error, at_once=at_once))
    async with running(tmp_path, exports) as run:
        client = await run.entered()
        assert await client.read(0, 8) == expected
        assert await client.ask(WRITE, 0, 4, data=b"abcd") == expected
        assert await client.ask(FLUSH) == expected
        assert run.server.clients()[0].counters.errors == 3
    assert str(error) in caplog.text
    assert caplog.text.count("request failed") == 1, "bursts are logged once"


async def test_slow_requests_get_their_flags_and_data(tmp_path: Path) -> None:
    """40: FUA on every command reaches the device."""
    device = SlowDevice()
    device.gate.set()
    async with running(tmp_path, serving(lambda: device)) as run:
        client = await run.entered()
        big = bytes(range(256)) * 1024
        assert await client.ask(WRITE, 5, len(big), data=big) == 0
        assert await client.read(5, len(big)) == big
        assert await client.ask(WRITE, 0, 2, flags=FUA, data=b"ab") == 0
        assert await client.ask(TRIM, 0, 2, flags=FUA) == 0
        assert await client.ask(ZEROES, 0, 2, flags=FUA | NO_HOLE) == 0
        assert await client.ask(FLUSH, flags=FUA) == 0
    assert device.events == [
        "write", "read", "write fua", "trim fua", "zeroes fua no_hole", "flush",
    ]  # fmt: skip


async def test_quick_requests_overtake_slow_ones(tmp_path: Path) -> None:
    """29."""
    device = SlowDevice()
    async with running(tmp_path, serving(lambda: device)) as run:
        client = await run.entered()
        await client.send(request(READ, 0, 4, cookie=1) + request(CACHE, cookie=2))
        assert await client.simple() == (2, EINVAL, b"")
        device.gate.set()
        assert await client.simple(4) == (1, 0, bytes(4))


async def test_disconnect_finishes_what_is_outstanding(tmp_path: Path) -> None:
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
        b"\0\0\0\3" + option(1, b""),
        b"\0\0\0\3" + option(7, info_data(b"")),
        b"\0\0\0\3" + option(7, info_data(b""))[:-1],
        b"\0\0\0\3" + option(7, info_data(b"")) + write(0, b"xyz")[:-1],
        b"\0\0\0\3" + option(7, info_data(b"")) + request(READ, 0, MIB) * 50,
        b"\0\0\0\7",
        b"\0\0\0\3" + option(7, info_data(b"")) + b"garbage" * 10,
    ],
)
async def test_clients_that_hang_up_or_talk_garbage(tmp_path: Path, hangs_up_after: bytes) -> None:
    """2, 30, and a crash of other servers: EXPORT_NAME and gone."""
    async with running(tmp_path) as run:
        client = await run.connect()
        await client.send(hangs_up_after)
        await client.stream.aclose()
        await run.idle()
        assert await (await run.entered()).read(0, 4) == bytes(4)


async def test_half_open_negotiations_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """14, CVE-2024-7409."""
    async with running(tmp_path, limits=Limits(handshake_s=0.05)) as run:
        client = await run.connect()
        await client.greet()
        assert await client.ended()
        slow = await run.connect()
        await slow.enter()
        await trio.sleep(0.1)
        assert await slow.read(0, 4) == bytes(4), "only negotiation is timed"
    assert "took too long" in caplog.text


async def test_too_many_connections_are_refused(tmp_path: Path) -> None:
    """14."""
    async with running(tmp_path, limits=Limits(connections_max=2)) as run:
        first, second = await run.entered(), await run.entered()
        assert await (await run.connect()).ended()
        assert await first.read(0, 4) == await second.read(0, 4) == bytes(4)
        await first.stream.aclose()
        with trio.fail_after(5):
            while len(run.server.clients()) == 2:
                await trio.sleep(0.001)
        await run.entered()


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


async def test_a_client_that_does_not_read_is_not_read(tmp_path: Path) -> None:
    """Replies are bounded; and they are all there once it reads."""
    reads = 200
    async with running(tmp_path) as run:
        client = await run.entered()
        await client.send(b"".join(request(READ, 0, MIB, cookie=n) for n in range(reads)))
        await trio.testing.wait_all_tasks_blocked(0.01)
        (status,) = run.server.clients()
        assert status.counters.requests < 20
        for number in range(reads):
            assert (await client.simple(MIB))[:2] == (number, 0)


async def test_thousands_of_small_unread_replies(tmp_path: Path) -> None:
    """On AF_UNIX about a thousand block the server; nothing may be lost or stuck."""
    count = 5000
    async with running(tmp_path) as run:
        client, other = await run.entered(), await run.entered()
        async with trio.open_nursery() as nursery:
            stream = b"".join(write(n, b"x", cookie=n) for n in range(count))
            nursery.start_soon(client.send, stream)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert await other.read(0, 4) == bytes(4), "a handle of its own, and not starved"
            for number in range(count):
                assert await client.simple() == (number, 0, b"")


async def test_requests_sent_with_go_are_served(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        client = await run.connect()
        await client.send(b"\0\0\0\3" + option(1, b"") + write(0, b"early") + request(READ, 0, 5))
        assert len(await client.receive(18 + 10)) == 28
        assert await client.simple() == (7, 0, b"")
        assert await client.simple(5) == (7, 0, b"early")


async def test_a_connection_enters_without_zeroes_agreed(tmp_path: Path) -> None:
    """3."""
    async with running(tmp_path) as run:
        client = await run.connect()
        await client.greet(flags=1)
        await client.send(option(1, b""))
        assert (await client.receive(134))[10:] == bytes(124)
        assert await client.read(0, 4) == bytes(4)


async def test_stop_finishes_requests_and_refuses_the_rest(tmp_path: Path) -> None:
    """22, 55."""
    device = SlowDevice()
    limits = Limits(requests_in_flight_max=1)  # so that the second is not taken before the stop
    async with running(tmp_path, serving(lambda: device), limits) as run:
        client, haggling = await run.entered(), await run.connect()
        await haggling.greet()
        assert (await haggling.option(3))[-1][0] == ACK
        await client.send(request(READ, 0, 4, cookie=1))
        await device.until_started(1)
        await client.send(request(READ, 0, 4, cookie=2))
        run.server.stop()
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(FileNotFoundError):
            await run.connect()
        assert await client.simple() == (2, ESHUTDOWN, b"")
        assert await haggling.option(7, info_data(b"")) == [
            (ERR_SHUTDOWN, b"server is shutting down")
        ]
        await haggling.send(option(2))
        device.gate.set()
        assert await client.simple(4) == (1, 0, bytes(4))
        assert await client.ended()
        await run.done.wait()
        assert not run.path.exists()


async def test_lingering_clients_do_not_hold_up_a_stop(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """55: one whose request never ends, one that does not read."""
    device = SlowDevice(4 * MIB)
    async with running(tmp_path, serving(lambda: device), Limits(grace_s=0.1)) as run:
        stuck = await run.entered()
        await stuck.send(request(FLUSH))
        await device.until_started(1)
        run.server.stop()
        with trio.fail_after(2):
            await run.done.wait()
        assert await stuck.ended()
    assert "lingered" in caplog.text


async def test_idle_clients_are_closed_at_once_on_stop(tmp_path: Path) -> None:
    async with running(tmp_path, limits=Limits(grace_s=60)) as run:
        client = await run.entered()
        await trio.testing.wait_all_tasks_blocked()
        run.server.stop()
        assert await client.ended()
        with trio.fail_after(2):
            await run.done.wait()


async def test_tcp_and_peer_names() -> None:
    """56."""
    exports = Exports()
    server = Server(exports)
    listeners = listen_tcp("127.0.0.1", 0)
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve, listeners)
            port = listeners[0].getsockname()[1]
            client = RawClient(await trio.open_tcp_stream("127.0.0.1", port))
            await client.enter()
            assert await client.ask(WRITE, 0, 3, data=b"tcp") == 0
            assert await client.read(0, 3) == b"tcp"
            assert server.clients()[0].peer.startswith("127.0.0.1:")
            server.stop()
            assert await client.ended()
            await client.stream.aclose()


def test_unix_listener_is_private_and_replaces_a_stale_socket(tmp_path: Path) -> None:
    path = tmp_path / "s"
    first = listen_unix(path)
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(OSError, match="somebody listens"):
        listen_unix(path)
    first.close()  # leaves the path, as a crash does
    listen_unix(path).close()
    path.unlink()
    path.write_text("a file of somebody's")
    with pytest.raises(OSError, match="in use"):
        listen_unix(path)


async def test_log_tells_who_came_and_went(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "cenote.nbd")
    async with running(tmp_path) as run:
        client = await run.entered()
        await client.read(0, 4)
        await client.stream.aclose()
        await run.idle()
    assert "client connected: peer=unix:pid=" in caplog.text
    assert "requests=1 read=4 written=0 errors=0" in caplog.text
