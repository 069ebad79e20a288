"""FileDevice on real files: locks, errors, and calls that kernels and file systems refuse."""

import errno
import os
import sys
from pathlib import Path

import pytest
import trio

from blockdev import linux
from blockdev.device import Extent
from blockdev.errors import (
    BusyError,
    DeviceError,
    NoSpaceError,
    OutOfRangeError,
    ReadOnlyError,
)
from blockdev.file import INLINE_BYTES_MAX, FileDevice
from blockdev.openfile import OpenFile
from tests.unit.hang import HANG_S

KIB = 1024
MIB = 1 << 20
PAGE = 4096


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "device.raw"


def allocated_bytes(path: Path) -> int:
    return path.stat().st_blocks * 512


def unsupported(*args: object) -> None:
    raise OSError(errno.EOPNOTSUPP, "not supported")


# Creating and opening


async def test_a_new_file_is_sparse_private_and_has_its_size(path: Path) -> None:
    device = FileDevice.create(path, 1 << 40)
    assert device.size_bytes == path.stat().st_size == 1 << 40
    assert allocated_bytes(path) < 64 * KIB
    assert path.stat().st_mode & 0o777 == 0o600
    assert (device.block_bytes, device.physical_bytes, device.read_only) == (1, 4096, False)
    await device.close()


async def test_content_survives_reopening(path: Path) -> None:
    device = FileDevice.create(path, MIB)
    await device.write(12345, b"kept")
    await device.close()
    again = FileDevice.open(path)
    assert await again.read(12345, 4) == b"kept"
    await again.close()


async def test_a_file_that_became_larger_is_used_once_it_is_measured(path: Path) -> None:
    device = FileDevice.create(path, MIB)
    await device.write(MIB - 4, b"end.")
    os.truncate(path, 2 * MIB)
    with pytest.raises(OutOfRangeError):
        await device.read(MIB, 4)
    assert await device.measure() == device.size_bytes == 2 * MIB
    assert bytes(await device.read(MIB - 4, 8)) == b"end.\0\0\0\0"
    await device.write(2 * MIB - 4, b"more")
    assert await device.read(2 * MIB - 4, 4) == b"more"
    os.truncate(path, MIB)
    assert await device.measure() == 2 * MIB  # the size never falls; reads past the end fail
    with pytest.raises(DeviceError, match="shorter than when opened"):
        await device.read(MIB, 4)
    await device.close()


def test_creating_over_a_file_is_refused_and_leaves_it(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(DeviceError, match=f"create failed: File exists: path={path}"):
        FileDevice.create(path, MIB)
    assert path.read_text() == "precious"


def test_a_file_that_cannot_be_made_is_removed(path: Path) -> None:
    with pytest.raises(DeviceError, match="create failed: "):
        FileDevice.create(path, -1)
    assert not path.exists()


def test_a_path_that_is_no_file_or_disk_is_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=f"open failed: No such file or directory: path={path}"):
        FileDevice.open(path)
    with pytest.raises(DeviceError, match="open failed: Is a directory"):
        FileDevice.open(tmp_path)
    with pytest.raises(DeviceError, match="neither a file nor a disk"):
        FileDevice.open("/dev/null")
    os.mkfifo(path)
    with pytest.raises(DeviceError, match="neither a file nor a disk"):
        FileDevice.open(path)


# Locks


async def test_a_second_owner_is_refused_until_the_first_closes(path: Path) -> None:
    device = FileDevice.create(path, MIB)
    with pytest.raises(BusyError, match=f"already in use; stop the daemon.*path={path}"):
        FileDevice.open(path)
    with pytest.raises(BusyError):
        FileDevice.open(path, read_only=True)
    await device.close()
    await FileDevice.open(path).close()


async def test_another_process_is_refused_too(path: Path) -> None:
    device = FileDevice.create(path, MIB)
    lock = "import fcntl, sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_SH | fcntl.LOCK_NB)"
    command = [sys.executable, "-c", lock, str(path)]
    refused = await trio.run_process(command, check=False, capture_stderr=True)
    assert b"BlockingIOError" in refused.stderr
    await device.close()
    await trio.run_process(command)


async def test_readers_share_and_keep_owners_out(path: Path) -> None:
    await FileDevice.create(path, MIB).close()
    readers = [FileDevice.open(path, read_only=True) for _ in range(2)]
    with pytest.raises(BusyError):
        FileDevice.open(path)
    for reader in readers:
        await reader.close()


