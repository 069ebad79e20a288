r"""The superblock: identifies a member and its pool; names the members in sync and the root.

Format version 1, 16 KiB, little-endian; offsets and sizes in bytes.

    offset  size  field            meaning
         0     8  magic            b"CENOTESB"
         8     8  checksum         xxh3_64 of bytes 16..16383
        16     2  version          u16; newer is refused
        18     2  member_count     u16
        20     2  member_index     u16, which row of the member table this device is
        22     2  jump_count       u16, log continuations in use
        24     8  incompatible     feature bits; an unknown one refuses to open
        32     8  read_compatible  feature bits; with an unknown one only reading is safe
        40     8  compatible       feature bits; unknown ones are ignored
        48    16  pool_uuid        the pool
        64    16  holder           random id of the daemon that took this epoch
        80     8  epoch            u64, rises each time a daemon takes the pool
        88     8  sequence         u64, rises with each superblock write
        96     8  durable_commit   u64, all commits through this one are durable
       104     4  segment_bytes    u32
       108     4  commit_align     u32, largest physical block of the members at creation
       112     1  copies           u8, 1 to 3
       113     1  clean            u8, 1 = the log ends at the checkpoint, nothing to replay
       114     6  zero             zeros
       120     8  checkpoint       u64, number of the newest checkpoint
       128     8  root_a           entry words of the checkpoint's root
       136     8  root_b
       144     8  root_digest      u64, xxh3_64 of the root before compression
       152    24  root_copies      where the root's segment lies: 3 copies
       176    80  zero             zeros
       256  1024  jumps            16 rows of 64, see below
      1280 15104  members          118 rows of 128, see below

A copy is (u16 member index, u16 used, u32 slot); `used` 0 marks an empty place.

Jump: "after this commit the log goes on at the start of that segment" (R2, R5).

    offset  size  field            meaning
         0     8  after_commit     u64
         8     8  after_checksum   u64, header checksum of that commit
        16     8  segment          u64
        24    24  copies           where that segment lies
        48    16  zero             zeros

Member:

    offset  size  field            meaning
         0    16  uuid             the member
        16     8  size_bytes       u64
        24     4  slots            u32
        28     1  state            u8, 0 in sync, 1 stale
        29     1  host_bytes       u8, length of the host label
        30     2  zero             zeros
        32     8  stale_since      u64, last commit it is known to hold
        40    64  host             UTF-8 label of the failure domain
       104     8  left_holder      u64, xxh3_64 of the holder whose superblocks a stale one
                                   was last to be given; 0 = not known
       112     8  left_sequence    u64, sequence of the last of these
       120     8  left_had         u64, xxh3_64 of left_holder and left_sequence of the one that
                                   it had for certain, should none of these have arrived

The last three fields say which superblocks a stale member may hold: the last one that was to be
written to it, and the last one that it took for certain.

A member holds a ring of eight superblocks at its start and a copy of the newest at its end. The
superblock with the highest (epoch, sequence) counts. It is written to the place sequence % 8 of
the ring, so a torn write loses nothing that was flushed (R15). A device that is about to be added
has sequence 0; it is a member only if the other members' superblocks name it.
"""

import struct
from dataclasses import dataclass, replace
from uuid import UUID

from typing_extensions import Buffer

from storage.errors import DamagedError, FormatVersionError
from storage.format.codec import digest_of
from storage.format.entry import SEGMENT_BYTES_MAX

SUPERBLOCK_BYTES = 16 * 1024
RING_SLOTS = 8
DATA_START_BYTES = 1 << 20
"""The slots start here; the ring takes the first 128 KiB, the rest is room to grow."""

VERSION = 1
MAGIC = b"CENOTESB"
JUMPS_MAX = 16
MEMBERS_MAX = 118
HOST_BYTES_MAX = 64
COPIES_MAX = 3
FEATURES_INCOMPATIBLE = 0
FEATURES_READ_COMPATIBLE = 0

_PREAMBLE = struct.Struct("<8sQHHHH")
_FIELDS = struct.Struct("<QQQ16s16sQQQIIBB6xQQQQ24s80x")
_COPY = struct.Struct("<HHI")
_JUMP = struct.Struct("<QQQ24s16x")
_MEMBER = struct.Struct("<16sQIBB2xQ64sQQQ")
_SEEN = struct.Struct("<QQ")
assert _PREAMBLE.size + _FIELDS.size == 256
assert (_JUMP.size, _MEMBER.size) == (64, 128)
assert 256 + JUMPS_MAX * 64 + MEMBERS_MAX * 128 == SUPERBLOCK_BYTES


