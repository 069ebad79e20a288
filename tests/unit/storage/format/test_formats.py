"""The bytes on disk: golden values, round trips, and damaged or arbitrary bytes."""

import struct
from contextlib import suppress
from uuid import UUID

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from blockdev.errors import DeviceError
from storage.catalogue import operations
from storage.catalogue.catalogue import Catalogue
from storage.errors import DamagedError, FormatVersionError
from storage.format import checkpoint_root, codec, commit, entry, pages, superblock
from storage.format.checkpoint_root import LogPosition, Root
from storage.format.commit import CommitHeader, LayerExtents, Records
from storage.format.superblock import (
    Copy,
    Jump,
    Left,
    MemberRow,
    RootPointer,
    Seen,
    Superblock,
)
from storage.format.values import decode, encode

POOL = UUID(int=1)
ANY_BYTES = st.binary(max_size=4096)
U64 = st.integers(0, 2**64 - 1)


def a_superblock(**changes: object) -> Superblock:
    fields: dict[str, object] = {
        "pool_uuid": POOL, "member_index": 1, "holder": UUID(int=2), "epoch": 3, "sequence": 4,
        "durable_commit": 5, "segment_bytes": 32 << 20, "commit_align": 4096, "copies": 2,
        "clean": True, "root": RootPointer(6, 7, 8, 9, (Copy(0, 10), Copy(1, 11))),
        "jumps": (Jump(12, 13, 14, (Copy(1, 15),)),),
        "members": (
            MemberRow(UUID(int=16), "left", 1 << 30, 31),
            MemberRow(UUID(int=17), "r\u00fcckw\u00e4rts", 1 << 31, 63, 0, Left(Seen(18, 19), 20)),
        ),
    }  # fmt: skip
    return Superblock(**(fields | changes))  # type: ignore[arg-type]


def resealed(data: bytearray) -> bytes:
    struct.pack_into("<Q", data, 8, codec.digest_of(memoryview(data)[16:]))
    return bytes(data)


# Superblock


def test_superblocks_round_trip() -> None:
    assert superblock.decode(superblock.encode(a_superblock())) == a_superblock()


def test_superblock_fields_are_where_the_table_says() -> None:
    data = superblock.encode(a_superblock())
    assert len(data) == 16384
    assert data[:8] == b"CENOTESB"
    assert struct.unpack_from("<HHHH", data, 16) == (1, 2, 1, 1)
    assert data[48:64] == POOL.bytes
    assert struct.unpack_from("<QQQII", data, 80) == (3, 4, 5, 32 << 20, 4096)
    assert data[112:114] == b"\x02\x01"
    assert struct.unpack_from("<QQQQ", data, 120) == (6, 7, 8, 9)
    assert struct.unpack_from("<QQQ", data, 256) == (12, 13, 14)
    assert data[1280:1296] == UUID(int=16).bytes
    assert struct.unpack_from("<QQ", data, 1408 + 104) == (18, 19)
    assert struct.unpack_from("<Q", data, 8)[0] == codec.digest_of(data[16:])


@pytest.mark.parametrize("at", [0, 9, 16, 100, 300, 2000, 16383])
def test_a_superblock_with_one_wrong_byte_is_none(at: int) -> None:
    data = bytearray(superblock.encode(a_superblock()))
    data[at] ^= 1
    assert superblock.decode(data) is None


def test_a_newer_format_is_refused_by_name() -> None:
    data = bytearray(superblock.encode(a_superblock()))
    struct.pack_into("<H", data, 16, 2)
    with pytest.raises(FormatVersionError, match="newer cenote"):
        superblock.decode(resealed(data))


def test_an_unknown_incompatible_feature_is_refused_and_a_readable_one_is_read_only() -> None:
    """Rule R19."""
    data = bytearray(superblock.encode(a_superblock()))
    struct.pack_into("<Q", data, 32, 1)
    readable = superblock.decode(resealed(data))
    assert readable is not None
    assert readable.read_only
    struct.pack_into("<Q", data, 24, 1)
    with pytest.raises(FormatVersionError, match="features unknown"):
        superblock.decode(resealed(data))


