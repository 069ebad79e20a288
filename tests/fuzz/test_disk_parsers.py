"""Every parser of bytes from disk: any bytes give a value or a clear error (R18).

Mutated pieces get right checksums again, so that they reach the code behind the comparison. An
accepted value must be one that can be written again.
"""

import random
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from uuid import UUID

import numpy as np
import pytest

from blockdev.memory import MemoryDevice
from storage.catalogue import operations
from storage.catalogue.catalogue import Catalogue
from storage.format import checkpoint_root, codec, commit, entry, pages, superblock, values
from storage.format.checkpoint_root import LogPosition, Root
from storage.format.commit import CommitHeader, LayerExtents, LayerMoves, Placed, Records
from storage.format.superblock import Copy, Jump, MemberRow, RootPointer, Superblock
from storage.map.blockmap import BlockMap
from storage.map.follow import make_layers
from storage.map.layer import Layer
from storage.map.usage import Usage
from storage.members.member import Member, MemberDevice
from storage.members.segment_io import SegmentIO
from storage.members.segments import ROW, SegmentTable, State
from tests.fuzz.bounded import bounded_memory, value_or_clear_error
from tests.fuzz.mutate import mutated, mutated_value

POOL = UUID(int=1)
ROUNDS = 1_500
ROUNDS_LONG = 100_000


@dataclass(frozen=True)
class Parser:
    """One parser: its valid inputs, a function that renews checksums, and the parse function."""

    samples: Sequence[bytes]
    parse: Callable[[bytes], object]
    seal: Callable[[bytes], bytes] = bytes
    by_value: bool = False
    """For msgpack: values are changed too, not only bytes."""


# Superblocks and commits


def _superblock(**changes: object) -> bytes:
    rows = tuple(MemberRow(UUID(int=9 + i), "h\u00f6st", 1 << 30, 31) for i in range(3))
    fields: dict[str, object] = {
        "pool_uuid": POOL, "member_index": 1, "holder": UUID(int=2), "epoch": 3, "sequence": 4,
        "durable_commit": 5, "segment_bytes": 1 << 20, "commit_align": 4096, "copies": 2,
        "clean": True, "root": RootPointer(6, 7, 8, 9, (Copy(0, 10), Copy(1, 11))),
        "jumps": (Jump(12, 13, 14, (Copy(1, 15),)),), "members": rows,
    }  # fmt: skip
    return superblock.encode(Superblock(**(fields | changes)))  # type: ignore[arg-type]


def _seal_superblock(data: bytes) -> bytes:
    body = bytearray(data[: superblock.SUPERBLOCK_BYTES].ljust(superblock.SUPERBLOCK_BYTES, b"\0"))
    body[:8] = superblock.MAGIC
    struct.pack_into("<Q", body, 8, codec.digest_of(memoryview(body)[16:]))
    return bytes(body)


def _parse_superblock(data: bytes) -> None:
    sb = superblock.decode(data)
    if sb is not None:
        assert sb.me in sb.members
        assert superblock.decode(superblock.encode(sb)) is not None


def _header(**changes: int) -> bytes:
    fields = {
        "number": 7, "segment": 3, "offset": 4096, "total_bytes": 8192, "table_bytes": 100,
        "epoch": 2, "durable_through": 6, "previous": 99, "table_digest": 98,
    }  # fmt: skip
    return commit.encode_header(CommitHeader(POOL, **(fields | changes)))[0]


def _seal_header(data: bytes) -> bytes:
    body = bytearray(data[: commit.HEADER_BYTES].ljust(commit.HEADER_BYTES, b"\0"))
    body[:8] = commit.MAGIC
    struct.pack_into("<Q", body, 120, codec.digest_of(memoryview(body)[:120]))
    return bytes(body)


def _parse_header(data: bytes) -> None:
    header = commit.decode_header(data)
    if header is not None:
        assert header.total_bytes <= commit.COMMIT_BYTES_MAX
        assert header.table_bytes < header.total_bytes


