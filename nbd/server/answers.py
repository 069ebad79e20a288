"""Carries out requests that wait for the device: from a request to the buffers of its answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from typing_extensions import Buffer

from blockdev.device import EXTENTS_MAX, BlockDevice, Extent
from nbd.constants import BASE_ALLOCATION, Command, CommandFlag
from nbd.server.contexts import allocation_state
from nbd.server.replies import Replies
from nbd.server.transmission import Request

SPARSE_BYTES_MIN = 32 << 10
"""Shorter READs are sent with their zeroes: looking for them would cost as much."""


@dataclass(frozen=True, slots=True)
class Answers:
    """Carries out the requests of one client on a device.

    Args:
        contexts: the metadata contexts of BLOCK_STATUS, by number.
    """

    device: BlockDevice
    replies: Replies
    contexts: Mapping[int, str] = field(default_factory=dict)

    async def to(
        self, request: Request, payload: Buffer, only: Sequence[int] | None
    ) -> list[Buffer]:
        """Carry out a request, and return its answer.

        Args:
            payload: the data of a WRITE.
            only: numbers of the contexts that a BLOCK_STATUS is narrowed to; all if None.

        Raises:
            DeviceError: the device failed; no part of the answer was sent.
        """
        _, flags, kind, cookie, offset, length = request
        device = self.device
        fua = bool(flags & CommandFlag.FUA)
        if kind == Command.READ:
            return await self._read(flags, cookie, offset, length)
        if kind == Command.BLOCK_STATUS:
            return await self._status(flags, cookie, offset, length, only)
        if kind == Command.WRITE:
            await device.write(offset, payload, fua=fua)
        elif kind == Command.FLUSH:
            await device.flush()
        elif kind == Command.TRIM:
            await device.trim(offset, length, fua=fua)
        elif kind == Command.CACHE:
            await device.cache(offset, length)
        else:
            assert kind == Command.WRITE_ZEROES
            await device.write_zeroes(
                offset,
                length,
                fua=fua,
                no_hole=bool(flags & CommandFlag.NO_HOLE),
                fast=bool(flags & CommandFlag.FAST_ZERO),
            )
        return [self.replies.done(kind, cookie, offset)]

    def has_zeroes(self, offset: int, length: int) -> bool:
        """Whether the range is known at once to have runs of zeroes, which need not be sent."""
        extents = self.device.try_extents(offset, length)
        return extents is not None and any(extent.zero for extent in extents)

    async def _read(self, flags: int, cookie: int, offset: int, length: int) -> list[Buffer]:
        device, replies = self.device, self.replies
        if replies.chunked and length >= SPARSE_BYTES_MIN and not flags & CommandFlag.DF:
            extents = device.try_extents(offset, length)
            if extents is not None and any(extent.zero for extent in extents):
                return await self._read_sparse(cookie, offset, extents)
        return [replies.data(cookie, offset, length), await device.read(offset, length)]

    async def _read_sparse(
        self, cookie: int, offset: int, extents: Sequence[Extent]
    ) -> list[Buffer]:
        """Read the extents that are not zero. A write meanwhile may show or not, as in any read."""
        chunks: list[Buffer] = []
        at = offset
        for index, extent in enumerate(extents):
            length, last = extent.length_bytes, index == len(extents) - 1
            if extent.zero:
                chunks.append(self.replies.hole(cookie, offset, at, length, last=last))
            else:
                data = self.device.try_read(at, length)
                if data is None:
                    data = await self.device.read(at, length)
                chunks += (self.replies.piece(cookie, offset, at, length, last=last), data)
            at += length
        return chunks

    async def _status(
        self, flags: int, cookie: int, offset: int, length: int, only: Sequence[int] | None
    ) -> list[Buffer]:
        numbers = list(self.contexts) if only is None else sorted(set(only))
        if not numbers:
            # The filter names no context: success, without any extent.
            return [self.replies.done(Command.BLOCK_STATUS, cookie, offset)]
        # The extents of all contexts together are no more than EXTENTS_MAX.
        most = 1 if flags & CommandFlag.REQ_ONE else max(1, EXTENTS_MAX // len(numbers))
        chunks: list[Buffer] = []
        for number in numbers:
            runs = await self._runs(self.contexts[number], offset, length)
            last = number == numbers[-1]
            chunks.append(self.replies.status(cookie, offset, number, runs[:most], last=last))
        return chunks

    async def _runs(self, context: str, offset: int, length: int) -> list[tuple[int, int]]:
        """Return length and state of the first runs of a range, equal neighbors joined."""
        if context == BASE_ALLOCATION:
            extents = await self.device.extents(offset, length)
            found = [(extent.length_bytes, allocation_state(extent)) for extent in extents]
        else:
            found = _within(await self.device.status(context, offset, length), length)
        runs: list[tuple[int, int]] = []
        for run_bytes, state in found:
            if runs and runs[-1][1] == state:
                runs[-1] = (runs[-1][0] + run_bytes, state)
            else:
                runs.append((run_bytes, state))
        return runs


def _within(runs: Sequence[tuple[int, int]], length: int) -> list[tuple[int, int]]:
    """Return runs cut at the end of a range; a remote device may report more."""
    found = []
    for run_bytes, state in runs:
        if length <= 0:
            break
        found.append((min(run_bytes, length), state))
        length -= run_bytes
    return found
