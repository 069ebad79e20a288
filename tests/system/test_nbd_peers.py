"""Other people's clients against our server, over a Unix socket and TCP."""

import json
import subprocess
import time

import pytest

from tests.system.nbd_peers import MIB, SIZE_BYTES, Served, random_file
from tests.system.processes import POLL_S

pytestmark = pytest.mark.system


def test_nbdinfo(served: Served) -> None:
    info = json.loads(served.run("nbdinfo", "--json", served.uri()))["exports"][0]
    assert info["export-name"] == "disk"
    assert info["description"] == "test disk disk"
    assert info["export-size"] == SIZE_BYTES
    assert (info["block_size_minimum"], info["block_size_preferred"]) == (1, 4096)
    assert info["block_size_maximum"] == 32 * MIB
    for name in ("cache", "df", "fast_zero", "flush", "fua", "multi_conn", "trim", "zero"):
        assert info[f"can_{name}"], name
    assert not info["is_read_only"]
    assert info["contexts"] == ["base:allocation"]
    assert json.loads(served.run("nbdinfo", "--json", served.uri("fixed")))["exports"][0][
        "is_read_only"
    ]
    assert "for export: nope" in served.run("nbdinfo", served.uri("nope"), fails=True)


def test_nbdinfo_list(served: Served) -> None:
    listed = json.loads(served.run("nbdinfo", "--json", "--list", served.uri("")))
    assert [export["export-name"] for export in listed["exports"]] == ["disk", "fixed", "thin"]
    assert listed["structured"]


def test_nbdcopy_in_and_out(served: Served) -> None:
    image = random_file(served.folder / "in.img", SIZE_BYTES)
    served.run("nbdcopy", "--flush", str(image), served.uri())
    served.run("nbdcopy", served.uri(), "out.img")
    assert (served.folder / "out.img").read_bytes() == image.read_bytes()
    served.run("nbdcopy", "--synchronous", "--request-size=1048576", served.uri(), "slow.img")
    assert (served.folder / "slow.img").read_bytes() == image.read_bytes()


LIBNBD = """
import errno, os
import nbd

def fails(number, call, *args):
    try:
        call(*args)
    except nbd.Error as error:
        assert error.errnum == number, (error, number)
    else:
        raise AssertionError(f"succeeded: {call} {args}")

for structured in (True, False):
    for name in (URI, FIXED):
        h = nbd.NBD()
        h.set_request_structured_replies(structured)
        h.set_strict_mode(0)  # let refused requests reach the server
        h.connect_uri(name)
        assert h.get_structured_replies_negotiated() == structured
        assert h.get_size() == 64 << 20
        if name == FIXED:
            assert h.is_read_only()
            for call in (h.zero, h.trim):
                fails(errno.EPERM, call, 512, 0)
            fails(errno.EPERM, h.pwrite, b"x" * 100000, 0)
            assert h.pread(512, 0) == bytes(512)
            h.shutdown()
            continue
        assert h.can_df() == structured
        data = os.urandom(300000)
        for flags in (0, nbd.CMD_FLAG_FUA):
            h.pwrite(data, 12345, flags)
            assert h.pread(len(data), 12345) == data
        if structured:
            assert h.pread(len(data), 12345, nbd.CMD_FLAG_DF) == data
        h.zero(1000, 12345, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
        h.zero(100, 20000)
        assert h.pread(1001, 12345) == bytes(1000) + data[1000:1001]
        h.trim(4096, 8192, nbd.CMD_FLAG_FUA)
        h.flush()
        h.pwrite(b"z" * (32 << 20), 0)
        assert h.pread(32 << 20, 0) == b"z" * (32 << 20)
        end = 64 << 20
        fails(errno.EINVAL, h.pread, 512, end)
        fails(errno.EINVAL, h.pread, 512, (1 << 63) - 512)
        fails(errno.EINVAL, h.trim, 512, end)
        h.cache(512, 0)
        h.zero(512, 40 << 20, nbd.CMD_FLAG_FAST_ZERO)
        fails(errno.EINVAL, h.block_status, 512, 0, lambda *_: 0)
        fails(errno.ENOSPC, h.pwrite, b"x" * 512, end)
        fails(errno.ENOSPC, h.zero, 1024, end - 512)
        assert h.pread(3, end - 3) == bytes(3)

        cookies = {}
        for number in range(200):
            buffer = nbd.Buffer(4096)
            cookies[h.aio_pread(buffer, number * 4096)] = buffer
        while cookies:
            h.poll(-1)
            for cookie in [c for c in cookies if h.aio_command_completed(c)]:
                assert cookies.pop(cookie).to_bytearray() == b"z" * 4096
        h.shutdown()

# A second connection sees what the first wrote.
a, b = nbd.NBD(), nbd.NBD()
a.connect_uri(URI); b.connect_uri(URI)
a.pwrite(b"shared", 7)
assert b.pread(6, 7) == b"shared"

# Negotiation step by step, and an export name the old way.
h = nbd.NBD()
h.set_opt_mode(True)
h.connect_uri(URI)
names = []
h.opt_list(lambda name, text: names.append(name))
h.opt_list(lambda name, text: names.append(name))
assert names == ["disk", "fixed", "thin"] * 2, names
h.set_export_name("nope")
fails(errno.ENOENT, h.opt_info)
fails(errno.ENOENT, h.opt_go)
h.set_export_name("disk")
h.set_full_info(True)
h.opt_info()
assert h.get_export_description() == "test disk disk"
h.opt_go()
assert h.pread(6, 7) == b"shared"
h = nbd.NBD()
h.set_opt_mode(True)
h.connect_uri(URI)
h.opt_abort()

for flags in (0, 1, 2, 3):
    h = nbd.NBD()
    h.set_handshake_flags(flags)
    h.connect_uri(URI)
    assert h.pread(6, 7) == b"shared"
    h.shutdown()
"""


