"""How full a pool is, in steps that are worth a word: once when they are passed, with advice.

A step is over only when use fell some percent below it: it is not announced again at every tremble.
"""

from storage.info import PoolInfo

STEPS_PERCENT = (95, 90, 80)
CALM_PERCENT = 2

ADVICE = (
    "see what takes the room: cenote volume df; delete or trim, or add a member: "
    "cenote member add PATH --size SIZE"
)


class Fullness:
    """Remembers which step was announced last."""

    def __init__(self) -> None:
        self.step = 0

    def passed(self, used_percent: int) -> bool:
        """Take note of how full it is; True when a step was passed that was not announced yet."""
        step = step_of(used_percent)
        if step > self.step:
            self.step = step
            return True
        while self.step > step and used_percent + CALM_PERCENT < self.step:
            self.step = max((s for s in STEPS_PERCENT if s < self.step), default=0)
        return False


def step_of(used_percent: int) -> int:
    """The highest step that this reaches, or 0."""
    return next((step for step in STEPS_PERCENT if used_percent >= step), 0)


def warning_of(pool: PoolInfo) -> str | None:
    """What to say of a pool that is as full as a step; None below."""
    if not step_of(pool.used_percent):
        return None
    if pool.free_bytes > pool.promised_bytes:
        what = f"the pool is {pool.used_percent} % full; at 100 % writers get ENOSPC"
    else:
        what = "the pool is full: writers get ENOSPC"
    return f"{what}; {ADVICE}"