async def test_an_onlooker_takes_no_lock(path: Path) -> None:
    owner = FileDevice.create(path, MIB)
    onlooker = FileDevice.open(path, exclusive=False, read_only=True)
    await owner.write(0, b"seen")
    assert await onlooker.read(0, 4) == b"seen"
    await onlooker.close()
    await owner.close()


async def test_a_read_only_device_takes_no_changes(path: Path) -> None:
    path.write_bytes(b"content")
    device = FileDevice.open(path, read_only=True)
    with pytest.raises(ReadOnlyError, match="open for reading only"):
        await device.write(0, b"x")
    with pytest.raises(ReadOnlyError):
        await device.write_zeroes(0, 1)
    with pytest.raises(ReadOnlyError):
        await device.trim(0, 1)
    with pytest.raises(ReadOnlyError):
        await device.allocate(0, 1)
    await device.flush()
    assert await device.read(0, 7) == b"content"
    await device.close()


# Reading


async def test_cached_reads_finish_in_line(path: Path) -> None:
    """The file system of the tests must have RWF_NOWAIT for this; ext4, xfs and btrfs do."""
    device = FileDevice.create(path, MIB)
    await device.write(0, b"x" * MIB)
    if device._inline_bytes < 0:  # tmpfs
        assert device.try_read(0, PAGE) is None
    else:
        assert device.try_read(1, PAGE) == bytearray(b"x" * PAGE)
        assert device.try_read(0, INLINE_BYTES_MAX + 1) is None
    assert await device.read(0, MIB) == b"x" * MIB
    await device.close()


async def test_read_ahead_fills_the_page_cache_without_waiting(path: Path) -> None:
    """Goal: no task waits for the reading, and a range outside the device does no harm."""
    device = FileDevice.create(path, MIB)
    await device.write(0, b"x" * MIB)
    await device.flush()
    os.posix_fadvise(device._fd, 0, 0, os.POSIX_FADV_DONTNEED)
    began = device.read_ahead(PAGE, PAGE)
    assert began == (device._inline_bytes >= 0)  # not on tmpfs
    with trio.fail_after(HANG_S):
        while began and device.try_read(PAGE, PAGE) is None:
            await trio.sleep(0.001)
    assert not device.read_ahead(MIB - PAGE, 2 * PAGE)
    assert not device.read_ahead(-1, PAGE)
    await device.close()
    assert not device.read_ahead(0, PAGE)


