"""What fio writes for verification: a header in each block, and a checksum of the rest.

From its `verify.h`, as it lies in memory on x86-64 and arm64:

    offset  size  field    meaning
         0     2  magic    0xacca
         2     2  type     of the checksum that follows the header
         4     4  length   u32, of the block
         8     8  seed     u64
        16     8  offset   u64, where the block was written
        24    16  other    time, thread and count
        40     4  xxhash   u32, xxh32 of the bytes behind it, seed 1
"""

import struct

from xxhash import xxh32_intdigest

from tests.crash.model import BLOCK

FIO_BYTES = 16 << 20
FIO = (
    "--name=recorded", "--rw=randwrite", "--bs=4k", "--iodepth=8", f"--size={FIO_BYTES}",
    "--verify=xxhash", "--do_verify=0", "--verify_state_save=0", "--fsync=32", "--end_fsync=1",
)  # fmt: skip
_HEADER = struct.Struct("<HHIQQ16xI")
_MAGIC = 0xACCA


def hold_blocks(blocks: dict[int, bytes], *, all_of_them: bool) -> int:
    """Verify blocks by their numbers; those that are missing read as zeroes. Returns how many.

    Raises:
        AssertionError: one is not what fio wrote there, or `all_of_them` and one is missing.
    """
    if all_of_them:
        assert len(blocks) == FIO_BYTES // BLOCK, f"fio: {len(blocks)} blocks are there"
    for number, block in blocks.items():
        magic, _, length, _, offset, check = _HEADER.unpack_from(block)
        assert (magic, length, offset) == (_MAGIC, BLOCK, number * BLOCK), f"fio: block {number}"
        assert xxh32_intdigest(block[_HEADER.size :], 1) == check, f"fio: block {number}"
    return len(blocks)
