"""A server of ours over memory, and other people's tools run against it."""

import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trustme

from tests.system.processes import PATIENCE_S, ForkedProcess

MIB = 1 << 20
SIZE_BYTES = 64 * MIB
SYSTEM_PATH = "/usr/bin:/bin:/usr/sbin:/sbin"


@dataclass(frozen=True)
class Served:
    """A running server, and tools run against it."""

    folder: Path
    port: int
    tls_port: int
    kind: str

    def tls_uri(self, name: str = "disk") -> str:
        return f"nbds://localhost:{self.tls_port}/{name}?tls-certificates={self.folder}/tls"

    def uri(self, name: str = "disk") -> str:
        if self.kind == "tcp":
            return f"nbd://127.0.0.1:{self.port}/{name}"
        return f"nbd+unix:///{name}?socket={self.folder}/nbd.sock"

    def run(self, *command: str, stdin: str = "", fails: bool = False) -> str:
        """Run a tool away from our packages: libnbd's Python module is called `nbd` too."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        done = subprocess.run(
            command,
            cwd=self.folder,
            env={**kept, "PATH": SYSTEM_PATH},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert (done.returncode != 0) == fails, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def libnbd(self, script: str) -> None:
        """Run a script with libnbd's binding, which the system's Python has."""
        uris = f"URI, FIXED = {self.uri()!r}, {self.uri('fixed')!r}\n"
        self.run("/usr/bin/python3", "-", stdin=uris + script)


def start(folder: Path) -> ForkedProcess:
    words = [str(folder / "nbd.sock"), "--file", str(folder / "file.img")]
    return ForkedProcess("serve_memory", [*words, "--tls", str(folder / "tls")])


def certificates(folder: Path) -> None:
    """As QEMU and libnbd want them named."""
    folder.mkdir()
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca-cert.pem"))
    for name in ("server", "client"):
        made = authority.issue_cert("localhost", common_name=name)
        made.cert_chain_pems[0].write_to_path(str(folder / f"{name}-cert.pem"))
        made.private_key_pem.write_to_path(str(folder / f"{name}-key.pem"))


@contextmanager
def serving(folder: Path, kind: str) -> Iterator[Served]:
    certificates(folder / "tls")
    with start(folder) as process:
        assert process.stdout is not None
        try:
            port, tls_port = map(int, process.stdout.readline().split())
            yield Served(folder, port, tls_port, kind)
            assert process.poll() is None, "the server survived"
        finally:
            process.kill()


def random_file(path: Path, size: int, seed: int = 1) -> Path:
    path.write_bytes(random.Random(seed).randbytes(size))
    return path
