"""Warnings that a pool fills up: one for each step of its use, with advice.

A step is announced once. It is announced again only after use fell more than `CALM_PERCENT` under
it, so that use which hovers around a step causes one warning.
"""

from storage.info import PoolInfo

STEPS_PERCENT = (95, 90, 80)
CALM_PERCENT = 2

ADVICE = (
    "see what takes the room: cenote volume df; delete or trim, or add a member: "
    "cenote member add PATH --size SIZE"
)


class Fullness:
    """Remembers the step that was announced last."""

    def __init__(self) -> None:
        self.step = 0

    def passed(self, used_percent: int) -> bool:
        """Note the pool's use; True when it has reached a step that is not announced yet."""
        step = step_of(used_percent)
        if step > self.step:
            self.step = step
            return True
        while self.step > step and used_percent + CALM_PERCENT < self.step:
            self.step = max((s for s in STEPS_PERCENT if s < self.step), default=0)
        return False


def step_of(used_percent: int) -> int:
    """The highest step that `used_percent` reaches, or 0."""
    return next((step for step in STEPS_PERCENT if used_percent >= step), 0)


def warning_of(pool: PoolInfo) -> str | None:
    """The warning for a pool that has reached a step, or None."""
    if not step_of(pool.used_percent):
        return None
    if pool.free_bytes > pool.promised_bytes:
        what = f"the pool is {pool.used_percent} % full; at 100 % writers get ENOSPC"
    else:
        what = "the pool is full: writers get ENOSPC"
    return f"{what}; {ADVICE}"