@given(st.lists(st.tuples(st.integers(16, 2000), st.integers(0, 255)), max_size=40))
@settings(deadline=None)
def test_any_sealed_bytes_are_a_superblock_or_a_clear_error(changes: list[tuple[int, int]]) -> None:
    data = bytearray(superblock.encode(a_superblock()))
    for at, value in changes:
        data[at] = value
    with suppress(DeviceError):
        superblock.decode(resealed(data))


# Entries


@given(
    st.sampled_from([entry.RAW, entry.LZ4]), st.integers(0, entry.SEGMENT_NUMBER_MAX),
    st.integers(0, 2**22 - 1), st.integers(1, 65536), st.integers(1, 16), U64,
)  # fmt: skip
def test_entries_round_trip(
    kind: int, segment: int, grains: int, stored: int, blocks: int, digest: int
) -> None:
    a = entry.pack_a(kind, segment, grains * 64)
    b = entry.pack_b(stored, blocks, digest, index=blocks - 1)
    assert a < 2**64
    assert b < 2**64
    assert entry.unpack(a, b) == entry.Location(
        kind, segment, grains * 64, stored, blocks - 1, blocks, digest % 2**40
    )


@given(st.integers(1, 65536), st.integers(1, 16))
def test_the_shares_of_an_extent_add_up_to_its_stored_bytes(stored: int, blocks: int) -> None:
    a = np.full(blocks, entry.pack_a(entry.LZ4, 9, 0), dtype=np.uint64)
    words = [entry.pack_b(stored, blocks, 0, index=i) for i in range(blocks)]
    assert entry.live_by_segment(a, np.array(words, dtype=np.uint64)).get(9, 0) == stored


def test_absent_and_zero_blocks_hold_no_space() -> None:
    a = np.array([entry.ABSENT, entry.ZERO], dtype=np.uint64)
    assert entry.live_by_segment(a, np.zeros(2, dtype=np.uint64)) == {}


# Commits


def a_header(**changes: int) -> CommitHeader:
    fields = {
        "number": 7, "segment": 3, "offset": 4096, "total_bytes": 8192, "table_bytes": 100,
        "epoch": 2, "durable_through": 6, "previous": 99, "table_digest": 98,
    }  # fmt: skip
    return CommitHeader(POOL, **(fields | changes))


def test_commit_headers_round_trip() -> None:
    packed, checksum = commit.encode_header(a_header())
    assert len(packed) == 128
    assert commit.decode_header(packed) == a_header(checksum=checksum)


def test_a_header_that_claims_too_large_a_size_is_no_header() -> None:
    """Rule R18: a length field alone makes the parser neither read nor allocate."""
    for wrong in ({"total_bytes": commit.COMMIT_BYTES_MAX + 1}, {"table_bytes": 8192}):
        assert commit.decode_header(commit.encode_header(a_header(**wrong))[0]) is None


def some_records() -> Records:
    words = {name: np.array([5, 6], dtype=np.uint64) for name in ("blocks", "a", "b", "hash_tops")}
    return Records(
        [LayerExtents(4, **words)], [(4, 100, 1 << 30)], [b"\x81\xa2op\xa1x"],
        [(9, (Copy(0, 1), Copy(2, 3)))],
    )  # fmt: skip


def test_record_tables_round_trip() -> None:
    table = commit.encode_table(some_records())
    assert commit.encode_table(commit.decode_table(table)) == table
    decoded = commit.decode_table(table)
    assert decoded.zeroes == [(4, 100, 1 << 30)]
    assert decoded.announced == [(9, (Copy(0, 1), Copy(2, 3)))]
    assert decoded.count == 3


def test_an_unknown_record_is_skipped_only_when_it_says_so() -> None:
    """Rule R19."""
    body = bytes(8)
    assert commit.decode_table(struct.pack("<HHIQ", 77, 1, 8, 0) + body).count == 0
    with pytest.raises(DamagedError, match="record unknown"):
        commit.decode_table(struct.pack("<HHIQ", 77, 0, 8, 0) + body)


