"""A server that lies, repeats, stalls or never ends, as users of the device see it.

Each case gives a clear error in bounded time and a closed connection, and no wrong answer to
another request.
"""

import struct
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from blockdev.errors import CacheLostError, DeviceError
from nbd.client import ClientOptions, NbdDevice, open_nbd
from nbd.client.negotiation import Mode
from tests.unit.nbd.client.reply_wire import LENGTH, OFFSET, Wire, a_read, pattern
from tests.unit.nbd.client.scripted import (
    CAN_MULTI,
    DISC,
    EVERYTHING,
    FLUSH,
    READ,
    STATUS,
    WRITE,
    Peer,
    Request,
    Scripted,
    data_chunk,
    scripted,
    status,
)
from tests.unit.nbd.client.serving import content, opened
from tests.unit.nbd.client.test_wrong_replies import wrong_everywhere
from tests.unit.nbd.wire import MIB

IMPATIENT = ClientOptions(reconnect_s=0, connect_s=5, request_s=20, close_s=1, connections=1)


async def until_closed(server: Scripted) -> None:
    with trio.fail_after(2):
        while server.peers:
            await trio.sleep(0.01)


# Lies in replies


@pytest.mark.parametrize("mode", ["structured", "extended"])
async def test_a_wrong_reply_ends_the_connection_for_all(tmp_path: Path, mode: str) -> None:
    """Other requests on the connection fail too, and later bytes answer none of them."""
    cases = wrong_everywhere(Wire(Mode(mode), a_read()))
    for number, wrong in enumerate(cases):

        async def answer(peer: Peer, request: Request, wrong: bytes = wrong) -> bool:
            if request.kind == READ:
                await peer.send(wrong + bytes(40))
            return True

        name = f"{number}.sock"
        async with opened(tmp_path, IMPATIENT, name, modes=(mode,), answer=answer) as both:
            server, device = both
            failures: list[str] = []

            async def fails(
                work: Callable[[], Awaitable[object]], failures: list[str] = failures
            ) -> None:
                with pytest.raises(DeviceError) as caught:
                    await work()
                failures.append(str(caught.value))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(fails, lambda device=device: device.read(OFFSET, LENGTH))
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(fails, device.flush)
            assert len(failures) == 2, number
            assert all("server broke the protocol: " in said for said in failures), failures
            await until_closed(server)


