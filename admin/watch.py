"""Warns in the log before the pool is full, when there is still time to act."""

import logging
from collections.abc import Callable

import trio

from storage.info import PoolInfo

_log = logging.getLogger("cenote.pool")

LOOK_INTERVAL_S = 10.0
"""At 1 GB/s that is 10 GB: pools for which that is much should not be this full."""
STEPS_PERCENT = (95, 90, 80)
CALM_PERCENT = 2
"""A step is announced again only after use fell this far below it, not at every tremble."""


async def warn_of_filling(info: Callable[[], PoolInfo]) -> None:
    """Look at the pool forever, and log each step of filling once."""
    announced = 0
    while True:
        pool = info()
        if pool.size_bytes:
            used = 100 * (pool.size_bytes - pool.free_bytes) // pool.size_bytes
            step = next((step for step in STEPS_PERCENT if used >= step), 0)
            if step > announced:
                _log.warning(
                    "the pool is %d %% full; at 100 %% writers pause: free=%d size=%d",
                    used,
                    pool.free_bytes,
                    pool.size_bytes,
                )
                announced = step
            elif used + CALM_PERCENT < announced:
                announced = step
        await trio.sleep(LOOK_INTERVAL_S)
