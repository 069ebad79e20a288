"""Opens a pool: takes it, loads the newest checkpoint, replays the log and fixes its end.

In order: read the superblocks, refuse devices that do not form one pool, take the pool by raising
its epoch (R16), load the newest checkpoint, replay the log behind it, bring the copies level
and flush them, and name the end of the log in the superblocks, going on in a fresh segment (R2).
Only then is anything served.
"""

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from blockdev.errors import DeviceError
from storage.catalogue import operations
from storage.catalogue.catalogue import Catalogue
from storage.checkpoint.metadata_writer import PIECE_BYTES_MAX
from storage.checkpoint.stock import Stock, take_stock
from storage.environment import Environment
from storage.errors import (
    DamagedError,
    FencedError,
    FormatVersionError,
    PoolError,
)
from storage.format import checkpoint_root, pages
from storage.format.checkpoint_root import LogPosition, Piece, Root
from storage.format.codec import digest_of
from storage.format.commit import Records
from storage.format.superblock import Jump, Left, MemberRow, Superblock
from storage.format.values import decode
from storage.log.committer import with_jump
from storage.map.blockmap import BlockMap
from storage.map.follow import follow, make_layers
from storage.map.usage import Usage
from storage.members.member import Member, read_superblock
from storage.members.roster import Roster
from storage.members.segment_io import SegmentIO
from storage.members.segments import Role, SegmentTable, State
from storage.recovery.replay import Found, Replay

log = logging.getLogger("cenote.storage")

BATCH_COMMITS, BATCH_RECORDS = 4096, 1 << 17
"""A batch of commits that replay applies at once ends at the first of these; it touches each page
once. The decoded commits take some 10 MiB of memory. Larger batches gain little."""


@dataclass
class Opened:
    """The parts of a pool after recovery, before anything runs."""

    roster: Roster
    table: SegmentTable
    segment_io: SegmentIO
    blockmap: BlockMap
    catalogue: Catalogue
    position: LogPosition
    root: Root | None
    usage: Usage
    stock: Stock
    meta_end: tuple[int, int] | None
    """(segment, offset) where the next metadata is written; None before the first checkpoint."""
    replayed: int
    """Number of commits that were replayed."""
    losses: dict[int, int] = field(default_factory=dict)
    """`Member.losses` by index, from before the replay or when the member came back in sync."""


# -- taking the pool


async def take(newest: Superblock, members: list[Member | None], env: Environment) -> Roster:
    """Raise the epoch on every member in sync and read it back (R16).

    Raises:
        FencedError: another daemon took the pool at the same time.
        FormatVersionError: the pool has a feature that this version can read but not write (R19).
        PoolError: no attached member is in sync, or none takes a superblock.
    """
    if newest.read_only:
        raise FormatVersionError(
            "the pool uses a feature that this cenote can check but not write: upgrade"
        )
    rows: list[MemberRow] = [
        replace(row, stale_since=newest.durable_commit, left=Left(newest.seen))
        if member is None and row.stale_since is None
        else row
        for row, member in zip(newest.members, members, strict=True)
    ]
    holder = env.new_uuid()
    taken = replace(newest, epoch=newest.epoch + 1, holder=holder, clean=False)
    roster = Roster(taken, members, rows)
    if not roster.in_sync():
        raise PoolError("no member in sync is attached; attach the others")
    await roster.publish()
    await roster.check_fence()
    for member in roster.in_sync():
        theirs = await read_superblock(member.device)
        if theirs is None or theirs.holder != holder:
            raise FencedError(f"the pool could not be taken: member={member.name}")
    return roster


# -- the checkpoint and the log


async def load_root(sb: Superblock, table: SegmentTable, segment_io: SegmentIO) -> Root | None:
    """Return the newest checkpoint's root, or None for a pool without a checkpoint. Recovery reads
    only what the root names (R8).

    Raises:
        DamagedError: no copy of the root is good.
    """
    if not sb.root.checkpoint:
        return None
    number = sb.root.a >> 25
    table.adopt(number, sb.root.copies)
    try:
        data = await segment_io.read_located(sb.root.a, sb.root.b, checkpoint_root.ROOT_BYTES_MAX)
    except DeviceError as error:
        raise DamagedError(f"the newest checkpoint is damaged on every copy: {error}") from error
    if digest_of(data) != sb.root.digest:
        raise DamagedError("the newest checkpoint does not match its superblock")
    made = checkpoint_root.unpack(data)
    for extra, copies in made.extra:
        table.adopt(extra, copies)
    return made


