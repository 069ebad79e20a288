"""Other people's servers, and ours, each as a process of its own: plain and with TLS."""

import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from nbd.client import ClientOptions, NbdDevice, open_nbd
from tests.system.nbd_peers import certificates
from tests.system.processes import PATIENCE_S, POLL_S, ROOT, ForkedProcess, wait_for_path

SIZE_BYTES = 1 << 20

# A server of a few lines of shell: each request runs one of them.
_DD = "dd status=none"
_EVAL = {
    "get_size": f"echo {SIZE_BYTES}",
    "thread_model": "echo parallel",
    "pread": f"{_DD} if=disk iflag=skip_bytes,count_bytes skip=$4 count=$3",
    "pwrite": f"{_DD} of=disk oflag=seek_bytes seek=$4 conv=notrunc",
    "zero": f"{_DD} if=/dev/zero of=disk iflag=count_bytes oflag=seek_bytes "
    "seek=$4 count=$3 conv=notrunc",
    "trim": "true",
    "flush": "sync disk",
    "extents": 'echo "$4 $3"',
    "cache": "true",
}


def script(**parts: str) -> list[str]:
    """Arguments of nbdkit for a server written in shell."""
    folder = 'cd "$FOLDER" && '
    return ["eval", *(f"{name}={folder}{body}" for name, body in {**_EVAL, **parts}.items())]


@dataclass(frozen=True)
class Kind:
    """How to start a server; words may say {folder}."""

    name: str
    words: tuple[str, ...]
    export: str = ""
    lasts: bool = False
    """Whether flushed data outlives the process."""
    once: bool = False
    """Whether it ends when its last client has left."""
    setup: tuple[str, ...] = ()
    size_bytes: int = SIZE_BYTES


def nbdkit(name: str, *words: str, lasts: bool = False, once: bool = False) -> Kind:
    return Kind(name, ("nbdkit", *words), lasts=lasts, once=once, setup=("truncate", "disk"))


MEMORY = ("memory", str(SIZE_BYTES))
BLOCKS = ("blocksize-minimum=512", "blocksize-preferred=4096", "blocksize-maximum=65536")
KINDS = [
    nbdkit("nbdkit-memory", *MEMORY),
    nbdkit("nbdkit-file", "file", "{folder}/disk", lasts=True),
    nbdkit("nbdkit-error", "--filter=error", *MEMORY, "error=EIO", "error-rate=100%",
           "error-file={folder}/broken"),
    nbdkit("nbdkit-delay", "--filter=delay", *MEMORY, "rdelay=2ms", "wdelay=1ms"),
    nbdkit("nbdkit-blocksize-policy", "--filter=blocksize-policy", *MEMORY, *BLOCKS,
           "blocksize-error-policy=error"),
    nbdkit("nbdkit-noparallel", "--filter=noparallel", *MEMORY),
    nbdkit("nbdkit-exitlast", "--filter=exitlast", "file", "{folder}/disk", lasts=True, once=True),
    nbdkit("nbdkit-eval", *script(), lasts=True),
    Kind("qemu-nbd-raw", ("qemu-nbd", "-f", "raw", "{folder}/disk"), lasts=True,
         setup=("truncate", "disk")),
    Kind("qemu-nbd-qcow2", ("qemu-nbd", "-f", "qcow2", "{folder}/disk"), lasts=True,
         setup=("qcow2", "disk")),
    Kind("cenote-memory", ("cenote",), export="disk"),
    Kind("cenote-file", ("cenote",), export="file", lasts=True),
    Kind("cenote-volume", ("cenote",), export="thin"),
]  # fmt: skip
BY_NAME = {kind.name: kind for kind in KINDS}


