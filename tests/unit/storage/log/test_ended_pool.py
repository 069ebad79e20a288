"""A pool that is left in the middle, as by an error of whoever opened it."""

import pytest
import trio

from blockdev.errors import ClosedError
from storage.log.committer import ENCODE_INLINE_BLOCKS
from storage.pool import open_pool
from tests.unit.storage.pools import MIB, new_members


async def test_whoever_is_a_step_behind_is_told() -> None:
    """Goal: what still runs when the pool goes down gets an error: nothing that nobody will write
    is waited for, and no error of the machinery comes in its place.

    Method: leave the pool by cancelling; a client that is shielded flushes what it wrote before,
    so many blocks that they would be encoded in a thread.
    """
    with trio.CancelScope() as scope:
        async with open_pool(await new_members()) as pool:
            await pool.management.create_volume("v", MIB)
            device = pool.open_export("v")
            await device.write(0, bytes((ENCODE_INLINE_BLOCKS + 1) * 4096))
            scope.cancel()
            await trio.lowlevel.checkpoint()
    with trio.fail_after(5), pytest.raises(ClosedError, match="left without being closed"):
        await device.flush()
