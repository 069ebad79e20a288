"""A remote export as a block device.

Requests are cut to the sizes that the server takes and sent over the least busy connection. They
are sent again when a connection ended before the answer, unless that could hide a loss: see
`nbd.client.ledger`. Reads are always sent again. A change is sent again only while no write is
lost; its caller still waits, so no newer write can have touched the range.

After a loss, `flush`, FUA and reads of lost ranges raise CacheLostError until the owner calls
`acknowledge_cache_loss`; the owner then writes again all that it wrote since its last good flush.

`nbd.client.requests` says what cancellation leaves behind.
"""

from collections.abc import Iterator

import numpy as np
from typing_extensions import Buffer

from blockdev.device import BlockDevice, Extent, check_range
from blockdev.errors import (
    CacheLostError,
    ClosedError,
    DeviceError,
    OutOfRangeError,
    ReadOnlyError,
    UnsupportedError,
)
from nbd.client.extents import to_extents
from nbd.client.ledger import Ledger
from nbd.client.negotiation import Agreement, Mode
from nbd.client.operation import Operation
from nbd.client.options import ClientOptions
from nbd.client.requests import Requests, in_groups
from nbd.constants import BASE_ALLOCATION, Command, CommandFlag, ExportFlag

EFFECT_BYTES_MAX = (1 << 32) - (64 << 10)
"""Longest request without payload in 32 bits, in whole blocks of any size."""
EXTENDED_BYTES_MAX = 1 << 40
"""The same in 64 bits. A longer request could take more than `request_s`."""
NO_HOLE_BYTES_MAX = 1 << 30
"""The same with NO_HOLE, where the server may have to write all the zeroes: some seconds."""
ZEROES_BYTES = 1 << 20
"""Length of the writes of zeroes to servers without WRITE_ZEROES."""
PHYSICAL_BYTES = 4096
"""Usual physical block of disks; the protocol does not tell it."""

_ZEROES = memoryview(bytes(ZEROES_BYTES))
_FUA = int(CommandFlag.FUA)


