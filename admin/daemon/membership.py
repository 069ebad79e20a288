"""Adds and grows members while the pool is served.

The path of a new member is written to the home's record before the pool can depend on it. If the
rest is interrupted, the next start opens the device, and takes it as a member or sets it aside.
"""

import logging
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol
from uuid import UUID

import trio

from admin.config.load import MemberConfig
from admin.daemon.devices import OpenDevices, enlarge_file, look, make_file
from admin.daemon.pool_record import AddedRecord, MemberRecord, PoolRecord, write_record
from admin.daemon.start_plan import Content, Found
from admin.errors import RefusedError
from admin.home import Home
from admin.sizes import MIB, PIB
from storage.errors import (
    ExistsError,
    ForeignMemberError,
    InvalidArgumentError,
    MemberTooSmallError,
    NotFoundError,
)
from storage.info import MemberInfo, PoolInfo
from storage.pool import MemberDevice

_log = logging.getLogger("cenote.daemon")

UNTOUCHED = (ExistsError, ForeignMemberError, InvalidArgumentError, MemberTooSmallError)
"""Errors that refuse a device before anything is written to it."""


class Grower(Protocol):
    """Adds members to a pool and grows them; see `storage.members.growth.Growth`."""

    async def add(self, offered: MemberDevice) -> UUID:
        """Make a device a member, which loses its old content. Returns its UUID."""
        ...

    async def grow(self, uuid: UUID) -> int:
        """Use all of a member whose device has become larger. Returns its size in bytes."""
        ...


class GrowingPool(Protocol):
    """The parts of a pool that membership needs."""

    @property
    def growth(self) -> Grower:
        """Adds members and grows them."""
        ...

    def info(self) -> PoolInfo:
        """The state of the pool and its members."""
        ...


class Membership:
    """The members of a served pool, and the record of them."""

    def __init__(
        self, pool: GrowingPool, devices: OpenDevices, home: Home, record: PoolRecord
    ) -> None:
        self._pool = pool
        self._devices = devices
        self._home = home
        self._record = record
        self._lock = trio.Lock()

    def settle(self) -> None:
        """Record the members, right after the pool was opened.

        Removes from the record the devices whose adding was begun and that did not become members.
        """
        known = {member.uuid: member for member in self._record.members}
        paths = set()
        for info in self._pool.info().members:
            if Path(info.name).is_absolute():
                known[info.uuid] = MemberRecord(info.uuid, info.name)
                paths.add(info.name)
        added = []
        for one in self._record.added:
            if one.joined or one.path in paths:
                added.append(replace(one, joined=True))
            else:
                _log.warning("adding this was interrupted, it is no member: path=%s", one.path)
        self._write(replace(self._record, members=list(known.values()), added=added))

    async def add(
        self, path: Path, size_bytes: int | None, host: str, *, force: bool
    ) -> MemberInfo:
        """Make a file or disk a member; a file that is absent is made, sparse.

        Cancellation is put off while the device is made a member.

        Raises:
            RefusedError: the device might hold data, and `force` is not set; or the disk, or the
                directory of the file, is not there.
            InvalidArgumentError, ExistsError, DeviceError: the device cannot be a member.
        """
        member = MemberConfig(path, size_bytes, host)
        _check_size(size_bytes)
        async with self._lock:
            self._refuse_known(path)
            [found] = await look([member])
            made = await _prepare(found, force=force)
            with trio.CancelScope(shield=True):
                try:
                    uuid = await self._join(member)
                except UNTOUCHED:
                    self._forget(path, made=made)
                    raise
            return self._info(uuid)

    async def _join(self, member: MemberConfig) -> UUID:
        path = str(member.path)
        others = [one for one in self._record.added if one.path != path]
        offered = self._devices.open(member)
        try:
            joining = AddedRecord(path, member.host, joined=False)
            self._write(replace(self._record, added=[*others, joining]))
            uuid = await self._pool.growth.add(offered)
        except BaseException:
            await self._devices.close(offered.device)
            raise
        members = [one for one in self._record.members if one.uuid != uuid]
        self._write(
            replace(
                self._record,
                added=[*others, replace(joining, joined=True)],
                members=[*members, MemberRecord(uuid, path)],
            )
        )
        return uuid

    def _refuse_known(self, path: Path) -> None:
        real = os.path.realpath(path)
        for info in self._pool.info().members:
            if info.name and os.path.realpath(info.name) == real:
                raise ExistsError(f"it is a member already: {info.name}")

    def _forget(self, path: Path, *, made: bool) -> None:
        if made:
            path.unlink(missing_ok=True)
        added = [one for one in self._record.added if one.joined or one.path != str(path)]
        self._write(replace(self._record, added=added))

    async def grow(self, name: str, size_bytes: int | None) -> MemberInfo:
        """Use all of a member that has become larger; a file is made `size_bytes` large first.

        Raises:
            NotFoundError: no member has this path or UUID.
            InvalidArgumentError, DeviceError: the device has not become larger, or cannot be
                made larger.
        """
        _check_size(size_bytes)
        async with self._lock:
            info = self._find(name)
            with trio.CancelScope(shield=True):
                if size_bytes is not None:
                    await trio.to_thread.run_sync(enlarge_file, Path(info.name), size_bytes)
                await self._pool.growth.grow(info.uuid)
            return self._info(info.uuid)

    def _find(self, name: str) -> MemberInfo:
        members = self._pool.info().members
        for info in members:
            if name in (str(info.uuid), info.name) and info.name:
                return info
        with suppress(OSError):
            for info in members:
                if info.name and os.path.samefile(info.name, name):
                    return info
        raise NotFoundError(f"no attached member is {name}; see: cenote member list")

    def _info(self, uuid: UUID) -> MemberInfo:
        return next(info for info in self._pool.info().members if info.uuid == uuid)

    def _write(self, record: PoolRecord) -> None:
        self._record = record
        write_record(self._home, record)


def _check_size(size_bytes: int | None) -> None:
    if size_bytes is not None and (size_bytes < MIB or size_bytes > 4 * PIB or size_bytes % 4096):
        raise InvalidArgumentError(
            f"a member has a size from 1M to 4P, in steps of 4K: size={size_bytes}"
        )


async def _prepare(found: Found, *, force: bool) -> bool:
    """Check the device, and give a file its size; True when this call made the file."""
    path, size_bytes = found.member.path, found.member.size_bytes
    if found.content is Content.OTHER and not force:
        raise RefusedError(
            f"{path} holds no pool and might hold data; name another path, or give it up: --force"
        )
    if found.content is Content.ABSENT:
        if path.is_relative_to("/dev"):
            raise RefusedError(f"{path} is not there; attach the disk")
        if not path.parent.is_dir():
            raise RefusedError(f"{path.parent} does not exist (not mounted?); create it first")
    if found.content in (Content.ABSENT, Content.EMPTY):
        if size_bytes is None and not found.size_bytes:
            raise InvalidArgumentError(f"{path} has no size yet; give one: --size 100G")
        if size_bytes is not None and size_bytes < found.size_bytes:
            raise InvalidArgumentError(f"{path} is larger already: size={found.size_bytes}")
        if size_bytes is not None:
            await make_file(path, size_bytes).close()
            return found.content is Content.ABSENT
    elif size_bytes is not None and size_bytes != found.size_bytes:
        raise InvalidArgumentError(f"{path} has a size already: {found.size_bytes}")
    return False
