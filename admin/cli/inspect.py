"""Asks NBD servers for the properties of their exports."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar, TypeVarTuple

import trio

from admin.errors import ServerError
from admin.reports.nbd import ExportAbout, InfoReport, MapSummary
from nbd.client import ClientOptions, ExportReport, describe, open_nbd
from nbd.constants import ExportFlag
from nbd.errors import NbdError
from nbd.uri import NbdUri, parse_uri

T = TypeVar("T")
Args = TypeVarTuple("Args")

LOOK_BYTES = 1 << 40
"""Range of one request for extents; a server answers for less where that would take long."""
CLIENT = ClientOptions(read_only=True, connections=1, reconnect_s=0)


def run(act: Callable[[*Args], Awaitable[T]], *args: *Args) -> T:
    """Run an async function that talks to NBD servers, and return its result.

    Raises:
        ServerError: for every NbdError.
        Exception: any other, without groups around it.
    """
    try:
        # Elsewhere, Ctrl-C in the middle of a nursery's end would leave trio in disorder.
        return trio.run(act, *args, restrict_keyboard_interrupt_to_checkpoints=True)
    except NbdError as error:
        raise ServerError(str(error)) from error
    except BaseExceptionGroup as group:
        first = _first_leaf(group.subgroup(Exception) or group)
        raise (ServerError(str(first)) if isinstance(first, NbdError) else first) from group


def inspect(uri: str, *, with_map: bool) -> InfoReport:
    """Ask a server for the properties of the export that the URI names, or else of all exports.

    Raises:
        ServerError: the server cannot be reached, or refuses the export.
    """
    return run(_inspect, uri, with_map)


async def _inspect(uri: str, with_map: bool) -> InfoReport:
    where = parse_uri(uri)
    exports = []
    for found in await describe(where, options=CLIENT):
        about = _about(found)
        if where.export and found.about is None:
            raise ServerError(found.problem)
        if with_map and found.about is not None:
            about = replace(about, map=await _summary(replace(where, export=found.name)))
        exports.append(about)
    return InfoReport(str(where), exports)


def _about(found: ExportReport) -> ExportAbout:
    mode, about = found.mode.value, found.about
    if about is None:
        return ExportAbout(found.name, mode, found.tls, problem=found.problem)
    flags = [
        (flag.name or "").removeprefix("SEND_").removeprefix("CAN_").lower().replace("_", "-")
        for flag in ExportFlag
        if flag in about.flags and flag not in (ExportFlag.HAS_FLAGS, ExportFlag.READ_ONLY)
    ]
    return ExportAbout(
        name=found.name,
        mode=mode,
        tls=found.tls,
        size_bytes=about.size_bytes,
        description=about.description,
        read_only=ExportFlag.READ_ONLY in about.flags,
        flags=flags,
        block_bytes=about.block_bytes,
        preferred_bytes=about.preferred_bytes,
        payload_bytes_max=about.payload_bytes_max,
        contexts=list(about.contexts),
    )


async def _summary(where: NbdUri) -> MapSummary:
    data = holes = zeroes = extents = offset = 0
    async with open_nbd(where, options=CLIENT) as device:
        last: tuple[bool, bool] | None = None
        while offset < device.size_bytes:
            length = min(LOOK_BYTES, device.size_bytes - offset)
            for extent in await device.extents(offset, length):
                if not extent.zero:
                    data += extent.length_bytes
                elif extent.hole:
                    holes += extent.length_bytes
                else:
                    zeroes += extent.length_bytes
                extents += (extent.hole, extent.zero) != last  # one extent may come in pieces
                last = extent.hole, extent.zero
                offset += extent.length_bytes
    return MapSummary(data, zeroes, holes, extents)


def _first_leaf(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
