"""Runs the measured servers, our daemon and qemu-nbd on the same disk, and drives them with fio."""

import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.workloads import MIB, Workload
from tests.system.pool_daemon import PoolDaemon, pool_daemon, run

FIO_LIMIT_S = 120.0


@dataclass(frozen=True)
class Target:
    """A server's name, and the URI of each kind of volume."""

    name: str
    uris: dict[str, str]


@dataclass(frozen=True)
class Figure:
    """Result of one run: requests and bytes per second, and the 99th percentile of latency."""

    iops: float
    mib_s: float
    p99_us: float


def write_random_file(file: Path, size_bytes: int) -> None:
    """Write a file of bytes that do not compress, so that all blocks are stored raw."""
    with Path("/dev/urandom").open("rb") as source, file.open("wb") as target:
        for _ in range(size_bytes // MIB):
            target.write(source.read(MIB))


@contextlib.contextmanager
def cenote(directory: Path, filling: Path) -> Iterator[tuple[Target, PoolDaemon]]:
    """Run our daemon on a pool of one file with a filled volume, and a clone of another."""
    size_bytes = filling.stat().st_size
    with pool_daemon(directory, member_size="64G") as daemon:
        daemon.start()
        for name in ("plain", "base"):
            daemon.create_volume(name, size_bytes)
            run("nbdcopy", "--flush", filling, daemon.uri(name), cwd=directory)
        daemon.cenote("snapshot", "create", "base@filled")
        daemon.cenote("clone", "base@filled", "thin")
        uris = {name: daemon.uri(name) for name in ("plain", "thin")}
        yield Target("cenote", uris), daemon
        daemon.stop()


@contextlib.contextmanager
def qemu_nbd(directory: Path, filling: Path) -> Iterator[Target]:
    """Run qemu-nbd on a filled raw file, and another on a qcow2 overlay of a second such file."""
    plain, base, thin = (directory / name for name in ("plain.raw", "base.raw", "thin.qcow2"))
    for file in (plain, base):
        shutil.copyfile(filling, file)
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", thin, cwd=directory)
    with contextlib.ExitStack() as stack:
        uris = {}
        for kind, file, file_format in (("plain", plain, "raw"), ("thin", thin, "qcow2")):
            socket = directory / f"{kind}.sock"
            command = ["qemu-nbd", "--persistent", "--shared=8", "--discard=unmap"]
            command += [f"--format={file_format}", f"--socket={socket}", str(file)]
            stack.enter_context(_process(command, socket))
            uris[kind] = f"nbd+unix:///?socket={socket}"
        yield Target("qemu-nbd", uris)


@contextlib.contextmanager
def _process(command: list[str], socket: Path) -> Iterator[None]:
    process = subprocess.Popen(command)
    try:
        while not socket.exists():
            assert process.poll() is None, f"ended at once: {command}"
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait()


def measure(
    target: Target, workload: Workload, directory: Path, size_bytes: int, seconds: float, seed: int
) -> Figure:
    """Run fio once."""
    job = workload.fio_job(target.uris[workload.kind], size_bytes, seconds, seed)
    text = run("fio", *job, cwd=directory, limit_s=seconds + FIO_LIMIT_S)
    result = json.loads(text[text.index("{") : text.rindex("}") + 1])["jobs"][0]
    assert not result["error"], text
    side = result["read" if workload.reads else "write"]
    p99_ns = side["clat_ns"]["percentile"]["99.000000"]
    if workload.every_write_flushed:
        # The latency is that of write and flush, which fio reports apart.
        p99_ns += result["sync"]["lat_ns"]["percentile"]["99.000000"]
    return Figure(side["iops"], side["bw_bytes"] / MIB, p99_ns / 1000)
