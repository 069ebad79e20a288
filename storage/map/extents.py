"""Describes a range of a layer as runs of data and runs of zeroes, exact to the block.

A block without stored bytes is zero: it was never written, or it was trimmed or zeroed.
Only pages that the layer or an ancestor has changed are looked at, so a large empty volume
costs no more than a small one. The entries of pages are compared in bulk.

A block reported as zero was zero at some moment of the call. Overlays and the list of changed pages
are read once, at the start of the call, and the pages later: a block that no overlay held at the
start and that is zero in its page either was zero at the start, or was zeroed since.
"""

from collections.abc import Sequence

import numpy as np
import trio
from numpy.typing import NDArray

from blockdev.device import EXTENTS_MAX, Extent
from storage.format.entry import BLOCK_BYTES, BLOCK_SHIFT, KIND_MASK, ZERO
from storage.format.pages import PAGE_BLOCKS, PAGE_SHIFT
from storage.map.blockmap import BlockMap
from storage.map.layer import Layer, within
from storage.map.overlay import Overlay
from storage.map.page import Page

PAGES_MAX = 1024
"""Mapped pages looked at in one call: 4 GiB of data, in some 5 ms if they are in memory."""
COLD_PAGES_MAX = 64
"""Mapped pages that one call reads from disk, each 1 or 2 random reads."""
PIECE_PAGES = 32
"""Pages between two turns of other tasks: some 100 us, or 10 ms where data and zeroes alternate."""
TRY_BYTES_MAX = 32 << 20
"""The longest range of `try_extents`: the largest READ, whose reply leaves the zeroes out."""

_KIND = np.uint64(KIND_MASK)
_ZERO = np.uint64(ZERO)

Flags = NDArray[np.bool_]
Blocks = NDArray[np.int64]


class _ExtentRuns:
    """Builds runs: the number of blocks of each; data and zeroes alternate."""

    def __init__(self) -> None:
        self.blocks: list[int] = []
        self._begins_zero = False

    @property
    def _ends_zero(self) -> bool:
        return self._begins_zero ^ (len(self.blocks) % 2 == 0)

    def add(self, blocks: int, *, zero: bool) -> None:
        """Append one run."""
        if not self.blocks:
            self._begins_zero = zero
        elif zero == self._ends_zero:
            self.blocks[-1] += blocks
            return
        self.blocks.append(blocks)

    def add_flags(self, zero: Flags) -> None:
        """Append runs from one flag per block, True for zero; shape (n,), n >= 1."""
        cuts = np.flatnonzero(zero[1:] != zero[:-1])
        if not len(cuts):
            self.add(len(zero), zero=bool(zero[0]))
            return
        self.add(int(cuts[0]) + 1, zero=bool(zero[0]))
        self.blocks += np.diff(cuts).tolist()
        self.blocks.append(len(zero) - 1 - int(cuts[-1]))

    def extents(self, skip_bytes: int, length_bytes: int) -> list[Extent]:
        """The runs as extents, cut to the range that begins `skip_bytes` into the first run."""
        lengths = [blocks << BLOCK_SHIFT for blocks in self.blocks[:EXTENTS_MAX]]
        over = sum(lengths) - skip_bytes - length_bytes
        lengths[0] -= skip_bytes
        lengths[-1] -= max(over, 0)
        zero = self._begins_zero
        found = []
        for length in lengths:
            found.append(Extent(length, zero, zero))
            zero = not zero
        return found