class RemoteServer:
    """One of them, running in a directory of its own."""

    def __init__(self, kind: Kind, folder: Path, *, tls: bool) -> None:
        self.kind = kind
        self.folder = folder
        self.tls = tls
        self._port = ""  # ours does TLS over TCP only
        self._keeps_port: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | ForkedProcess | None = None
        if tls and kind.words[0] == "cenote":
            self._keeps_port = kept_port()
            self._port = str(self._keeps_port.getsockname()[1])
        certificates(folder / "tls")
        disk = str(folder / "disk")
        if "qcow2" in kind.setup:
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, str(kind.size_bytes)],
                           check=True)  # fmt: skip
        elif kind.setup:
            subprocess.run(["truncate", "-s", str(kind.size_bytes), disk], check=True)

    def start(self) -> None:
        """Start it, and wait until it listens."""
        path = self.folder / "nbd.sock"
        listens = self.folder / "pid"  # written when clients can come
        path.unlink(missing_ok=True)
        listens.unlink(missing_ok=True)
        if self.kind.words[0] == "cenote":
            self._start_ours(path)
            return
        words = [word.replace("{folder}", str(self.folder)) for word in self._words(str(path))]
        self._process = subprocess.Popen(
            words,
            cwd=ROOT,
            env={"PATH": "/usr/bin:/bin", "FOLDER": str(self.folder)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for_path(listens, self._process)

    def _start_ours(self, path: Path) -> None:
        words = [
            str(path), "--tls", str(self.folder / "tls"), "--file", str(self.folder / "disk"),
            "--size", str(self.kind.size_bytes), "--tls-port", self._port or "0",
        ]  # fmt: skip
        process = ForkedProcess("serve_memory", words, stderr=subprocess.DEVNULL)
        self._process = process
        assert process.stdout is not None
        assert process.stdout.readline()

    @property
    def uri(self) -> str:
        """The right one: everything that it takes."""
        return self.uri_with(tls=self.tls)

    def uri_with(self, *, tls: bool, hostname: str = "", knows_authority: bool = True) -> str:
        """The same server, as others might name it."""
        scheme, query = "nbds" if tls else "nbd", []
        if self._port:
            where = f"localhost:{self._port}"
        else:
            scheme, where = f"{scheme}+unix", ""
            query.append(f"socket={self.folder}/nbd.sock")
            hostname = hostname or "localhost"
        if tls and hostname:
            query.append(f"tls-hostname={hostname}")
        if tls and knows_authority:
            query.append(f"tls-certificates={self.folder}/tls")
        return f"{scheme}://{where}/{self.kind.export}{'?' * bool(query)}{'&'.join(query)}"

    def _words(self, socket: str) -> list[str]:
        first, *others = self.kind.words
        files = str(self.folder / "tls")
        if first == "nbdkit":
            tls = ["--tls=require", f"--tls-certificates={files}", "--tls-verify-peer"]
            begin = [first, "-f", "-P", str(self.folder / "pid"), "-U", socket]
            return [*begin, *(tls if self.tls else ["--tls=off"]), *others]
        if first == "qemu-nbd":
            object_ = f"tls-creds-x509,id=tls0,endpoint=server,dir={files},verify-peer=yes"
            tls = ["--object", object_, "--tls-creds", "tls0"] if self.tls else []
            begin = [first, "-t", "-e", "16", "--pid-file", str(self.folder / "pid"), "-k", socket]
            return [*begin, "--discard=unmap", *tls, *others]
        raise AssertionError(f"no server: {first}")

    def check_after_use(self) -> None:
        """It runs on; or it ended, because our goodbye reached it on every connection."""
        if self.kind.once:
            assert self._process is not None
            assert self._process.wait(PATIENCE_S) == 0
            self.start()
        assert self.is_running()

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """Take it away, as a crash would; what it did not give to the kernel is lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()

    def close(self) -> None:
        """Kill it for good."""
        self.kill()
        if self._keeps_port is not None:
            self._keeps_port.close()

    def pause(self, *, on: bool) -> None:
        """Stop it from working, or let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP if on else signal.SIGCONT)
        # The signal reaches one thread after another, and the others go on meanwhile.
        while on and any(state != "T" for state in thread_states(self._process.pid)):
            time.sleep(POLL_S)


def thread_states(pid: int) -> list[str]:
    """The state of each thread of a process, as proc(5) calls it: T is stopped."""
    files = Path(f"/proc/{pid}/task").glob("*/stat")
    return [file.read_text().rpartition(")")[2].split()[0] for file in files]


def kept_port() -> socket.socket:
    """Bind to a port on which a server may listen, so that no other process is given it.

    The server can bind to it too, with SO_REUSEADDR, since this socket never listens.
    """
    keeper = socket.socket()
    keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    keeper.bind(("127.0.0.1", 0))
    return keeper


@contextmanager
def remote_server(kind: Kind, *, tls: bool = False) -> Iterator[RemoteServer]:
    """Run a server in a directory with a short name: a socket's path has at most 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="nbd-", dir="/tmp"))
    server = RemoteServer(kind, folder, tls=tls)
    try:
        server.start()
        yield server
    finally:
        server.close()
        shutil.rmtree(folder)


# Using them

PATIENT = ClientOptions(
    connect_s=60, request_s=240, reconnect_s=240, backoff_s=0.02, backoff_max_s=0.2
)
ONCE = ClientOptions(connect_s=60, request_s=240, reconnect_s=0)


async def content(device: NbdDevice, offset: int, length: int) -> bytes:
    return bytes(memoryview(await device.read(offset, length)))


@asynccontextmanager
async def opened(
    kind: Kind, options: ClientOptions = ONCE, *, tls: bool = False
) -> AsyncIterator[tuple[RemoteServer, NbdDevice]]:
    with remote_server(kind, tls=tls) as server, trio.fail_after(300):
        async with open_nbd(server.uri, options) as device:
            yield server, device