@pytest.mark.parametrize("mode", ["simple", "structured", "extended"])
async def test_repeated_answers_end_connections_and_corrupt_no_read(
    tmp_path: Path, mode: str
) -> None:
    """The first answer is right, the second answers no request; new connections stay right too."""

    async def twice(peer: Peer, request: Request) -> bool:
        await server.answer_properly(peer, request)
        await server.answer_properly(peer, request)
        return True

    server = Scripted(tmp_path / "s", modes=(mode,), answer=twice)
    server.cache[:] = pattern(MIB)
    async with scripted(server), open_nbd(server.uri) as device:
        right, said = 0, set[str]()
        for offset in range(0, MIB, MIB // 32):
            try:
                data = await content(device, offset, 100)
            except DeviceError as error:
                said.add(str(error).split("=")[0])
            else:
                assert data == pattern(MIB)[offset : offset + 100]
                right += 1
        assert said <= {"server broke the protocol: reply to no request: cookie"}
        assert right >= 16
        assert device.reconnects >= 15


async def test_an_answer_counts_only_on_the_connection_of_its_request(tmp_path: Path) -> None:
    """The cookie of a request on another connection is unknown on this one."""
    held: list[tuple[Peer, Request]] = []

    async def cross(peer: Peer, request: Request) -> bool:
        if request.kind != READ:
            return False
        held.append((peer, request))
        if len(held) == 2:
            (first, asked), (second, wanted) = held
            assert first is not second
            await first.data(Request(0, READ, wanted.cookie + 7, asked.offset, 512), bytes(512))
        return True

    options = ClientOptions(reconnect_s=0, request_s=20)
    async with opened(tmp_path, options, flags=EVERYTHING | CAN_MULTI, answer=cross) as both:
        server, device = both
        while device.connections < 4:
            await trio.sleep(0.01)
        async with trio.open_nursery() as nursery:
            for number in range(2):

                async def fails(number: int = number) -> None:
                    with pytest.raises(DeviceError):
                        await device.read(number * 512, 512)

                nursery.start_soon(fails)
        await until_closed(server)


# Lies in block status


@pytest.mark.parametrize("mode", ["structured", "extended"])
async def test_extents_are_right_or_refused(tmp_path: Path, mode: str) -> None:
    """47: empty, endless, too many, or of unknown state: never more than the request."""
    length = 1 << 16
    top = 2**64 - 1 if mode == "extended" else 2**32 - 1
    good = [
        [(top, 3)],
        [(length - 1, 0), (top, 3)],
        [(1, 3)] * (length // 2),
        [(512, (1 << 32) - 1)],
    ]
    bad = [
        [(0, 0)],
        [(length, 0), (1, 0)],
        [(top, 3), (top, 3)],
        [(length // 2, 0), (0, 0), (length // 2, 0)],
        [(1, 0)] * (length + 1),
    ]
    for number, runs in enumerate(good + bad):

        async def answer(peer: Peer, request: Request, runs: list[tuple[int, int]] = runs) -> bool:
            if request.kind != STATUS:
                return False
            await peer.chunk(request, *status(mode, 5, runs))
            return True

        name = f"{number}.sock"
        async with opened(tmp_path, IMPATIENT, name, modes=(mode,), answer=answer) as both:
            server, device = both
            if runs in good:
                extents = await device.extents(0, length)
                assert 1 <= sum(one.length_bytes for one in extents) <= length
            else:
                with pytest.raises(DeviceError, match="broke the protocol"):
                    await device.extents(0, length)
                await until_closed(server)


# Stalls


async def use(device: NbdDevice) -> None:
    await device.read(0, 4096)
    await device.extents(0, 4096)
    await device.write(0, b"x")
    await device.flush()


@pytest.mark.parametrize("kind", [READ, STATUS, WRITE, FLUSH])
@pytest.mark.parametrize("mode", ["simple", "structured", "extended"])
async def test_a_missing_answer_times_out(tmp_path: Path, mode: str, kind: int) -> None:
    async def forget(peer: Peer, request: Request) -> bool:
        return request.kind == kind

    async with opened(tmp_path, IMPATIENT, patience_s=60, modes=(mode,), answer=forget) as both:
        server, device = both
        if kind == STATUS and mode == "simple":
            return
        started = trio.current_time()
        with pytest.raises(DeviceError, match=f"no answer to a request: command={kind} seconds=20"):
            await use(device)
        assert 20 <= trio.current_time() - started < 21
        await until_closed(server)


@pytest.mark.parametrize("mode", ["simple", "structured", "extended"])
async def test_an_answer_without_end_times_out(tmp_path: Path, mode: str) -> None:
    """A byte a second does not count as an answer, nor do many chunks without the last."""

    async def trickle(peer: Peer, request: Request) -> bool:
        if request.kind != READ:
            return False
        head = b"" if mode == "simple" else request.offset.to_bytes(8)
        whole = struct.pack(">IIQ", 0x67446698, 0, request.cookie) + bytes(request.length)
        if mode != "simple":
            whole = data_chunk(mode, request, request.offset, bytes(request.length), flags=1)
        assert head in whole
        for at in range(len(whole)):
            await peer.send(whole[at : at + 1])
            await trio.sleep(1)
        return True

    async def errors(peer: Peer, request: Request) -> bool:
        if request.kind != READ or mode == "simple":
            return await trickle(peer, request)
        while True:
            await peer.chunk(request, 2**15 + 1, struct.pack(">IH", 5, 0), flags=0)
            await trio.sleep(0.1)

    for number, answer in enumerate((trickle, errors)):
        async with opened(
            tmp_path, IMPATIENT, f"{number}.sock", patience_s=60, modes=(mode,), answer=answer
        ) as (server, device):
            started = trio.current_time()
            with pytest.raises(DeviceError, match="no answer to a request"):
                await device.read(0, 4096)
            assert 20 <= trio.current_time() - started < 21
            await until_closed(server)


async def test_a_server_that_reads_nothing_times_out(tmp_path: Path) -> None:
    """A request that does not fit the socket waits no longer than one without an answer."""

    async def deaf(peer: Peer, request: Request) -> bool:
        if request.kind == FLUSH:
            await trio.sleep_forever()
        return False

    async with opened(tmp_path, IMPATIENT, patience_s=60, size=32 * MIB, answer=deaf) as both:
        _, device = both
        async with trio.open_nursery() as nursery:

            async def fails(work: Callable[[], Awaitable[object]]) -> None:
                with pytest.raises(DeviceError, match="no answer"):
                    await work()

            nursery.start_soon(fails, device.flush)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(fails, lambda: device.write(0, bytes(16 * MIB)))
        assert device.connections == 0


async def test_closing_does_not_wait_long_for_a_server_that_ignores_disc(tmp_path: Path) -> None:
    server = Scripted(tmp_path / "s")

    async def never(peer: Peer) -> None:
        while True:
            request = await server._request(peer)
            if request.kind != DISC:
                await server.answer_properly(peer, request)

    server._transmit = never  # type: ignore[method-assign]
    async with scripted(server):
        async with open_nbd(server.uri, IMPATIENT) as device:
            await device.read(0, 512)
            started = trio.current_time()
        assert trio.current_time() - started == pytest.approx(1)
        await until_closed(server)


# Unexpected replies


async def test_a_reply_without_a_request_ends_the_connection(tmp_path: Path) -> None:
    async with opened(tmp_path, IMPATIENT) as (server, device):
        await device.write(0, b"x")
        await server.peers[0].send(struct.pack(">IIQ", 0x67446698, 0, 2))
        await until_closed(server)
        with pytest.raises(DeviceError, match="broke the protocol: reply to no request"):
            await device.read(0, 1)
        with pytest.raises(CacheLostError):
            await device.flush()


# With reconnecting


async def test_a_request_with_a_wrong_reply_is_not_sent_again(tmp_path: Path) -> None:
    """The server would only give the wrong reply again."""

    async def lie(peer: Peer, request: Request) -> bool:
        if request.kind != READ:
            return False
        await peer.data(Request(0, READ, request.cookie, request.offset + 512, 512), bytes(512))
        return True

    async with opened(tmp_path, ClientOptions(), patience_s=100, answer=lie) as (server, device):
        for _ in range(5):
            with pytest.raises(DeviceError, match="outside its request"):
                await device.read(0, 512)
        assert len(server.of(READ)) == 5
        await device.write(0, b"x")
        await device.flush()
