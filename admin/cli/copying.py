"""Copies between files, disks and NBD exports."""

import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from admin.cli.inspect import run
from admin.daemon.devices import make_file, open_local
from admin.errors import UsageError
from admin.reports.nbd import CopiedReport
from admin.sizes import human
from blockdev.device import BlockDevice
from nbd.client import ClientOptions, open_nbd
from nbd.copy import Copy, CopySettings

RECONNECT_S = 15.0
"""Enough for a server to restart; longer would look to the user as if the command hung."""


@dataclass(frozen=True, slots=True)
class CopyOptions:
    """The ends of a copy and its settings; each end is a path or an NBD URI."""

    source: str
    destination: str
    connections: int
    requests: int
    request_bytes: int
    verify: bool


def is_uri(end: str) -> bool:
    """Whether an end is a URI; it is a path otherwise."""
    return "://" in end


def run_copy(options: CopyOptions, progress: Callable[[str, int, int], None]) -> CopiedReport:
    """Copy one end to the other, and read the copy back if the options say so.

    On an error, a file that this call made is removed, and one that was empty is emptied.

    Raises:
        UsageError: the ends do not fit; nothing was written.
        ServerError: an NBD server cannot be used.
        DeviceError: an end failed.
    """
    return run(_copy, options, progress)


async def _copy(options: CopyOptions, progress: Callable[[str, int, int], None]) -> CopiedReport:
    async with (
        _opened(options.source, options, read_only=True) as source,
        _destination(options, source) as (destination, clean),
    ):
        settings = CopySettings(
            requests_max=options.requests,
            request_bytes=options.request_bytes,
            destination_is_zero=clean,
            digests=options.verify,
        )
        what = "copying"

        def show(done: int, total: int) -> None:
            progress(what, done, total)

        copy = Copy(source, destination, settings, show)
        started = time.monotonic()
        counts = await copy.run()
        took_s = time.monotonic() - started
        mismatches: list[int] = []
        if options.verify:
            what = "verifying"
            mismatches = await copy.verify()
        return CopiedReport(
            source=options.source,
            destination=options.destination,
            size_bytes=source.size_bytes,
            copied_bytes=counts.copied_bytes,
            zeroed_bytes=counts.zeroed_bytes,
            skipped_bytes=counts.skipped_bytes,
            took_s=round(took_s, 3),
            verified=None if not options.verify else not mismatches,
            mismatches=mismatches,
        )


@asynccontextmanager
async def _opened(end: str, options: CopyOptions, *, read_only: bool) -> AsyncIterator[BlockDevice]:
    if is_uri(end):
        client = ClientOptions(
            read_only=read_only, connections=options.connections, reconnect_s=RECONNECT_S
        )
        async with open_nbd(end, options=client) as remote:
            if remote.size_bytes != remote.export.size_bytes:
                raise UsageError(
                    f"the export ends within a block, which cannot be reached: {end} "
                    f"size={remote.export.size_bytes} block={remote.block_bytes}"
                )
            yield remote
        return
    local = open_local(Path(end), read_only=read_only)
    try:
        yield local
    finally:
        with trio.CancelScope(shield=True):
            await local.close()


@asynccontextmanager
async def _destination(
    options: CopyOptions, source: BlockDevice
) -> AsyncIterator[tuple[BlockDevice, bool]]:
    """Open or make the destination, and say whether it is known to be all zeroes."""
    path = None if is_uri(options.destination) else Path(options.destination)
    if path is None or (path.exists() and not is_empty_file(path)):
        async with _opened(options.destination, options, read_only=False) as device:
            _check_fit(source, device, options)
            yield device, False
        return
    made = not path.exists()
    try:
        device = make_file(path, source.size_bytes)
        try:
            yield device, True
        finally:
            with trio.CancelScope(shield=True):
                await device.close()
    except BaseException:
        if made:
            path.unlink(missing_ok=True)
        else:
            os.truncate(path, 0)
        raise


def is_empty_file(path: Path) -> bool:
    """Whether the path is a file of no size."""
    return path.is_file() and path.stat().st_size == 0


def _check_fit(source: BlockDevice, destination: BlockDevice, options: CopyOptions) -> None:
    size, room = source.size_bytes, destination.size_bytes
    if room < size:
        raise UsageError(
            f"the destination is too small, nothing was written: {options.destination} has "
            f"{human(room)}, {human(size)} are needed (bytes: {room}, {size}); choose or make a "
            "larger one (a volume grows with cenote volume resize)"
        )
    block = max(source.block_bytes, destination.block_bytes)
    if size % block:
        raise UsageError(
            f"the source does not end with a block of {block} bytes, which one end demands: "
            f"{options.source} has {size} bytes; nothing was written"
        )