def _records() -> Records:
    count = 5
    a = np.array([entry.pack_a(entry.RAW, 1, i * 4096) for i in range(count)], dtype=np.uint64)
    b = np.array([entry.pack_b(4096, 1, i) for i in range(count)], dtype=np.uint64)
    a[2], b[2] = entry.pack_a(entry.LZ4, 2, 64), entry.pack_b(9000, 4, 77)
    blocks = np.array([0, 1, 1022, 5000, 1 << 33], dtype=np.uint64)
    tops = np.arange(count, dtype=np.uint64)
    operation = values.encode({"op": "create", "v": "w", "size": 4096, "head": 9, "at": "now"})
    moved = np.array([[5 | 1 << 56, a[0], b[0], a[1], b[1]]] * 3, dtype=np.uint64)
    return Records(
        [LayerExtents(4, blocks, a, b, tops)], [(4, 100, 1 << 30), (3, 0, 1)], [operation],
        [(9, (Copy(0, 7), Copy(1, 8)))], [LayerMoves(3, moved)], [Placed(8, 4096, (Copy(0, 9),))],
    )  # fmt: skip


def _members() -> list[Member | None]:
    offered = [MemberDevice(MemoryDevice(16 << 20), f"m{i}", f"h{i}") for i in range(2)]
    rows = [MemberRow(UUID(int=i), f"h{i}", 16 << 20, 14) for i in range(2)]
    return [Member(i, offered[i], rows[i], 1 << 20) for i in range(2)]


def _table() -> SegmentTable:
    table = SegmentTable(_members(), 1 << 20, 2)
    for number in (1, 2, 5):
        table.adopt(number, (Copy(0, number), Copy(1, number + 1)))
    return table


def _parse_table(data: bytes) -> None:
    records = commit.decode_table(data)
    assert records.count >= 0
    header = CommitHeader(POOL, 7, 1, 0, 1 << 16, len(data), 0, 0, 0, 0)
    commit.payload_is_good(bytes(1 << 16), header, records)
    table = _table()
    blockmap = BlockMap(SegmentIO(table), table, 1 << 20)
    blockmap.layers = {3: Layer(3, None), 4: Layer(4, None)}
    for number, copies in records.announced:
        table.adopt(number, copies)
    for placed in records.placed:
        table.adopt(placed.segment, placed.copies)
    blockmap.apply_all([records])
    for layer in blockmap.layers.values():
        for pending in layer.pending.values():
            for step in pending.steps():
                assert len(step.slots) == len(step.entries)
                assert ((step.slots >= 0) & (step.slots < pages.PAGE_BLOCKS)).all()
    for operation in records.operations:
        operations.apply(Catalogue(), values.decode(operation))


# Map pages, directories, tables, roots


def _page(count: int, seed: int) -> bytes:
    noise = np.random.default_rng(seed)
    slots = np.sort(noise.choice(1024, size=count, replace=False)).astype(np.int64)
    entries = noise.integers(0, 2**63, size=(count, 2), dtype=np.uint64)
    return pages.encode_page(slots, entries, noise.integers(0, 2, size=count).astype(bool))


def _parse_page(data: bytes) -> None:
    slots, entries, own = pages.decode_page(data)
    assert len(slots) == len(entries) == len(own) <= pages.PAGE_BLOCKS
    assert pages.encode_page(slots, entries, own)[8:] == bytes(data)[8:]
    entry.live_by_segment(entries[:, 0], entries[:, 1])


def _chunk() -> bytes:
    rows = np.zeros((pages.CHUNK_PAGES, 4), dtype="<u8")
    rows[3] = (entry.pack_a(entry.RAW, 1, 64), entry.pack_b(90, 1, 5), 0, 0)
    return rows.tobytes()


def _parse_chunk(data: bytes) -> None:
    assert pages.decode_chunk(data).shape == (pages.CHUNK_PAGES, 4)