@dataclass(frozen=True, slots=True)
class Copy:
    """The place of one segment copy: a slot on a member."""

    member: int
    slot: int


@dataclass(frozen=True, slots=True)
class Jump:
    """After `after_commit` the log goes on at offset 0 of `segment`."""

    after_commit: int
    after_checksum: int
    segment: int
    copies: tuple[Copy, ...]


@dataclass(frozen=True, slots=True)
class Seen:
    """Identifies a superblock given to a member, and with it all earlier ones of its holder."""

    holder: int = 0
    """xxh3_64 of the holder's id."""
    sequence: int = 0

    @property
    def mark(self) -> int:
        """A hash of holder and sequence, to recognize exactly this superblock."""
        return digest_of(_SEEN.pack(self.holder, self.sequence))


@dataclass(frozen=True, slots=True)
class Left:
    """The superblocks that a stale member may hold: its last writes may have arrived or not."""

    tried: Seen = Seen()
    """The last superblock that was to be written to it."""
    had: int = 0
    """The mark of the last one it took for certain, maybe of another holder; 0 if unknown."""

    def covers(self, seen: Seen) -> bool:
        """Whether the member may hold `seen` without having been used since it failed."""
        is_tried = seen.holder == self.tried.holder and seen.sequence <= self.tried.sequence
        return is_tried or seen.mark == self.had


@dataclass(frozen=True, slots=True)
class MemberRow:
    """A row of the member table.

    `stale_since` is the last commit that a stale member is known to hold, None for one in sync.
    """

    uuid: UUID
    host: str
    size_bytes: int
    slots: int
    stale_since: int | None = None
    left: Left = Left()
    """The superblocks that a stale member may hold."""


@dataclass(frozen=True, slots=True)
class RootPointer:
    """The place of the newest checkpoint's root; `checkpoint` is 0 before the first one."""

    checkpoint: int = 0
    a: int = 0
    b: int = 0
    digest: int = 0
    copies: tuple[Copy, ...] = ()


@dataclass(frozen=True, slots=True)
class Superblock:
    """A decoded superblock; the table above defines each field."""

    pool_uuid: UUID
    member_index: int
    holder: UUID
    epoch: int
    sequence: int
    durable_commit: int
    segment_bytes: int
    commit_align: int
    copies: int
    clean: bool
    root: RootPointer
    jumps: tuple[Jump, ...]
    members: tuple[MemberRow, ...]
    read_only: bool = False
    """Whether an unknown read-compatible feature is set."""

    @property
    def order(self) -> tuple[int, int]:
        """(epoch, sequence); the superblock with the highest is the newest."""
        return (self.epoch, self.sequence)

    @property
    def seen(self) -> Seen:
        """Its holder and sequence."""
        return Seen(digest_of(self.holder.bytes), self.sequence)

    @property
    def joining(self) -> bool:
        """Whether the device was about to be added when this superblock was written."""
        return not self.sequence

    @property
    def me(self) -> MemberRow:
        """The row of the device that this superblock was read from."""
        return self.members[self.member_index]

    def for_member(self, index: int) -> "Superblock":
        """The same superblock for another member."""
        return replace(self, member_index=index)


def _pack_copies(copies: tuple[Copy, ...]) -> bytes:
    assert len(copies) <= COPIES_MAX
    packed = b"".join(_COPY.pack(c.member, 1, c.slot) for c in copies)
    return packed.ljust(COPIES_MAX * _COPY.size, b"\0")


def _unpack_copies(data: bytes, members: int) -> tuple[Copy, ...]:
    copies = tuple(Copy(m, slot) for m, used, slot in _COPY.iter_unpack(data) if used)
    if any(copy.member >= members for copy in copies):
        raise DamagedError("superblock names a member that it does not list")
    return copies


