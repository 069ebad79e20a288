"""Times of connecting, of waiting for answers and of reconnecting, on a mock clock."""

from pathlib import Path
from random import Random

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from nbd.client import ClientOptions, open_nbd
from nbd.errors import UnreachableError
from tests.unit.nbd.client.scripted import Peer, Request, Scripted, scripted
from tests.unit.nbd.client.serving import opened

OPTIONS = ClientOptions()


async def test_a_request_without_an_answer_times_out_and_is_sent_again(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Other requests are answered, so the connection looks alive."""

    async def forget(peer: Peer, request: Request) -> bool:
        return request.offset == 4096 and device.reconnects < 1

    options = ClientOptions(request_s=20)
    async with (
        opened(tmp_path, options, patience_s=1000, answer=forget) as (_, device),
        trio.open_nursery() as nursery,
    ):

        async def others() -> None:
            for _ in range(100):
                await device.read(0, 10)
                await trio.sleep(0.25)

        nursery.start_soon(others)
        started = trio.current_time()
        await device.read(4096, 10)
        assert 20 <= trio.current_time() - started < 23
        assert device.reconnects == 1


async def test_pauses_between_attempts_grow_and_vary(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    tries: list[float] = []

    async with opened(tmp_path, ClientOptions(reconnect_s=60), patience_s=1000) as (server, device):
        dial = device._requests._link._dial  # type: ignore[union-attr]

        async def noted() -> object:
            tries.append(trio.current_time())
            return await dial()

        device._requests._link._dial = noted  # type: ignore[union-attr]
        device._requests._link._random = Random(1)  # type: ignore[union-attr]
        started = trio.current_time()
        server.away = True
        server.hang_up()
        await trio.sleep(70)
    pauses = [later - before for before, later in zip([started, *tries], tries, strict=False)]
    expected = 0.1
    for pause in pauses:
        assert expected / 2 - 0.01 <= pause <= expected + 0.05
        expected = min(2 * expected, 5)
    assert len({round(pause, 4) for pause in pauses[7:]}) > 3
    assert 12 < len(tries) < 30


async def test_connecting_takes_bounded_time(autojump_clock: MockClock, tmp_path: Path) -> None:
    async def silent(peer: Peer, number: int, data: bytes) -> bool:
        await trio.sleep_forever()
        return True

    async with scripted(Scripted(tmp_path / "s", on_option=silent)) as server:
        started = trio.current_time()
        with pytest.raises(UnreachableError, match="in time"):
            async with open_nbd(server.uri, ClientOptions(connect_s=7)):
                pass
        assert 7 <= trio.current_time() - started < 8
