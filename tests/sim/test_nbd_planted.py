"""Planted bugs that other servers had: the model of `test_nbd_model` finds each of them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from typing_extensions import Buffer

from blockdev.device import Extent
from nbd.constants import WireError
from nbd.server.replies import ExtendedReplies, StructuredReplies
from nbd.server.transmission import Request, RequestParser, refusal
from storage.map.layer import Layer
from storage.map.reader import Reader
from storage.volumes.volume import Volume, VolumeState
from tests.sim.nbd_peer import Mode
from tests.sim.test_nbd_model import Handle, history

REQUESTS = 6000
HISTORIES = 8
"""Histories per bug: real sockets decide the timing of races, so one history may miss a bug."""
Patch = pytest.MonkeyPatch


async def finds_it(folder: Path, name: str, mode: Mode) -> None:
    found = False
    for seed in range(1, HISTORIES + 1):
        place = folder / str(seed)
        place.mkdir()
        try:
            await history(place, name, mode, seed, REQUESTS)
        except* (AssertionError, trio.BrokenResourceError):  # broken when the server itself noticed
            found = True
        if found:
            return
    raise AssertionError(f"not found in {HISTORIES} histories")


async def test_a_history_without_bugs(tmp_path: Path) -> None:
    await history(tmp_path, "volume", Mode.STRUCTURED, 1, REQUESTS)


async def test_a_lost_update(tmp_path: Path, monkeypatch: Patch) -> None:
    """Two clients write parts of one block at once, and one of the parts is lost."""

    @asynccontextmanager
    async def never_waits(self: VolumeState, first: int, end: int) -> AsyncIterator[None]:
        yield

    right = Reader.read

    async def slowly(self: Reader, layer: Layer, block: int, count: int) -> Buffer:
        data = await right(self, layer, block, count)
        for _ in range(4):  # as from a disk
            await trio.lowlevel.checkpoint()
        return data

    monkeypatch.setattr(Reader, "read", slowly)
    monkeypatch.setattr(VolumeState, "writing", never_waits)
    await finds_it(tmp_path, "volume", Mode.SIMPLE)


async def test_data_that_is_reported_as_zeroes(tmp_path: Path, monkeypatch: Patch) -> None:
    """Block status reports a block next to a hole as part of the hole, once in a while."""
    right = Volume.try_extents

    def wrong(self: Volume, offset: int, length: int) -> list[Extent] | None:
        extents = right(self, offset, length)
        if extents and len(extents) > 3 and extents[0].zero and extents[1].length_bytes == 4096:
            first, second = extents[:2]
            extents[:2] = [Extent(first.length_bytes + second.length_bytes, True, True)]
        return extents

    monkeypatch.setattr(Volume, "try_extents", wrong)
    await finds_it(tmp_path, "volume", Mode.STRUCTURED)


async def test_a_trim_that_takes_its_neighbours_along(tmp_path: Path, monkeypatch: Patch) -> None:
    """45."""
    right = Volume.trim

    async def wrong(self: Volume, offset: int, length: int, **how: bool) -> None:
        end = min(-(-(offset + length) // 4096) * 4096, self.size_bytes)
        await right(self, offset, end - offset, **how)

    monkeypatch.setattr(Volume, "trim", wrong)
    await finds_it(tmp_path, "volume", Mode.EXTENDED)


async def test_a_payload_that_is_overwritten_while_it_waits(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(RequestParser, "keep_payload", lambda self: self.payload)
    await finds_it(tmp_path, "volume", Mode.SIMPLE)


@pytest.mark.parametrize("mode", [Mode.STRUCTURED, Mode.EXTENDED])
async def test_pieces_in_the_wrong_place(tmp_path: Path, monkeypatch: Patch, mode: Mode) -> None:
    kind = StructuredReplies if mode is Mode.STRUCTURED else ExtendedReplies
    right = kind.piece

    def wrong(self: Any, cookie: int, offset: int, at: int, length: int, *, last: bool) -> bytes:
        return right(self, cookie, offset, offset if last else at, length, last=last)

    monkeypatch.setattr(kind, "piece", wrong)
    await finds_it(tmp_path, "volume", mode)


async def test_a_range_that_wraps_around(tmp_path: Path, monkeypatch: Patch) -> None:
    """The check of a request's range overlooks that offset plus length may pass 64 bits."""
    right = refusal

    def wrong(request: Request, **export: Any) -> WireError | None:
        return None if request[4] + request[5] >= 2**64 else right(request, **export)

    monkeypatch.setattr("nbd.server.session.refusal", wrong)
    await finds_it(tmp_path, "memory", Mode.SIMPLE)


async def test_a_write_that_is_forgotten_once_in_a_while(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    """Every 100th write is answered but not carried out."""
    count = 0
    right = Handle.try_write

    def wrong(self: Handle, offset: int, data: Any) -> bool:
        nonlocal count
        count += 1
        return count % 100 == 0 or right(self, offset, data)

    monkeypatch.setattr(Handle, "try_write", wrong)
    await finds_it(tmp_path, "memory", Mode.STRUCTURED)
