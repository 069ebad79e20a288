"""Serves a memory device on a Unix socket until killed, for the benchmarks.

usage: python -m bench.nbd_target SOCKET SIZE_BYTES
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import trio

from blockdev.device import BlockDevice
from blockdev.memory import MemoryDevice
from nbd.server.listeners import listen_unix
from nbd.server.server import Server

FILL_BYTES = 1 << 20


class KeptDevice(MemoryDevice):
    """Memory that outlasts its connections, as in the other servers."""

    async def close(self) -> None:
        """Keep everything for the next connection."""


class OneDevice:
    """One memory device as the default export."""

    def __init__(self, size_bytes: int) -> None:
        self._device = KeptDevice(size_bytes)
        # Write all pages once, so that they are allocated, as in the other servers.
        for offset in range(0, size_bytes, FILL_BYTES):
            self._device.try_write(offset, b"\x5a" * FILL_BYTES)

    def names(self) -> Sequence[str]:
        return [""]

    async def open(self, name: str) -> BlockDevice:
        return self._device


async def main() -> None:
    server = Server(OneDevice(int(sys.argv[2])))
    await server.serve([listen_unix(Path(sys.argv[1]))])


if __name__ == "__main__":
    trio.run(main)
