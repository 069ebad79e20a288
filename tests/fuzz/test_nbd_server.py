"""Hostile clients against a running server, over real sockets, TLS included."""

import logging
import random
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.fuzz.hostile import HANGS_AFTER_S, KEPT, Footprint, House, attack, begin_tls, house
from tests.fuzz.nbd_reading import NAMES
from tests.fuzz.nbd_streams import SIZE_BYTES
from tests.sim.nbd_peer import FLUSH, READ, STATUS, WRITE, Mode, NbdPeer, nbd_peer
from tests.unit.nbd.certificates import Certificates
from tests.unit.nbd.wire import ACK, RawClient, info_data

TOGETHER = 24
"""Hostile clients at the same time."""
BATCH = 240
"""Hostile clients between two checks that good clients are served."""
OBJECTS_MAX, RESIDENT_KIB_MAX = 4000, 24 << 10
"""Growth allowed after the first half: by then the caches are full, and so is the memory that the
allocator keeps, which took 27 MiB more in a process that had done nothing before."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


class Errors(logging.Filter):
    """Keeps log messages that only a bug causes, and drops millions of warnings."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if record.levelno >= logging.ERROR:
            self.found.append(text)
        return record.levelno >= logging.ERROR


@pytest.fixture
def errors() -> Iterator[list[str]]:
    log, errors = logging.getLogger("cenote.nbd"), Errors()
    level = log.level
    log.addFilter(errors)
    log.setLevel(logging.INFO)
    yield errors.found
    log.removeFilter(errors)
    log.setLevel(level)


async def check_service(here: House, rng: random.Random) -> None:
    """Check that a good client gets right data, from every export and on every kind of socket."""
    for name in NAMES:
        for kind in ("off", "tcp"):
            stream = await here.connect(kind)
            async with nbd_peer(stream, rng.choice(list(Mode)), name) as peer:
                await check_device(peer, rng)
    client = RawClient(await begin_tls(here, await here.connect("require")))
    assert (await client.option(7, info_data(b"")))[-1] == (ACK, b"")
    data = rng.randbytes(5000)
    await client.send(struct.pack(">IHHQQI", 0x25609513, 0, WRITE, 7, 77, 5000) + data)
    assert await client.simple() == (7, 0, b"")
    assert await client.read(77, 5000) == data
    await client.stream.aclose()


async def check_device(peer: NbdPeer, rng: random.Random) -> None:
    length = rng.choice((512, 9000, 70_000))
    offset, data = rng.randrange(SIZE_BYTES - length), rng.randbytes(length)
    with trio.fail_after(HANGS_AFTER_S):
        assert (await peer.call(WRITE, offset, length, data=data)).error == 0
        assert (await peer.call(READ, offset, length)).data == data
        assert (await peer.call(FLUSH)).error == 0


async def work(here: House, rng: random.Random) -> None:
    """Work as a good client beside the hostile ones, with an export of its own."""
    async with nbd_peer(await here.connect("off"), Mode.STRUCTURED, KEPT.encode()) as peer:
        known = (await peer.call(READ, 0, SIZE_BYTES)).data

        async def read_all() -> None:
            with trio.fail_after(HANGS_AFTER_S):
                assert (await peer.call(READ, 0, SIZE_BYTES)).data == known

        while True:
            length = rng.choice((512, 4096, 20_000))
            offset, data = rng.randrange(SIZE_BYTES - length), rng.randbytes(length)
            with trio.fail_after(HANGS_AFTER_S):
                assert (await peer.call(WRITE, offset, length, data=data)).error == 0
                known[offset : offset + length] = data
                offset = rng.randrange(SIZE_BYTES - length)
                answer = await peer.call(READ, offset, length)
                assert answer.data == known[offset : offset + length]
                assert (await peer.call(STATUS, 0, SIZE_BYTES)).error == 0
            if rng.random() < 0.1:  # replies that are longer than the socket's buffer
                async with trio.open_nursery() as nursery:
                    for _ in range(4):
                        nursery.start_soon(read_all)
            await trio.sleep(0.005)


async def batch(here: House, seed: str, count: int) -> int:
    """Run `count` hostile clients, `TOGETHER` at a time; return how many sent malformed streams."""
    wrong = 0
    left = iter(range(count))

    async def one_after_the_other() -> None:
        nonlocal wrong
        for number in left:
            rng = random.Random(f"{seed} {number}")
            try:
                malformed = await attack(here, rng)
            except BaseException:
                print(f"hostile client: seed={f'{seed} {number}'!r}")
                raise
            wrong += malformed

    async with trio.open_nursery() as busy:
        busy.start_soon(work, here, random.Random(f"{seed} good"))
        async with trio.open_nursery() as hostile:
            for _ in range(TOGETHER):
                hostile.start_soon(one_after_the_other)
        busy.cancel_scope.cancel()
    await here.idle()
    with trio.fail_after(HANGS_AFTER_S):
        await check_service(here, random.Random(f"{seed} after"))
        await here.idle()
    return wrong


async def siege(folder: Path, made: Certificates, seed: str, count: int) -> None:
    """Send `count` malformed inputs; the server must not crash, hang or leak."""
    began = time.monotonic()
    async with house(folder, made, random.Random(seed)) as here:
        wrong = number = 0
        before = None
        while wrong < count:
            wrong += await batch(here, f"{seed} {number}", BATCH)
            number += 1
            if number == max(2, count // BATCH // 2):
                before = await Footprint.measure()
        after = await Footprint.measure()
    assert before is not None
    took_s = time.monotonic() - began
    print(f"malformed={wrong} of={number * BATCH} {seed=} seconds={took_s:.0f} {before=} {after=}")
    assert (after.tasks, after.descriptors) == (before.tasks, before.descriptors)
    assert after.objects - before.objects <= OBJECTS_MAX
    assert after.resident_kib - before.resident_kib <= RESIDENT_KIB_MAX


async def test_hostile_clients(tmp_path: Path, made: Certificates, errors: list[str]) -> None:
    await siege(tmp_path, made, "short", 3000)
    assert errors == []


@pytest.mark.long
@pytest.mark.parametrize("seed", range(4))
async def test_hostile_clients_for_long(
    tmp_path: Path, made: Certificates, errors: list[str], seed: int
) -> None:
    await siege(tmp_path, made, f"long {seed}", 60_000)
    assert errors == []