async def read_pieces(segment_io: SegmentIO, pieces: list[Piece], what: str) -> bytes:
    """Return metadata that is stored in pieces; `what` names it in messages.

    Raises:
        DamagedError: a piece has no good copy.
    """
    try:
        return b"".join([await segment_io.read_located(a, b, PIECE_BYTES_MAX) for a, b in pieces])
    except DeviceError as error:
        raise DamagedError(f"the {what} is damaged on every copy: {error}") from error


async def load_directories(made: Root, segment_io: SegmentIO, blockmap: BlockMap) -> None:
    """Read the page directories of all layers; the pages are read when they are needed.

    Raises:
        DamagedError: a directory has no good copy, or its layer is unknown.
    """
    index = checkpoint_root.unpack_index(
        await read_pieces(segment_io, made.directories, "directory index")
    )
    for layer_number, chunk_number, a, b in index:
        layer = blockmap.layers.get(layer_number)
        if layer is None:
            raise DamagedError(f"directory of an unknown layer: layer={layer_number}")
        try:
            blob = await segment_io.read_located(a, b, pages.CHUNK_BYTES)
        except DeviceError as error:
            raise DamagedError(
                f"a page directory is damaged on every copy: layer={layer_number}: {error}"
            ) from error
        layer.directory.put(chunk_number, pages.decode_chunk(blob), (a, b))


async def load(
    roster: Roster, members: list[Member | None], cache_bytes: int, *, was_clean: bool
) -> Opened:
    """Load the newest checkpoint, replay the log behind it, and bring its copies level.

    Raises:
        DamagedError: metadata, or a commit that was durable, is damaged on every copy.
        DeviceError: the end of the log cannot be read.
    """
    opened = await load_checkpoint(roster, members, cache_bytes)
    opened.losses = {member.index: member.losses for member in members if member is not None}
    async with aclosing(replay(opened, was_clean=was_clean)) as commits:
        async for _ in commits:
            pass
    return opened


async def load_checkpoint(
    roster: Roster, members: list[Member | None], cache_bytes: int, *, repair: bool = True
) -> Opened:
    """Return the pool as of its newest checkpoint; with `repair`, bad copies are repaired.

    Raises:
        DamagedError: metadata is damaged on every copy.
    """
    sb = roster.superblock
    table = SegmentTable(members, sb.segment_bytes, sb.copies)
    segment_io = SegmentIO(table, repair=repair)
    made = await load_root(sb, table, segment_io)
    catalogue = Catalogue()
    blockmap = BlockMap(segment_io, table, cache_bytes)
    start = LogPosition(0, 0, 0, 0)
    meta_end: tuple[int, int] | None = None
    usage, stock = Usage(), Stock()
    if made is not None:
        catalogue = Catalogue.unpack(await read_pieces(segment_io, made.catalogue, "catalogue"))
        rows = await read_pieces(segment_io, made.segments, "segment table")
        table = SegmentTable(members, sb.segment_bytes, sb.copies)
        table.load(rows)
        table.next_number = max(table.next_number, made.next_segment)
        for number, copies in ((sb.root.a >> 25, sb.root.copies), *made.extra):
            known = table.get(number)
            if known is None:
                known = table.adopt(number, copies)
                known.role = Role.META
            # The rows were made before the last pieces were written: the exact end is not known.
            known.used_bytes = table.segment_bytes
        segment_io = SegmentIO(table, repair=repair)
        blockmap = BlockMap(segment_io, table, cache_bytes)
        make_layers(sorted(catalogue.layers), catalogue, blockmap)
        await load_directories(made, segment_io, blockmap)
        usage = Usage.unpack(
            await read_pieces(segment_io, made.usage, "usage table"), made.map_bytes
        )
        start = made.position
        meta_end = _end_of(sb)
        stock = take_stock(table.all(), lambda segment: segment.live_bytes, start, meta_end)
    for jump in sb.jumps:
        table.adopt(jump.segment, jump.copies).announced_in = jump.after_commit
    return Opened(
        roster,
        table,
        segment_io,
        blockmap,
        catalogue,
        start,
        made,
        usage,
        stock,
        meta_end,
        replayed=0,
    )


