"""The server over real Unix sockets. Numbers in docstrings are those of docs/nbd.md."""

import errno
import logging
import socket
import struct
from pathlib import Path

import pytest
import trio
import trio.testing

from blockdev.errors import BusyError, DeviceError, NoSpaceError
from blockdev.memory import MemoryDevice
from nbd.server.limits import Limits
from nbd.server.listeners import listen_tcp, listen_unix
from nbd.server.server import Server
from tests.unit.hang import HANG_S
from tests.unit.nbd.devices import FailingDevice, SlowDevice, serving
from tests.unit.nbd.mock_clock import REAL_TIME
from tests.unit.nbd.wire import (
    ACK,
    DF,
    DISC,
    EINVAL,
    EIO,
    ENOSPC,
    EPERM,
    ERR_POLICY,
    ERR_UNKNOWN,
    FLUSH,
    FUA,
    MIB,
    NO_HOLE,
    READ,
    SERVER,
    STATUS,
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


async def test_every_command_works(tmp_path: Path) -> None:
    """3, 9, 16, 28, 43: and the counters count it."""
    async with running(tmp_path) as run:
        client = await run.connect()
        info = await client.enter(structured=False)
        assert info[0] == struct.pack(">QH", MIB, 1 | 4 | 8 | 32 | 64 | 256 | 1024 | 2048)
        assert info[3] == struct.pack(">III", 1, 4096, 32 * MIB)
        assert await client.ask(WRITE, 1000, 5, data=b"hello") == 0
        assert await client.ask(WRITE, 2000, 5, flags=FUA, data=b"there") == 0
        assert await client.read(999, 7) == b"\0hello\0"
        assert await client.ask(ZEROES, 1001, 3, flags=NO_HOLE) == 0
        assert await client.ask(TRIM, 2000, 5) == 0
        assert await client.ask(FLUSH) == 0
        assert await client.read(1000, 5) == b"h\0\0\0o"
        (status,) = run.server.clients()
        assert status.peer.address.startswith("unix:pid=")
        assert status.export == ""
        counters = status.counters
        assert (counters.requests, counters.read_bytes) == (7, 12)
        assert (counters.written_bytes, counters.errors) == (10, 0)
        await client.send(request(DISC))
        assert await client.ended()
        await run.idle()


async def test_structured_replies(tmp_path: Path) -> None:
    """31, 32, 35: READ and its errors are structured; other replies may be simple."""
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


async def test_refused_requests_leave_the_stream_in_step(tmp_path: Path) -> None:
    """37, 39, 50, 51, 52."""
    async with running(tmp_path) as run:
        client = await run.entered()
        assert await client.ask(WRITE, MIB - 2, 4, data=b"abcd") == ENOSPC
        assert await client.ask(WRITE, 2**64 - 2, 4, data=b"abcd") == ENOSPC
        assert await client.ask(WRITE, 0, 100_000, flags=1 << 9, data=bytes(100_000)) == EINVAL
        assert await client.ask(WRITE, 0, 33 * MIB, data=bytes(33 * MIB)) == EINVAL
        assert await client.read(2**64 - 1, 2) == EINVAL
        assert await client.ask(STATUS, 0, 1) == EINVAL  # 49: no context selected
        assert await client.ask(999, 0, 1) == EINVAL
        assert await client.ask(TRIM, 0, 2**32 - 1) == EINVAL
        assert await client.ask(ZEROES, 0, 2**32 - 1) == ENOSPC
        for kind in (READ, WRITE, TRIM, ZEROES):
            assert await client.ask(kind, 0, 0) == 0
        assert await client.read(0, 4) == bytes(4)
        assert run.server.clients()[0].counters.errors == 9


async def test_the_longest_payloads_are_taken(tmp_path: Path) -> None:
    """17, 52."""
    async with running(tmp_path, serving(lambda: MemoryDevice(64 * MIB))) as run:
        client = await run.entered()
        data = bytes(range(256)) * (32 * MIB // 256)
        assert await client.ask(WRITE, 5, 32 * MIB, data=data) == 0
        assert await client.read(5, 32 * MIB) == data


async def test_a_read_only_export_refuses_changes(tmp_path: Path) -> None:
    """28, 38."""

    def device() -> MemoryDevice:
        memory = MemoryDevice(MIB)
        memory.read_only = True
        return memory

    async with running(tmp_path, serving(device)) as run:
        client = await run.connect()
        info = await client.enter()
        assert int.from_bytes(info[0][8:]) == 1 | 2 | 4 | 8 | 256 | 1024
        assert await client.ask(WRITE, 0, 4, data=b"abcd") == EPERM
        assert await client.ask(WRITE, 0, 4, flags=FUA, data=b"abcd") == EPERM
        assert await client.ask(ZEROES, 0, 4) == EPERM
        assert await client.ask(TRIM, 0, 4) == EPERM
        assert await client.read(0, 4) == bytes(4)


async def test_requests_must_be_in_whole_sectors(tmp_path: Path) -> None:
    """15: the minimum block is advertised and enforced."""
    async with running(tmp_path, serving(lambda: MemoryDevice(MIB, block_bytes=512))) as run:
        client = await run.connect()
        info = await client.enter()
        assert info[3] == struct.pack(">III", 512, 4096, 32 * MIB)
        assert await client.read(0, 100) == EINVAL
        assert await client.ask(WRITE, 100, 512, data=bytes(512)) == EINVAL
        assert await client.read(512, 512) == bytes(512)


async def test_list_and_info_leave_no_device_open(tmp_path: Path) -> None:
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


async def test_an_export_that_does_not_open_is_refused(
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


async def test_waiting_requests_get_their_flags_and_data(tmp_path: Path) -> None:
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
        await client.send(request(READ, 0, 4, cookie=1) + request(99, cookie=2))
        assert await client.simple() == (2, EINVAL, b"")
        device.gate.set()
        assert await client.simple(4) == (1, 0, bytes(4))


async def test_requests_sent_with_go_are_served(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        client = await run.connect()
        await client.send(b"\0\0\0\3" + option(1, b"") + write(0, b"early") + request(READ, 0, 5))
        assert len(await client.receive(18 + 10)) == 28
        assert await client.simple() == (7, 0, b"")
        assert await client.simple(5) == (7, 0, b"early")


async def test_export_name_sends_zeroes_unless_the_client_declined_them(tmp_path: Path) -> None:
    """3."""
    async with running(tmp_path) as run:
        client = await run.connect()
        await client.greet(flags=1)
        await client.send(option(1, b""))
        assert (await client.receive(134))[10:] == bytes(124)
        assert await client.read(0, 4) == bytes(4)


@REAL_TIME
async def test_tcp_options_and_peer_addresses() -> None:
    """56."""
    exports = Exports()
    server = Server(exports, Limits(handshake_s=HANG_S, grace_s=HANG_S))
    listeners = listen_tcp("127.0.0.1", 0)
    with trio.fail_after(HANG_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve, listeners)
            port = listeners[0].sock.getsockname()[1]
            client = RawClient(await trio.open_tcp_stream("127.0.0.1", port))
            await client.enter()
            assert await client.ask(WRITE, 0, 3, data=b"tcp") == 0
            assert await client.read(0, 3) == b"tcp"
            assert server.clients()[0].peer.address.startswith("127.0.0.1:")
            (connection,) = server._connections
            assert connection._plain.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert connection._plain.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            server.stop()
            assert await client.ended()
            await client.stream.aclose()


def test_unix_listener_is_private_and_replaces_a_stale_socket(tmp_path: Path) -> None:
    path = tmp_path / "s"
    first = listen_unix(path)
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(OSError, match="somebody listens"):
        listen_unix(path)
    first.sock.close()  # leaves the path, as a crash does
    listen_unix(path).close()
    path.write_text("a file of somebody's")
    with pytest.raises(OSError, match="in use"):
        listen_unix(path)


async def test_the_log_names_clients_that_connect_and_leave(
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
