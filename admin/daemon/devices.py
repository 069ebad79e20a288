"""Opens, creates and enlarges the devices of members, and finds out what they hold.

The only module of `admin` that names concrete devices.
"""

import logging
import os
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

from admin.config.load import Config, MemberConfig
from admin.daemon.start_plan import Content, Found, Plan, set_aside
from blockdev.device import BlockDevice
from blockdev.errors import DeviceError
from blockdev.file import FileDevice
from storage.errors import InvalidArgumentError, MissingMemberError, NotFoundError
from storage.info import CheckReport
from storage.pool import MemberDevice, create_pool, probe_member
from storage.verify.check import check_pool

_log = logging.getLogger("cenote.devices")


async def look(members: Iterable[MemberConfig]) -> list[Found]:
    """Find out what each member's path holds, changing nothing.

    Raises:
        BusyError: another process uses a device.
        DeviceError: a device cannot be read, or its superblocks are damaged.
    """
    return [await _look_at(member) for member in members]


class OpenDevices:
    """Devices that are open until the context ends; more may be opened meanwhile."""

    def __init__(self) -> None:
        self._devices: list[BlockDevice] = []

    def open(self, member: MemberConfig, *, read_only: bool = False) -> MemberDevice:
        """Open the device at a member's path. Raises as `look`."""
        device = FileDevice.open(member.path, read_only=read_only)
        self._devices.append(device)
        return MemberDevice(device, str(member.path), member.host)

    async def close(self, device: BlockDevice) -> None:
        """Close one device before the context ends."""
        self._devices.remove(device)
        await device.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        while self._devices:
            await self._devices.pop().close()


@asynccontextmanager
async def opened(
    members: Iterable[Found], *, read_only: bool = False
) -> AsyncIterator[list[MemberDevice]]:
    """Open the devices at the members' paths until the context ends. Raises as `look`."""
    async with OpenDevices() as devices:
        yield [devices.open(one.member, read_only=read_only) for one in members]


async def create(config: Config, plan: Plan) -> None:
    """Make the files that are absent, and a new pool on all members.

    On error or cancellation, files that this call made are removed again.

    Raises:
        DeviceError: a file cannot be made, or a device failed.
    """
    made: list[Path] = []
    try:
        for one in plan.use:
            if one.content is Content.ABSENT:
                assert one.member.size_bytes is not None
                device = FileDevice.create(one.member.path, one.member.size_bytes)
                made.append(one.member.path)
                await device.close()
            elif one.content is Content.EMPTY and one.member.size_bytes is not None:
                os.truncate(one.member.path, one.member.size_bytes)
        async with opened(plan.use) as devices:
            pool = await create_pool(
                devices, copies=config.pool.copies, segment_bytes=config.pool.segment_bytes
            )
    except BaseException:
        for path in made:
            path.unlink(missing_ok=True)
        raise
    _log.info("created pool %s on %d members", pool, len(plan.use))


def warn_of_thin_files(members: Iterable[Found]) -> None:
    """Log each file system that has less free space than its sparse members may grow to take."""
    promised: dict[int, int] = {}
    room: dict[int, tuple[int, Path]] = {}
    for one in members:
        path = one.member.path
        status = path.stat()
        if path.is_file():
            system = os.statvfs(path)
            missing = max(0, status.st_size - status.st_blocks * 512)
            promised[status.st_dev] = promised.get(status.st_dev, 0) + missing
            room[status.st_dev] = (system.f_bavail * system.f_frsize, path)
    for system_id, size_bytes in promised.items():
        free_bytes, path = room[system_id]
        if size_bytes > free_bytes:
            _log.warning(
                "the file system of %s has less room than its members may grow to take: "
                "free=%d wanted=%d", path, free_bytes, size_bytes,
            )  # fmt: skip


def explain_missing(error: MissingMemberError, absent: Iterable[Found]) -> MissingMemberError:
    """The error, with the paths that hold nothing and the option that opens the pool anyway."""
    paths = ", ".join(str(one.member.path) for one in absent)
    if not paths:
        return error
    return MissingMemberError(
        f"{error}; nothing is at {paths} (not mounted?); attach it, or give up what only it holds: "
        "--without with its path or UUID"
    )


async def check_offline(config: Config, progress: Callable[[str, int, int], None]) -> CheckReport:
    """Verify the pool on the members that exist, reading only.

    Raises:
        BusyError: a daemon has a member open.
        NotFoundError: no path holds a member.
    """
    found, _ = set_aside(await look(config.members))
    found = [one for one in found if one.content is not Content.ABSENT]
    if not any(one.content is Content.POOL for one in found):
        paths = ", ".join(str(member.path) for member in config.members)
        raise NotFoundError(f"no pool is at {paths}")
    async with opened(found, read_only=True) as devices:
        return await check_pool(devices, progress=progress)


def open_local(path: Path, *, read_only: bool) -> BlockDevice:
    """Open a file or disk. Raises BusyError, DeviceError."""
    return FileDevice.open(path, read_only=read_only)


def make_file(path: Path, size_bytes: int) -> BlockDevice:
    """Make a sparse file, or resize the one that exists, and open it. Raises as `open_local`."""
    if not path.exists():
        return FileDevice.create(path, size_bytes)
    os.truncate(path, size_bytes)
    return FileDevice.open(path)


def enlarge_file(path: Path, size_bytes: int) -> None:
    """Make a file larger, durably. Blocks for as long as the file system takes.

    Raises:
        InvalidArgumentError: the path is no file, or the file is not smaller.
        DeviceError: the file system refuses.
    """
    if not path.is_file():
        raise InvalidArgumentError(f"only files get another size here: {path}")
    if size_bytes <= path.stat().st_size:
        raise InvalidArgumentError(
            f"a member only grows: path={path} size={path.stat().st_size} wanted={size_bytes}"
        )
    try:
        os.truncate(path, size_bytes)
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise DeviceError(f"cannot enlarge {path}: {error.strerror}") from error


async def _look_at(member: MemberConfig) -> Found:
    path = member.path
    if not path.exists():
        return Found(member, Content.ABSENT)
    device = FileDevice.open(path, read_only=True)
    try:
        pool = await probe_member(device) if device.size_bytes else None
        if pool is not None:
            return Found(member, Content.POOL, pool, device.size_bytes)
        extents = await device.extents(0, device.size_bytes)
        empty = path.is_file() and all(extent.hole for extent in extents)
        content = Content.EMPTY if empty else Content.OTHER
        return Found(member, content, None, device.size_bytes)
    finally:
        await device.close()
