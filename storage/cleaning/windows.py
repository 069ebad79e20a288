"""Reads the batches of a segment window by window, from the segment alone.

Every batch of stored blocks, a commit of the log or moved blocks, starts with a header and a record
table that says which blocks of which layers follow.
"""

import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from uuid import UUID

from blockdev.errors import DeviceError
from storage.errors import FormatVersionError
from storage.format import commit
from storage.format.codec import digest_of
from storage.format.commit import HEADER_BYTES, CommitHeader, LayerExtents
from storage.members.segment_io import SegmentIO
from storage.members.segments import Segment

log = logging.getLogger("cenote.storage")

WINDOW_BYTES = 8 << 20
"""Bytes read at once and held while their blocks are moved; the largest usual batch fits."""


@dataclass(frozen=True, slots=True)
class Window:
    """Whole batches of a segment: their bytes from `start` to `end`, and the extents in them."""

    start: int
    end: int
    data: memoryview
    extents: list[LayerExtents]


async def windows(
    segment_io: SegmentIO, segment: Segment, pool_uuid: UUID
) -> AsyncGenerator[Window, None]:
    """Yield all batches of a segment, window by window; ends early where no copy has a good batch.

    Raises:
        FormatVersionError: the segment was written by a newer Cenote.
    """
    at = 0
    while at + HEADER_BYTES <= segment.used_bytes:
        window = await _read(segment_io, segment, at, pool_uuid)
        if window is None:
            return
        yield window
        at = window.end


async def _read(segment_io: SegmentIO, segment: Segment, at: int, pool_uuid: UUID) -> Window | None:
    segment.readers += 1
    try:
        for member, base in segment.places:
            length = min(WINDOW_BYTES, segment.used_bytes - at)
            try:
                data = memoryview(await member.read(base + at, length))
                first = _header(data, segment, at, pool_uuid)
                if first is not None and first.total_bytes > length:
                    data = memoryview(await member.read(base + at, first.total_bytes))
                window = _parse(data, segment, at, pool_uuid)
            except FormatVersionError:
                raise
            except DeviceError as error:
                log.warning("cannot look into segment %d: %s", segment.number, error)
                continue
            if window is not None:
                return window
    finally:
        segment.readers -= 1
    return None


def _header(data: memoryview, segment: Segment, at: int, pool_uuid: UUID) -> CommitHeader | None:
    header = commit.decode_header(data) or commit.decode_header(data, commit.MOVED_MAGIC)
    if header is None or header.segment != segment.number or header.offset != at:
        return None
    return header if header.pool_uuid == pool_uuid else None


def _parse(data: memoryview, segment: Segment, start: int, pool_uuid: UUID) -> Window | None:
    at = 0
    extents: list[LayerExtents] = []
    while at + HEADER_BYTES <= len(data):
        header = _header(data[at:], segment, start + at, pool_uuid)
        if header is None or at + header.total_bytes > len(data):
            break
        table = data[at + HEADER_BYTES : at + HEADER_BYTES + header.table_bytes]
        if digest_of(table) != header.table_digest:
            break
        extents += commit.decode_table(table).extents
        at += header.total_bytes
    return Window(start, start + at, data[:at], extents) if at else None
