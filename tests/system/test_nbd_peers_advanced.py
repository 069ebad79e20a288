"""Holes, TLS and restarts, as other people's clients see them."""

import json
import random
import subprocess
from pathlib import Path

import pytest

from tests.system.nbd_peers import MIB, SIZE_BYTES, Served, certificates, random_file, start
from tests.system.processes import PATIENCE_S, ForkedProcess

pytestmark = pytest.mark.system


def test_holes_are_told_exactly(served_once: Served) -> None:
    uri, run = served_once.uri("thin"), served_once.run
    words = ["write 1M 64k", "write 3M 4k", "write 60M 4M", "discard 61M 1M", "write -z 3M 2k"]
    run("qemu-io", "-f", "raw", *(word for one in words for word in ("-c", one)), uri)
    extents = json.loads(run("nbdinfo", "--map", "--json", uri))
    data = [(e["offset"], e["length"]) for e in extents if e["type"] == 0]
    assert data == [(MIB, 64 << 10), (3 * MIB, 4 << 10), (60 * MIB, MIB), (62 * MIB, 2 * MIB)]
    assert sum(e["length"] for e in extents) == SIZE_BYTES
    assert all(e["type"] in (0, 3) for e in extents)
    found = json.loads(run("qemu-img", "map", "--output=json", "-f", "raw", uri))
    assert [(e["start"], e["length"]) for e in found if e["data"]] == data


def test_sparse_copies(served_once: Served) -> None:
    """Holes are neither read nor written; what comes out is what went in."""
    uri, folder, run = served_once.uri("thin"), served_once.folder, served_once.run
    image = folder / "in.img"
    random_bytes = random.Random(3).randbytes(5 * MIB)
    with image.open("wb") as file:
        file.truncate(SIZE_BYTES)
        file.seek(7 * MIB)
        file.write(random_bytes)
        file.seek(50 * MIB + 4096)
        file.write(random_bytes[:8192])
    run("nbdcopy", "--destination-is-zero", str(image), uri)
    extents = json.loads(run("nbdinfo", "--map", "--json", uri))
    assert sum(e["length"] for e in extents if e["type"] == 0) == 5 * MIB + 8192
    run("nbdcopy", uri, "out.img")
    assert (folder / "out.img").read_bytes() == image.read_bytes()
    assert (folder / "out.img").stat().st_blocks * 512 < 16 * MIB
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", uri, str(image))
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", uri, "out.qcow2")
    run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", uri, "out.qcow2")


STATUS = """
import errno, nbd

h = nbd.NBD()
h.set_opt_mode(True)
h.connect_uri(URI.replace("disk", "thin"))
names = []
h.opt_list_meta_context(lambda name: names.append(name))
assert names == ["base:allocation", "qemu:allocation-depth"], names
h.add_meta_context("base:allocation")
h.add_meta_context("nope:nothing")
h.opt_go()
assert h.can_meta_context("base:allocation") and not h.can_meta_context("nope:nothing")
assert h.can_cache() and h.can_fast_zero() and h.can_df() and h.can_multi_conn()
h.pwrite(b"x" * 4096, 65536)

def status(length, offset, flags=0):
    found = []
    h.block_status(length, offset, lambda context, at, entries, error: found.extend(entries), flags)
    return found

assert status(1 << 20, 0) == [65536, 3, 4096, 0, (1 << 20) - 69632, 3], status(1 << 20, 0)
assert status(1 << 20, 0, nbd.CMD_FLAG_REQ_ONE) == [65536, 3]
assert status(100, 65600) == [100, 0]

pieces = []
data = h.pread_structured(1 << 20, 0, lambda *piece: pieces.append((piece[1], piece[2])))
assert data == bytes(65536) + b"x" * 4096 + bytes((1 << 20) - 69632)
assert (0, nbd.READ_HOLE) in pieces and (65536, nbd.READ_DATA) in pieces, pieces
pieces.clear()
h.pread_structured(
    1 << 20, 0, lambda *piece: pieces.append((piece[1], piece[2])), nbd.CMD_FLAG_DF
)
assert pieces == [(0, nbd.READ_DATA)], pieces
h.cache(1 << 20, 0)
h.zero(1 << 20, 0, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_FUA)
assert h.pread(4096, 65536) == bytes(4096)

# Everything at once, and a goodbye without waiting: all of it is carried out.
cookies = [h.aio_pwrite(nbd.Buffer.from_bytearray(b"z" * 100), n * 1000) for n in range(300)]
h.shutdown()
assert all(h.aio_command_completed(cookie) for cookie in cookies)
"""


