"""The device against a scripted server: opening, closing, missing abilities, descriptions."""

import errno
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from blockdev.device import Extent
from blockdev.errors import (
    ClosedError,
    ReadOnlyError,
    UnsupportedError,
)
from nbd.client import ClientOptions, NbdDevice, describe, open_nbd
from nbd.errors import TlsError, UnreachableError
from tests.unit.nbd.client.scripted import (
    CACHE,
    CAN_FAST,
    CAN_FLUSH,
    CAN_FUA,
    CAN_ZEROES,
    DISC,
    EVERYTHING,
    FLUSH,
    HAS_FLAGS,
    READ_ONLY,
    STATUS,
    WRITE,
    ZEROES,
    Peer,
    Request,
    Scripted,
    option_reply,
    scripted,
)
from tests.unit.nbd.client.serving import content, opened
from tests.unit.nbd.wire import FUA, MIB

NO_HOLE, FAST_ZERO = 2, 16
GIB = 1 << 30
MODES = ["simple", "structured", "extended"]


# Opening and closing


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("knows_go", [True, False])
async def test_every_kind_of_server(tmp_path: Path, mode: str, knows_go: bool) -> None:
    if mode == "extended" and not knows_go:
        return
    async with opened(tmp_path, modes=(mode,), knows_go=knows_go) as (server, device):
        assert device.mode.value == mode
        assert device.size_bytes == MIB
        await device.write(1000, b"hello" * 100)
        assert await content(device, 999, 7) == b"\0helloh"
        await device.write_zeroes(1001, 3)
        await device.trim(2000, 100)
        await device.cache(0, MIB)
        await device.flush()
        assert await content(device, 1000, 5) == b"h\0\0\0o"
        assert await device.extents(0, 4096) == [Extent(4096, hole=False, zero=False)]
        assert bool(server.of(STATUS)) == (mode != "simple")
    assert server.requests[-1].kind == DISC


async def test_a_server_with_export_name_only(tmp_path: Path) -> None:
    """It is of the first newstyle protocol, and sends the zeroes behind its answer."""

    async def option(peer: Peer, number: int, data: bytes) -> bool:
        assert number == 1
        await peer.send(struct.pack(">QH", MIB, HAS_FLAGS | CAN_FLUSH) + bytes(124))
        return False

    server = Scripted(tmp_path / "s", greeting=b"NBDMAGICIHAVEOPT\x00\x00", on_option=None)

    async def negotiate(peer: Peer) -> bool:
        _, number, length = struct.unpack(">QII", await peer.receive(16))
        await peer.receive(length)
        await option(peer, number, b"")
        return True

    server._negotiate = negotiate  # type: ignore[method-assign]
    async with scripted(server):
        async with open_nbd(server.uri, ClientOptions(reconnect_s=0)) as device:
            await device.write(0, b"x" * 10)
            assert await content(device, 0, 10) == b"x" * 10
        (report,) = await describe(server.uri)
        assert report.about is not None
        assert (report.about.size_bytes, report.mode.value) == (MIB, "simple")


async def test_closing_takes_bounded_time_and_fails_requests_in_flight(tmp_path: Path) -> None:
    async def silent(peer: Peer, request: Request) -> bool:
        await trio.sleep_forever()
        return True

    options = ClientOptions(close_s=0.05, reconnect_s=0)
    async with opened(tmp_path, options, answer=silent) as (_, device):
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                with pytest.raises(ClosedError):
                    await device.read(0, 4096)

            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            await device.close()
        with pytest.raises(ClosedError):
            await device.flush()


async def test_closing_waits_for_requests_in_flight(tmp_path: Path) -> None:
    async def slow(peer: Peer, request: Request) -> None:
        await trio.sleep(0.05)

    async with opened(tmp_path, answer=slow) as (server, device):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(device.write, 0, b"abc")
            await trio.testing.wait_all_tasks_blocked()
            await device.close()
        assert server.cache[:3] == b"abc"
        with trio.fail_after(1):
            while server.requests[-1].kind != DISC:
                await trio.sleep(0.001)


