"""Reads and writes of segment copies: verified, repaired, in parallel.

A read is checked against the hash in its pointer, whichever copy answers. A copy that fails or
differs is counted, logged and repaired from a good one. Copies on stale members are read too, after
the others: the hash decides whether a copy is good, not the state of its member.
"""

import logging
from collections.abc import Iterable
from typing import NamedTuple

import trio
from typing_extensions import Buffer

from blockdev.errors import ChecksumError, DeviceError, NoSpaceError, OutOfRangeError
from storage.format import codec, entry
from storage.format.codec import digest_of
from storage.format.entry import CHECK_MASK
from storage.members.member import Member
from storage.members.segments import Segment, SegmentTable

log = logging.getLogger("cenote.storage")


class Failure(NamedTuple):
    """A copy that could not be written or flushed."""

    member: Member
    error: DeviceError


class SegmentIO:
    """The pool's segments as bytes on their members."""

    def __init__(self, table: SegmentTable, *, repair: bool = True):
        self.table = table
        self._repairs = repair
        self._get = table.get

    # -- reading

    def try_read(self, number: int, offset: int, length: int) -> memoryview | None:
        """Return bytes of one copy at once, not verified; None when that needs waiting or fails, or
        when there is no such segment.

        Raises:
            OutOfRangeError: the range is not inside the member.
        """
        segment = self._get(number)
        if segment is None or not segment.places:
            return None
        member, base = segment.places[0]
        try:
            return member.try_read(base + offset, length)
        except OutOfRangeError:
            raise
        except DeviceError:
            return None  # `read` counts the error and tries the other copies

    async def read(self, number: int, offset: int, stored_bytes: int, check: int) -> memoryview:
        """Return the stored bytes of one extent, verified against `check`, its hash's low 40 bits.

        Raises:
            ChecksumError: no copy is good.
            DamagedError: there is no such segment.
            DeviceError: the only copy cannot be read, or no member with a copy is attached.
        """
        segment = self.table[number]
        segment.readers += 1
        try:
            return await self._read_any(segment, offset, stored_bytes, check)
        finally:
            segment.readers -= 1

    async def _read_any(
        self, segment: Segment, offset: int, stored_bytes: int, check: int
    ) -> memoryview:
        where = f"segment={segment.number} offset={offset} bytes={stored_bytes}"
        bad: list[tuple[Member, int]] = []
        failure: DeviceError | None = None
        for member, base in segment.places:
            try:
                data = memoryview(await member.read(base + offset, stored_bytes))
            except DeviceError as error:
                member.read_errors += 1
                failure = error
                log.warning("read failed: %s member=%s: %s", where, member.name, error)
            else:
                if digest_of(data) & CHECK_MASK == check:
                    if bad and self._repairs:
                        await self._repair(segment, bad, offset, data)
                    return data
                member.checksum_errors += 1
                log.warning("checksum mismatch: %s member=%s", where, member.name)
            bad.append((member, base))
        if not segment.places:
            raise DeviceError(f"every member that holds this is missing: {where}")
        if failure is not None and len(bad) == 1:
            raise DeviceError(f"cannot read the only copy: {where}: {failure}")
        log.error("data is lost, no good copy: %s", where)
        raise ChecksumError(f"no copy has the right checksum: {where}")

    async def _repair(
        self, segment: Segment, bad: list[tuple[Member, int]], offset: int, data: memoryview
    ) -> None:
        for member, base in bad:
            try:
                await member.overwrite(base + offset, data)
            except DeviceError as error:
                log.warning("repair failed: member=%s: %s", member.name, error)
            else:
                member.repaired += 1
                log.warning(
                    "repaired from another copy: segment=%d offset=%d bytes=%d member=%s",
                    segment.number, offset, len(data), member.name,
                )  # fmt: skip

    async def read_run(self, number: int, offset: int, length: int) -> memoryview | None:
        """Return a run of extents from the first copy, not verified; None if it cannot be read."""
        segment = self.table[number]
        if not segment.places:
            return None
        segment.readers += 1
        member, base = segment.places[0]
        try:
            return memoryview(await member.read(base + offset, length))
        except DeviceError:
            return None  # the caller reads each extent then, which counts the error
        finally:
            segment.readers -= 1

    async def read_located(self, a: int, b: int, plain_bytes_max: int) -> bytes:
        """Return one piece of metadata, verified and expanded; `a` and `b` are its entry words.

        Raises:
            ChecksumError: no copy is good.
            DamagedError: the words name no segment, or the bytes do not expand.
            DeviceError: as from `read`.
        """
        at = entry.unpack(a, b)
        stored = self.try_read(at.segment, at.offset, at.stored_bytes)
        if stored is None or digest_of(stored) & CHECK_MASK != at.check:
            stored = await self.read(at.segment, at.offset, at.stored_bytes, at.check)
        return codec.expand(at.kind, stored, plain_bytes_max)

    # -- writing

    async def write(
        self, segment: Segment, offset: int, data: Buffer, *, fua: bool = False
    ) -> list[Failure]:
        """Write to every copy in sync, in parallel; return the copies that failed (R1)."""
        places = [place for place in segment.places if place[0].in_sync]
        failures: list[Failure] = []

        async def write_one(member: Member, base: int) -> None:
            try:
                await member.write(base + offset, data, fua=fua)
            except DeviceError as error:
                failures.append(Failure(member, error))

        await _run_all(places, write_one)
        return failures

    async def flush(self, members: Iterable[Member]) -> list[Failure]:
        """Flush members in parallel; return the members that failed."""
        failures: list[Failure] = []

        async def flush_one(member: Member) -> None:
            try:
                await member.flush()
            except DeviceError as error:
                failures.append(Failure(member, error))

        await _run_all([(member,) for member in members], flush_one)
        return failures


async def _run_all(arguments: list, work) -> None:  # type: ignore[no-untyped-def, type-arg]
    """Run `work` with each of the arguments, all at once; a single call needs no task."""
    if len(arguments) == 1:
        await work(*arguments[0])
        return
    async with trio.open_nursery() as nursery:
        for each in arguments:
            nursery.start_soon(work, *each)


def only_full(failures: Iterable[Failure]) -> bool:
    """Whether every failure is a full file system, which is not a failed member (R5)."""
    return all(isinstance(failure.error, NoSpaceError) for failure in failures)
