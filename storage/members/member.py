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
    """A device offered as a member: `name` is for messages, `host` is its failure domain."""

    device: BlockDevice
    name: str
    host: str


def closing_offset(size_bytes: int) -> int:
    """Where the closing superblock of a member of this size starts."""
    return size_bytes // 4096 * 4096 - SUPERBLOCK_BYTES


def slots_in(size_bytes: int, segment_bytes: int) -> int:
    """How many segments fit a member of this size."""
    return max(0, closing_offset(size_bytes) - DATA_START_BYTES) // segment_bytes


class Member:
    """An attached device and what the pool knows of it.

    Reads and writes take absolute device offsets and align to the device's grain. A failed
    flush raises `losses`, and so does a device that says of any operation that its cache is
    lost: whoever wrote before it compares the number it saw then (R4).
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
        """What it may have, once it is stale."""
        self.seen = Seen()
        """The last superblock that it has, for certain."""
        self.losses = 0
        self.full_below = False
        self.read_errors = 0
        self.checksum_errors = 0
        self.repaired = 0
        self._segment_bytes = segment_bytes
        # One flush at a time, so that a failure the kernel reports once is seen in order.
        self._flush_lock = trio.Lock()
        self._overwrite_lock = trio.Lock()

    @property
    def in_sync(self) -> bool:
        """Whether it holds everything durable that was placed on it."""
        return self.stale_since is None

    @property
    def row(self) -> MemberRow:
        """Its row of the member table."""
        left = Left() if self.in_sync else self.left
        return MemberRow(self.uuid, self.host, self.size_bytes, self.slots, self.stale_since, left)

    def slot_offset(self, slot: int) -> int:
        """Device offset of a slot."""
        return DATA_START_BYTES + slot * self._segment_bytes

    def try_read(self, offset: int, length: int) -> memoryview | None:
        """Read any range at once, or None when that needs waiting. Raises as `read`."""
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
        """Read any range, in the device's grain below. Raises as `BlockDevice.read`."""
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
        """Read any range from the medium itself. Raises as `BlockDevice.read_medium`."""
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
        """Write whole grains. Raises as `BlockDevice.write`."""
        try:
            await self.device.write(offset, data, fua=fua)
        except DeviceError as error:
            if fua or isinstance(error, CacheLostError):
                self.losses += 1
            raise

    async def allocate(self, offset: int, length: int) -> None:
        """Reserve space below. Raises as `BlockDevice.allocate`."""
        try:
            await self.device.allocate(offset, length)
        except CacheLostError:
            self.losses += 1
            raise

    async def trim(self, offset: int, length: int) -> None:
        """Give space back. Raises as `BlockDevice.trim`."""
        try:
            await self.device.trim(offset, length)
        except CacheLostError:
            self.losses += 1
            raise

    async def overwrite(self, offset: int, data: Buffer) -> None:
        """Repair any range in place, keeping its neighbours. Raises as `BlockDevice.write`."""
        grain = self.device.block_bytes
        view = memoryview(data)
        if grain == 1 or not (offset % grain or len(view) % grain):
            await self.write(offset, view)
            return
        start = offset - offset % grain
        end = -(-(offset + len(view)) // grain) * grain
        async with self._overwrite_lock:  # or the repair of a neighbour is undone
            around = bytearray(memoryview(await self._read(start, end - start)))
            around[offset - start : offset - start + len(view)] = view
            await self.write(start, around)

    async def flush(self) -> None:
        """Flush the device; on failure everything since the last good flush is lost (R4)."""
        async with self._flush_lock:
            try:
                await self.device.flush()
            except DeviceError:
                self.losses += 1
                raise

    async def flush_since(self, losses: int) -> None:
        """Flush what was written since `losses` was the number of losses.

        Raises:
            DeviceError: the flush failed, or some of it was lost before.
        """
        await self.flush()
        if self.losses != losses:
            raise CacheLostError(f"an earlier flush failed: member={self.name}")

    async def write_superblock(self, sb: Superblock) -> None:
        """Write one superblock to the ring and to the end, then flush."""
        data = superblock.encode(sb.for_member(self.index))
        losses = self.losses
        for place in self.superblock_places(sb):
            await self.write(place, data)
        await self.flush_since(losses)
        self.seen = sb.seen

    def superblock_places(self, sb: Superblock) -> tuple[int, int]:
        """Device offsets at which a superblock is kept: in the ring and at the end."""
        return sb.sequence % RING_SLOTS * SUPERBLOCK_BYTES, closing_offset(self.size_bytes)


async def read_superblock(device: BlockDevice) -> Superblock | None:
    """The newest whole superblock of a device, or None when it has none.

    Raises:
        FormatVersionError: made by a newer Cenote.
        DamagedError: the device fails to read, so nobody knows.
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
    """Make sure that superblocks of an earlier life of the device do not come back. Not flushed."""
    for slot in range(RING_SLOTS):
        await device.write(slot * SUPERBLOCK_BYTES, bytes(SUPERBLOCK_BYTES))
    await device.write(closing_offset(device.size_bytes), bytes(SUPERBLOCK_BYTES))


def check_device_size(offered: MemberDevice, segment_bytes: int) -> int:
    """How many slots the device has.

    Raises:
        MemberTooSmallError: fewer than `SLOTS_MIN`.
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
    """Return a host label. Raises as `check_name`."""
    if not host or len(host.encode()) > HOST_BYTES_MAX or not host.isprintable():
        raise InvalidArgumentError(
            f"bad host label {host[:80]!r}: use 1 to {HOST_BYTES_MAX} printable bytes"
        )
    return host
