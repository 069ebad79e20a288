"""Creates a pool: writes superblocks to its members, and nothing else."""

from collections.abc import Sequence
from uuid import UUID

from storage.environment import Environment
from storage.errors import InvalidArgumentError
from storage.format.entry import SEGMENT_BYTES_MAX
from storage.format.superblock import (
    COPIES_MAX,
    MEMBERS_MAX,
    MemberRow,
    RootPointer,
    Superblock,
)
from storage.members.member import (
    Member,
    MemberDevice,
    check_device_size,
    check_host,
    erase_superblocks,
    slots_in,
)

SEGMENT_BYTES_MIN = 1 << 20
SEGMENT_BYTES_USUAL = 32 << 20
SEGMENTS_WANTED = 1024
"""Small pools get smaller segments, so that a reserve of a few segments is a small part of them."""
SEGMENTS_PLENTY = 32768
"""Large pools get larger segments, so that the segment table stays at a few MiB."""


def default_segment_bytes(pool_bytes: int) -> int:
    """Return the segment size for a pool: 32 MiB from 32 GiB to 1 TiB; about a thousandth of a
    smaller pool, at least 1 MiB; about 1/32,768 of a larger one, at most 256 MiB.
    """
    size = SEGMENT_BYTES_USUAL
    while size > SEGMENT_BYTES_MIN and pool_bytes // size < SEGMENTS_WANTED:
        size //= 2
    while size < SEGMENT_BYTES_MAX and pool_bytes // size > SEGMENTS_PLENTY:
        size *= 2
    return size


def _check(members: Sequence[MemberDevice], copies: int, segment_bytes: int | None) -> None:
    if not members or len(members) > MEMBERS_MAX:
        raise InvalidArgumentError(f"a pool has 1 to {MEMBERS_MAX} members, not {len(members)}")
    if not 1 <= copies <= COPIES_MAX:
        raise InvalidArgumentError(f"copies must be 1 to {COPIES_MAX}, not {copies}")
    if copies > len(members):
        raise InvalidArgumentError(
            f"{copies} copies need at least {copies} members; the pool has {len(members)}"
        )
    if segment_bytes is not None and (
        segment_bytes & (segment_bytes - 1)
        or not SEGMENT_BYTES_MIN <= segment_bytes <= SEGMENT_BYTES_MAX
    ):
        raise InvalidArgumentError(
            f"segment size must be a power of two from 1 MiB to 256 MiB, not {segment_bytes} bytes"
        )
    for each in members:
        check_host(each.host)


async def create_pool(
    members: Sequence[MemberDevice],
    *,
    copies: int,
    segment_bytes: int | None = None,
    env: Environment | None = None,
) -> UUID:
    """Make a new pool of these devices; all that they held is lost. Returns the pool's UUID.

    After an error or cancellation in between, devices may carry superblocks of a pool that
    does not open: create it again.

    Raises:
        InvalidArgumentError: copies, segment size or labels are not acceptable.
        MemberTooSmallError: a device is too small.
        DeviceError: a device failed; the pool does not exist then.
    """
    env = env or Environment()
    _check(members, copies, segment_bytes)
    total = sum(each.device.size_bytes for each in members)
    segment = segment_bytes or default_segment_bytes(total // copies)
    for each in members:
        check_device_size(each, segment)
    rows = tuple(
        MemberRow(
            env.new_uuid(), each.host, each.device.size_bytes,
            slots_in(each.device.size_bytes, segment),
        )
        for each in members
    )  # fmt: skip
    # Commits start on the largest physical block of the members, fixed here for good (R15).
    sb = Superblock(
        pool_uuid=env.new_uuid(), member_index=0, holder=env.new_uuid(), epoch=0, sequence=1,
        durable_commit=0, segment_bytes=segment,
        commit_align=max(4096, *(each.device.physical_bytes for each in members)),
        copies=copies, clean=True, root=RootPointer(), jumps=(), members=rows,
    )  # fmt: skip
    for index, each in enumerate(members):
        await erase_superblocks(each.device)
        await Member(index, each, rows[index], segment).write_superblock(sb)
    return sb.pool_uuid