def test_libnbd_status_pieces_and_goodbye(served: Served) -> None:
    served.libnbd(STATUS)


def test_tls(served_once: Served) -> None:
    """The tools of libnbd and QEMU with certificates; without one, nobody gets in."""
    run, folder = served_once.run, served_once.folder
    image = random_file(folder / "in.img", SIZE_BYTES, seed=4)
    uri = served_once.tls_uri()
    info = json.loads(run("nbdinfo", "--json", uri))
    assert info["TLS"]
    listed = json.loads(run("nbdinfo", "--json", "--list", served_once.tls_uri("")))
    assert len(listed["exports"]) == 3
    run("nbdcopy", "--flush", str(image), uri)
    run("nbdcopy", uri, "out.img")
    assert (folder / "out.img").read_bytes() == image.read_bytes()
    object_ = f"tls-creds-x509,id=tls0,endpoint=client,dir={folder}/tls"
    options = f"driver=nbd,host=localhost,port={served_once.tls_port},tls-creds=tls0,export=disk"
    run("qemu-img", "compare", "--object", object_, "--image-opts", options,
        f"driver=raw,file.driver=file,file.filename={image}")  # fmt: skip
    run("qemu-io", "--object", object_, "--image-opts", options,
        "-c", "aio_write -P 1 0 8M", "-c", "aio_write -P 2 8M 8M", "-c", "aio_flush",
        "-c", "read -P 1 0 8M", "-c", "read -P 2 8M 8M")  # fmt: skip
    (folder / "tls" / "client-cert.pem").unlink()
    (folder / "tls" / "client-key.pem").unlink()
    run("nbdinfo", uri, fails=True)
    plain = f"nbd://localhost:{served_once.tls_port}/disk"
    assert "TLS" in run("nbdinfo", plain, fails=True)
    assert "TLS" in run("qemu-img", "info", plain, fails=True)


def test_qemu_survives_a_restart(tmp_path: Path) -> None:
    """The driver of virtual machines connects again, and repeats what was not answered."""
    certificates(tmp_path / "tls")
    options = (
        f"driver=nbd,server.type=unix,server.path={tmp_path}/nbd.sock,export=file,"
        "reconnect-delay=30"
    )

    def ready(server: ForkedProcess) -> None:
        assert server.stdout is not None
        assert server.stdout.readline()

    with start(tmp_path) as server:
        ready(server)
        qemu = subprocess.Popen(
            ["qemu-io", "--image-opts", options],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        with qemu:
            assert qemu.stdin is not None
            assert qemu.stdout is not None
            qemu.stdin.write("write -P 1 0 1M\n")
            for number in range(40):
                qemu.stdin.write(f"aio_write -P {number + 2} {number + 1}M 1M\n")
            qemu.stdin.flush()
            assert "wrote 1048576/1048576" in qemu.stdout.readline() + qemu.stdout.readline()
            server.kill()
            server.wait()
            qemu.stdin.write("aio_flush\n")
            for number in range(41):
                qemu.stdin.write(f"read -P {number + 1} {number}M 1M\n")
            qemu.stdin.flush()
            with start(tmp_path) as again:
                ready(again)
                output, _ = qemu.communicate("quit\n", timeout=PATIENCE_S)
                again.kill()
    assert qemu.returncode == 0
    assert output.count("read 1048576/1048576") == 41, output
    assert "failed" not in output
