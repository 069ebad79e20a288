"""The block device interface, which members of a pool and its volumes both implement.

Offsets and lengths are bytes. A caller keeps them multiples of `block_bytes`
(1 for volumes, which merge partial blocks themselves). Any number of tasks may
call at once; the caller orders overlapping requests.

Durability is that of a disk with a write cache: `write`, `write_zeroes` and
`trim` are visible to later reads when they return, and durable after a later
`flush` returns, or at once with `fua=True`.

Cancellation: a cancelled write leaves each block with its old or its new
content; a cancelled flush promises nothing. Worker threads that started run to their end.

The `try_` methods are the fast path of a server: they do the work at once,
without suspending, or do nothing and return None or False. Each costs one Python
call and no task, lock or checkpoint.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass

from typing_extensions import Buffer

from blockdev.errors import OutOfRangeError, UnsupportedError

EXTENTS_MAX = 64 << 10
"""Maximum extents of one answer: the list takes some MiB, and some 10 ms to make."""


@dataclass(frozen=True, slots=True)
class Extent:
    """A run of bytes with one allocation state.

    `hole`: no space is allocated for the run. `zero`: the run reads as zeroes; set only
    when that is certain.
    """

    length_bytes: int
    hole: bool
    zero: bool


class BlockDevice(ABC):
    """A fixed-size array of bytes; see the module for ordering and durability."""

    size_bytes: int
    """Current size; volumes can grow while open."""
    block_bytes: int = 1
    """Smallest request; offsets and lengths are multiples of it."""
    physical_bytes: int = 4096
    """Size of the blocks that the hardware writes whole; a torn write tears between them."""
    read_only: bool = False

    @abstractmethod
    async def read(self, offset: int, length: int) -> Buffer:
        """Return a buffer of exactly `length` bytes; its `len` counts bytes, too. The caller must
        not change it.

        Raises:
            OutOfRangeError: the range passes `size_bytes`, or is not in whole blocks.
            DeviceError: the device failed; no bytes are returned.
        """

    async def read_medium(self, offset: int, length: int) -> Buffer:
        """Read as `read`, but past any cache that the device can bypass, and without changing that
        cache: for checks of the stored bytes.
        """
        return await self.read(offset, length)

    @abstractmethod
    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        """Make `data` visible to later reads, with `fua` durable too; the caller may reuse the
        buffer on return.

        Raises:
            OutOfRangeError: the range passes `size_bytes`, or is not in whole blocks.
            NoSpaceError: no space is left; the range holds old or new blocks.
            ReadOnlyError: the device takes no writes.
        """

    @abstractmethod
    async def write_zeroes(
        self,
        offset: int,
        length: int,
        *,
        fua: bool = False,
        no_hole: bool = False,
        fast: bool = False,
    ) -> None:
        """Make the range read as zeroes; with `no_hole`, later writes to it need no new space
        where the device can promise that. Raises as `write`.

        Raises:
            UnsupportedError: with `fast`: zeroing would take as long as writing zeroes; nothing
                changed.
        """

    @abstractmethod
    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        """Discard the content of a range, which may then read as before or as zeroes. Bytes outside
        the range never change. Raises as `write`.
        """

    @abstractmethod
    async def flush(self) -> None:
        """Return when every write that completed before this call is durable.

        Raises:
            DeviceError: writes since the last good flush may be lost. Never retry the flush: the
                kernel marks failed pages clean. Write the data again or give up (R4).
        """

    async def extents(self, offset: int, length: int) -> list[Extent]:
        """Return the extents of the beginning of the range, in order: at most `EXTENTS_MAX`, at
        least one unless the range is empty, none past its end. The list may end early where more
        would take long; ask again from there. By default all is data. Raises as `read`.
        """
        check_range(self, offset, length)
        return [Extent(length, hole=False, zero=False)] if length else []

    @property
    def contexts(self) -> Collection[str]:
        """Names of the metadata contexts that `status` reports, in the form of NBD,
        `namespace:name`; none by default.
        """
        return ()

    async def status(self, context: str, offset: int, length: int) -> list[tuple[int, int]]:
        """Return the first runs of a range in one of `contexts`, each its length in bytes and its
        state, 32 bits with a meaning set by the context: at least one unless the range is empty.
        The list may end early as in `extents`; the last run may pass the end of the range.

        Raises:
            UnsupportedError: there is no such context.
        """
        raise UnsupportedError(f"no such metadata context: context={context!r}")

    async def cache(self, offset: int, length: int) -> None:
        """Hint that the range will be read soon; a device may ignore it. Changes no content."""
        check_range(self, offset, length)

    async def allocate(self, offset: int, length: int) -> None:
        """Reserve storage for the range without changing its content; does nothing where a device
        has nothing to reserve.

        Raises:
            NoSpaceError: the file system that holds the device is full.
        """

    async def measure(self) -> int:
        """Update `size_bytes` from the file or disk, which may have grown while open, and return
        it. It never falls.

        Raises:
            DeviceError: the size cannot be read.
        """
        return self.size_bytes

    @abstractmethod
    async def close(self) -> None:
        """Release the device; does not flush. Closing twice is harmless."""

    def read_ahead(self, offset: int, length: int) -> bool:
        """Start to read a short range into the cache without waiting, so that `try_read` soon has
        it. Returns False where the device cannot. Errors show in the read that follows.
        """
        return False

    def try_read(self, offset: int, length: int) -> Buffer | None:
        """Return the bytes at once, or None if the device would have to wait (then use `read`).

        Raises as `read`.
        """
        return None

    def try_view(self, offset: int, length: int) -> Buffer | None:
        """Read as `try_read`, for a caller that only sends the bytes on. A device in memory may
        return its own memory: a write to the range before the bytes are sent then shows in them,
        as it may in any read in flight.
        """
        return self.try_read(offset, length)

    def try_extents(self, offset: int, length: int) -> list[Extent] | None:
        """Return the extents of the whole range at once, or None if that needs waiting or costs
        too much. Raises as `read`.
        """
        return None

    def try_write(self, offset: int, data: Buffer) -> bool:
        """Write at once and return True, or do nothing and return False (then use `write`).

        Raises as `write`.
        """
        return False


def check_range(device: BlockDevice, offset: int, length: int) -> None:
    """Raise OutOfRangeError unless the range lies inside the device, in whole blocks."""
    if offset < 0 or length < 0 or offset + length > device.size_bytes:
        raise OutOfRangeError(
            f"range is outside the device: offset={offset} length={length} size={device.size_bytes}"
        )
    if device.block_bytes > 1 and (offset % device.block_bytes or length % device.block_bytes):
        raise OutOfRangeError(
            f"range is not in whole blocks: offset={offset} length={length} "
            f"block={device.block_bytes}"
        )