class NbdDevice(BlockDevice):
    """A remote export; made by `nbd.client.open_nbd`."""

    def __init__(
        self, options: ClientOptions, requests: Requests, ledger: Ledger, agreement: Agreement
    ) -> None:
        """Raises ReadOnlyError, UnsupportedError: the export cannot be used as asked."""
        self.read_only = options.read_only
        self.export = agreement.export
        """The server's last description of the export."""
        self.mode = agreement.mode
        self._ledger = ledger
        self._requests = requests
        self._closed = False
        flags = agreement.export.flags
        if flags & ExportFlag.READ_ONLY and not self.read_only:
            raise ReadOnlyError(f"export is read-only: name={self.export.name!r}")
        self._flushes = bool(flags & ExportFlag.SEND_FLUSH)
        self._has_fua = bool(flags & ExportFlag.SEND_FUA)
        if not (self.read_only or self._flushes or self._has_fua or options.trust_unflushable):
            raise UnsupportedError(
                "server knows neither FLUSH nor FUA, so nothing could ever be made durable: "
                "open the export read-only, or trust it by `trust_unflushable`"
            )
        # Without FLUSH every write must be durable by itself.
        self._base_flags = 0 if self._flushes or not self._has_fua else _FUA
        self.block_bytes = agreement.export.block_bytes
        self.physical_bytes = max(PHYSICAL_BYTES, self.block_bytes)
        longest = min(agreement.export.payload_bytes_max, options.payload_bytes_max)
        self._payload_max = longest - longest % self.block_bytes or self.block_bytes
        is_extended = agreement.mode is Mode.EXTENDED
        self._effect_max = EXTENDED_BYTES_MAX if is_extended else EFFECT_BYTES_MAX
        self._take_size(agreement)

    # Content

    async def read(self, offset: int, length: int) -> Buffer:
        """See BlockDevice; also raises CacheLostError where writes are lost."""
        self._check(offset, length)
        if not length:
            return b""
        self._ledger.check_read(offset, length)
        if length <= self._payload_max:
            operation = Operation(Command.READ, offset, length)
            await self._requests.run([operation])
            self._ledger.check_read(offset, length)
            assert operation.data is not None
            return operation.data
        whole = np.empty(length, np.uint8).data
        for group in in_groups(self._cut(Command.READ, offset, length, self._payload_max)):
            for piece in group:
                start = piece.offset - offset
                piece.into = whole[start : start + piece.length]
            await self._requests.run(group)
        self._ledger.check_read(offset, length)
        return whole

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        """See BlockDevice; also raises CacheLostError: with FUA, or if in flight at a loss."""
        view = memoryview(data).cast("B")
        self._check_change(offset, len(view), fua)
        flags = self._change_flags(fua)
        pieces = (
            Operation(
                Command.WRITE,
                offset + start,
                min(self._payload_max, len(view) - start),
                flags=flags,
                payload=view[start : start + self._payload_max],
            )
            for start in range(0, len(view), self._payload_max)
        )
        for group in in_groups(pieces):
            await self._requests.run(group)
        await self._finish_change(fua)

    async def write_zeroes(
        self,
        offset: int,
        length: int,
        *,
        fua: bool = False,
        no_hole: bool = False,
        fast: bool = False,
    ) -> None:
        """See BlockDevice. Without `no_hole` the server may make a hole."""
        self._check_change(offset, length, fua)
        flags = self._change_flags(fua)
        if fast:
            if not self._can(ExportFlag.SEND_FAST_ZERO) or length > self._effect_max:
                raise UnsupportedError("server does not zero that quickly")
            flags |= CommandFlag.FAST_ZERO
        if no_hole:
            flags |= CommandFlag.NO_HOLE
        if self._can(ExportFlag.SEND_WRITE_ZEROES):
            longest = NO_HOLE_BYTES_MAX if no_hole and not fast else EXTENDED_BYTES_MAX
            await self._effect(Command.WRITE_ZEROES, offset, length, flags, longest)
        else:
            await self._write_zeroes_as_data(offset, length, self._change_flags(fua))
        await self._finish_change(fua)

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        """See BlockDevice; does nothing if the server has no TRIM."""
        self._check_change(offset, length, fua)
        if self._can(ExportFlag.SEND_TRIM):
            await self._effect(Command.TRIM, offset, length, self._change_flags(fua))
        await self._finish_change(fua)

    async def flush(self) -> None:
        """See BlockDevice.

        Raises:
            CacheLostError: a connection was lost, and with it unflushed writes. Every flush
                raises it until `acknowledge_cache_loss`.
        """
        self._check(0, 0)
        ledger = self._ledger
        ledger.check()
        losses, mark = ledger.losses, ledger.mark()
        if self._flushes:
            await self._requests.run([Operation(Command.FLUSH)])
        if ledger.losses != losses:
            raise CacheLostError("writes since the last flush were lost while flushing")
        ledger.flushed(mark)

    def acknowledge_cache_loss(self) -> None:
        """Note that the caller counts all writes since the last good flush as lost, and writes
        them again from now on.
        """
        self._ledger.acknowledge()

    # Hints

    async def extents(self, offset: int, length: int) -> list[Extent]:
        """See BlockDevice; all is data if the server has no block status. Raises as `status`."""
        self._check(offset, length)
        if not length:
            return []
        if BASE_ALLOCATION not in self.contexts:
            return [Extent(length, hole=False, zero=False)]
        runs = await self.status(BASE_ALLOCATION, offset, length)
        return to_extents(runs, length, self.block_bytes)

    async def status(self, context: str, offset: int, length: int) -> list[tuple[int, int]]:
        """Return length in bytes and state of the first runs of a range in a metadata context,
        one of `contexts`. The last run may pass the end of the range.

        Raises:
            UnsupportedError: the context was not selected, or the server lacks it.
            CacheLostError: writes to the range are lost, so the status would be of older content.
        """
        self._check(offset, length)
        if context not in self.contexts:
            raise UnsupportedError(f"metadata context is not selected: context={context!r}")
        if not length:
            return []
        operation = Operation(Command.BLOCK_STATUS, offset, min(length, self._effect_max))
        await self._requests.run([operation])
        runs = operation.runs[context]
        self._ledger.check_read(offset, min(sum(count for count, _ in runs), length))
        return runs

    @property
    def connections(self) -> int:
        """Number of connections now; 0 while the server is away."""
        return self._requests.connections

    @property
    def reconnects(self) -> int:
        """Number of times that the server was reached again."""
        return self._requests.reconnects

    @property
    def contexts(self) -> frozenset[str]:
        """The metadata contexts that the server selected."""
        return self._contexts

    async def cache(self, offset: int, length: int) -> None:
        """See BlockDevice; does nothing if the server has no CACHE, and ignores its errors."""
        self._check(offset, length)
        if length and self._can(ExportFlag.SEND_CACHE):
            # Servers read the range into buffers of their own: no longer than a READ.
            for group in in_groups(self._cut(Command.CACHE, offset, length, self._payload_max)):
                try:
                    await self._requests.run(group)
                except ClosedError:
                    raise
                except DeviceError:
                    return

    async def allocate(self, offset: int, length: int) -> None:
        """Do nothing: the protocol has no such request."""
        self._check(offset, length)

    async def close(self) -> None:
        """Finish the requests in flight and send DISC, within `close_s`; does not flush. Every
        later request raises ClosedError.
        """
        self._closed = True
        await self._requests.close()

    def came_up(self, agreement: Agreement) -> None:
        """Note that the server is reached again; its export may have grown."""
        self._take_size(agreement)

    # Internals

    def _take_size(self, agreement: Agreement) -> None:
        self.export = agreement.export
        # Requests in whole blocks cannot reach a partial last block.
        self.size_bytes = agreement.export.size_bytes // self.block_bytes * self.block_bytes
        self._contexts = frozenset(agreement.contexts.values())

    def _can(self, ability: ExportFlag) -> bool:
        return bool(self.export.flags & ability)

    def _check(self, offset: int, length: int) -> None:
        if self._closed:
            raise ClosedError("device is closed")
        check_range(self, offset, length)

    def _check_change(self, offset: int, length: int, fua: bool) -> None:
        self._check(offset, length)
        if self.read_only:
            raise ReadOnlyError(f"export is open for reading only: name={self.export.name!r}")
        if fua:
            self._ledger.check()

    def _change_flags(self, fua: bool) -> int:
        return _FUA if fua and self._has_fua else self._base_flags

    async def _finish_change(self, fua: bool) -> None:
        if fua and not self._has_fua:
            await self.flush()

    async def _effect(
        self, kind: Command, offset: int, length: int, flags: int, longest: int = EXTENDED_BYTES_MAX
    ) -> None:
        """Send a request without payload, in pieces where the server cannot take it whole."""
        while True:
            limit = min(self._effect_max, longest)
            try:
                for group in in_groups(self._cut(kind, offset, length, limit, flags)):
                    await self._requests.run(group)
                return
            except OutOfRangeError:
                # EOVERFLOW or EINVAL: the server may have to hold the range in memory.
                if min(limit, length) <= self._payload_max:
                    raise
                self._effect_max = self._payload_max

    async def _write_zeroes_as_data(self, offset: int, length: int, flags: int) -> None:
        longest = min(self._payload_max, ZEROES_BYTES)
        for group in in_groups(self._cut(Command.WRITE, offset, length, longest, flags)):
            for piece in group:
                piece.payload = _ZEROES[: piece.length]
            await self._requests.run(group)

    def _cut(
        self, kind: Command, offset: int, length: int, longest: int, flags: int = 0
    ) -> Iterator[Operation]:
        for start in range(0, length, longest):
            yield Operation(kind, offset + start, min(longest, length - start), flags=flags)
