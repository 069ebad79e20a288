"""Serve a memory device on a Unix socket until killed, for the benchmarks.

usage: python -m bench.nbd_target SOCKET SIZE_BYTES
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import trio

from blockdev.device import BlockDevice
from blockdev.memory import MemoryDevice
from nbd.listeners import listen_unix
from nbd.server import Server


class OneDevice:
    """The default export is one memory device, new for every connection."""

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes

    def names(self) -> Sequence[str]:
        return [""]

    async def open(self, name: str) -> BlockDevice:
        device = MemoryDevice(self._size_bytes)
        # Like the others, serve pages that exist.
        for offset in range(0, self._size_bytes, 1 << 20):
            device.try_write(offset, b"\x5a" * (1 << 20))
        return device


async def main() -> None:
    server = Server(OneDevice(int(sys.argv[2])))
    await server.serve([listen_unix(Path(sys.argv[1]))])


if __name__ == "__main__":
    trio.run(main)
