"""FileDevice where only root can set it up: on a small full file system, on a raw (loop) disk.

These tests are skipped where mounts or loop devices are not permitted; test_file.py
provokes the same errors without privileges.
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from blockdev.errors import BusyError, DeviceError, NoSpaceError
from blockdev.file import FileDevice

MIB = 1 << 20
PAGE = 4096


def run(*command: str | Path) -> str:
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs root: {command[0]}: {getattr(error, 'stderr', error)}")
    return done.stdout.strip()


@pytest.fixture
def small_tmpfs(tmp_path: Path) -> Iterator[Path]:
    run("mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", tmp_path)
    yield tmp_path
    run("umount", tmp_path)


@pytest.fixture
def small_ext4(tmp_path: Path) -> Iterator[Path]:
    image, mount = tmp_path / "image", tmp_path / "mount"
    mount.mkdir()
    with image.open("wb") as made:
        made.truncate(8 * MIB)
    run("mkfs.ext4", "-q", "-O", "^has_journal", image)
    run("mount", "-o", "loop", image, mount)
    yield mount
    run("umount", mount)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    image = tmp_path / "image"
    with image.open("wb") as made:
        made.truncate(16 * MIB)
    loop = Path(run("losetup", "--find", "--show", image))
    yield loop
    run("losetup", "--detach", loop)


async def fill(device: FileDevice) -> int:
    """Write until no space is left; return the number of bytes written."""
    for offset in range(0, device.size_bytes, MIB // 4):
        try:
            await device.write(offset, os.urandom(MIB // 4))
            await device.flush()
        except NoSpaceError:
            return offset
    raise AssertionError("never filled up")


@pytest.mark.parametrize("where", ["small_tmpfs", "small_ext4"])
async def test_a_full_file_system_is_no_space_and_recovers(
    where: str, request: pytest.FixtureRequest
) -> None:
    directory: Path = request.getfixturevalue(where)
    device = FileDevice.create(directory / "device.raw", 64 * MIB)
    filled = await fill(device)
    assert filled >= MIB
    with pytest.raises(NoSpaceError, match=r"allocate failed: No space left.*device\.raw"):
        await device.allocate(0, 64 * MIB)
    with pytest.raises(NoSpaceError):
        await device.write(32 * MIB, os.urandom(MIB))
    await device.trim(0, filled)
    await device.write(32 * MIB, b"x" * (MIB // 2))
    await device.flush()
    assert await device.read(32 * MIB, MIB // 2) == b"x" * (MIB // 2)
    await device.close()


async def test_tmpfs_works_without_inline_reads_and_zero_ranges(small_tmpfs: Path) -> None:
    device = FileDevice.create(small_tmpfs / "device.raw", 2 * MIB)
    await device.write(0, b"x" * MIB, fua=True)
    await device.write_zeroes(PAGE, PAGE, no_hole=True)
    await device.write_zeroes(3 * PAGE, PAGE)
    assert await device.read(0, 5 * PAGE) == (
        b"x" * PAGE + bytes(PAGE) + b"x" * PAGE + bytes(PAGE) + b"x" * PAGE
    )
    assert [extent.hole for extent in await device.extents(0, 2 * MIB)] == [
        False,
        True,
        False,
        True,
    ]
    await device.close()


async def test_a_raw_disk_can_be_read_and_written(disk: Path) -> None:
    device = FileDevice.open(disk)
    assert device.size_bytes == 16 * MIB
    assert device.physical_bytes in (512, PAGE)
    data = os.urandom(MIB)
    await device.write(PAGE, data)
    await device.write(8 * MIB + 3, b"unaligned", fua=True)
    await device.flush()
    assert await device.read(PAGE, MIB) == data
    assert device.try_read(PAGE, PAGE) in (None, data[:PAGE])
    assert await device.read(8 * MIB + 3, 9) == b"unaligned"
    assert len(await device.extents(0, 16 * MIB)) == 1
    await device.allocate(0, MIB)
    await device.close()


@pytest.mark.parametrize("no_hole", [False, True])
async def test_zeroes_on_a_raw_disk_need_no_alignment(disk: Path, no_hole: bool) -> None:
    device = FileDevice.open(disk)
    for offset, length in ((PAGE, PAGE), (PAGE, MIB), (5, 3), (700, 5000)):
        data = os.urandom(2 * MIB)
        await device.write(0, data)
        await device.write_zeroes(offset, length, no_hole=no_hole, fua=True)
        expected = data[:offset] + bytes(length) + data[offset + length :]
        assert await device.read(0, 2 * MIB) == expected
    await device.close()


async def test_trim_on_a_raw_disk_gives_space_back_and_spares_bytes_beside_it(
    disk: Path, tmp_path: Path
) -> None:
    device = FileDevice.open(disk)
    data = os.urandom(4 * MIB)
    await device.write(0, data)
    await device.flush()
    before = (tmp_path / "image").stat().st_blocks
    await device.trim(100, 4 * MIB - 200)
    await device.trim(5, 10)
    await device.flush()
    assert (tmp_path / "image").stat().st_blocks < before
    after = await device.read(0, 4 * MIB)
    assert after[:100] == data[:100]
    assert after[-100:] == data[-100:]
    await device.close()


async def test_a_disk_in_use_is_refused(disk: Path, tmp_path: Path) -> None:
    device = FileDevice.open(disk)
    with pytest.raises(BusyError, match=f"mounted or in use.*path={disk}"):
        FileDevice.open(disk)
    await device.close()
    mount = tmp_path / "mount"
    mount.mkdir()
    await trio.to_thread.run_sync(run, "mkfs.ext4", "-q", disk)
    await trio.to_thread.run_sync(run, "mount", disk, mount)
    with pytest.raises(BusyError, match="unmount or release it first"):
        FileDevice.open(disk)
    await trio.to_thread.run_sync(run, "umount", mount)


async def test_a_disk_that_vanishes_is_an_error(disk: Path, tmp_path: Path) -> None:
    """Goal: an I/O error of the disk is raised. Method: cut the loop device's file short."""
    device = FileDevice.open(disk)
    os.truncate(tmp_path / "image", MIB)
    with pytest.raises(DeviceError, match="read failed: Input/output error"):
        await device.read(8 * MIB, PAGE)
    await device.close()
