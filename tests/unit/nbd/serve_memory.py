"""Serve devices over a Unix socket and TCP, in a process of its own.

    python -m tests.unit.nbd.serve_memory SOCKET [--file PATH] [--tls DIRECTORY [--tls-port PORT]]
        [--size BYTES]

Prints the TCP port and the TLS port, 0 without TLS, then serves until killed. All connections
share the same devices: `disk` and `fixed` (read-only) in memory, `thin`, a volume of a pool in
memory, and `file`, if a path is given. The directory holds PEM files with the names of QEMU.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import trio

from blockdev.device import BlockDevice
from blockdev.file import FileDevice
from blockdev.memory import MemoryDevice
from nbd.errors import UnknownExportError
from nbd.server.handshake import Tls
from nbd.server.listeners import TlsTerms, listen_tcp, listen_unix
from nbd.server.server import Server
from nbd.tls import server_context
from storage.pool import MemberDevice, Pool, create_pool, open_pool

SIZE_BYTES = 64 << 20
NAMES = ["disk", "fixed", "thin"]


class Shared(MemoryDevice):
    """A device in memory that stays open when a connection closes it."""

    async def close(self) -> None:
        pass


class SharedFile(FileDevice):
    """A file that stays open when a connection closes it."""

    async def close(self) -> None:
        pass


class Exports:
    def __init__(self, pool: Pool, file: Path | None, size_bytes: int) -> None:
        fixed = Shared(size_bytes)
        fixed.read_only = True
        disk = Shared(size_bytes)
        self._devices: dict[str, BlockDevice] = {"": disk, "disk": disk, "fixed": fixed}
        self._pool = pool
        if file is not None:
            shared = SharedFile.open(file) if file.exists() else SharedFile.create(file, size_bytes)
            self._devices["file"] = shared

    def names(self) -> Sequence[str]:
        return NAMES

    async def open(self, name: str) -> BlockDevice:
        if name == "thin":
            return self._pool.open_export("thin")
        if name in self._devices:
            return self._devices[name]
        raise UnknownExportError(f"no such export: name={name!r}")


async def main() -> None:
    words = argparse.ArgumentParser()
    words.add_argument("socket", type=Path)
    words.add_argument("--file", type=Path)
    words.add_argument("--tls", type=Path)
    words.add_argument("--tls-port", type=int, default=0)
    words.add_argument("--size", type=int, default=SIZE_BYTES)
    given = words.parse_args()
    listeners = [listen_unix(given.socket), *listen_tcp("127.0.0.1", 0)]
    ports = [listeners[1].sock.getsockname()[1], 0]
    if given.tls is not None:
        files = [given.tls / f"{name}.pem" for name in ("server-cert", "server-key", "ca-cert")]
        terms = TlsTerms(Tls.REQUIRE, server_context(*files))
        listeners += listen_tcp("127.0.0.1", given.tls_port, terms)
        ports[1] = listeners[-1].sock.getsockname()[1]
    member = MemberDevice(MemoryDevice(512 << 20), "member", "host")
    await create_pool([member], copies=1, segment_bytes=4 << 20)
    async with open_pool([member]) as pool:
        await pool.management.create_volume("thin", given.size)
        server = Server(
            Exports(pool, given.file, given.size), describe=lambda name: f"test disk {name}"
        )
        print(*ports, flush=True)
        await server.serve(listeners)


def run() -> int:
    trio.run(main)
    return 0


if __name__ == "__main__":
    run()
