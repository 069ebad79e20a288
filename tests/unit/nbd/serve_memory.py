"""Serve a memory device over a Unix socket and TCP, in a process of its own.

Prints the TCP port, then serves until killed. All connections meet one device.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import trio

from blockdev.device import BlockDevice
from blockdev.memory import MemoryDevice
from nbd.errors import UnknownExportError
from nbd.listeners import listen_tcp, listen_unix
from nbd.server import Server

SIZE_BYTES = 64 << 20


class Shared(MemoryDevice):
    """Outlives the connections that close it."""

    async def close(self) -> None:
        pass


class Exports:
    def __init__(self) -> None:
        self._disk = Shared(SIZE_BYTES)
        self._fixed = Shared(SIZE_BYTES)
        self._fixed.read_only = True

    def names(self) -> Sequence[str]:
        return ["disk", "fixed"]

    async def open(self, name: str) -> BlockDevice:
        if name in ("", "disk"):
            return self._disk
        if name == "fixed":
            return self._fixed
        raise UnknownExportError(f"no such export: name={name!r}")


async def main() -> None:
    listeners = [listen_unix(Path(sys.argv[1])), *listen_tcp("127.0.0.1", 0)]
    print(listeners[1].getsockname()[1], flush=True)
    server = Server(Exports(), describe=lambda name: f"test disk {name}")
    await server.serve(listeners)


if __name__ == "__main__":
    trio.run(main)
