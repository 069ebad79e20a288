"""The check of a stopped pool, read-only: every checksum, every counter, every map entry.

In order: superblocks; the checkpoint's catalogue, tables and directories; every page, its
entries, and its inherited entries against those of the parent; the live counts of segments and the
usage of layers against the sums over pages and directories; every stored extent on every copy; then
the log behind the checkpoint, whole commits on every copy. All copies are read, not just the first.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from blockdev.errors import DeviceError
from storage.checkpoint.metadata_writer import PIECE_BYTES_MAX
from storage.errors import PoolError
from storage.format import codec, pages, superblock
from storage.format.codec import digest_of
from storage.format.entry import (
    BLOCK_BYTES,
    CHECK_MASK,
    EXTENT_BLOCKS_MAX,
    KIND_MASK,
    KNOWN_KINDS,
    RAW,
    Words,
    live_by_segment,
    unpack,
)
from storage.format.pages import PAGE_BLOB_BYTES_MAX
from storage.format.superblock import RING_SLOTS, SUPERBLOCK_BYTES, Superblock
from storage.info import CheckReport
from storage.map.layer import Layer
from storage.map.page_reader import Merged
from storage.map.usage import DELETED
from storage.members.member import MemberDevice, closing_offset
from storage.members.roster import Roster
from storage.members.segments import Segment
from storage.recovery import assemble, opening
from storage.verify.check_log import check_log
from storage.verify.check_state import Check, Progress

PAGE_CACHE_BYTES = 16 << 20
WINDOW_BYTES = 4 << 20


async def check_pool(
    members: Sequence[MemberDevice], *, progress: Progress | None = None
) -> CheckReport:
    """Verify a stopped pool. Writes nothing.

    `progress` is called with (stage, done, total) now and then.

    Raises:
        PoolError: the checkpoint cannot be loaded, or the log cannot be followed; the message says
            what is damaged.
        DeviceError: no copy can be read of a part of the log.
    """
    found = await assemble.read_all(members)
    newest = assemble.newest_of(found)
    uuids = {row.uuid for row in newest.members}
    attached = assemble.attach(newest, found, without=uuids)
    roster = Roster(newest, attached, newest.members)
    opened = await opening.load_checkpoint(roster, attached, PAGE_CACHE_BYTES, repair=False)
    check = Check(opened, newest.clean, progress or (lambda *_: None))
    await _check_members(check, newest)
    await _check_tables(check, newest)
    await _check_pages(check)
    _check_counts(check)
    await _check_extents(check)
    await check_log(check)
    return CheckReport(
        newest.pool_uuid, check.commits, check.verified, check.bytes_verified, check.pages,
        check.damage,
    )  # fmt: skip


async def _check_members(check: Check, newest: Superblock) -> None:
    for member, row in zip(check.opened.roster.members, newest.members, strict=True):
        if member is None:
            check.add("member is missing", f"member={row.uuid} host={row.host}", repairable=True)
            continue
        if row.stale_since is not None:
            check.add("member is stale", f"member={member.name}", repairable=True)
        elif newest.clean:
            place = newest.sequence % RING_SLOTS * SUPERBLOCK_BYTES
            for offset in (place, closing_offset(member.size_bytes)):
                try:
                    sb = superblock.decode(await member.read(offset, SUPERBLOCK_BYTES))
                except DeviceError:
                    sb = None
                if sb is None or sb.order != newest.order:
                    where = f"member={member.name} offset={offset}"
                    check.add("superblock is damaged", where, repairable=True)


async def _check_tables(check: Check, newest: Superblock) -> None:
    """Verify all copies of root and tables; to load the checkpoint, one good copy was enough."""
    made = check.opened.root
    if made is None:
        return
    pieces = [("checkpoint root", newest.root.a, newest.root.b)]
    for part in ("catalogue", "segments", "directories", "usage"):
        pieces += [(part, a, b) for a, b in getattr(made, part)]
    for what, a, b in pieces:
        await _check_blob(check, a, b, PIECE_BYTES_MAX, what, is_counted=False)


# -- the map as of the checkpoint


async def _check_pages(check: Check) -> None:
    layers = [check.opened.blockmap.layers[n] for n in sorted(check.opened.blockmap.layers)]
    total = sum(1 for layer in layers for _ in layer.directory.pages())
    for layer in layers:
        for a, b in layer.directory.located.values():
            await _check_blob(check, a, b, pages.CHUNK_BYTES, f"directory of {layer.number}")
        for number in layer.directory.pages():
            await _check_page(check, layer, number)
            check.pages += 1
            if check.pages % 64 == 0:
                check.progress("pages", check.pages, total)
    check.progress("pages", check.pages, total)


async def _check_page(check: Check, layer: Layer, number: int) -> None:
    where = f"layer={layer.number} page={number}"
    row = layer.directory.get(number)
    assert row is not None
    good = [
        await _check_blob(check, row[at], row[at + 1], PAGE_BLOB_BYTES_MAX, f"map page, {where}")
        for at in (0, 2)
        if row[at]
    ]
    if not all(good):
        return
    try:
        merged = await _merged(check, layer, number)
    except DeviceError as error:
        check.add(f"map page cannot be read: {error}", where)
        return
    own = merged.entries[merged.own]
    _note_entries(check, own, where)
    for segment, stored in live_by_segment(own[:, 0], own[:, 1]).items():
        check.live[segment] += stored
    check.usage.add(layer.number, own)
    if layer.parent is not None:
        await _check_inherited(check, layer, layer.parent, number, merged, where)


async def _merged(check: Check, layer: Layer, number: int) -> Merged:
    return await check.opened.blockmap.read_merged(
        layer, number, lambda up, page: up.directory.get(page), lambda up: up.parent
    )


async def _check_inherited(
    check: Check, layer: Layer, parent: Layer, number: int, merged: Merged, where: str
) -> None:
    try:
        of_parent = await _merged(check, parent, number)
    except DeviceError:
        return  # reported when the page of the parent is checked
    differ = ~merged.own & (merged.entries != of_parent.entries).any(axis=1)
    for slot in differ.nonzero()[0].tolist():
        # A hint may name the place of a block before it was moved, which is good until it is freed.
        hint, exact = merged.entries[slot].tolist(), of_parent.entries[slot].tolist()
        kinds = hint[0] & KIND_MASK, exact[0] & KIND_MASK
        if max(kinds) < RAW:
            continue  # zeroes, for which a layer without a parent keeps no entries
        if min(kinds) < RAW or hint[1] == exact[1]:
            same = hint[1] == exact[1] and kinds[0] == kinds[1]
        else:
            same = await _block_at(check, *hint) == await _block_at(check, *exact)
        if not same:
            check.add("inherited entries differ from the parent's", where)
            return


async def _block_at(check: Check, a: int, b: int) -> bytes | None:
    """The block behind an entry; None when no copy is good, which is reported elsewhere."""
    at = unpack(a, b)
    try:
        plain = await check.opened.segment_io.read_located(a, b, EXTENT_BLOCKS_MAX * BLOCK_BYTES)
    except DeviceError:
        return None
    return plain[at.index * BLOCK_BYTES : (at.index + 1) * BLOCK_BYTES]


async def _check_blob(
    check: Check, a: int, b: int, plain_bytes_max: int, what: str, *, is_counted: bool = True
) -> bool:
    """Verify one piece of metadata on every copy; False when no copy is good.

    `is_counted`: live counts include this piece; they do for pages and directories, not for tables.
    """
    at = unpack(a, b)
    segment = check.opened.table.get(at.segment)
    if segment is None:
        check.add("metadata points to no segment", f"{what} segment={at.segment}")
        return False
    if is_counted:
        check.live[at.segment] += at.stored_bytes
        check.usage.map_bytes += at.stored_bytes
    bad, good = [], 0
    for member, base in segment.places:
        try:
            stored = await member.read(base + at.offset, at.stored_bytes)
            if digest_of(stored) & CHECK_MASK != at.check:
                raise PoolError("checksum mismatch")
            codec.expand(at.kind, stored, plain_bytes_max)
            good += 1
            check.bytes_verified += at.stored_bytes
        except DeviceError as error:
            bad.append(
                f"{what} segment={at.segment} offset={at.offset} member={member.name}: {error}"
            )
    for where in bad:
        check.add("metadata is damaged", where, repairable=bool(good))
    return good > 0


def _note_entries(check: Check, entries: Words, where: str) -> None:
    kinds = entries[:, 0] & np.uint64(KIND_MASK)
    for kind in np.unique(kinds).tolist():
        if kind not in KNOWN_KINDS:
            check.add("map entry of an unknown kind", f"{where} kind={kind}")
    for a, b in entries[kinds >= RAW].tolist():
        at = unpack(a, b)
        if at.index >= at.blocks:
            check.add("map entry beyond its extent", where)
        segment = check.opened.table.get(at.segment)
        if segment is None or at.offset + at.stored_bytes > check.opened.table.segment_bytes:
            check.add("map entry points to no place", f"{where} segment={at.segment}")
            continue
        held = check.extents.setdefault(at.segment, {})
        known = held.setdefault(at.offset, (at.stored_bytes, at.check))
        if known != (at.stored_bytes, at.check):
            check.add("two map entries disagree on one place", f"{where} segment={at.segment}")


def _check_counts(check: Check) -> None:
    if check.opened.root is None:
        return
    for segment in check.opened.table.all():
        counted = check.live.pop(segment.number, 0)
        if counted != segment.live_bytes:
            check.add(
                "live count is wrong",
                f"segment={segment.number} recorded={segment.live_bytes} counted={counted}",
            )
    _check_usage(check)


def _check_usage(check: Check) -> None:
    """Compare the recorded usage of layers with the counted one, and its sum with live counts."""
    catalogue, recorded, counted = check.opened.catalogue, check.opened.usage, check.usage
    merging = catalogue.merging()
    for number, _, _ in [*counted]:
        if catalogue.layers[number].dying:
            counted.move(number, DELETED)
        elif number in merging:
            counted.move(number, _end_of_merges(merging, number))
    said = {*recorded}
    for layer, blocks, stored_bytes in sorted(said ^ {*counted}):
        how = "recorded" if (layer, blocks, stored_bytes) in said else "counted"
        where = f"layer={layer} {how}: blocks={blocks} bytes={stored_bytes}"
        check.add("usage of a layer is wrong", where)
    if recorded.map_bytes != counted.map_bytes:
        where = f"recorded={recorded.map_bytes} counted={counted.map_bytes}"
        check.add("size of the map is wrong", where)
    held = sum(segment.live_bytes for segment in check.opened.table.all())
    if recorded.data_bytes + recorded.map_bytes != held:
        where = f"data={recorded.data_bytes} map={recorded.map_bytes} segments={held}"
        check.add("layers and map do not add up to what segments hold", where)


def _end_of_merges(merging: dict[int, int], number: int) -> int:
    while number in merging:
        number = merging[number]
    return number


# -- stored data


async def _check_extents(check: Check) -> None:
    total = sum(len(held) for held in check.extents.values())
    done = 0
    for number in sorted(check.extents):
        segment = check.opened.table[number]
        await _check_segment(check, segment, check.extents[number])
        done += len(check.extents[number])
        check.progress("extents", done, total)


async def _check_segment(check: Check, segment: Segment, held: dict[int, tuple[int, int]]) -> None:
    bad: Counter[int] = Counter()
    findings: list[tuple[int, str]] = []
    for member, base in segment.places:
        for offset in await _bad_extents(check, segment, held, member.read, base):
            bad[offset] += 1
            findings.append((offset, member.name))
    check.verified += len(held)
    for offset, name in findings:
        check.add(
            "data is damaged",
            f"segment={segment.number} offset={offset} member={name}",
            repairable=bad[offset] < len(segment.places),
        )
    if not segment.places:
        check.add("every member that holds this is missing", f"segment={segment.number}")


async def _bad_extents(  # type: ignore[no-untyped-def]
    check: Check, segment: Segment, held: dict[int, tuple[int, int]], read, base: int
) -> list[int]:
    """Offsets of the extents of one copy that do not match their hashes."""
    bad: list[int] = []
    start, window = 0, memoryview(b"")
    for offset in sorted(held):
        stored, expected = held[offset]
        if not start <= offset <= offset + stored <= start + len(window):
            start = offset
            length = min(WINDOW_BYTES, check.opened.table.segment_bytes - offset)
            try:
                window = memoryview(await read(base + start, length))
            except DeviceError:
                window = memoryview(b"")
                bad.append(offset)
                continue
        piece = window[offset - start : offset - start + stored]
        if digest_of(piece) & CHECK_MASK != expected:
            bad.append(offset)
        else:
            check.bytes_verified += stored
    return bad
