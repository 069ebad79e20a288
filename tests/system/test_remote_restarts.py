"""Our client and servers that die and come back. R4: no lost cache is hidden."""

import random
import time
from dataclasses import replace

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from blockdev.errors import CacheLostError, DeviceError
from nbd.client import NbdDevice
from tests.system.processes import POLL_S
from tests.system.remote_servers import (
    BY_NAME,
    PATIENT,
    SIZE_BYTES,
    Kind,
    content,
    opened,
)

pytestmark = pytest.mark.system

LASTING = [kind for kind in (BY_NAME[name] for name in BY_NAME) if kind.lasts and not kind.once]
lasting = pytest.mark.parametrize("kind", LASTING, ids=lambda kind: kind.name)


@lasting
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_what_was_flushed_outlives_the_server(kind: Kind, tls: bool) -> None:
    """It is killed while idle, and with requests in flight; they are sent again."""
    async with opened(kind, PATIENT, tls=tls) as (server, device):
        data = random.Random(1).randbytes(SIZE_BYTES)
        await device.write(0, data)
        await device.flush()
        server.kill()
        while device.connections:
            await trio.sleep(POLL_S)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(device.write, 0, b"while it was away")
            nursery.start_soon(device.flush)
            nursery.start_soon(device.extents, 0, SIZE_BYTES)
            await wait_all_tasks_blocked()
            server.start()
            assert await content(device, 4096, SIZE_BYTES - 4096) == data[4096:]
        await device.flush()
        assert device.reconnects == 1
        assert await content(device, 0, 17) == b"while it was away"


@lasting
async def test_a_lost_cache_is_told_exactly_when_there_was_one(kind: Kind) -> None:
    """Goal: whoever has unflushed writes behind a server that died is told, and nobody else.

    Method: die after a flush, after FUA, and after a plain write.
    """
    async with opened(kind, PATIENT) as (server, device):
        for turn, how in enumerate(("flush", "fua", "nothing", "flush", "nothing")):
            mark = bytes([turn + 1]) * 8192
            await device.write(turn * 8192, mark, fua=how == "fua")
            if how == "flush":
                await device.flush()
            server.kill()
            server.start()
            if how != "nothing":
                await device.flush()
                assert await content(device, turn * 8192, 8192) == mark
                continue
            for _ in range(2):
                with pytest.raises(CacheLostError):
                    await device.flush()
            with pytest.raises(CacheLostError):
                await device.read(turn * 8192 + 100, 1)
            with pytest.raises(CacheLostError):
                await device.extents(0, SIZE_BYTES)
            assert await content(device, 0, 8192) == b"\1" * 8192
            device.acknowledge_cache_loss()
            await device.write(turn * 8192, mark)
            await device.flush()
        assert device.reconnects == 5
        for turn in range(5):
            assert await content(device, turn * 8192, 8192) == bytes([turn + 1]) * 8192


@lasting
async def test_a_server_that_is_killed_again_and_again(kind: Kind) -> None:
    """Goal: through any number of deaths, a read is right and a flush that succeeds is true.

    Method: eight writers with a stripe each, until the server has died and come back; whoever
    was told of a loss stops. Then all is written again, and looked at behind one more death.
    """
    count = SIZE_BYTES // 8
    models = [bytearray(count) for _ in range(8)]
    stop, written = False, 0

    async def own(device: NbdDevice, number: int, rng: random.Random) -> None:
        nonlocal written
        model, start = models[number], number * count
        while not stop:
            at, back = rng.randrange(0, count, 4096), rng.randrange(0, count, 4096)
            model[at : at + 4096] = rng.randbytes(4096)
            try:
                await device.write(start + at, bytes(model[at : at + 4096]))
                written += 1
                assert await content(device, start + back, 4096) == model[back : back + 4096]
            except CacheLostError:
                return

    async with opened(kind, PATIENT) as (server, device):
        for turn in range(4):
            stop, written = False, 0
            async with trio.open_nursery() as nursery:
                for number in range(8):
                    nursery.start_soon(own, device, number, random.Random(turn * 8 + number))
                while written < 30:
                    await trio.sleep(0.005)
                server.kill()
                server.start()
                while not device.connections:
                    await trio.sleep(POLL_S)
                await wait_all_tasks_blocked()
                stop = True
            with pytest.raises(CacheLostError):
                await device.flush()
            device.acknowledge_cache_loss()
            for number, model in enumerate(models):
                await device.write(number * count, bytes(model))
            await device.flush()
            server.kill()
            server.start()
            await device.flush()
            assert await content(device, 0, SIZE_BYTES) == b"".join(models)
        assert device.reconnects == 8


async def test_a_server_that_does_not_come_back() -> None:
    options = replace(PATIENT, reconnect_s=0.5)
    async with opened(BY_NAME["nbdkit-file"], options) as (server, device):
        await device.write(0, b"x")
        server.kill()
        started = time.monotonic()
        with pytest.raises(DeviceError, match=r"did not come back: seconds=0\.5"):
            await device.read(4096, 10)
        assert time.monotonic() - started > 0.3
        with pytest.raises(CacheLostError):
            await device.flush()


async def test_an_export_that_came_back_smaller_is_refused() -> None:
    async with opened(BY_NAME["nbdkit-file"], PATIENT) as (server, device):
        server.kill()
        with (server.folder / "disk").open("r+b") as file:
            file.truncate(SIZE_BYTES // 2)
        server.start()
        with pytest.raises(DeviceError, match="export is not what it was: it shrank"):
            await device.read(0, 10)