def _end_of(sb: Superblock) -> tuple[int, int]:
    """(segment, offset) behind the root, which is the last piece of its checkpoint."""
    offset = (sb.root.a >> 3 & (1 << 22) - 1) * 64 + (sb.root.b & 0xFFFF) + 1
    return sb.root.a >> 25, -(-offset // sb.commit_align) * sb.commit_align


async def replay(
    opened: Opened, *, level: bool = True, was_clean: bool = False
) -> AsyncGenerator[Found, None]:
    """Apply the log behind the checkpoint, many commits at once, and yield each commit.

    After a clean stop there are no commits. With `level`, the copies of commits that are not known
    to be durable are made alike (R3). Raises as `Replay.commits_in_order`.
    """
    sb = opened.roster.superblock
    # The log leaves a segment only behind a commit that is durable, so jumps name such commits.
    durable = max(sb.durable_commit, *(jump.after_commit for jump in sb.jumps), 0)
    walk = Replay(
        opened.table, sb.pool_uuid, sb.jumps, opened.position, durable,
        opened.roster.last_holders, level=level, was_clean=was_clean,
    )  # fmt: skip
    batch: list[Records] = []
    count = 0
    async with aclosing(walk.commits_in_order()) as commits:
        async for found in commits:
            batch.append(found.records)
            count += found.records.count
            is_full = len(batch) >= BATCH_COMMITS or count >= BATCH_RECORDS
            if is_full or found.records.operations:
                _apply(opened, batch)
                count = 0
            yield found
    _apply(opened, batch)
    opened.position = walk.end
    opened.replayed = walk.commits


def _apply(opened: Opened, batch: list[Records]) -> None:
    """Apply a batch of commits. Only the last may have operations, which follow its writes."""
    opened.blockmap.apply_all(batch)
    for records in batch:
        for operation in records.operations:
            changes = operations.apply(opened.catalogue, decode(operation))
            make_layers(changes.made, opened.catalogue, opened.blockmap)
            follow(changes, opened.blockmap)
    batch.clear()


async def begin(opened: Opened, *, was_clean: bool) -> None:
    """Fix the end of the log before anything is served (R2).

    After a clean stop the log goes on where it was. Otherwise the replayed commits are flushed on
    all copies, as they may only have been in a cache, and the log goes on in a fresh segment.

    Raises:
        DeviceError: the replayed commits cannot be made durable.
        NoSpaceError: no segment is free.
    """
    roster, table, at = opened.roster, opened.table, opened.position
    for each in table.all():  # data that no commit came to name is dead
        each.last_commit = min(each.last_commit, at.commit)
    segment = table.get(at.announced or at.segment)
    if was_clean and segment is not None and table.has_all_copies(segment):
        _seal_others(opened, keep=segment.number)
        return
    _refuse_if_unsafe(opened)
    failures = await opened.segment_io.flush(roster.in_sync())
    if failures:
        raise DeviceError(
            f"a member cannot be flushed, detach it or repair it: "
            f"member={failures[0].member.name}: {failures[0].error}"
        )
    for member in roster.in_sync():
        known = opened.losses.get(member.index, member.losses)
        if opened.replayed and member.losses != known:
            raise DeviceError(f"a member lost writes meanwhile, open again: member={member.name}")
    fresh = await table.allocate(announced_in=at.commit)
    jump = Jump(at.commit, at.checksum, fresh.number, fresh.copies)
    await roster.publish(
        lambda sb: replace(sb, jumps=with_jump(sb.jumps, jump), durable_commit=at.commit)
    )
    opened.position = LogPosition(at.commit, at.checksum, fresh.number, 0)
    _seal_others(opened, keep=fresh.number)
    log.info("log recovered: commits_replayed=%d end_of_log=%d", opened.replayed, at.commit)


def _refuse_if_unsafe(opened: Opened) -> None:
    """Check that each replayed commit is on a member in sync, or was durable on a stale one.

    Raises:
        DeviceError: a segment is only on members that fail, so it cannot be made durable.
    """
    known = opened.root.position.commit if opened.root else 0
    for segment in opened.table.all():
        if segment.last_commit <= known or not segment.places:
            continue
        holders = [member for member, _ in segment.places]
        if not any(m.in_sync or (m.stale_since or 0) >= segment.last_commit for m in holders):
            raise DeviceError(
                "the end of the log is only on members that fail, and cannot be made durable; "
                f"see to the disk, or attach missing members: member={holders[0].name} "
                f"segment={segment.number} commit={segment.last_commit}"
            )


def _seal_others(opened: Opened, keep: int) -> None:
    meta = opened.meta_end[0] if opened.meta_end else 0
    if meta and not opened.table.has_all_copies(opened.table[meta]):
        meta = 0
    for segment in opened.table.all():
        if segment.state is State.OPEN and segment.number not in (keep, meta):
            segment.state = State.SEALED
            segment.announced_in = min(segment.announced_in, opened.position.commit)