def _root(**changes: object) -> bytes:
    piece = (entry.pack_a(entry.RAW, 1, 64), entry.pack_b(900, 1, 5))
    made = Root(
        3, LogPosition(9, 2**63, 4, 8192, 5), 77, [piece], [piece] * 3, [], [piece], 700,
        [(6, (Copy(0, 2),))],
    )  # fmt: skip
    return made.pack()


def _parse_root(data: bytes) -> None:
    assert checkpoint_root.unpack(checkpoint_root.unpack(data).pack()) == checkpoint_root.unpack(
        data
    )


def _rows() -> bytes:
    table = _table()
    return table.rows(table.all(), {1: 5, 2: 1 << 19, 5: 0}, {5})


def _parse_rows(data: bytes) -> None:
    table = SegmentTable(_members(), 1 << 20, 2)
    table.load(data)
    segments = table.all()
    again = table.rows(segments, {s.number: s.live_bytes for s in segments}, set())
    # Opening a pool makes freed segments free.
    freed = int((np.frombuffer(data, dtype=ROW)["state"] == State.FREED).sum())
    assert len(again) == len(data) - freed * ROW.itemsize
    assert table.free_segments() >= 0
    for segment in segments:
        entry.pack_a(entry.RAW, segment.number, 0).to_bytes(8)
    if segments:
        table.next_number.to_bytes(8)


def _usage() -> bytes:
    usage = Usage()
    a = np.array([entry.pack_a(entry.RAW, 1, 64)] * 3, dtype=np.uint64)
    b = np.array([entry.pack_b(4096, 1, 5)] * 3, dtype=np.uint64)
    usage.add(1, np.stack([a, b], 1))
    usage.add(7, np.stack([a, b], 1)[:1])
    return usage.pack()


def _parse_usage(data: bytes) -> None:
    usage = Usage.unpack(data, 700)
    assert Usage.unpack(usage.pack(), 700).data_bytes == usage.data_bytes


# The catalogue


def _grown() -> Catalogue:
    made = Catalogue()
    for op in (
        {"op": "create", "v": "a", "size": 4096, "head": 1, "at": "now"},
        {"op": "snapshot", "v": "a", "snap": "s", "head": 2, "at": "now"},
        {"op": "clone", "v": "b", "from": "a", "snap": "s", "head": 3, "at": "now"},
        {"op": "fork", "v": "c", "from": "a", "head": 4, "on": 5, "at": "now"},
        {"op": "note", "v": "a", "snap": "", "notes": {"labels": {"k": "v"}, "limits": {}}},
        {
            "op": "receive",
            "v": "r",
            "size": 8192,
            "head": 8,
            "on": 1,
            "origin": "",
            "at": "now",
            "arrival": ["a", "u", "now", bytes(range(16)), bytes(16), 8192, 0],
        },
    ):
        operations.apply(made, op)
    return made


OPERATIONS: tuple[dict[str, object], ...] = (
    {"op": "create", "v": "n", "size": 8192, "head": 6, "at": "now"},
    {"op": "clone", "v": "n", "from": "a", "snap": "s", "head": 6, "at": "now"},
    {"op": "snapshot", "v": "b", "snap": "t", "head": 6, "at": "now"},
    {"op": "group", "snap": "t", "items": [["a", 6], ["b", 7]], "at": "now"},
    {"op": "fork", "v": "n", "from": "b", "head": 6, "on": 7, "at": "now"},
    {"op": "rollback", "v": "a", "snap": "s", "head": 6},
    {"op": "unsnapshot", "v": "a", "snap": "s"},
    {"op": "delete", "v": "b"},
    {"op": "resize", "v": "b", "size": 1 << 30},
    {"op": "rename", "v": "b", "to": "n"},
    {"op": "renamesnap", "v": "a", "snap": "s", "to": "t"},
    {"op": "promote", "v": "b", "from": "a"},
    {"op": "receive", "v": "n", "size": 8192, "head": 6, "on": 1, "origin": "", "at": "now",
     "arrival": ["a", "t", "now", bytes(16), bytes(16), 8192, 0]},
    {"op": "arrived", "v": "r", "position": 4096},
    {"op": "received", "v": "r", "head": 9, "at": "now"},
    {"op": "note", "v": "a", "snap": "s", "notes": {"description": "d", "protected": True,
     "labels": {"k": ""}, "limits": {"bytes_per_s": 5}}},
)  # fmt: skip


