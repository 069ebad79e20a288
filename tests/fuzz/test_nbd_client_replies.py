"""Any replies: the client gives exactly the outcomes that the protocol allows, or a ProtocolError.
No input allocates the length that it claims, or raises another error."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbd.client.negotiation import Mode
from nbd.client.operation import Operation
from nbd.client.replies import RECEIVE_BYTES, ReplyParser
from nbd.errors import ProtocolError
from tests.fuzz.nbd_replies import CONTEXTS, Maker, judge, spoil

Outcome = tuple[int, tuple[object, ...]]
PIECES = (1, 3, 16, 20, 32, 100, 1 << 20)


def outcome(operation: Operation) -> tuple[object, ...]:
    assert operation.lost is None
    if operation.error:
        return "error", operation.error, operation.message
    return "good", bytes(operation.data or b""), operation.runs


def parse(
    mode: Mode, requests: list[tuple[int, int, int]], stream: bytes, piece: int
) -> tuple[list[Outcome], bool]:
    """Return the client's outcomes of a stream, and whether the client found it wrong."""
    pending = {}
    for cookie, (kind, offset, length) in enumerate(requests, 1):
        pending[cookie] = Operation(kind, offset, length)
        pending[cookie].cookie = cookie
    parser = ReplyParser(mode, pending, CONTEXTS)
    answers: list[Outcome] = []
    left = memoryview(stream)
    try:
        while left:
            room = parser.room()
            assert 0 < len(room) <= RECEIVE_BYTES
            count = min(len(room), piece, len(left))
            room[:count] = left[:count]
            left = left[count:]
            parser.received(count)
            for one in parser.finished():
                answers.append((one.cookie, outcome(one)))  # noqa: PERF401 - those before an error
    except ProtocolError:
        return answers, True
    assert len(pending) == len(requests) - len(answers)
    return answers, False


def check(rng: random.Random) -> bool:
    """Feed one input in two ways of arriving; return whether it was malformed."""
    mode = rng.choice(list(Mode))
    maker = Maker(rng, mode, lies=rng.choice((0, 0.5)))
    stream = maker.stream()
    for _ in range(rng.choice((0, 0, 1, 1, 2, 3))):
        stream = spoil(rng, stream)
    expected, verdict = judge(mode, maker.requests, stream)
    for piece in (1 << 20, rng.choice(PIECES)):
        answers, wrong = parse(mode, maker.requests, stream, piece)
        assert answers == expected
        # A chunk that is not whole yet may be wrong already, by its header.
        assert wrong or verdict != "bad"
        assert not wrong or verdict != "good"
    return verdict != "good"


@settings(max_examples=600, deadline=None)
@given(st.randoms(use_true_random=False))
def test_replies_are_taken_as_the_protocol_says(rng: random.Random) -> None:
    check(rng)


@pytest.mark.parametrize("seed", range(4))
def test_many_replies(seed: int) -> None:
    rng = random.Random(seed)
    assert sum(check(rng) for _ in range(2500)) > 1000


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 108))
def test_a_million_malformed_replies(seed: int) -> None:
    rng = random.Random(seed)
    malformed = 0
    while malformed < 125_000:
        malformed += check(rng)


def test_the_judge_knows_right_from_wrong() -> None:
    """The judge accepts right replies, and finds a missing chunk."""
    rng = random.Random(1)
    for _ in range(500):
        mode = rng.choice(list(Mode))
        maker = Maker(rng, mode)
        stream = maker.stream()
        answers, verdict = judge(mode, maker.requests, stream)
        assert verdict == "good"
        assert len(answers) == len(maker.requests)
        for end in (len(stream) - 1, rng.randrange(1, len(stream))):
            fewer, verdict = judge(mode, maker.requests, stream[:end])
            assert len(fewer) < len(answers)
            assert verdict in ("good", "more")
