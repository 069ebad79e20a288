"""One suite of behaviour for our client, against every server there is, plain and with TLS."""

import json
import os
import random
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio

from blockdev.device import Extent
from blockdev.errors import OutOfRangeError
from nbd.client import ClientOptions, NbdDevice, describe, open_nbd
from nbd.constants import BASE_ALLOCATION, ExportFlag
from nbd.errors import TlsError, UnreachableError
from tests.system.processes import PATIENCE_S
from tests.system.remote_servers import ONCE, SIZE_BYTES, RemoteServer, content

pytestmark = pytest.mark.system

SMALL = replace(ONCE, payload_bytes_max=16 << 10)
"""Cuts nearly everything in pieces."""
KIB = 1024
WORKERS = 8
STRIPE_BYTES = SIZE_BYTES // WORKERS


@asynccontextmanager
async def opened(
    remote: RemoteServer, options: ClientOptions = ONCE, *, zeroed: bool = True
) -> AsyncIterator[NbdDevice]:
    with trio.fail_after(300):
        async with open_nbd(remote.uri, options) as device:
            if zeroed:
                await device.write_zeroes(0, device.size_bytes)
            yield device
    remote.check_after_use()


def libnbd(*words: str) -> Any:
    """What libnbd's `nbdinfo` says, away from our packages."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        ["nbdinfo", "--json", *words],
        cwd="/tmp", env=environment, stdout=subprocess.PIPE, check=True, timeout=PATIENCE_S,
    )  # fmt: skip
    return json.loads(done.stdout)


# What it says of itself


async def test_an_export_is_what_libnbd_finds_it_to_be(remote: RemoteServer) -> None:
    (report,) = await describe(remote.uri)
    remote.check_after_use()
    about = report.about
    assert about is not None
    assert report.tls == remote.tls
    other = libnbd(remote.uri)
    remote.check_after_use()
    (export,) = other["exports"]
    assert other["TLS"] == remote.tls
    assert about.size_bytes == export["export-size"] == SIZE_BYTES
    assert about.description == export.get("description", "")
    assert set(about.contexts) == set(export["contexts"])
    for flag, name in {
        ExportFlag.SEND_FLUSH: "can_flush",
        ExportFlag.SEND_FUA: "can_fua",
        ExportFlag.SEND_TRIM: "can_trim",
        ExportFlag.SEND_WRITE_ZEROES: "can_zero",
        ExportFlag.SEND_FAST_ZERO: "can_fast_zero",
        ExportFlag.SEND_CACHE: "can_cache",
        ExportFlag.CAN_MULTI_CONN: "can_multi_conn",
        ExportFlag.SEND_DF: "can_df",
        ExportFlag.READ_ONLY: "is_read_only",
    }.items():
        assert bool(about.flags & flag) == export[name], name
    if "block_size_minimum" in export:
        sizes = (about.block_bytes, about.preferred_bytes, about.payload_bytes_max)
        names = ("block_size_minimum", "block_size_preferred", "block_size_maximum")
        assert sizes == tuple(export[name] for name in names)


async def test_extents_are_what_libnbd_finds_them_to_be(remote: RemoteServer) -> None:
    async with opened(remote) as device:
        await device.trim(0, device.size_bytes)
        await device.write(64 * KIB, b"x" * 128 * KIB)
        await device.write(512 * KIB, b"x" * 64 * KIB)
        await device.write_zeroes(128 * KIB, 64 * KIB)
        await device.flush()
        assert BASE_ALLOCATION in device.contexts
        ours, offset = list[tuple[int, bool, bool]](), 0
        while offset < device.size_bytes:
            for extent in await device.extents(offset, device.size_bytes - offset):
                if not ours or ours[-1][1:] != (extent.hole, extent.zero):
                    ours.append((offset, extent.hole, extent.zero))
                offset += extent.length_bytes
                if extent.zero:
                    assert not any(
                        await content(device, offset - extent.length_bytes, extent.length_bytes)
                    )
    theirs = [
        (run["offset"], bool(run["type"] & 1), bool(run["type"] & 2))
        for run in libnbd("--map", remote.uri)
    ]
    remote.check_after_use()
    assert ours == theirs


# Every command, in any order, many at once


class Worker:
    """Has a stripe to itself, and knows every byte of it."""

    def __init__(self, device: NbdDevice, number: int, rng: random.Random) -> None:
        self.device = device
        self.rng = rng
        self.start = number * STRIPE_BYTES
        self.model = bytearray(STRIPE_BYTES)

    async def run(self, count: int) -> None:
        for _ in range(count):
            await self.step()
        assert await content(self.device, self.start, STRIPE_BYTES) == self.model

    async def step(self) -> None:
        rng, device, unit = self.rng, self.device, self.device.block_bytes
        length = rng.choice((rng.randint(0, 2 * KIB), rng.randint(0, STRIPE_BYTES))) // unit * unit
        at = rng.randint(0, STRIPE_BYTES - length) // unit * unit
        offset, end = self.start + at, at + length
        fua = rng.random() < 0.2
        match rng.randrange(10):
            case 0 | 1 | 2:
                assert await content(device, offset, length) == self.model[at:end]
            case 3 | 4 | 5:
                self.model[at:end] = rng.randbytes(length)
                await device.write(offset, memoryview(self.model)[at:end], fua=fua)
            case 6:
                await device.write_zeroes(offset, length, fua=fua, no_hole=rng.random() < 0.5)
                self.model[at:end] = bytes(length)
            case 7:
                await device.trim(offset, length, fua=fua)
                now = await content(device, offset, length)
                olds = zip(now, self.model[at:end], strict=True)
                assert all(new in (0, old) for new, old in olds)
                self.model[at:end] = now
            case 8:
                await device.flush()
                await device.cache(offset, length)
            case 9:
                await self.check_extents(at, end)

    async def check_extents(self, at: int, end: int) -> None:
        while at < end:
            for extent in await self.device.extents(self.start + at, end - at):
                if extent.zero:
                    assert not any(self.model[at : at + extent.length_bytes])
                at += extent.length_bytes
        assert at == end


@pytest.mark.parametrize("options", [ONCE, SMALL], ids=["long", "short"])
async def test_random_requests_agree_with_a_model(
    remote: RemoteServer, options: ClientOptions
) -> None:
    count = 8 if remote.kind.name == "nbdkit-eval" else 40
    async with opened(remote, options) as device:
        workers = [Worker(device, number, random.Random(number)) for number in range(WORKERS)]
        async with trio.open_nursery() as nursery:
            for worker in workers:
                nursery.start_soon(worker.run, count)
        await device.flush()
        assert device.reconnects == 0
        expected = b"".join(worker.model for worker in workers)
    async with opened(remote, zeroed=False) as device:
        if remote.kind.lasts or not remote.kind.once:
            assert await content(device, 0, SIZE_BYTES) == expected


async def test_requests_are_cut_to_what_the_server_takes(remote: RemoteServer) -> None:
    """Longer ones are no mistake of the caller; unaligned ones are, where the server has blocks."""
    async with opened(remote) as device:
        data = random.Random(1).randbytes(SIZE_BYTES)
        await device.write(0, data)
        assert await content(device, 0, SIZE_BYTES) == data
        unit = device.block_bytes
        if unit > 1:
            for offset, length in ((0, unit - 1), (1, unit), (unit + 1, 2 * unit)):
                with pytest.raises(OutOfRangeError, match=f"block={unit}"):
                    await device.read(offset, length)
                with pytest.raises(OutOfRangeError, match=f"block={unit}"):
                    await device.write(offset, bytes(length))
        else:
            await device.write(4095, b"ab")
            assert await content(device, 4094, 4) == data[4094:4095] + b"ab" + data[4097:4098]
        assert device.reconnects == 0


async def test_zeroes_and_trims_are_long_requests(remote: RemoteServer) -> None:
    async with opened(remote) as device:
        await device.write(0, b"x" * SIZE_BYTES)
        await device.write_zeroes(64 * KIB, SIZE_BYTES - 128 * KIB)
        expected = b"x" * 64 * KIB + bytes(SIZE_BYTES - 128 * KIB) + b"x" * 64 * KIB
        assert await content(device, 0, SIZE_BYTES) == expected
        await device.trim(0, SIZE_BYTES)
        assert set(await content(device, 0, SIZE_BYTES)) <= {0, ord("x")}
        assert await device.extents(0, 0) == list[Extent]()


# Connections


async def test_several_connections_where_the_server_has_one_cache(remote: RemoteServer) -> None:
    """Its MULTI_CONN says so; what one wrote, another reads, and a flush on any covers all."""
    async with opened(remote) as device:
        if device.export.flags & ExportFlag.CAN_MULTI_CONN:
            while device.connections < ONCE.connections:
                await trio.sleep(0.005)
        async with trio.open_nursery() as nursery:
            for number in range(32):
                nursery.start_soon(device.write, number * 4096, bytes([number + 1]) * 4096)
        await device.flush()
        for number in range(32):
            assert await content(device, number * 4096, 4096) == bytes([number + 1]) * 4096
        if not device.export.flags & ExportFlag.CAN_MULTI_CONN:
            assert device.connections == 1
        assert device.reconnects == 0


async def test_cancelled_requests_leave_the_connection_in_order(remote: RemoteServer) -> None:
    async with opened(remote) as device:
        for turn in range(12):
            with trio.move_on_after(0.0003 * turn):
                await device.write(0, bytes([turn + 1]) * 256 * KIB)
            with trio.move_on_after(0.0003 * turn):
                await device.read(0, 512 * KIB)
        await device.write(128 * KIB, b"\xff" * 4096)
        data = await content(device, 0, 256 * KIB)
        assert data[128 * KIB : 128 * KIB + 4096] == b"\xff" * 4096
        assert set(data) <= {*range(13), 255}
        assert device.reconnects == 0


# TLS


async def test_nobody_is_spoken_to_who_is_not_whom_we_mean(remote: RemoteServer) -> None:
    """No plain text where TLS was asked for, no TLS with others than the certificate names."""

    async def refused(uri: str, about: str) -> None:
        with pytest.raises((TlsError, UnreachableError), match=about):
            async with open_nbd(uri, ONCE):
                pass
        assert remote.is_running()

    if not remote.tls:
        return await refused(remote.uri_with(tls=True), "no TLS, and is not spoken to without")
    await refused(remote.uri_with(tls=False), "server demands TLS; use nbds")
    await refused(remote.uri_with(tls=True, hostname="other"), "certificate is refused: Hostname")
    await refused(
        remote.uri_with(tls=True, knows_authority=False),
        "certificate is refused: (unable to get local issuer|self-signed certificate)",
    )
    for name in ("client-cert.pem", "client-key.pem"):
        (remote.folder / "tls" / name).rename(remote.folder / name)
    await refused(remote.uri, "wants? a client certificate")
    for name in ("client-cert.pem", "client-key.pem"):
        (remote.folder / name).rename(remote.folder / "tls" / name)
