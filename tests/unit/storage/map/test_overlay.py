"""Write buffers leave memory as soon as they are durable."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from tests.unit.storage.pools import MIB, new_members, opened, read


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Turn the garbage collector off, so that objects in a reference cycle stay in memory."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
async def test_a_buffer_is_freed_when_durable_without_waiting_for_the_collector() -> None:
    async with opened(await new_members()) as pool:
        await pool.management.create_volume("v", MIB)
        device = pool.open_export("v")
        memories = []
        for round_ in range(16):
            data = bytes([round_ + 1]) * 65536
            await device.write(0, data)
            assert await read(pool, "v", 0, 65536) == data
            buffer = pool.log.intake.open
            assert buffer is not None
            memories.append(weakref.ref(buffer.view.obj))
            del buffer
            await device.flush()
        # Local variables may still refer to the newest ones.
        assert [memory() is None for memory in memories[:-2]] == [True] * 14
        await device.close()
