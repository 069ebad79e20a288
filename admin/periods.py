"""Lengths of time as people write them: `15m`, `1h`, `1d`, `2w`."""

import re

_UNITS = {"w": 7 * 86400, "d": 86400, "h": 3600, "m": 60, "s": 1}
_PERIOD = re.compile(r"([1-9]\d{0,8})\s*([wdhms])")


class PeriodError(ValueError):
    """The text is not a length of time; the message shows one."""


def parse_period(text: str) -> int:
    """Return the seconds that `text` stands for.

    Raises:
        PeriodError: `text` is not a whole number with a unit.
    """
    found = _PERIOD.fullmatch(text.strip())
    if found is None:
        raise PeriodError(f"not a length of time: {text!r}; write one such as 15m, 1h, 1d or 2w")
    return int(found[1]) * _UNITS[found[2]]


def period(seconds: int) -> str:
    """The exact length of time in the largest unit that divides it: `15m`, `1d`."""
    unit = next(unit for unit, scale in _UNITS.items() if seconds % scale == 0)
    return f"{seconds // _UNITS[unit]}{unit}"