def _use(made: Catalogue) -> None:
    """Use a catalogue as opening does; the engine must be able to read the catalogue it stores."""
    blockmap = BlockMap(SegmentIO(_table()), _table(), 1 << 20)
    make_layers(sorted(made.layers), made, blockmap)
    made.merging()
    made.copy()
    for name in made.volumes:
        assert isinstance(name, str)
    again = Catalogue.unpack(made.pack())
    assert again.layers == made.layers
    assert again.pack() == made.pack()


def _parse_catalogue(data: bytes) -> None:
    _use(Catalogue.unpack(data))


def _parse_operation(data: bytes) -> None:
    made = _grown()
    operations.apply(made, values.decode(data))
    _use(made)


def _compressed() -> list[bytes]:
    plains = (bytes(4096), bytes(range(256)) * 256, b"abc" * 5000)
    return [codec.pack(plain)[1] for plain in plains]


def _parse_compressed(data: bytes) -> None:
    assert len(codec.expand(entry.LZ4, data, 65536)) <= 65536


PARSERS = {
    "superblock": Parser(
        [_superblock(), _superblock(jumps=(), clean=False, copies=1)],
        _parse_superblock, _seal_superblock,
    ),
    "commit header": Parser([_header(), _header(number=1 << 40)], _parse_header, _seal_header),
    "record table": Parser([commit.encode_table(_records())], _parse_table),
    "map page": Parser([_page(3, 1), _page(60, 2), _page(1024, 3), _page(0, 4)], _parse_page),
    "directory chunk": Parser([_chunk()], _parse_chunk),
    "directory index": Parser(
        [checkpoint_root.pack_index([(1, 0, 3, 4), (2, 1, 5, 6)])], checkpoint_root.unpack_index
    ),
    "root": Parser([_root()], _parse_root, by_value=True),
    "usage": Parser([_usage()], _parse_usage),
    "segment table": Parser([_rows()], _parse_rows),
    "catalogue": Parser([_grown().pack(), Catalogue().pack()], _parse_catalogue, by_value=True),
    "operation": Parser(
        [values.encode(op) for op in OPERATIONS], _parse_operation, by_value=True
    ),
    "compressed extent": Parser(_compressed(), _parse_compressed),
}  # fmt: skip


def fuzz(name: str, rounds: int, seed: int) -> None:
    parser = PARSERS[name]
    rng = random.Random(f"{name} {seed}")
    for _ in range(rounds):
        if parser.by_value and rng.random() < 0.7:
            value = values.decode(rng.choice(parser.samples))
            for _ in range(rng.choice([1, 1, 2, 5])):
                value = mutated_value(rng, value)
            try:
                data = values.encode(value)
            except (OverflowError, ValueError):
                continue  # because msgpack cannot hold the value
        else:
            data = parser.seal(mutated(rng, parser.samples))
        value_or_clear_error(partial(parser.parse, data), f"{name} {data[:200].hex()}")


@pytest.mark.parametrize("name", PARSERS)
def test_valid_pieces_are_accepted(name: str) -> None:
    """Goal: the fuzzing starts from valid pieces."""
    parser = PARSERS[name]
    for sample in parser.samples:
        assert parser.seal(sample) == sample
        parser.parse(sample)


@pytest.mark.parametrize("name", PARSERS)
def test_any_bytes_give_a_value_or_a_clear_error(name: str) -> None:
    with bounded_memory():
        fuzz(name, ROUNDS, 1)


@pytest.mark.long
@pytest.mark.parametrize("name", PARSERS)
@pytest.mark.parametrize("seed", range(2, 6))
def test_any_bytes_give_a_value_or_a_clear_error_long(name: str, seed: int) -> None:
    fuzz(name, ROUNDS_LONG, seed)