async def test_errors_of_the_body_are_raised_unchanged(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        async with opened_plain(tmp_path):
            raise KeyError("mine")


@asynccontextmanager
async def opened_plain(folder: Path) -> AsyncIterator[NbdDevice]:
    server = Scripted(folder / "s")
    failure: Exception | None = None
    async with scripted(server):
        try:
            async with open_nbd(server.uri) as device:
                yield device
        except KeyError as error:
            failure = error
    if failure is not None:
        raise failure


async def test_a_cancelled_owner_sends_disc_too(tmp_path: Path) -> None:
    async with scripted(Scripted(tmp_path / "s")) as server:
        with trio.CancelScope() as scope:
            async with open_nbd(server.uri):
                scope.cancel()
                await trio.sleep_forever()
        assert server.requests[-1].kind == DISC


async def test_a_missing_server_is_unreachable(tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match="No such file"):
        async with open_nbd(f"nbd+unix:///?socket={tmp_path}/none"):
            pass
    with pytest.raises(UnreachableError, match="refused"):
        async with open_nbd("nbd://127.0.0.1:1/"):
            pass
    for host in ("name.invalid", "a..b", "x" * 64):
        with pytest.raises(UnreachableError):
            async with open_nbd(f"nbd://{host}/"):
                pass


async def test_a_client_never_falls_back_from_tls(tmp_path: Path) -> None:
    """27: if the server has no TLS, the client does not go on in plain text."""
    async with scripted(Scripted(tmp_path / "s")) as server:
        uri = server.uri.replace("nbd+unix", "nbds+unix") + "&tls-verify-peer=0"
        with pytest.raises(TlsError, match="no TLS"):
            async with open_nbd(uri):
                pass
        assert server.options == [5]
        with pytest.raises(TlsError, match="tls-hostname"):
            async with open_nbd(server.uri.replace("nbd+unix", "nbds+unix")):
                pass


# Abilities


async def test_read_only_exports_open_for_reading_only(tmp_path: Path) -> None:
    flags = EVERYTHING | READ_ONLY
    async with scripted(Scripted(tmp_path / "s", flags=flags)) as server:
        with pytest.raises(ReadOnlyError):
            async with open_nbd(server.uri):
                pass
    async with opened(tmp_path, ClientOptions(read_only=True), flags=flags) as (server, device):
        assert device.read_only
        for work in (device.write(0, b"x"), device.write_zeroes(0, 1), device.trim(0, 1)):
            with pytest.raises(ReadOnlyError):
                await work
        await device.flush()
        assert not server.of(WRITE)


async def test_writing_is_refused_where_nothing_can_be_made_durable(tmp_path: Path) -> None:
    async with scripted(Scripted(tmp_path / "s", flags=HAS_FLAGS)) as server:
        with pytest.raises(UnsupportedError, match="durable"):
            async with open_nbd(server.uri):
                pass
        async with open_nbd(server.uri, ClientOptions(read_only=True)) as device:
            await device.flush()
        async with open_nbd(server.uri, ClientOptions(trust_unflushable=True)) as device:
            await device.write(0, b"x", fua=True)
            await device.flush()
        assert [request.flags for request in server.of(WRITE)] == [0]
        assert not server.of(FLUSH)


async def test_fua_is_a_write_and_a_flush_where_servers_lack_it(tmp_path: Path) -> None:
    async with opened(tmp_path, flags=HAS_FLAGS | CAN_FLUSH | CAN_ZEROES) as (server, device):
        await device.write(0, b"x", fua=True)
        await device.write_zeroes(0, 1, fua=True)
        await device.write(0, b"x")
        kinds = [(request.kind, request.flags) for request in server.requests]
        assert kinds == [(WRITE, 0), (FLUSH, 0), (ZEROES, 0), (FLUSH, 0), (WRITE, 0)]


async def test_all_writes_have_fua_where_servers_lack_flush(tmp_path: Path) -> None:
    """With FUA, each write is durable by itself."""
    async with opened(tmp_path, flags=HAS_FLAGS | CAN_FUA | CAN_ZEROES) as (server, device):
        await device.write(0, b"x")
        await device.write_zeroes(1, 1)
        await device.flush()
        assert [request.flags for request in server.requests] == [FUA, FUA]


async def test_servers_without_zeroes_trim_and_cache(tmp_path: Path) -> None:
    size = 3 * MIB
    async with opened(tmp_path, flags=HAS_FLAGS | CAN_FLUSH, size=size) as (server, device):
        await device.write(0, b"x" * size)
        await device.write_zeroes(10, size - 20)
        assert not any(server.cache[10 : size - 10])
        assert server.cache[9] == server.cache[size - 10] == ord("x")
        with pytest.raises(UnsupportedError):
            await device.write_zeroes(0, 10, fast=True)
        await device.trim(0, 100)
        await device.cache(0, 100)
        assert {request.kind for request in server.requests} == {WRITE}


async def test_write_zeroes_sends_its_flags(tmp_path: Path) -> None:
    async with opened(tmp_path, flags=EVERYTHING | CAN_FAST) as (server, device):
        await device.write_zeroes(0, 10, fua=True, no_hole=True, fast=True)
        assert server.requests[-1].flags == FUA | NO_HOLE | FAST_ZERO


async def test_zeroes_that_are_not_fast_are_unsupported(tmp_path: Path) -> None:
    async def answer(peer: Peer, request: Request) -> bool:
        await peer.done(request, errno.ENOTSUP)
        return True

    async with opened(tmp_path, flags=EVERYTHING | CAN_FAST, answer=answer) as (_, device):
        with pytest.raises(UnsupportedError):
            await device.write_zeroes(0, 10, fast=True)


# Descriptions


async def test_describe(tmp_path: Path) -> None:
    async with scripted(Scripted(tmp_path / "s")) as server:
        reports = await describe(server.uri)
        assert [report.name for report in reports] == ["", "other"]
        assert server.aborts == 1
        about = reports[0].about
        assert about is not None
        assert (about.size_bytes, about.contexts) == (MIB, ("base:allocation",))
        (one,) = await describe(server.uri.replace("///", "///one"))
        assert one.name == "one"


@pytest.mark.parametrize("mode", ["simple", "structured"])
async def test_describe_enters_exports_of_servers_without_info(tmp_path: Path, mode: str) -> None:
    """Old servers have no INFO: the client enters each export and leaves it again."""
    server = Scripted(tmp_path / "s", modes=(mode,), knows_go=False, flags=EVERYTHING | READ_ONLY)
    async with scripted(server):
        reports = await describe(server.uri)
        assert [report.name for report in reports] == ["", "other"]
        for report in reports:
            assert (report.mode.value, report.problem) == (mode, "")
            assert report.about is not None
            assert report.about.size_bytes == MIB
            assert report.about.flags & READ_ONLY
            assert report.about.contexts == (("base:allocation",) if mode != "simple" else ())
        assert [request.kind for request in server.requests] == [DISC, DISC]


async def test_describe_where_lists_are_refused(tmp_path: Path) -> None:
    async def refuse(peer: Peer, number: int, data: bytes) -> bool:
        if number in (3, 9):
            await option_reply(peer, number, 2**31 + 2, b"no")
        return number in (3, 9)

    async with scripted(Scripted(tmp_path / "s", on_option=refuse)) as server:
        (report,) = await describe(server.uri)
        assert report.name == ""
        assert report.about is not None
        assert report.about.contexts == ()
    assert CACHE  # the scripted numbers are those of the protocol
