"""`cenote nbd copy` beside nbdcopy and qemu-img: the same source, the same bytes, as sparse."""

import json
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.system.daemon_process import tool
from tests.system.processes import cenote
from tests.system.remote_servers import Kind, remote_server

pytestmark = pytest.mark.system

MIB = 1 << 20
SIZE = 96 * MIB


@pytest.fixture
def image(scratch: Path) -> Path:
    """Data, holes, zeroes that are written out, and small things in odd places."""
    path = scratch / "image.raw"
    rng = random.Random(7)
    with path.open("wb") as file:
        file.truncate(SIZE)
        for offset in range(0, SIZE, 24 * MIB):
            file.seek(offset)
            file.write(rng.randbytes(5 * MIB))
            file.write(bytes(3 * MIB))  # these are no holes
            file.seek(offset + 12 * MIB + 4096 * 3)
            file.write(rng.randbytes(4096))
        file.seek(SIZE - 100)
        file.write(b"the end")
    return path


@contextmanager
def target(kind: str) -> Iterator[str]:
    """A new, empty export as large as the image."""
    words = {
        "nbdkit": ("nbdkit", "memory", str(SIZE)),
        "plain": ("nbdkit", "--filter=nozero", "--filter=noextents", "memory", str(SIZE)),
        "qcow2": ("qemu-nbd", "-f", "qcow2", "{folder}/disk"),
        "raw": ("qemu-nbd", "-f", "raw", "{folder}/disk"),
        "cenote": ("cenote",),
    }[kind]
    export = "thin" if kind == "cenote" else ""
    setup = {"qcow2": ("qcow2",), "raw": ("truncate",)}.get(kind, ())
    one = Kind(kind, words, export=export, setup=setup, size_bytes=SIZE)
    with remote_server(one) as server:
        yield server.uri


def run(*words: str) -> str:
    done = tool(*words)
    assert done.code == 0, f"{words}: {done.out}{done.err}"
    return done.out


def ours(source: str, destination: str) -> None:
    done = cenote(Path("/nonexistent"), "nbd", "copy", source, destination, "--verify", "--json")
    assert done.code == 0, done
    assert json.loads(done.out)["verified"] is True


def nbdcopy(source: str, destination: str) -> None:
    run("nbdcopy", "--flush", source, destination)


def qemu_img(source: str, destination: str) -> None:
    new = () if "://" not in destination else ("-n",)
    run("qemu-img", "convert", *new, "-f", "raw", "-O", "raw", source, destination)


TOOLS = {"cenote": ours, "nbdcopy": nbdcopy, "qemu-img": qemu_img}


def data_bytes(uri: str) -> int:
    """How much of an export is no hole and no zeroes, as libnbd sees it."""
    runs = json.loads(run("nbdinfo", "--map", "--json", uri))
    assert sum(one["length"] for one in runs) == SIZE
    return sum(one["length"] for one in runs if one["type"] == 0)


def same(one: str, other: str) -> None:
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", one, other)


@pytest.mark.parametrize("kind", ["nbdkit", "plain", "raw", "qcow2", "cenote"])
def test_into_a_server(image: Path, kind: str) -> None:
    data: dict[str, int] = {}
    for name, copy in TOOLS.items():
        with target(kind) as uri:
            copy(str(image), uri)
            same(str(image), uri)
            data[name] = data_bytes(uri)
    # Short zeroes between data are written, as data: it costs less than another request.
    assert data["cenote"] <= 1.02 * min(data["nbdcopy"], data["qemu-img"]), data


@pytest.mark.parametrize("kind", ["nbdkit", "plain", "raw", "qcow2", "cenote"])
def test_out_of_a_server(image: Path, scratch: Path, kind: str) -> None:
    with target(kind) as uri:
        nbdcopy(str(image), uri)
        blocks: dict[str, int] = {}
        for name, copy in TOOLS.items():
            destination = scratch / f"{name}.raw"
            copy(uri, str(destination))
            subprocess.run(["cmp", str(image), str(destination)], check=True)
            blocks[name] = destination.stat().st_blocks
            destination.unlink()
    assert blocks["cenote"] <= 1.02 * min(blocks["nbdcopy"], blocks["qemu-img"]), blocks


def test_from_server_to_server(image: Path) -> None:
    with target("qcow2") as source, target("cenote") as middle, target("nbdkit") as end:
        qemu_img(str(image), source)
        ours(source, middle)
        ours(middle, end)
        for uri in (middle, end):
            same(str(image), uri)
        assert max(data_bytes(middle), data_bytes(end)) <= 1.02 * data_bytes(source)