@given(ANY_BYTES)
def test_any_bytes_are_a_table_or_a_clear_error(data: bytes) -> None:
    with suppress(DamagedError):
        commit.decode_table(data)


# Pages


@given(st.sets(st.integers(0, 1023)), st.randoms(use_true_random=False))
@settings(max_examples=50)
def test_pages_round_trip(slots: set[int], coin: object) -> None:
    order = np.array(sorted(slots), dtype=np.int64)
    noise = np.random.default_rng(len(slots))
    entries = noise.integers(0, 2**63, size=(len(order), 2), dtype=np.uint64)
    own = noise.integers(0, 2, size=len(order)).astype(bool)
    back = pages.decode_page(pages.encode_page(order, entries, own))
    for got, wanted in zip(back, (order, entries, own), strict=True):
        assert np.array_equal(got, wanted)


@given(ANY_BYTES)
def test_any_bytes_are_a_page_or_a_clear_error(data: bytes) -> None:
    with_head = struct.pack("<HHI", 1, max(0, len(data) - 8) // 18 % 1025, 0) + data[8:]
    for blob in (data, with_head):
        with suppress(DamagedError):
            pages.decode_page(blob)


def test_equal_planes_make_sequential_pages_small() -> None:
    """A page of raw blocks written in order packs to well under its 18 KiB."""
    slots = np.arange(1024)
    noise = np.random.default_rng(1).integers(0, 2**40, size=1024, dtype=np.uint64)
    a = np.array([entry.pack_a(entry.RAW, 5, i * 4096) for i in range(1024)], dtype=np.uint64)
    b = np.uint64(4095) | noise << np.uint64(24)
    kind, stored = codec.pack(pages.encode_page(slots, np.stack([a, b], 1), np.ones(1024, bool)))
    assert kind == entry.LZ4
    assert len(stored) < 8192


# Root, catalogue, codec


def test_roots_round_trip() -> None:
    made = Root(
        3,
        LogPosition(9, 2**63, 4, 8192, 5),
        77,
        [(1, 2)],
        [(3, 4)],
        [],
        [(5, 6)],
        7,
        [(6, (Copy(0, 2),))],
    )
    assert checkpoint_root.unpack(made.pack()) == made


@given(ANY_BYTES | st.recursive(U64 | st.text(), st.lists, max_leaves=8).map(encode))
@example(b"\x81\x90\x00")  # a list as key
def test_any_bytes_are_a_root_or_catalogue_or_a_clear_error(data: bytes) -> None:
    for parse in (checkpoint_root.unpack, Catalogue.unpack, checkpoint_root.unpack_index):
        with suppress(DamagedError):
            parse(data)


def test_catalogues_round_trip() -> None:
    made = Catalogue()
    for op in (
        {"op": "create", "v": "a", "size": 4096, "head": 1, "at": "now"},
        {"op": "snapshot", "v": "a", "snap": "s", "head": 2, "at": "now"},
        {"op": "clone", "v": "b", "from": "a", "snap": "s", "head": 3, "at": "now"},
        {"op": "rollback", "v": "a", "snap": "s", "head": 4},
    ):
        operations.apply(made, decode(encode(op)))
    back = Catalogue.unpack(made.pack())
    assert back.volumes == made.volumes
    assert back.layers == made.layers
    assert (back.layers[1].children, back.layers[1].names) == (2, 1)


def test_an_operation_that_does_not_fit_is_damage() -> None:
    for op in ({"op": "what"}, {"op": "delete", "v": "none"}, {}):
        with pytest.raises(DamagedError):
            operations.apply(Catalogue(), op)


@given(st.binary(max_size=70000))
@settings(deadline=None)
def test_the_codec_round_trips(data: bytes) -> None:
    kind, stored = codec.pack(data)
    assert codec.expand(kind, stored, len(data)) == data


def test_an_extent_that_would_expand_beyond_its_bound_is_refused() -> None:
    """Rule R18."""
    _, stored = codec.pack(bytes(1 << 20))
    with pytest.raises(DamagedError, match="does not decompress"):
        codec.expand(entry.LZ4, stored, 65536)
