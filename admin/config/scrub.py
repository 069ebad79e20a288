"""Scrubbing in the configuration:

    [scrub]
    every = "30d"               after the last one ended: m, h, d, w, or "never"
    rate = "50M"                bytes read per second, of all members together, or "unlimited"

Both have these values when nothing is said.
"""

from dataclasses import dataclass

from admin.config.tables import Table
from admin.periods import PeriodError, parse_period
from admin.sizes import MIB, SizeError, parse_size

EVERY_S = 30 * 86400
RATE_BYTES = 50 * MIB
"""A fraction of what a disk can do: clients have the rest."""
RATE_BYTES_MIN = MIB
"""A piece is read at once; slower than one of them a second nothing ever ends."""
NEVER = "never"
UNLIMITED = "unlimited"


@dataclass(frozen=True, slots=True)
class ScrubConfig:
    """How often a pool is scrubbed, 0 for never, and how fast, 0 for as fast as can be."""

    every_s: int = EVERY_S
    rate_bytes: int = RATE_BYTES


def read_scrub(root: Table) -> ScrubConfig:
    """The table `[scrub]`.

    Raises:
        ConfigError: something in it is not acceptable.
    """
    table = root.table("scrub")
    every_s, rate_bytes = EVERY_S, RATE_BYTES
    if table.has("every") and table.text("every") == NEVER:
        every_s = 0
    elif table.has("every"):
        try:
            every_s = parse_period(table.text("every"))
        except PeriodError as error:
            table.fail("every", f'{error}, or "{NEVER}"')
    if table.has("rate"):
        try:
            rate_bytes = parse_rate(table.text("rate"))
        except SizeError as error:
            table.fail("rate", str(error))
    table.finish()
    return ScrubConfig(every_s, rate_bytes)


def parse_rate(text: str) -> int:
    """Bytes per second, 0 for `unlimited`.

    Raises:
        SizeError: not a rate, or too low.
    """
    if text == UNLIMITED:
        return 0
    try:
        return check_rate(parse_size(text))
    except SizeError as error:
        raise SizeError(f'{error}, or "{UNLIMITED}"') from error


def check_rate(rate_bytes: int) -> int:
    """The rate, if it is one. Raises SizeError."""
    if rate_bytes and rate_bytes < RATE_BYTES_MIN:
        raise SizeError(f"too slow: {rate_bytes} bytes per second; at least 1M")
    return rate_bytes
