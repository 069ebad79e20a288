"""Warns in the log before the pool is full, when there is still time to act."""

import logging
from collections.abc import Callable

import trio

from admin.fullness import Fullness, warning_of
from storage.info import PoolInfo

_log = logging.getLogger("cenote.pool")

LOOK_INTERVAL_S = 10.0
"""At 1 GB/s clients write 10 GB meanwhile: too little to fill most pools from a step to the end."""


async def warn_of_filling(info: Callable[[], PoolInfo]) -> None:
    """Look at the pool for ever, and log each step of filling once."""
    fullness = Fullness()
    while True:
        pool = info()
        if fullness.passed(pool.used_percent):
            facts = f"free={pool.free_bytes} size={pool.size_bytes} promised={pool.promised_bytes}"
            _log.warning("%s: %s", warning_of(pool), facts)
        await trio.sleep(LOOK_INTERVAL_S)
