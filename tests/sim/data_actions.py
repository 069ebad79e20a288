"""Actions that write, read, wait, checkpoint, clean and scrub."""

import random
from collections.abc import Awaitable
from dataclasses import replace

import trio

from blockdev.errors import DeviceError
from storage.throttle import Limits, Throttle
from storage.verify.scrub_pass import Finding, Outcome, Stage
from storage.volumes.volume import Volume
from tests.crash.harness import MIB
from tests.crash.model import BLOCK
from tests.sim.client import Client
from tests.sim.model import Write, Wrong

# -- writes and reads


async def _wait_for(
    client: Client, write: Write, call: Awaitable[object], *, fua: bool = False
) -> None:
    """Await a write; now and then cancel it while it is under way, as when a client leaves."""
    done = False
    patience = client.rng.choice([0, 0.01, 1]) if client.rng.random() < 0.05 else float("inf")
    with trio.move_on_after(patience):
        done = await client.tries(call)
    if done:
        write.returned(fua=fua)
    else:
        write.failed()


async def write(client: Client, *, fua: bool = False) -> None:
    if (name := client.pick()) is None:
        return
    first, count = client.blocks(name)
    data = client.data(count * BLOCK)
    async with client.device(name) as device:
        write = client.model.write(name, first * BLOCK, len(data), data)
        if not fua and client.rng.random() < 0.5 and _taken(client, device, first * BLOCK, data):
            write.returned()
        else:
            await _wait_for(client, write, device.write(first * BLOCK, data, fua=fua), fua=fua)


def _taken(client: Client, device: Volume, offset: int, data: bytes) -> bool:
    try:
        return device.try_write(offset, data)
    except DeviceError as error:
        client.allows(error)
        return False


async def write_fua(client: Client) -> None:
    await write(client, fua=True)


async def write_bytes(client: Client) -> None:
    if (name := client.pick()) is None:
        return
    offset, length = client.any_range(name)
    data = client.data(length)
    async with client.device(name) as device:
        write = client.model.write(name, offset, length, data)
        await _wait_for(client, write, device.write(offset, data))


async def burst(client: Client) -> None:
    """Write several commits, all of which the next flush must make durable."""
    for _ in range(client.rng.randint(3, 8)):
        await write(client)


async def beside(client: Client) -> None:
    """Have several requests of one client under way at once, maybe to the same blocks."""
    async with trio.open_nursery() as nursery:
        for _ in range(client.rng.randint(2, 5)):
            other = Client(
                client.pool, client.model, nursery, client.tolerance, client.busy,
                client.new_name(), random.Random(client.rng.getrandbits(32)),
            )  # fmt: skip
            action = client.rng.choice([write, write, write_bytes, zeroes, read, flush])
            nursery.start_soon(action, other)


async def zeroes(client: Client) -> None:
    if (name := client.pick()) is None:
        return
    offset, length = client.any_range(name)
    if client.rng.random() < 0.5:
        offset = offset // BLOCK * BLOCK
    async with client.device(name) as device:
        write = client.model.write(name, offset, length, None)
        await _wait_for(client, write, device.write_zeroes(offset, length))


async def trim(client: Client) -> None:
    if (name := client.pick()) is None:
        return
    first, count = client.blocks(name)
    if client.rng.random() < 0.1:
        first, count = 0, min(client.model.names[name].sizes) // BLOCK
    async with client.device(name) as device:
        write = client.model.write(name, first * BLOCK, count * BLOCK, None)
        await _wait_for(client, write, device.trim(first * BLOCK, count * BLOCK))


async def flush(client: Client) -> None:
    at = client.model.tick()
    if await client.tries(client.pool.flush()):
        client.model.is_durable(at)


async def flush_beside(client: Client) -> None:
    client.nursery.start_soon(flush, client)


async def read(client: Client) -> None:
    exports = client.volumes()
    exports += [f"{n}@{snap}" for n in client.volumes() for snap in client.model.names[n].snaps]
    if not exports:
        return
    name = client.rng.choice(exports)
    async with client.device(name) as device:
        offset = client.rng.randrange(device.size_bytes)
        length = client.rng.randint(1, min(60 * BLOCK, device.size_bytes - offset))
        since = client.model.tick()
        try:
            found = device.try_read(offset, length) if client.rng.random() < 0.5 else None
            if found is None:
                found = await device.read(offset, length)
        except DeviceError as error:
            client.allows(error)
            return
        data = bytes(found)
        if len(data) != length:
            raise Wrong(f"{name} reads {len(data)} bytes of {length}")
        client.model.check_read(name, offset, data, since)


async def status(client: Client) -> None:
    """Ask for block status: extents reported as zero must be allowed to read as zeroes."""
    if (name := client.pick()) is None:
        return
    async with client.device(name) as device:
        first, count = client.blocks(name)
        since = client.model.tick()
        try:
            extents = await device.extents(first * BLOCK, count * BLOCK)
        except DeviceError as error:
            client.allows(error)
            return
        at = first * BLOCK
        for extent in extents:
            if extent.zero:
                client.model.check_read(name, at, bytes(extent.length_bytes), since)
            at += extent.length_bytes


# -- time


async def sleep(client: Client) -> None:
    await trio.sleep(client.rng.choice([0, 0.3, 2.5, 25]))


async def checkpoint(client: Client) -> None:
    if client.rng.random() < 0.5:
        await client.tries(client.pool.checkpoint())
    else:
        client.nursery.start_soon(client.tries, client.pool.checkpoint())


async def clean(client: Client) -> None:
    """Run a round of the cleaner, sometimes beside the other actions."""

    async def clean_and_free() -> None:
        if await client.tries(client.pool.cleaner.round()) and client.rng.random() < 0.6:
            await client.tries(client.pool.checkpoint())

    if client.rng.random() < 0.5:
        await clean_and_free()
    else:
        client.nursery.start_soon(clean_and_free)


async def scrub(client: Client) -> None:
    """Scrub the pool, with or without a rate, maybe in two parts, maybe beside other actions."""
    rng = client.rng
    rate = rng.choice([0, 0, MIB, 8 * MIB])
    patience = rng.choice([0.01, 0.5, 3.0]) if rng.random() < 0.3 else float("inf")
    if rng.random() < 0.5:
        await _scrub(client, rate, patience)
    else:
        client.nursery.start_soon(_scrub, client, rate, patience)


async def _scrub(client: Client, rate: int, patience: float) -> None:
    done = client.pool.scrubber.new_pass()
    throttle = Throttle(Limits(bytes_per_s=rate, burst_s=0.0))
    while done.stage is not Stage.DONE:
        with trio.move_on_after(patience):
            if not await client.tries(client.pool.scrubber.run(done, throttle)):
                break
        # A restart keeps only these values.
        done = replace(done, findings=list(done.findings), gaps=list(done.gaps))
        patience = float("inf")
    for finding in done.findings:
        _hold(client, finding)


def _hold(client: Client, finding: Finding) -> None:
    """Check that a finding has a planned fault as its cause, and is repaired where possible."""
    may, unreadable = client.tolerance, finding.problem.startswith("cannot be read")
    if finding.outcome is Outcome.LOST and not may.failure:
        raise Wrong(f"a scrub calls lost what is not: {finding}")
    if finding.what == "member" or unreadable:
        if not may.unreadable:
            raise Wrong(f"a scrub cannot read a member that can be: {finding}")
    elif not may.rot:
        raise Wrong(f"a scrub finds damage where there is none: {finding}")
    elif finding.outcome is Outcome.UNREPAIRED and not may.faults:
        raise Wrong(f"a scrub does not repair what it could: {finding}")
