"""A file system of real files goes through the whole daemon and comes back the same."""

import filecmp
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from tests.system.pool_daemon import PoolDaemon, pool_daemon, run
from tests.system.usr_image import make_usr_image

T = TypeVar("T")

pytestmark = pytest.mark.system


@pytest.mark.parametrize("mib", [128, pytest.param(1024, marks=pytest.mark.long)])
def test_an_image_of_usr_comes_back_the_same(scratch: Path, mib: int) -> None:
    """Goal: what standard tools copy in, they copy out byte for byte after a restart.

    Method: an ext4 image of that much of /usr goes into one volume with nbdcopy and into
    another with qemu-img, on three members with two copies; the daemon restarts; each tool
    copies each volume out; the copies are compared, e2fsck finds nothing, nor does the check.
    """
    image = scratch / "usr.img"
    data_bytes, seconds = _timed(lambda: make_usr_image(image, mib << 20))
    assert data_bytes > mib << 20
    print(f"\nimage: files={data_bytes} bytes={image.stat().st_size} seconds={seconds:.1f}")
    with pool_daemon(scratch, members=3, copies=2, member_size="8G") as daemon:
        print(f"first start: seconds={daemon.start():.2f}")
        _copy_in(daemon, image)
        print(f"stop: seconds={daemon.stop():.2f}")
        print(f"start: seconds={daemon.start():.2f}")
        for volume in ("by-nbdcopy", "by-qemu-img"):
            _copy_out_and_compare(daemon, volume, image)
        daemon.stop()
        _, seconds = _timed(daemon.assert_check_is_clean)
        print(f"cenote check: seconds={seconds:.1f}")


def _copy_in(daemon: PoolDaemon, image: Path) -> None:
    for volume in ("by-nbdcopy", "by-qemu-img"):
        daemon.create_volume(volume, image.stat().st_size)
    _report(image, "nbdcopy in", "nbdcopy", "--flush", image, daemon.uri("by-nbdcopy"))
    convert = ("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw")
    _report(image, "qemu-img in", *convert, image, daemon.uri("by-qemu-img"))


def _copy_out_and_compare(daemon: PoolDaemon, volume: str, image: Path) -> None:
    copy = image.with_name("copy.img")
    convert = ("qemu-img", "convert", "-f", "raw", "-O", "raw")
    _report(image, f"nbdcopy out, {volume}", "nbdcopy", daemon.uri(volume), copy)
    _assert_is_the_same(copy, image)
    _report(image, f"qemu-img out, {volume}", *convert, daemon.uri(volume), copy)
    _assert_is_the_same(copy, image)


def _assert_is_the_same(copy: Path, image: Path) -> None:
    assert filecmp.cmp(copy, image, shallow=False), f"{copy} differs from {image}"
    run("e2fsck", "-fn", copy, cwd=image.parent)
    copy.unlink()


def _report(image: Path, what: str, *command: str | Path) -> None:
    _, seconds = _timed(lambda: run(*command, cwd=Path("/")))
    rate = image.stat().st_size / seconds / (1 << 20)
    print(f"{what}: seconds={seconds:.1f} MiB/s={rate:.0f}")


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    began = time.monotonic()
    result = work()
    return result, time.monotonic() - began
