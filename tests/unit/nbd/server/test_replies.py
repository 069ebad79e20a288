"""Replies, byte by byte. Numbers in docstrings are those of docs/nbd.md."""

import pytest

from nbd.server.replies import ExtendedReplies, Replies, SimpleReplies, StructuredReplies
from tests.unit.nbd.wire import READ, STATUS, WRITE

SIMPLE, STRUCTURED, EXTENDED = SimpleReplies(), StructuredReplies(), ExtendedReplies()
COOKIE = "0102030405060708"
NUMBER = 0x0102030405060708


def test_simple() -> None:
    """29, 31."""
    assert SIMPLE.done(WRITE, NUMBER, 512).hex() == "6744669800000000" + COOKIE
    assert SIMPLE.data(NUMBER, 512, 9).hex() == "6744669800000000" + COOKIE
    assert SIMPLE.error(READ, NUMBER, 512, 5, "no").hex() == "6744669800000005" + COOKIE


def test_structured() -> None:
    """29, 31 to 33, 36, 47: only READ and BLOCK_STATUS are in chunks."""
    head = "668e33ef"
    assert STRUCTURED.done(WRITE, NUMBER, 0) == SIMPLE.done(WRITE, NUMBER, 0)
    assert STRUCTURED.error(WRITE, NUMBER, 0, 28, "full") == SIMPLE.error(WRITE, NUMBER, 0, 28, "")
    assert STRUCTURED.done(READ, NUMBER, 0).hex() == head + "00010000" + COOKIE + "00000000"
    assert STRUCTURED.data(NUMBER, 4096, 16).hex() == (
        head + "00010001" + COOKIE + "00000018" + "0000000000001000"
    )
    assert STRUCTURED.piece(NUMBER, 4096, 8192, 16, last=False).hex() == (
        head + "00000001" + COOKIE + "00000018" + "0000000000002000"
    )
    assert STRUCTURED.hole(NUMBER, 4096, 8192, 512, last=True).hex() == (
        head + "00010002" + COOKIE + "0000000c" + "0000000000002000" + "00000200"
    )
    assert STRUCTURED.error(READ, NUMBER, 0, 22, "no").hex() == (
        head + "00018001" + COOKIE + "00000008" + "00000016" + "0002" + "6e6f"
    )
    assert STRUCTURED.status(NUMBER, 0, 7, [(4096, 3), (512, 0)], last=True).hex() == (
        head + "00010005" + COOKIE + "00000014" + "00000007" + "00001000000000030000020000000000"
    )


def test_extended() -> None:
    """57, 60: everything in chunks, and the offset of the request in each."""
    head, offset = "6e8a278c", "0000000000001000"
    assert EXTENDED.done(WRITE, NUMBER, 4096).hex() == (
        head + "00010000" + COOKIE + offset + "0000000000000000"
    )
    assert EXTENDED.data(NUMBER, 4096, 16).hex() == (
        head + "00010001" + COOKIE + offset + "0000000000000018" + offset
    )
    assert EXTENDED.piece(NUMBER, 4096, 8192, 16, last=False).hex() == (
        head + "00000001" + COOKIE + offset + "0000000000000018" + "0000000000002000"
    )
    assert EXTENDED.hole(NUMBER, 4096, 8192, 512, last=False).hex() == (
        head + "00000002" + COOKIE + offset + "000000000000000c" + "0000000000002000" + "00000200"
    )
    assert EXTENDED.error(WRITE, NUMBER, 4096, 28, "").hex() == (
        head + "00018001" + COOKIE + offset + "0000000000000006" + "0000001c" + "0000"
    )
    assert EXTENDED.status(NUMBER, 4096, 7, [(1 << 40, 3)], last=True).hex() == (
        head + "00010006" + COOKIE + offset + "0000000000000018"
        "00000007" + "00000001" + "0000010000000000" + "0000000000000003"
    )


@pytest.mark.parametrize("replies", [STRUCTURED, EXTENDED])
def test_messages_are_cut(replies: Replies) -> None:
    """33: to a length that any peer takes, between characters."""
    reply = replies.error(STATUS, 7, 0, 22, "ü" * 9999)
    assert len(reply) <= 32 + 6 + 1024
    assert reply.endswith("ü".encode())
