"""Verifies the log behind the checkpoint of a stopped pool: every commit, whole, on every copy."""

from contextlib import aclosing

from blockdev.errors import DeviceError
from storage.format import commit
from storage.recovery import opening
from storage.recovery.replay import Found
from storage.verify.check_state import Check


async def check_log(check: Check) -> None:
    """Replay the log in memory, and verify each commit on all copies.

    Raises:
        DamagedError: a commit that was durable is damaged on every copy (R3).
        DeviceError: no copy can be read of what may be a commit.
    """
    async with aclosing(
        opening.replay(check.opened, level=False, was_clean=check.was_clean)
    ) as commits:
        async for found in commits:
            check.commits += 1
            await _check_commit(check, found)
            if check.commits % 64 == 0:
                check.progress("commits", check.commits, check.commits)


async def _check_commit(check: Check, found: Found) -> None:
    """Read one commit on every copy.

    A torn copy above the durable point is no damage as long as another copy is whole (R3).
    """
    header, whole, torn = found.header, 0, []
    for member, base in found.segment.places:
        try:
            data = memoryview(await member.read(base + header.offset, header.total_bytes))
        except DeviceError:
            data = memoryview(b"")
        is_good = len(data) == header.total_bytes and commit.payload_is_good(
            data, header, found.records
        )
        if is_good and commit.decode_header(data) == header:
            whole += 1
            check.bytes_verified += len(data)
        else:
            torn.append(member.name)
    durable = header.number <= check.opened.roster.superblock.durable_commit
    for name in torn if durable or not whole else ():
        check.add(
            "commit is damaged",
            f"commit={header.number} segment={header.segment} offset={header.offset} member={name}",
            repairable=bool(whole),
        )
