"""Our client and servers that fail, can do little, are slow or leave."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from blockdev.errors import (
    CacheLostError,
    DeviceError,
    NoSpaceError,
    OutOfRangeError,
    ReadOnlyError,
    UnsupportedError,
)
from nbd.client import NbdDevice, open_nbd
from tests.system.remote_servers import (
    BY_NAME,
    MEMORY,
    ONCE,
    PATIENT,
    SIZE_BYTES,
    Kind,
    content,
    nbdkit,
    opened,
    remote_server,
    script,
)

pytestmark = pytest.mark.system

KIB = 1024


# Errors


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("EPERM", ReadOnlyError),
        ("EIO", DeviceError),
        ("ENOMEM", DeviceError),
        ("EINVAL", OutOfRangeError),
        ("ENOSPC", NoSpaceError),
    ],
)
async def test_injected_errors_keep_their_meaning_and_the_connection(
    name: str, error: type[DeviceError], tmp_path: Path
) -> None:
    trigger = tmp_path / "broken"
    words = (f"error={name}", "error-rate=100%", f"error-file={trigger}")
    async with opened(nbdkit("error", "--filter=error", *MEMORY, *words)) as (_, device):
        await device.write(0, b"before")
        trigger.touch()
        for work in (
            device.read(0, 10),
            device.write(0, b"failed"),
            device.write_zeroes(0, 10),
            device.trim(0, 10),
            device.extents(0, SIZE_BYTES),
        ):
            with pytest.raises(error, match=f"server says {name}: ") as caught:
                await work
            assert type(caught.value) is error
        trigger.unlink()
        assert await content(device, 0, 6) == b"before"
        await device.write(0, b"after")
        await device.flush()
        assert device.reconnects == 0


async def test_errors_here_and_there_spoil_nothing_else(tmp_path: Path) -> None:
    """A fifth of all requests fails, many at a time; the others are right."""
    words = ("error=EIO", "error-rate=20%")
    kind = nbdkit("error", "--filter=error", *MEMORY, *words)
    async with opened(kind) as (_, device):
        failures = 0

        async def use(number: int) -> None:
            nonlocal failures
            offset, now = number * 32 * KIB, bytes(32 * KIB)
            maybe = {now}
            for turn in range(30):
                data = bytes([turn + 1]) * 32 * KIB
                try:
                    if turn % 2:
                        await device.write(offset, data)
                        maybe = {data}
                    else:
                        assert await content(device, offset, 32 * KIB) in maybe
                except DeviceError:
                    failures += 1
                    if turn % 2:
                        maybe.add(data)

        async with trio.open_nursery() as nursery:
            for number in range(32):
                nursery.start_soon(use, number)
        assert 50 < failures < 500
        assert device.reconnects == 0


async def test_a_server_that_says_that_it_shuts_down_is_waited_for(tmp_path: Path) -> None:
    trigger = tmp_path / "leaving"
    words = ("error=ESHUTDOWN", "error-pread-rate=100%", f"error-file={trigger}")
    kind = nbdkit("error", "--filter=error", *MEMORY, *words)
    async with opened(kind, PATIENT) as (_, device):
        await device.write(0, b"here")
        await device.flush()
        trigger.touch()

        async def come_back() -> None:
            while not device.reconnects:
                await trio.sleep(0.005)
            trigger.unlink()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(come_back)
            assert await content(device, 0, 4) == b"here"


async def test_errors_of_a_script() -> None:
    """The eval plugin: whatever a shell says."""
    kind = nbdkit(
        "eval",
        *script(
            pread='if [ $4 = 4096 ]; then echo "ENOSPC no room to read" >&2; exit 1; fi; '
            "dd status=none if=disk iflag=skip_bytes,count_bytes skip=$4 count=$3",
            flush='echo "EIO disk on fire" >&2; exit 1',
        ),
    )
    async with opened(kind) as (_, device):
        assert await content(device, 0, 10) == bytes(10)
        for _ in range(2):
            with pytest.raises(NoSpaceError, match=r"ENOSPC: command=READ offset=4096 length=10"):
                await device.read(4096, 10)
            with pytest.raises(DeviceError, match="server says EIO: command=FLUSH"):
                await device.flush()
        assert await content(device, 0, 10) == bytes(10)
        assert device.reconnects == 0


# Abilities


async def test_what_a_server_cannot_is_done_another_way() -> None:
    """The eval plugin again, without most of the protocol."""
    kind = nbdkit("eval", *script(can_zero="exit 3", can_trim="exit 3", can_extents="exit 3",
                                  can_cache="echo none", can_fua="echo none"))  # fmt: skip
    async with opened(kind) as (_, device):
        await device.write(0, b"x" * 64 * KIB, fua=True)
        await device.write_zeroes(4096, 8192, fua=True)
        await device.trim(0, 4096, fua=True)
        await device.cache(0, SIZE_BYTES)
        assert await content(device, 0, 16 * KIB) == b"x" * 4096 + bytes(8192) + b"x" * 4096
        (extent,) = await device.extents(0, SIZE_BYTES)
        assert (extent.length_bytes, extent.zero) == (SIZE_BYTES, False)
        with pytest.raises(UnsupportedError):
            await device.write_zeroes(0, 4096, fast=True)


async def test_servers_that_cannot_make_anything_durable_are_refused() -> None:
    silent = script(can_flush="exit 3", can_fua="echo none")
    with remote_server(nbdkit("eval", *silent)) as server:
        with pytest.raises(UnsupportedError, match="neither FLUSH nor FUA"):
            async with open_nbd(server.uri, ONCE):
                pass
        async with open_nbd(server.uri, replace(ONCE, read_only=True)) as device:
            assert await content(device, 0, 4) == bytes(4)
    with pytest.raises(ReadOnlyError, match="export is read-only"):
        async with opened(nbdkit("eval", *script(can_write="exit 3"))):
            pass


@pytest.mark.parametrize("maximum", ["64K", "512K"])
async def test_a_server_that_insists_on_its_blocks(maximum: str) -> None:
    """Unaligned and oversize requests fail there; none is sent."""
    kind = nbdkit(
        "policy", "--filter=blocksize-policy", "file", "{folder}/disk",
        "blocksize-minimum=4096", "blocksize-preferred=64K", f"blocksize-maximum={maximum}",
        "blocksize-error-policy=error",
    )  # fmt: skip
    data = random.Random(1).randbytes(SIZE_BYTES)
    async with opened(kind) as (server, device):
        assert device.block_bytes == 4096
        await device.write(0, data)
        assert await content(device, 0, SIZE_BYTES) == data
        await device.write_zeroes(4096, SIZE_BYTES - 8192)
        await device.cache(0, SIZE_BYTES)
        await device.flush()
        for extent in await device.extents(0, SIZE_BYTES):
            assert extent.length_bytes % 4096 == 0
        for offset, length in ((1, 4096), (0, 4095), (512, 512)):
            with pytest.raises(OutOfRangeError, match="not in whole blocks"):
                await device.read(offset, length)
            with pytest.raises(OutOfRangeError, match="not in whole blocks"):
                await device.write_zeroes(offset, length)
        expected = data[:4096] + bytes(SIZE_BYTES - 8192) + data[-4096:]
        assert (server.folder / "disk").read_bytes() == expected


# Slow ones


async def test_slow_answers_come_together() -> None:
    """The server answers no read before it has been asked for all sixteen."""
    together = "touch asked$4; while [ $(ls asked* | wc -l) -lt 16 ]; do sleep 0.05; done; "
    read = "dd status=none if=disk iflag=skip_bytes,count_bytes skip=$4 count=$3"
    kind = nbdkit("eval", *script(pread=together + read))
    async with opened(kind) as (_, device), trio.open_nursery() as nursery:
        for number in range(16):
            nursery.start_soon(device.read, number * 4096, 4096)


# The clock of the next tests runs slowly, and jumps when it is told to: so a time limit ends
# requests that are never answered, at once, and no others, however busy the machine is.

REQUEST_S = 30
TOO_LONG_S = 31


@pytest.fixture
def slow_clock() -> MockClock:
    return MockClock(rate=0.1)


async def read_in_vain(
    device: NbdDevice, asked: Path, clock: MockClock, times: int, match: str
) -> None:
    """Read from a server that never answers reads: it is asked so often, each time for too long."""

    async def read() -> None:
        with pytest.raises(DeviceError, match=match):
            await device.read(0, 10)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        for turn in range(times):
            while not asked.exists() or len(asked.read_text()) <= turn:
                await trio.sleep(0.001)
            clock.jump(TOO_LONG_S)


def never_reads() -> Kind:
    """A server that notes that it is asked to read, and never answers that."""
    forever = "while kill -0 $PPID 2> /dev/null; do sleep 0.1; done"
    return nbdkit("eval", *script(pread=f"echo >> asked; {forever}"))


async def test_too_slow_answers_end_the_connection(slow_clock: MockClock) -> None:
    options = replace(ONCE, request_s=REQUEST_S, close_s=0.1)
    async with opened(never_reads(), options) as (server, device):
        await device.write(0, b"x")
        match = rf"command=0 seconds={REQUEST_S}"
        await read_in_vain(device, server.folder / "asked", slow_clock, 1, match)
        with pytest.raises(CacheLostError):
            await device.flush()


async def test_too_slow_answers_are_asked_for_again_but_not_for_ever(slow_clock: MockClock) -> None:
    options = replace(PATIENT, request_s=REQUEST_S, close_s=0.1)
    async with opened(never_reads(), options) as (server, device):
        match = "interrupted too often: attempts=3"
        await read_in_vain(device, server.folder / "asked", slow_clock, 3, match)
        await device.write(0, b"x")  # these are quick
        await device.flush()
        assert device.reconnects >= 2


async def test_a_server_that_freezes(slow_clock: MockClock) -> None:
    """It is alive, but nobody is at home; then it goes on as if nothing had been."""
    kind = BY_NAME["nbdkit-file"]
    async with opened(kind, replace(PATIENT, request_s=REQUEST_S)) as (server, device):
        await device.write(0, b"safe")
        await device.flush()
        server.pause(on=True)

        async def go_on() -> None:
            await wait_all_tasks_blocked()  # it reads
            slow_clock.jump(TOO_LONG_S)
            while device.connections:
                await trio.sleep(0.001)
            server.pause(on=False)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(go_on)
            assert await content(device, 0, 4) == b"safe"
        assert device.reconnects


# Leaving


@pytest.mark.parametrize("connections", [1, 4])
async def test_the_last_client_takes_exitlast_with_it(connections: int) -> None:
    kind = BY_NAME["nbdkit-exitlast"]
    with remote_server(kind) as server:
        options = replace(ONCE, connections=connections)
        for _ in range(3):
            async with open_nbd(server.uri, options) as device:
                while device.connections < connections:
                    await trio.sleep(0.005)
                async with open_nbd(server.uri, options) as another:
                    await another.write(0, b"shared")
                assert server.is_running()
                assert await content(device, 0, 6) == b"shared"
            server.check_after_use()
