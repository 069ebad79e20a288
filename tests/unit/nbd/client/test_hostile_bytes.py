"""Whole conversations with a server, each with another byte of the server missing or wrong.

However a conversation ends, the client takes no wrong answer for right: each answer is right, or
there is a clear error, in bounded time, and no task or descriptor of the connection is left.
"""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
import trio.testing

from blockdev.errors import DeviceError
from nbd.client import ClientOptions, describe, open_nbd
from nbd.errors import NbdError
from tests.unit.nbd.client.scripted import (
    READ,
    STATUS,
    Peer,
    Request,
    Scripted,
    chunk,
    data_chunk,
    scripted,
    status,
)
from tests.unit.nbd.client.serving import content

SIZE = 1 << 16
CONTENT = b"<16 bytes of it>"
OPTIONS = ClientOptions(reconnect_s=0, connect_s=5, request_s=5, close_s=1, connections=1)
PATIENCE_S = 60
"""Longer than all of the client's own timeouts together."""

MODES = ["name", "simple", "structured", "extended"]


@dataclass
class Tampering:
    """Records the bytes to send, and changes them at one place."""

    at: int = 1 << 60
    mask: int = 0
    """XORed to the byte at `at`; 0 leaves out that byte and all after it."""
    silent: bool = False
    """Go on without sending after `at`, instead of hanging up."""
    sent: bytes = b""

    def __call__(self, data: bytes) -> tuple[bytes, bool]:
        start = len(self.sent)
        self.sent += data
        where = self.at - start
        if where >= len(data):
            return data, True
        if self.mask:
            if where >= 0:
                data = data[:where] + bytes([data[where] ^ self.mask]) + data[where + 1 :]
            return data, True
        return data[: max(where, 0)], self.silent


async def in_chunks(peer: Peer, request: Request) -> bool:
    """Answer reads in pieces with a hole, not in order, fail the last 16 bytes, and answer a status
    with several extents.
    """
    mode = peer.mode
    if request.kind == STATUS:
        kind, payload = status(mode, 5, [(4096, 3), (4096, 0), (SIZE, 2)])
        await peer.chunk(request, kind, payload)
        return True
    if request.kind == READ and request.offset == SIZE - 16:
        if mode == "simple":
            await peer.simple(request, 5)
        else:
            error = b"\0\0\0\5\0\3bad" + (SIZE - 8).to_bytes(8)
            await peer.send(chunk(mode, request, 2**15 + 2, error, flags=0))
            await peer.send(chunk(mode, request, 0))
        return True
    if request.kind == READ and mode != "simple":
        hole = (request.offset).to_bytes(8) + (4).to_bytes(4)
        await peer.send(data_chunk(mode, request, request.offset + 20, CONTENT))
        await peer.send(chunk(mode, request, 2, hole, flags=0))
        await peer.send(data_chunk(mode, request, request.offset + 4, CONTENT, flags=1))
        return True
    return False


async def converse(uri: str) -> None:
    """Use an export in every way; assert that no wrong answer is taken for right."""
    async with open_nbd(uri, OPTIONS) as device:
        half = device.size_bytes < SIZE  # the server said so: it is known to lie
        assert await content(device, 4096, 36) == bytes(4) + CONTENT * 2
        try:
            await device.read(SIZE - 16, 16)
        except DeviceError:
            pass
        else:
            raise AssertionError("an error was taken for success")
        await device.write(8192, b"hello")
        extents = await device.extents(0, SIZE)
        assert half or 0 < sum(extent.length_bytes for extent in extents) <= SIZE
        await device.flush()


def settings(mode: str) -> dict[str, object]:
    kind = "simple" if mode == "name" else mode
    return {"size": SIZE, "modes": (kind,), "knows_go": mode != "name"}


def prepared(path: Path, mode: str, tampering: Tampering) -> Scripted:
    server = Scripted(path, **settings(mode), answer=in_chunks, tamper=tampering)  # type: ignore[arg-type]
    server.cache[4096 : 4096 + 36] = bytes(4) + CONTENT * 2
    return server


async def one(path: Path, mode: str, tampering: Tampering) -> str:
    """Run a conversation and return its error, if any; assert that it leaves nothing open."""
    path.unlink(missing_ok=True)
    tasks = trio.lowlevel.current_statistics().tasks_living
    descriptors = os.listdir("/proc/self/fd")
    server = prepared(path, mode, tampering)
    error = ""
    with trio.fail_after(PATIENCE_S):
        async with scripted(server):
            try:
                await converse(server.uri)
            except (NbdError, DeviceError) as failure:
                error = str(failure)
                assert error
            await trio.testing.wait_all_tasks_blocked()
            assert not server.peers, "the connection is closed"
    assert trio.lowlevel.current_statistics().tasks_living == tasks
    assert os.listdir("/proc/self/fd") == descriptors
    return error


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("silent", [False, True])
async def test_a_server_that_stops_at_any_byte_is_a_clear_error(
    tmp_path: Path, mode: str, silent: bool
) -> None:
    path = tmp_path / "s"
    whole = Tampering()
    assert await one(path, mode, whole) == ""
    assert len(whole.sent) > 150
    for at in range(len(whole.sent)):
        error = await one(path, mode, Tampering(at, silent=silent))
        assert error, f"success without the bytes from {at} on"
        said = ("no answer", "refuse") if silent else ("hung up", "connection lost", "refuse")
        assert any(words in error for words in said), error


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("mask", [0x01, 0xFF])
async def test_no_wrong_byte_is_taken_for_a_right_answer(
    tmp_path: Path, mode: str, mask: int
) -> None:
    path = tmp_path / "s"
    whole = Tampering()
    await one(path, mode, whole)
    first = whole.sent.index(CONTENT)
    second = whole.sent.index(CONTENT, first + 1)
    told = {
        *range(first - 4, first + 16),
        *range(second, second + 16),
    }  # data: only the server knows it
    failures = 0
    for at in sorted(set(range(len(whole.sent))) - told):
        failures += bool(await one(path, mode, Tampering(at, mask)))
    assert failures > len(whole.sent) // 3


@pytest.mark.parametrize("mask", [0, 0x01, 0xFF])
async def test_describing_a_server_with_any_byte_wrong_ends_in_bounded_time(
    tmp_path: Path, mask: int
) -> None:
    path = tmp_path / "s"

    async def look(tampering: Tampering) -> None:
        path.unlink(missing_ok=True)
        async with scripted(prepared(path, "extended", tampering)) as server:
            with trio.fail_after(PATIENCE_S), suppress(NbdError):
                await describe(server.uri, OPTIONS)
            await trio.testing.wait_all_tasks_blocked()
            assert not server.peers

    whole = Tampering()
    await look(whole)
    for at in range(len(whole.sent)):
        await look(Tampering(at, mask))
