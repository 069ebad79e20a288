"""Servers in this process, for tests of the client."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from blockdev.device import BlockDevice
from blockdev.memory import MemoryDevice
from nbd.client import ClientOptions, NbdDevice, open_nbd
from nbd.errors import UnknownExportError
from nbd.server.limits import Limits
from nbd.server.listeners import TlsTerms, listen_unix
from nbd.server.server import Server
from tests.unit.nbd.client.scripted import Scripted, scripted

PLAIN = TlsTerms()


class KeptDevice(MemoryDevice):
    """A device in memory that stays open when a connection closes it."""

    async def close(self) -> None:
        pass


class Exports:
    """Devices by name, the same for all connections."""

    def __init__(self, devices: dict[str, BlockDevice]) -> None:
        self.devices = devices

    def names(self) -> Sequence[str]:
        return list(self.devices)

    async def open(self, name: str) -> BlockDevice:
        if name not in self.devices:
            raise UnknownExportError(f"no such export: name={name!r}")
        return self.devices[name]


@asynccontextmanager
async def served(
    directory: Path,
    device: BlockDevice,
    *,
    tls: TlsTerms = PLAIN,
    limits: Limits | None = None,
    **others: BlockDevice,
) -> AsyncIterator[str]:
    """Serve a device as the default export, and others by name; yield the URI without a name."""
    path = directory / "nbd.sock"
    server = Server(Exports({"": device, **others}), limits, describe=lambda name: f"about {name}")
    async with trio.open_nursery() as nursery:

        async def serve(task_status: trio.TaskStatus[None]) -> None:
            await server.serve([listen_unix(path, tls)], task_status=task_status)

        await nursery.start(serve)
        yield f"nbd{'s' * (tls.context is not None)}+unix:///?socket={path}"
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def opened(
    folder: Path,
    options: ClientOptions | None = None,
    name: str = "nbd.sock",
    *,
    patience_s: float = 10,
    **settings: Any,
) -> AsyncIterator[tuple[Scripted, NbdDevice]]:
    """Run a scripted server and open its default export; yield both."""
    options = options or ClientOptions(reconnect_s=0)
    server = Scripted(folder / name, **settings)
    with trio.fail_after(patience_s):
        async with scripted(server), open_nbd(server.uri, options) as device:
            yield server, device


async def content(device: NbdDevice, offset: int, length: int) -> bytes:
    return bytes(memoryview(await device.read(offset, length)))
