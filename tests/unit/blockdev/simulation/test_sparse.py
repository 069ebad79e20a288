from hypothesis import given
from hypothesis import strategies as st

from blockdev.device import Extent
from blockdev.simulation.sparse import CHUNK_BYTES, SparseBytes

SIZE = 5 * CHUNK_BYTES


@given(
    st.lists(
        st.tuples(st.sampled_from("wzc"), st.integers(0, SIZE), st.integers(0, SIZE)), max_size=20
    )
)
def test_sparse_bytes_behave_like_an_array(steps: list[tuple[str, int, int]]) -> None:
    sparse, expected = SparseBytes(), bytearray(SIZE)
    for turn, (kind, offset, length) in enumerate(steps, 1):
        length = min(length, SIZE - offset)
        if kind == "w":
            expected[offset : offset + length] = bytes([turn]) * length
            sparse.write(offset, bytes([turn]) * length)
        elif kind == "z":
            expected[offset : offset + length] = bytes(length)
            sparse.zero(offset, length)
        else:
            sparse = sparse.copy()
        assert sparse.read(offset, length) == expected[offset : offset + length]
    assert sparse.read(0, SIZE) == expected


def test_copies_are_independent() -> None:
    one = SparseBytes()
    one.write(0, b"one")
    two = one.copy()
    two.write(0, b"two")
    one.zero(1, 1)
    assert (one.read(0, 3), two.read(0, 3)) == (b"o\0e", b"two")


def test_chunks_never_written_or_zeroed_whole_are_holes() -> None:
    sparse = SparseBytes()
    sparse.write(CHUNK_BYTES, b"x" * 2 * CHUNK_BYTES)
    sparse.zero(2 * CHUNK_BYTES, CHUNK_BYTES)
    assert sparse.extents(100, 4 * CHUNK_BYTES) == [
        Extent(CHUNK_BYTES - 100, hole=True, zero=True),
        Extent(CHUNK_BYTES, hole=False, zero=False),
        Extent(2 * CHUNK_BYTES + 100, hole=True, zero=True),
    ]


def test_zeroing_a_vast_range_walks_the_content_only() -> None:
    sparse = SparseBytes()
    sparse.write(10, b"abc")
    sparse.write(1 << 50, b"def")
    sparse.zero(11, 1 << 60)
    assert sparse.read(10, 3) == b"a\0\0"
    assert sparse.read(1 << 50, 3) == bytes(3)