class Extents:
    """Describes ranges of layers; offsets and lengths are bytes, of any alignment."""

    def __init__(self, blockmap: BlockMap):
        self._map = blockmap

    def try_extents(self, layer: Layer, offset: int, length: int) -> list[Extent] | None:
        """Describe a whole range without suspending; None when that is not possible.

        It is not possible when a page has to be read, and for a range that is empty or longer than
        `TRY_BYTES_MAX`. Cost: about 10 us for a page.
        """
        if not 0 < length <= TRY_BYTES_MAX:
            return None
        first, end = offset >> BLOCK_SHIFT, offset + length + BLOCK_BYTES - 1 >> BLOCK_SHIFT
        pages: list[tuple[int, Page]] = []
        for number in range(first >> PAGE_SHIFT, (end - 1 >> PAGE_SHIFT) + 1):
            page = self._map.find_page(layer, number)
            if page is None:
                return None
            pages.append((number, page))
        runs = _ExtentRuns()
        runs.add_flags(_zero_flags(pages, _overlays(layer, first, end), first, end))
        return runs.extents(offset - (first << BLOCK_SHIFT), length)

    async def extents(self, layer: Layer, offset: int, length: int) -> list[Extent]:
        """Describe the beginning of a range, at least one extent unless the range is empty; the
        constants of this module say where the answer stops early.

        Raises:
            ChecksumError, DamagedError: a page of the map has no good copy.
        """
        if not length:
            return []
        first, end = offset >> BLOCK_SHIFT, offset + length + BLOCK_BYTES - 1 >> BLOCK_SHIFT
        low, high = first >> PAGE_SHIFT, (end - 1 >> PAGE_SHIFT) + 1
        overlays = _overlays(layer, first, end)
        numbers = layer.mapped_pages(low, high, PAGES_MAX)
        if overlays is not None:
            numbers = sorted({*numbers, *overlays.pages()})[:PAGES_MAX]
        if len(numbers) == PAGES_MAX:
            end = min(end, numbers[-1] + 1 << PAGE_SHIFT)
        runs = _ExtentRuns()
        at, done, cold = first, 0, 0
        while done < len(numbers) and len(runs.blocks) < EXTENTS_MAX:
            page = self._map.find_page(layer, numbers[done])
            if page is None:
                if cold == COLD_PAGES_MAX:
                    end = max(at, numbers[done] << PAGE_SHIFT)
                    break
                cold += 1
                page = await self._map.page(layer, numbers[done])
            pages = self._piece(layer, page, numbers[done : done + PIECE_PAGES])
            start = max(at, numbers[done] << PAGE_SHIFT)
            stop = min(end, pages[-1][0] + 1 << PAGE_SHIFT)
            if start > at:
                runs.add(start - at, zero=True)
            runs.add_flags(_zero_flags(pages, overlays, start, stop))
            at = stop
            done += len(pages)
            await trio.lowlevel.checkpoint()
        if at < end and len(runs.blocks) < EXTENTS_MAX:
            runs.add(end - at, zero=True)
        return runs.extents(offset - (first << BLOCK_SHIFT), length)

    def _piece(self, layer: Layer, page: Page, numbers: list[int]) -> list[tuple[int, Page]]:
        """`page`, the first of `numbers`, and those that follow it closely and are in memory."""
        pages = [(numbers[0], page)]
        for number in numbers[1:]:
            if number >= numbers[0] + PIECE_PAGES:
                break
            found = self._map.find_page(layer, number)
            if found is None:
                break
            pages.append((number, found))
        return pages


class Overlays:
    """The blocks and zero ranges in a range that were not durable at one moment."""

    def __init__(self, parts: Sequence[Overlay], first: int, end: int):
        """`parts`: newest first."""
        self._steps: list[tuple[Blocks, Blocks]] = []
        """Oldest first: zero ranges, shape (n, 2), then blocks written over them, ascending."""
        ranges: list[tuple[int, int]] = []
        blocks: list[int] = []
        for part in reversed(parts):
            zeroes = [(start, stop) for start, stop in part.zeroes if start < end and first < stop]
            if zeroes:
                self._end_step(ranges, blocks)
                ranges, blocks = zeroes, []
            blocks += within(part.index, first, end)
        self._end_step(ranges, blocks)

    def _end_step(self, ranges: list[tuple[int, int]], blocks: list[int]) -> None:
        if ranges or blocks:
            ends = np.array(ranges, dtype=np.int64).reshape(-1, 2)
            self._steps.append((ends, np.sort(np.array(blocks, dtype=np.int64))))

    def pages(self) -> list[int]:
        """The pages of the held blocks, with repeats; some of the blocks may be zero again."""
        held = [np.unique(blocks >> PAGE_SHIFT).tolist() for _, blocks in self._steps]
        return [number for numbers in held for number in numbers]

    def zero_ranges(self) -> list[tuple[int, int]]:
        """The zeroed ranges [first, end) of blocks; some of the blocks may be written again."""
        return [(start, stop) for ranges, _ in self._steps for start, stop in ranges.tolist()]

    def lay_over(self, zero: Flags, first: int, held: Flags | None = None) -> None:
        """Update `zero`, the flags of the blocks from `first` on; mark in `held` the blocks that
        overlays hold or zero.
        """
        end = first + len(zero)
        for ranges, blocks in self._steps:
            near = ranges[(ranges[:, 0] < end) & (ranges[:, 1] > first)] - first
            for start, stop in near.tolist():
                zero[max(start, 0) : stop] = True
                if held is not None:
                    held[max(start, 0) : stop] = True
            low, high = np.searchsorted(blocks, (first, end))
            zero[blocks[low:high] - first] = False
            if held is not None:
                held[blocks[low:high] - first] = True


def _zero_flags(
    pages: list[tuple[int, Page]], overlays: Overlays | None, first: int, end: int
) -> Flags:
    """Which blocks of [first, end) read as zeroes; blocks of pages that are not given count as
    zero."""
    number, page = pages[0]
    if len(pages) == 1 and first >> PAGE_SHIFT == end - 1 >> PAGE_SHIFT:
        zero = _zeroes_of(page, first, end)
    else:
        zero = np.ones(end - first, dtype=np.bool_)
        for number, page in pages:
            low, stop = max(number << PAGE_SHIFT, first), min(number + 1 << PAGE_SHIFT, end)
            zero[low - first : stop - first] = _zeroes_of(page, low, stop)
    if overlays is not None:
        overlays.lay_over(zero, first)
    return zero


def _zeroes_of(page: Page, first: int, end: int) -> Flags:
    at = first & PAGE_BLOCKS - 1
    zero: Flags = page.entries[at : at + end - first, 0] & _KIND <= _ZERO
    return zero


def _overlays(layer: Layer, first: int, end: int) -> Overlays | None:
    if not (layer.overlays or layer.inherited):
        return None
    return Overlays(layer.drained_overlays(), first, end)
