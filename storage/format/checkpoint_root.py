r"""The root of a checkpoint: one msgpack map that the superblock points to.

Format version 1. A piece is [word A, word B]; large parts are cut into pieces of 64 KiB.

    v            1
    number       checkpoint number
    commit       the log is replayed from the commit after this one
    checksum     header checksum of that commit
    segment      where the next commit is looked for,
    offset       and at which byte of it
    announced    segment that is announced but not begun, or 0
    next         lowest segment number never used
    catalogue    pieces of the packed catalogue, see `storage.catalogue.catalogue`
    segments     pieces of the segment table, rows of 56 bytes:

                     offset  size  field
                          0     8  number       u64
                          8     8  live_bytes   u64, exact at `commit`
                         16     4  used_bytes   u32, the segment size while it is open
                         20     1  state        u8, 0 open, 1 sealed, 2 freed
                         21     1  copies       u8
                         22     6  members      3 u16
                         28    12  slots        3 u32
                         40     1  role         u8, 0 log, 1 moved: hot, 2 moved: cold, 3 metadata
                         41     3  zero         zeros
                         44     8  last_commit  u64
                         52     4  zero         zeros

    directories  pieces of the directory index, rows of 32 bytes:
                 u64 layer, u64 chunk, word A and word B of that chunk
    usage        pieces of the usage table, rows of 24 bytes: i64 layer (0: all deleted layers
                 together), i64 stored blocks, i64 stored bytes, exact at `commit`; a layer that
                 is merged counts as part of the one that it goes into
    map_bytes    stored bytes of all pages and directories
    extra        [number, [[member, slot], ...]] of the segments that hold the pieces named here,
                 and of metadata segments begun after the table was written

The root is the last piece of a checkpoint; the next metadata is written behind it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from storage.errors import DamagedError
from storage.format import values
from storage.format.entry import SEGMENT_NUMBER_MAX
from storage.format.superblock import Copy

Piece = tuple[int, int]
ROOT_BYTES_MAX = 65536


@dataclass(frozen=True, slots=True)
class LogPosition:
    """A point in the log behind `commit`; the table above defines each field."""

    commit: int
    checksum: int
    segment: int
    offset: int
    announced: int = 0


@dataclass(frozen=True, slots=True)
class Root:
    """A decoded root; the table above defines each field."""

    number: int
    position: LogPosition
    next_segment: int
    catalogue: list[Piece]
    segments: list[Piece]
    directories: list[Piece]
    usage: list[Piece]
    map_bytes: int
    extra: list[tuple[int, tuple[Copy, ...]]]

    def pack(self) -> bytes:
        """Return the root as msgpack, before compression."""
        at = self.position
        return values.encode(
            {
                "v": 1, "number": self.number, "commit": at.commit, "checksum": at.checksum,
                "segment": at.segment, "offset": at.offset, "announced": at.announced,
                "next": self.next_segment, "catalogue": self.catalogue,
                "segments": self.segments, "directories": self.directories, "usage": self.usage,
                "map_bytes": self.map_bytes,
                "extra": [[n, [[c.member, c.slot] for c in copies]] for n, copies in self.extra],
            }
        )  # fmt: skip


def unpack(data: bytes) -> Root:
    """Read a root.

    Raises:
        DamagedError: the bytes are no root of this version (R18).
    """
    stored = values.decode(data)
    try:
        if stored["v"] != 1:
            raise ValueError(f"version {stored['v']}")
        position = LogPosition(
            *(_number(stored[k]) for k in ("commit", "checksum", "segment", "offset", "announced"))
        )
        if _number(stored["next"]) > SEGMENT_NUMBER_MAX:
            raise ValueError(f"no segment numbers are left: {stored['next']}")
        return Root(
            _number(stored["number"]), position, _number(stored["next"]),
            _pieces(stored["catalogue"]), _pieces(stored["segments"]),
            _pieces(stored["directories"]), _pieces(stored["usage"]), _number(stored["map_bytes"]),
            [
                (_number(n), tuple(Copy(_number(m), _number(s)) for m, s in copies))
                for n, copies in stored["extra"]
            ],
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"checkpoint root does not add up: {error!r}") from error


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 64:
        raise ValueError(f"not a number: {value!r}"[:100])
    return value


def _pieces(value: Any) -> list[Piece]:
    return [(_number(a), _number(b)) for a, b in value]


def pack_index(rows: list[tuple[int, int, int, int]]) -> bytes:
    """Return the directory index as bytes; a row is (layer, chunk, word A, word B)."""
    return np.array(rows, dtype="<u8").reshape(-1, 4).tobytes()


def unpack_index(data: bytes) -> list[tuple[int, int, int, int]]:
    """The inverse of `pack_index`.

    Raises:
        DamagedError: the size is no multiple of a row.
    """
    if len(data) % 32:
        raise DamagedError("directory index has the wrong size")
    rows = np.frombuffer(data, dtype="<u8").reshape(-1, 4).tolist()
    return [(layer, chunk, a, b) for layer, chunk, a, b in rows]