def encode(sb: Superblock) -> bytes:
    """Return the 16 KiB of a superblock, checksum included."""
    body = bytearray(SUPERBLOCK_BYTES)
    _PREAMBLE.pack_into(body, 0, MAGIC, 0, VERSION, len(sb.members), sb.member_index, len(sb.jumps))
    root = sb.root
    _FIELDS.pack_into(
        body, _PREAMBLE.size, FEATURES_INCOMPATIBLE, FEATURES_READ_COMPATIBLE, 0,
        sb.pool_uuid.bytes, sb.holder.bytes, sb.epoch, sb.sequence, sb.durable_commit,
        sb.segment_bytes, sb.commit_align, sb.copies, sb.clean,
        root.checkpoint, root.a, root.b, root.digest, _pack_copies(root.copies),
    )  # fmt: skip
    for row, jump in enumerate(sb.jumps):
        packed = (jump.after_commit, jump.after_checksum, jump.segment, _pack_copies(jump.copies))
        _JUMP.pack_into(body, 256 + row * _JUMP.size, *packed)
    for row, member in enumerate(sb.members):
        host = member.host.encode()
        stale = member.stale_since is not None
        _MEMBER.pack_into(
            body, 256 + JUMPS_MAX * _JUMP.size + row * _MEMBER.size,
            member.uuid.bytes, member.size_bytes, member.slots, stale, len(host),
            member.stale_since or 0, host,
            member.left.tried.holder, member.left.tried.sequence, member.left.had,
        )  # fmt: skip
    struct.pack_into("<Q", body, 8, digest_of(memoryview(body)[16:]))
    return bytes(body)


def decode(data: Buffer) -> Superblock | None:
    """Read a superblock; None when the bytes hold none, or a torn one.

    Raises:
        FormatVersionError: a newer Cenote wrote it, or it has incompatible features unknown here
            (R19).
        DamagedError: the checksum is right but the fields make no sense.
    """
    body = memoryview(data)
    if len(body) < SUPERBLOCK_BYTES or body[:8] != MAGIC:
        return None
    _, checksum, version, member_count, member_index, jump_count = _PREAMBLE.unpack_from(body)
    if digest_of(body[16:SUPERBLOCK_BYTES]) != checksum:
        return None
    if version > VERSION:
        raise FormatVersionError(
            f"made by a newer cenote, upgrade this one: format={version} known={VERSION}"
        )
    fields = _FIELDS.unpack_from(body, _PREAMBLE.size)
    incompatible, read_compatible = fields[0], fields[1]
    if unknown := incompatible & ~FEATURES_INCOMPATIBLE:
        raise FormatVersionError(f"needs features unknown here, upgrade: bits={unknown:#x}")
    if not 0 < member_count <= MEMBERS_MAX or member_index >= member_count:
        raise DamagedError(f"superblock has a bad member table: members={member_count}")
    if jump_count > JUMPS_MAX or not 1 <= fields[10] <= COPIES_MAX:
        raise DamagedError(f"superblock has bad counts: jumps={jump_count} copies={fields[10]}")
    segment_bytes, commit_align = fields[8], fields[9]
    _check_geometry(segment_bytes, commit_align)
    return Superblock(
        pool_uuid=UUID(bytes=fields[3]), member_index=member_index, holder=UUID(bytes=fields[4]),
        epoch=fields[5], sequence=fields[6], durable_commit=fields[7],
        segment_bytes=segment_bytes, commit_align=commit_align,
        copies=fields[10], clean=bool(fields[11]),
        root=RootPointer(
            fields[12], fields[13], fields[14], fields[15], _unpack_copies(fields[16], member_count)
        ),
        jumps=tuple(_decode_jump(body, row, member_count) for row in range(jump_count)),
        members=tuple(_decode_member(body, row) for row in range(member_count)),
        read_only=bool(read_compatible & ~FEATURES_READ_COMPATIBLE),
    )  # fmt: skip


def _check_geometry(segment_bytes: int, commit_align: int) -> None:
    if segment_bytes & (segment_bytes - 1) or not 1 << 20 <= segment_bytes <= SEGMENT_BYTES_MAX:
        raise DamagedError(f"superblock has a bad segment size: segment_bytes={segment_bytes}")
    if commit_align & (commit_align - 1) or not 4096 <= commit_align <= 65536:
        raise DamagedError(f"superblock has a bad alignment: commit_align={commit_align}")


def _decode_jump(body: memoryview, row: int, members: int) -> Jump:
    after, checksum, segment, copies = _JUMP.unpack_from(body, 256 + row * _JUMP.size)
    return Jump(after, checksum, segment, _unpack_copies(copies, members))


def _decode_member(body: memoryview, row: int) -> MemberRow:
    at = 256 + JUMPS_MAX * _JUMP.size + row * _MEMBER.size
    uuid, size, slots, state, host_bytes, stale, host, *tried, had = _MEMBER.unpack_from(body, at)
    label = host[: min(host_bytes, HOST_BYTES_MAX)].decode(errors="replace")
    left = Left(Seen(*tried), had)
    return MemberRow(UUID(bytes=uuid), label, size, slots, stale if state else None, left)
