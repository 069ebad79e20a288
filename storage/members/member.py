"""One member: a device with superblocks at both ends and slots between.

Layout: a ring of eight superblocks, free room up to 1 MiB, slots of one segment each, and a
closing copy of the newest superblock in the last 16 KiB (whole 4 KiB blocks).
"""

from dataclasses import dataclass
from uuid import UUID

import trio
from typing_extensions import Buffer

from blockdev.device import BlockDevice
from blockdev.errors import CacheLostError, DeviceError
from storage.errors import DamagedError, InvalidArgumentError, MemberTooSmallError
from storage.format import superblock
from storage.format.superblock import (
    DATA_START_BYTES,
    HOST_BYTES_MAX,
    RING_SLOTS,
    SUPERBLOCK_BYTES,
    Left,
    MemberRow,
    Seen,
    Superblock,
)

RING_BYTES = RING_SLOTS * SUPERBLOCK_BYTES
SLOTS_MIN = 8
"""A pool of fewer segments than this cannot keep its reserve and still hold data."""


@dataclass(frozen=True)
class MemberDevice:
    """A device offered as a member; `name` is for messages, `host` is its failure domain."""

    device: BlockDevice
    name: str
    host: str


def closing_offset(size_bytes: int) -> int:
    """Return the device offset of the closing superblock of a member of this size."""
    return size_bytes // 4096 * 4096 - SUPERBLOCK_BYTES


def slots_in(size_bytes: int, segment_bytes: int) -> int:
    """Return the number of slots of a member of this size."""
    return max(0, closing_offset(size_bytes) - DATA_START_BYTES) // segment_bytes