async def test_reads_fall_back_to_threads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short or refused in-line read is done in a thread, which continues short reads."""
    device = FileDevice.create(path, MIB)
    await device.write(0, b"abcdefgh")
    preadv = os.preadv

    def miserly(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        if flags:
            raise BlockingIOError(errno.EAGAIN, "not in memory")
        return preadv(fd, [buffers[0][:3]], offset)

    monkeypatch.setattr(os, "preadv", miserly)
    assert device.try_read(0, 8) is None
    assert await device.read(0, 8) == b"abcdefgh"
    await device.close()


async def test_a_file_cut_short_under_us_is_an_error_not_zeroes(path: Path) -> None:
    device = FileDevice.create(path, MIB)
    os.truncate(path, 5000)
    with pytest.raises(DeviceError, match=r"ends at byte 5000.*offset=4096 length=4096"):
        await device.read(PAGE, PAGE)
    await device.close()


# Writing


async def test_short_writes_are_continued(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = FileDevice.create(path, MIB)
    pwritev = os.pwritev

    def miserly(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        return pwritev(fd, [buffers[0][:1000]], offset, flags)

    monkeypatch.setattr(os, "pwritev", miserly)
    await device.write(0, bytes(range(250)) * 20, fua=True)
    assert await device.read(0, 5000) == bytes(range(250)) * 20
    await device.close()


async def test_fua_without_dsync_writes_falls_back_to_fdatasync(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = FileDevice.create(path, MIB)
    pwritev, fdatasync = os.pwritev, os.fdatasync
    synced = []

    def plain_only(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        if flags:
            unsupported()
        return pwritev(fd, buffers, offset)

    monkeypatch.setattr(os, "pwritev", plain_only)

    def recorded(fd: int) -> None:
        synced.append(fd)
        fdatasync(fd)

    monkeypatch.setattr(os, "fdatasync", recorded)
    await device.write(0, b"durable", fua=True)
    assert len(synced) == 1
    assert await device.read(0, 7) == b"durable"
    await device.close()


async def test_only_large_plain_writes_start_writeback(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = FileDevice.create(path, 4 * MIB)
    started = []
    real = linux.start_writeback

    def recorded(fd: int, offset: int, length: int) -> None:
        started.append((offset, length))
        real(fd, offset, length)

    monkeypatch.setattr(linux, "start_writeback", recorded)
    await device.write(0, bytes(PAGE))
    await device.write(MIB, bytes(MIB))
    await device.write(2 * MIB, bytes(MIB), fua=True)
    assert started == [(MIB, MIB)]
    await device.close()


# Zeroes, trim, allocation, extents


async def test_zeroes_and_trim_give_space_back(path: Path) -> None:
    device = FileDevice.create(path, 4 * MIB)
    await device.write(0, b"x" * 4 * MIB)
    await device.flush()
    full = allocated_bytes(path)
    await device.write_zeroes(0, MIB)
    assert allocated_bytes(path) <= full - MIB
    await device.trim(MIB, MIB)
    assert allocated_bytes(path) <= full - 2 * MIB
    assert path.stat().st_size == 4 * MIB
    assert await device.read(0, 2 * MIB) == bytes(2 * MIB)
    await device.close()


async def test_zeroes_without_a_hole_keep_the_space(path: Path) -> None:
    device = FileDevice.create(path, 4 * MIB)
    await device.write(0, b"x" * 4 * MIB)
    await device.flush()
    full = allocated_bytes(path)
    await device.write_zeroes(0, 4 * MIB, no_hole=True, fua=True)
    assert allocated_bytes(path) >= full
    assert await device.read(0, 4 * MIB) == bytes(4 * MIB)
    await device.close()


async def test_file_systems_without_holes_get_zeroes_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linux, "fallocate", unsupported)
    device = FileDevice.create(path, 4 * MIB)
    data = os.urandom(4 * MIB)
    await device.write(0, data)
    await device.write_zeroes(100, 3 * MIB)
    await device.trim(0, 50)
    await device.allocate(0, 4 * MIB)
    assert await device.read(0, 4 * MIB) == data[:100] + bytes(3 * MIB) + data[100 + 3 * MIB :]
    await device.close()


async def test_allocation_takes_space_at_once(path: Path) -> None:
    device = FileDevice.create(path, 4 * MIB)
    await device.allocate(MIB, 2 * MIB)
    assert 2 * MIB <= allocated_bytes(path) < 3 * MIB
    assert path.stat().st_size == 4 * MIB
    await device.close()


async def test_extents_show_holes(path: Path) -> None:
    device = FileDevice.create(path, 4 * MIB)
    await device.write(MIB, b"x" * MIB)
    await device.flush()
    assert await device.extents(0, 4 * MIB) == [
        Extent(MIB, hole=True, zero=True),
        Extent(MIB, hole=False, zero=False),
        Extent(2 * MIB, hole=True, zero=True),
    ]
    assert await device.extents(MIB + 5, 10) == [Extent(10, hole=False, zero=False)]
    assert await device.extents(3 * MIB + 5, 10) == [Extent(10, hole=True, zero=True)]
    await device.close()


# Errors


def full_device(fd: int) -> FileDevice:
    """Return a device whose every write finds no space, on Linux's /dev/full."""
    return FileDevice(OpenFile(Path("/dev/full"), fd, MIB, PAGE, False, False, False))


async def test_no_space_has_its_own_error() -> None:
    device = full_device(os.open("/dev/full", os.O_RDWR))
    with pytest.raises(
        NoSpaceError,
        match="write failed: No space left on device: path=/dev/full offset=0 length=5",
    ):
        await device.write(0, b"bytes")
    await device.close()


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.EIO, DeviceError), (errno.ENOSPC, NoSpaceError), (errno.EDQUOT, NoSpaceError)],
)
async def test_a_failed_flush_is_reported(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[DeviceError]
) -> None:
    device = FileDevice.create(path, MIB)

    def fail(fd: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(kind, match=f"flush failed: {os.strerror(number)}: path=") as caught:
        await device.flush()
    assert type(caught.value) is kind
    await device.close()


def test_failed_system_calls_raise_os_error() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        linux.fallocate(-1, 0, 0, 1)
    with pytest.raises(OSError, match="Bad file descriptor"):
        linux.start_writeback(-1, 0, 1)
