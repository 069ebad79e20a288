"""A pool that ends without a close, as when the task that opened it fails."""

import pytest
import trio

from blockdev.errors import ClosedError
from storage.log.committer import ENCODE_INLINE_BLOCKS
from storage.pool import open_pool
from tests.unit.hang import HANG_S
from tests.unit.storage.pools import MIB, new_members


async def test_a_flush_after_a_pool_ended_without_a_close_gets_closed_error() -> None:
    """Goal: a client that outlives the pool gets ClosedError: it does not wait for a commit that is
    never written, and gets no internal error.

    Method: leave the pool by cancelling; then flush blocks written before, so many that they would
    be encoded in a thread.
    """
    with trio.CancelScope() as scope:
        async with open_pool(await new_members()) as pool:
            await pool.management.create_volume("v", MIB)
            device = pool.open_export("v")
            await device.write(0, bytes((ENCODE_INLINE_BLOCKS + 1) * 4096))
            scope.cancel()
            await trio.lowlevel.checkpoint()
    with trio.fail_after(HANG_S), pytest.raises(ClosedError, match="left without being closed"):
        await device.flush()