class Member:
    """An attached device: aligned I/O, superblocks, and its row of the member table.

    Offsets are device offsets in bytes. `losses` counts failed flushes, failed FUA writes, and
    operations whose error says that the device lost its cache. A writer notes the count before a
    write and compares it after the flush: if it has risen, the write may be lost (R4).
    """

    def __init__(self, index: int, offered: MemberDevice, row: MemberRow, segment_bytes: int):
        self.index = index
        self.device = offered.device
        self.name = offered.name
        self.uuid: UUID = row.uuid
        self.host = row.host
        self.size_bytes = row.size_bytes
        self.slots = row.slots
        self.stale_since = row.stale_since
        self.left = row.left
        """The superblocks that the member may hold, once it is stale."""
        self.seen = Seen()
        """The last superblock that was certainly written to the member."""
        self.losses = 0
        self.file_system_full = False
        """Whether reserving a slot failed for lack of space, and no space came free since."""
        self.read_errors = 0
        self.checksum_errors = 0
        self.repaired = 0
        self._segment_bytes = segment_bytes
        # One flush at a time, so that a failure that the kernel reports once is seen in order.
        self._flush_lock = trio.Lock()
        self._overwrite_lock = trio.Lock()

    @property
    def in_sync(self) -> bool:
        """Whether the member holds everything durable that was placed on it."""
        return self.stale_since is None

    @property
    def row(self) -> MemberRow:
        """The row of the member table, as it is to be written."""
        left = Left() if self.in_sync else self.left
        return MemberRow(self.uuid, self.host, self.size_bytes, self.slots, self.stale_since, left)

    def slot_offset(self, slot: int) -> int:
        """Return the device offset of a slot."""
        return DATA_START_BYTES + slot * self._segment_bytes

    def try_read(self, offset: int, length: int) -> memoryview | None:
        """Return any range at once, or None when that needs waiting. Raises as `read`."""
        grain = self.device.block_bytes
        before = offset % grain
        span = -(-(before + length) // grain) * grain
        try:
            around = self.device.try_read(offset - before, span)
        except CacheLostError:
            self.losses += 1
            raise
        return None if around is None else memoryview(around)[before : before + length]

    def read_ahead(self, offset: int, length: int) -> bool:
        """Begin to read any range, as `BlockDevice.read_ahead`."""
        grain = self.device.block_bytes
        before = offset % grain
        span = -(-(before + length) // grain) * grain
        return self.device.read_ahead(offset - before, span)

    async def read(self, offset: int, length: int) -> Buffer:
        """Return any range, read in whole device blocks. Raises as `BlockDevice.read`."""
        grain = self.device.block_bytes
        if grain == 1 or not (offset % grain or length % grain):
            return await self._read(offset, length)
        start = offset - offset % grain
        end = -(-(offset + length) // grain) * grain
        around = memoryview(await self._read(start, end - start))
        return around[offset - start : offset - start + length]

    async def _read(self, offset: int, length: int) -> Buffer:
        try:
            return await self.device.read(offset, length)
        except CacheLostError:
            self.losses += 1
            raise

    async def read_medium(self, offset: int, length: int) -> Buffer:
        """Return any range, read from the medium itself. Raises as `BlockDevice.read_medium`."""
        grain = self.device.block_bytes
        start = offset - offset % grain
        end = -(-(offset + length) // grain) * grain
        try:
            around = memoryview(await self.device.read_medium(start, end - start))
        except CacheLostError:
            self.losses += 1
            raise
        return around[offset - start : offset - start + length]

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        """Write whole device blocks. Raises as `BlockDevice.write`."""
        try:
            await self.device.write(offset, data, fua=fua)
        except DeviceError as error:
            if fua or isinstance(error, CacheLostError):
                self.losses += 1
            raise

    async def allocate(self, offset: int, length: int) -> None:
        """Reserve space for a range. Raises as `BlockDevice.allocate`."""
        try:
            await self.device.allocate(offset, length)
        except CacheLostError:
            self.losses += 1
            raise

    async def trim(self, offset: int, length: int) -> None:
        """Give the space of a range back. Raises as `BlockDevice.trim`."""
        try:
            await self.device.trim(offset, length)
        except CacheLostError:
            self.losses += 1
            raise

    async def overwrite(self, offset: int, data: Buffer) -> None:
        """Write any range in place, to repair it; the bytes around it stay.

        Raises as `BlockDevice.read` and `BlockDevice.write`.
        """
        grain = self.device.block_bytes
        view = memoryview(data)
        if grain == 1 or not (offset % grain or len(view) % grain):
            await self.write(offset, view)
            return
        start = offset - offset % grain
        end = -(-(offset + len(view)) // grain) * grain
        async with self._overwrite_lock:  # else repairs in one block undo each other
            around = bytearray(memoryview(await self._read(start, end - start)))
            around[offset - start : offset - start + len(view)] = view
            await self.write(start, around)

    async def flush(self) -> None:
        """Flush the device; on failure all writes since the last good flush are lost (R4)."""
        async with self._flush_lock:
            try:
                await self.device.flush()
            except DeviceError:
                self.losses += 1
                raise

    async def flush_since(self, losses: int) -> None:
        """Flush what was written since the caller noted `losses`.

        Raises:
            DeviceError: the flush failed, or an earlier one did: some of the writes may be lost.
        """
        await self.flush()
        if self.losses != losses:
            raise CacheLostError(f"an earlier flush failed: member={self.name}")

    async def write_superblock(self, sb: Superblock) -> None:
        """Write a superblock to the ring and to the end, then flush. Raises DeviceError."""
        data = superblock.encode(sb.for_member(self.index))
        losses = self.losses
        for place in self.superblock_places(sb):
            await self.write(place, data)
        await self.flush_since(losses)
        self.seen = sb.seen

    def superblock_places(self, sb: Superblock) -> tuple[int, int]:
        """Return the device offsets at which a superblock is kept: in the ring and at the end."""
        return sb.sequence % RING_SLOTS * SUPERBLOCK_BYTES, closing_offset(self.size_bytes)


async def read_superblock(device: BlockDevice) -> Superblock | None:
    """Return the newest whole superblock of a device, or None when it has none.

    Raises:
        FormatVersionError: a newer Cenote wrote it.
        DamagedError: none was found, and one of its places is damaged or cannot be read.
        DeviceError: any error of the device but a plain failure to read.
    """
    if device.size_bytes < RING_BYTES + SUPERBLOCK_BYTES:
        return None
    found: list[Superblock] = []
    failures: list[DeviceError] = []
    places = [slot * SUPERBLOCK_BYTES for slot in range(RING_SLOTS)]
    places.append(closing_offset(device.size_bytes))
    for place in places:
        try:
            sb = superblock.decode(await device.read(place, SUPERBLOCK_BYTES))
        except DamagedError as error:
            failures.append(error)
            continue
        except DeviceError as error:
            if type(error) is not DeviceError:
                raise
            failures.append(error)
            continue
        if sb is not None:
            found.append(sb)
    if not found and failures:
        raise DamagedError(f"no superblock can be read: {failures[0]}")
    return max(found, key=lambda sb: sb.order, default=None)


async def erase_superblocks(device: BlockDevice) -> None:
    """Overwrite all superblocks of a device with zeroes, so that no old one counts. Not flushed."""
    for slot in range(RING_SLOTS):
        await device.write(slot * SUPERBLOCK_BYTES, bytes(SUPERBLOCK_BYTES))
    await device.write(closing_offset(device.size_bytes), bytes(SUPERBLOCK_BYTES))


def check_device_size(offered: MemberDevice, segment_bytes: int) -> int:
    """Return the number of slots of a device.

    Raises:
        MemberTooSmallError: it has fewer than `SLOTS_MIN`.
    """
    slots = slots_in(offered.device.size_bytes, segment_bytes)
    if slots < SLOTS_MIN:
        needed = DATA_START_BYTES + SLOTS_MIN * segment_bytes + SUPERBLOCK_BYTES
        raise MemberTooSmallError(
            f"member is too small, make it at least {needed} bytes: "
            f"member={offered.name} size={offered.device.size_bytes} segment={segment_bytes}"
        )
    return slots


def check_host(host: str) -> str:
    """Return the host label. Raises InvalidArgumentError if it is not acceptable."""
    if not host or len(host.encode()) > HOST_BYTES_MAX or not host.isprintable():
        raise InvalidArgumentError(
            f"bad host label {host[:80]!r}: use 1 to {HOST_BYTES_MAX} printable bytes"
        )
    return host