def test_libnbd_commands_flags_and_negotiation(served: Served) -> None:
    served.libnbd(LIBNBD)


def test_qemu_img(served: Served) -> None:
    image = random_file(served.folder / "in.img", 8 * MIB, seed=2)
    info = json.loads(served.run("qemu-img", "info", "--output=json", served.uri()))
    assert info["virtual-size"] == SIZE_BYTES
    served.run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", str(image), served.uri())
    served.run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", served.uri(), "out.qcow2")
    served.run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", served.uri(), "out.qcow2")
    served.run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", "out.qcow2", "out.img")
    out = (served.folder / "out.img").read_bytes()
    assert out[: 8 * MIB] == image.read_bytes()
    assert not any(out[8 * MIB :])


def test_qemu_io(served: Served) -> None:
    commands = [
        "write -P 0x11 0 1M",
        "write -f -P 0x22 1M 64k",
        "write -z -u 4k 8k",
        "write -z 13k 3k",
        "write -z -n 16k 64k",
        "write -z -n -u 80k 4k",
        "discard 512k 4k",
        "flush",
        "aio_write -P 0x33 2M 3M",
        "aio_write -P 0x44 6M 1M",
        "aio_flush",
        "read -P 0x11 0 4k",
        "read -P 0 4k 8k",
        "read -P 0 13k 71k",
        "read -P 0x22 1M 64k",
        "read -P 0x33 2M 3M",
        "read -P 0x44 6M 1M",
        "write -P 0x55 7001 511",
        "read -P 0x55 7001 511",
    ]
    words = [word for command in commands for word in ("-c", command)]
    output = served.run("qemu-io", "-f", "raw", *words, served.uri())
    assert "verification failed" not in output
    # A volume cannot promise that zeroes with NO_HOLE are quick, nor can it be slow.
    thin = served.run("qemu-io", "-f", "raw", *words, served.uri("thin"))
    assert "verification failed" not in thin


def test_fio_verifies(served: Served) -> None:
    served.run(
        "fio", "--name=verify", "--ioengine=nbd", f"--uri={served.uri()}", "--rw=randwrite",
        "--bsrange=512-256k", "--iodepth=32", "--size=32m", "--verify=crc32c",
        "--verify_fatal=1", "--randseed=7", "--fsync=64", "--unlink=0",
    )  # fmt: skip


def test_nbd_client_lists(served: Served) -> None:
    if served.kind == "unix":
        words = ["-unix", f"{served.folder}/nbd.sock"]
    else:
        words = ["127.0.0.1", str(served.port)]
    output = served.run("nbd-client", "-l", *words)
    assert "disk" in output
    assert "fixed" in output


def test_clients_killed_in_the_middle_harm_nobody(served: Served) -> None:
    file, uri = served.folder / "file.img", served.uri("file")
    command = ["fio", "--name=load", "--ioengine=nbd", f"--uri={uri}", "--rw=randrw"]
    command += ["--bs=64k", "--iodepth=16", "--time_based", "--runtime=3600"]
    for _ in range(3):
        before = file.stat().st_mtime_ns
        fio = subprocess.Popen(
            command, cwd=served.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while file.stat().st_mtime_ns == before:  # until it writes
            assert fio.poll() is None
            time.sleep(POLL_S)
        fio.kill()
        fio.wait()
    assert json.loads(served.run("nbdinfo", "--json", served.uri()))
