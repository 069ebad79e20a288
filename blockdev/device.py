"""The one interface everything meets at: members below the pool, volumes above it.

Offsets and lengths are bytes. A caller keeps them multiples of `block_bytes`
(1 for volumes, which merge partial blocks themselves). Any number of tasks may
call at once; the caller orders overlapping requests.

Durability is that of a disk with a write cache: `write`, `write_zeroes` and
`trim` are visible to later reads when they return, and durable after a later
`flush` returns, or at once with `fua=True`.

Cancellation: a cancelled write leaves each block with its old or its new
content; a cancelled flush has promised nothing. Threads already started finish.

The `try_` methods are the fast path of a server: they do the work at once,
without suspending, or do nothing and say so. Calling them costs one Python
call; no task, lock or checkpoint.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass

from typing_extensions import Buffer

from blockdev.errors import OutOfRangeError, UnsupportedError

EXTENTS_MAX = 64 << 10
"""Most extents of one answer: a list of some MiB, made in some 10 ms."""


@dataclass(frozen=True, slots=True)
class Extent:
    """A run of bytes with one allocation state.

    `hole`: no space is allocated for it. `zero`: it reads as zeroes; never
    claimed without certainty.
    """

    length_bytes: int
    hole: bool
    zero: bool


class BlockDevice(ABC):
    """A fixed-size array of bytes; see the module for ordering and durability."""

    size_bytes: int
    """Current size; volumes can grow while open."""
    block_bytes: int = 1
    """Smallest request, and the grain of offsets and lengths."""
    physical_bytes: int = 4096
    """What the hardware writes at once; a torn write tears between these."""
    read_only: bool = False

    @abstractmethod
    async def read(self, offset: int, length: int) -> Buffer:
        """Return exactly `length` bytes, which `len` counts; the caller must not change them.

        Raises:
            OutOfRangeError: the range passes `size_bytes`.
            DeviceError: the device failed; no bytes are returned.
        """

    async def read_medium(self, offset: int, length: int) -> Buffer:
        """As `read`, but from the medium itself where a device can tell it from a cache above it,
        and without leaving a trace in that cache: to find out what is really there.
        """
        return await self.read(offset, length)

    @abstractmethod
    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        """Make `data` visible to later reads; `data` may be reused on return.

        Raises:
            OutOfRangeError: the range passes `size_bytes`.
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
            UnsupportedError: with `fast`: it would take as long as writing; nothing changed.
        """

    @abstractmethod
    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        """Say that the content is no longer needed. It may read as anything it was, or zeroes;
        neighbours are never touched. Raises as `write`.
        """

    @abstractmethod
    async def flush(self) -> None:
        """Return when every write that completed before this call is durable.

        Raises:
            DeviceError: writes since the last good flush may be lost. Never retry the flush:
                the system below marks failed pages clean. Rewrite the data or give up.
        """

    async def extents(self, offset: int, length: int) -> list[Extent]:
        """Describe the beginning of the range, in order: at least one extent, at most
        `EXTENTS_MAX`, none past the range. It stops early where going on would take long; ask
        again from there. Everything is data by default.
        """
        check_range(self, offset, length)
        return [Extent(length, hole=False, zero=False)] if length else []

    @property
    def contexts(self) -> Collection[str]:
        """What else `status` tells of ranges: metadata contexts by the names that NBD gives them,
        `namespace:name`; none by default.
        """
        return ()

    async def status(self, context: str, offset: int, length: int) -> list[tuple[int, int]]:
        """Return length and state, of 32 bits, of the first runs of a range in one of `contexts`:
        at least one unless the range is empty. It stops early as `extents` does; the last may pass
        the end of the range. What a state means is up to the context.

        Raises:
            UnsupportedError: there is no such context.
        """
        raise UnsupportedError(f"no such metadata context: context={context!r}")

    async def cache(self, offset: int, length: int) -> None:
        """Say that the range is read soon. A device may do nothing, and does no harm."""
        check_range(self, offset, length)

    async def allocate(self, offset: int, length: int) -> None:
        """Reserve space below for the range, contents unchanged; a device that has none to
        reserve does nothing.

        Raises:
            NoSpaceError: the file system below is full.
        """

    async def measure(self) -> int:
        """Look again how large the device is: a file or disk may have become larger while it was
        open. Returns `size_bytes`, which never falls.

        Raises:
            DeviceError: it cannot be told.
        """
        return self.size_bytes

    @abstractmethod
    async def close(self) -> None:
        """Release the device; does not flush. Closing twice is harmless."""

    def read_ahead(self, offset: int, length: int) -> bool:
        """Begin to read a short range that is read next, without waiting; soon `try_read` has it.
        Returns False where that is not possible. Any error is left for the reading.
        """
        return False

    def try_read(self, offset: int, length: int) -> Buffer | None:
        """Return the bytes at once, or None when that needs waiting (then use `read`).

        Raises as `read`.
        """
        return None

    def try_view(self, offset: int, length: int) -> Buffer | None:
        """As `try_read`, for a caller that only sends the bytes on. A device that holds them in
        memory may return that memory itself: what is written to the range before they are sent
        shows, as it may in the answer to any read that was under way.
        """
        return self.try_read(offset, length)

    def try_extents(self, offset: int, length: int) -> list[Extent] | None:
        """Describe the whole range at once, or return None when that needs waiting, or is not
        worth the trouble. Raises as `read`.
        """
        return None

    def try_write(self, offset: int, data: Buffer) -> bool:
        """Write at once and return True, or do nothing and return False (then use `write`).

        Raises as `write`.
        """
        return False


def check_range(device: BlockDevice, offset: int, length: int) -> None:
    """Raise OutOfRangeError unless the range lies inside the device, in its block grain."""
    if offset < 0 or length < 0 or offset + length > device.size_bytes:
        raise OutOfRangeError(
            f"range is outside the device: offset={offset} length={length} size={device.size_bytes}"
        )
    if device.block_bytes > 1 and (offset % device.block_bytes or length % device.block_bytes):
        raise OutOfRangeError(
            f"range is not in whole blocks: offset={offset} length={length} "
            f"block={device.block_bytes}"
        )
