"""Sparse byte array whose copies share their unchanged chunks.

The content is a dict of immutable 4 KiB chunks; a missing chunk is zeroes. A copy
copies the dict only (about 0.1 ms for 64 MiB of content), so a simulated reboot
is cheap.
"""

from collections.abc import Iterator

from blockdev.device import Extent

CHUNK_BYTES = 4096
_ZEROES = bytes(CHUNK_BYTES)


class SparseBytes:
    """Bytes from 0 to anywhere, zero until written. Callers check ranges."""

    __slots__ = ("_chunks",)

    def __init__(self, chunks: dict[int, bytes] | None = None) -> None:
        self._chunks: dict[int, bytes] = {} if chunks is None else chunks

    def copy(self) -> "SparseBytes":
        """Return an independent copy; costs one pointer a chunk."""
        return SparseBytes(self._chunks.copy())

    def read(self, offset: int, length: int) -> bytes:
        """Return a copy of the range."""
        first, start = divmod(offset, CHUNK_BYTES)
        end = start + length
        if end <= CHUNK_BYTES:
            return self._chunks.get(first, _ZEROES)[start:end]
        get = self._chunks.get
        count = -(-end // CHUNK_BYTES)
        whole = b"".join([get(chunk, _ZEROES) for chunk in range(first, first + count)])
        return whole[start:end]

    def write(self, offset: int, data: bytes) -> None:
        """Put `data` at `offset`; keeps `data` itself as the chunk if it is one whole chunk."""
        for chunk, start, at, length in _pieces(offset, len(data)):
            piece = data[at : at + length]
            if length < CHUNK_BYTES:
                old = self._chunks.get(chunk, _ZEROES)
                piece = old[:start] + piece + old[start + length :]
            self._chunks[chunk] = piece

    def zero(self, offset: int, length: int) -> None:
        """Zero the range; whole chunks become holes."""
        if length > len(self._chunks) * CHUNK_BYTES:
            self._zero_present(offset, length)
            return
        for chunk, start, _, count in _pieces(offset, length):
            self._zero_piece(chunk, start, count)

    def extents(self, offset: int, length: int) -> list[Extent]:
        """Return the extents of the range: missing chunks are holes of zeroes, others data."""
        end = offset + length
        found: list[Extent] = []
        at = start = offset  # data from `start` to `at`, and all before it is in `found`
        for chunk in self._present(offset // CHUNK_BYTES, -(-end // CHUNK_BYTES)):
            low = max(chunk * CHUNK_BYTES, offset)
            if low > at:
                found += [*_extent(at - start, hole=False), *_extent(low - at, hole=True)]
                start = low
            at = min((chunk + 1) * CHUNK_BYTES, end)
        return [*found, *_extent(at - start, hole=False), *_extent(end - at, hole=True)]

    def _present(self, first: int, end: int) -> list[int]:
        """Return the indices of the present chunks from `first` up to `end`, ascending."""
        chunks = self._chunks
        if end - first > len(chunks):
            return sorted(chunk for chunk in chunks if first <= chunk < end)
        return [chunk for chunk in range(first, end) if chunk in chunks]

    def _zero_present(self, offset: int, length: int) -> None:
        """Zero a range longer than the content: walk the content, not the range."""
        end = offset + length
        for chunk in [*self._chunks]:
            low = max(chunk * CHUNK_BYTES, offset)
            high = min(chunk * CHUNK_BYTES + CHUNK_BYTES, end)
            if low < high:
                self._zero_piece(chunk, low - chunk * CHUNK_BYTES, high - low)

    def _zero_piece(self, chunk: int, start: int, length: int) -> None:
        if length == CHUNK_BYTES:
            self._chunks.pop(chunk, None)
        elif (old := self._chunks.get(chunk)) is not None:
            self._chunks[chunk] = old[:start] + _ZEROES[:length] + old[start + length :]


def _extent(length_bytes: int, *, hole: bool) -> list[Extent]:
    return [Extent(length_bytes, hole=hole, zero=hole)] if length_bytes else []


def _pieces(offset: int, length: int) -> Iterator[tuple[int, int, int, int]]:
    """Cut a range at chunks: (chunk, start in the chunk, position in the range, length)."""
    done = 0
    while done < length:
        chunk, start = divmod(offset + done, CHUNK_BYTES)
        count = min(CHUNK_BYTES - start, length - done)
        yield chunk, start, done, count
        done += count
