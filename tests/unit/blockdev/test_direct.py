"""Reads around the page cache, on real files."""

import ctypes
import errno
import mmap
import os
from pathlib import Path

import pytest
from typing_extensions import Buffer

from blockdev.errors import ClosedError
from blockdev.file import FileDevice

MIB = 1 << 20
PAGE = 4096


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "device.raw"


def cached_pages(fd: int) -> int:
    """Return how many pages of a file's first MiB the page cache holds. Reads with RWF_NOWAIT
    cannot tell: for them newer kernels start a read-ahead, which a fast disk finishes at once."""
    with mmap.mmap(fd, MIB) as pages:
        first = ctypes.c_char.from_buffer(pages)
        resident = (ctypes.c_ubyte * (MIB // PAGE))()
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mincore(ctypes.c_void_p(ctypes.addressof(first)), MIB, resident) == 0
        del first
    return sum(page & 1 for page in resident)


async def test_reads_of_the_medium_leave_the_page_cache_alone(path: Path) -> None:
    """Goal: pages that were not in the cache are not in it afterwards. The file system of the tests
    must have O_DIRECT for this; ext4, xfs and btrfs do."""
    device = FileDevice.create(path, MIB)
    await device.write(0, b"x" * MIB)
    await device.flush()
    assert cached_pages(device._fd) == MIB // PAGE
    os.posix_fadvise(device._fd, 0, 0, os.POSIX_FADV_DONTNEED)
    before = cached_pages(device._fd)
    assert before < MIB // PAGE
    assert await device.read_medium(100, MIB - 200) == b"x" * (MIB - 200)
    if not device._direct._unable:
        assert cached_pages(device._fd) == before
    await device.close()
    with pytest.raises(ClosedError):
        await device.read_medium(0, PAGE)


async def test_reads_of_the_medium_work_without_o_direct(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: no O_DIRECT, or one that refuses at the first read, is no error."""
    device = FileDevice.create(path, 3 * PAGE + 5)
    await device.write(0, b"y" * device.size_bytes)
    assert await device.read_medium(PAGE, 2 * PAGE + 5) == b"y" * (2 * PAGE + 5)
    preadv = os.preadv

    def refusing(fd: int, buffers: list[Buffer], offset: int, flags: int = 0) -> int:
        if fd == device._direct._direct:
            raise OSError(errno.EINVAL, "Invalid argument")
        return preadv(fd, buffers, offset, flags)

    monkeypatch.setattr(os, "preadv", refusing)
    assert await device.read_medium(7, 2 * PAGE) == b"y" * 2 * PAGE
    assert device._direct._unable
    assert await device.read_medium(0, PAGE) == b"y" * PAGE
    await device.close()
