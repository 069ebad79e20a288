"""A server that stalls, lies or never ends during negotiation."""

import struct
from pathlib import Path

import pytest
import trio

from nbd.client import describe, open_nbd
from nbd.errors import NbdError, ProtocolError, UnreachableError
from tests.unit.nbd.client.scripted import EVERYTHING, INFO, SERVER, Peer, Scripted, scripted
from tests.unit.nbd.client.test_hostile_server import IMPATIENT, until_closed
from tests.unit.nbd.wire import MIB


async def look(server: Scripted) -> None:
    await describe(server.uri, IMPATIENT)


async def enter(server: Scripted) -> None:
    async with open_nbd(server.uri, IMPATIENT):
        pass


@pytest.mark.parametrize("stage", ["accept", "greeting", 11, 8, 10, 7, 1, 3, 6, 9, 2])
async def test_a_negotiation_that_stalls_times_out(tmp_path: Path, stage: str | int) -> None:
    """It stalls at each option, and before the first."""

    async def silent(peer: Peer, number: int, data: bytes) -> bool:
        if number == stage:
            await trio.sleep_forever()
        return False

    server = Scripted(tmp_path / "s", on_option=silent, knows_go=stage != 1)
    if stage == "greeting":
        server.greeting = b""
    if stage == "accept":

        async def never(listener: object, task_status: trio.TaskStatus[None]) -> None:
            task_status.started()
            await trio.sleep_forever()

        server._accept = never  # type: ignore[method-assign]
    async with scripted(server):
        started = trio.current_time()
        if stage == 2:  # an ABORT without an answer is no error
            await look(server)
            assert trio.current_time() - started < 5
            return
        with pytest.raises(UnreachableError, match="no answer in time"):
            await (look if stage in (3, 6, 9) else enter)(server)
        assert trio.current_time() - started == pytest.approx(5)


@pytest.mark.parametrize("number", [3, 7, 10])
async def test_an_answer_without_end_is_refused_in_bounded_time(
    tmp_path: Path, number: int
) -> None:
    """18: too many replies, too many bytes, or one byte at a time."""
    kind = {3: SERVER, 7: INFO, 10: 4}[number]
    small = {3: b"\0\0\0\1a", 7: b"\0\x63", 10: b"\0\0\0\1a:b"}[number]

    async def endless(peer: Peer, option: int, data: bytes) -> bool:
        if option != number:
            return False
        if how == "trickle":
            while True:
                await peer.send(b"\0\x03\xe8\x89\x04\x55\x65\xa9"[:1])
                await trio.sleep(0.5)
        payload = small + bytes(60_000 if how == "bytes" else 0)
        head = struct.pack(">QIII", 0x3E889045565A9, number, kind, len(payload))
        await peer.send((head + payload) * (300 if how == "bytes" else 300_000))
        return True

    for how in ("bytes", "replies", "trickle"):
        async with scripted(Scripted(tmp_path / f"{how}.sock", on_option=endless)) as server:
            with trio.fail_after(7), pytest.raises(NbdError) as caught:
                await (look if number == 3 else enter)(server)
            assert isinstance(caught.value, (ProtocolError, UnreachableError))
            assert ("in time" in str(caught.value)) == (how == "trickle")
            await until_closed(server)


async def test_a_server_that_replies_before_any_request_is_refused(tmp_path: Path) -> None:
    async def early(peer: Peer, number: int, data: bytes) -> bool:
        if number != 7:
            return False
        info = struct.pack(">HQH", 0, MIB, EVERYTHING)
        reply = struct.pack(">QIII", 0x3E889045565A9, 7, INFO, len(info)) + info
        ack = struct.pack(">QIII", 0x3E889045565A9, 7, 1, 0)
        await peer.send(reply + ack + struct.pack(">IIQ", 0x67446698, 0, 1))
        await peer.receive(1)
        return True

    async with scripted(Scripted(tmp_path / "s", on_option=early)) as server:
        with pytest.raises(ProtocolError, match="before any request"):
            async with open_nbd(server.uri, IMPATIENT):
                pass
        await until_closed(server)


# Lies about the export


def info(kind: int, data: bytes) -> bytes:
    payload = struct.pack(">H", kind) + data
    return struct.pack(">QIII", 0x3E889045565A9, 7, INFO, len(payload)) + payload


GOOD = info(0, struct.pack(">QH", MIB, EVERYTHING))
LIES = {
    "no size": b"",
    "2^63": info(0, struct.pack(">QH", 1 << 63, EVERYTHING)),
    "2^64 - 1": info(0, struct.pack(">QH", 2**64 - 1, EVERYTHING)),
    "no flags": info(0, struct.pack(">QH", MIB, 0)),
    "short size": info(0, struct.pack(">QH", MIB, EVERYTHING)[:-1]),
    "long size": info(0, struct.pack(">QHB", MIB, EVERYTHING, 0)),
    "no kind": struct.pack(">QIII", 0x3E889045565A9, 7, INFO, 1) + b"\0",
    "block of 0": GOOD + info(3, struct.pack(">III", 0, 4096, MIB)),
    "block of 3": GOOD + info(3, struct.pack(">III", 3, 4096, MIB)),
    "block of 128 KiB": GOOD + info(3, struct.pack(">III", 1 << 17, 1 << 17, MIB)),
    "nothing may be read": GOOD + info(3, struct.pack(">III", 1, 4096, 0)),
    "less than a block may be read": GOOD + info(3, struct.pack(">III", 4096, 4096, 512)),
    "short blocks": GOOD + info(3, struct.pack(">II", 1, 4096)),
    "NUL in the name": GOOD + info(1, b"a\0b"),
    "endless description": GOOD + info(2, b"x" * 5000),
    "description in Latin-1": GOOD + info(2, b"\xe9"),
    "of another kind": struct.pack(">QIII", 0x3E889045565A9, 7, SERVER, 4) + bytes(4),
    "to another option": struct.pack(">QIII", 0x3E889045565A9, 6, INFO, 12) + bytes(12),
    "64 KiB and more": info(99, bytes(1 << 16)),
}


@pytest.mark.parametrize("lie", LIES)
async def test_lies_about_an_export_are_refused(tmp_path: Path, lie: str) -> None:
    async def answer(peer: Peer, option: int, data: bytes) -> bool:
        if option == 7:
            ack = struct.pack(">QIII", 0x3E889045565A9, 7, 1, 0)
            await peer.send(LIES[lie] + ack)
        return option == 7

    async with scripted(Scripted(tmp_path / "s", on_option=answer)) as server:
        with pytest.raises(ProtocolError):
            await enter(server)
        await until_closed(server)
        assert 2 not in server.options, "no ABORT is sent to a server that lies"
