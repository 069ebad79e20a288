"""Scrubbing in the configuration:

    [scrub]
    every = "30d"               after the end of the last scrub: m, h, d, w, or "never"
    rate = "50M"                bytes read per second, of all members together, or "unlimited"

These values are the defaults.
"""

from dataclasses import dataclass

from admin.config.tables import Table
from admin.periods import PeriodError, parse_period
from admin.sizes import MIB, SizeError, parse_size

EVERY_S = 30 * 86400
RATE_BYTES = 50 * MIB
"""A fraction of a disk's throughput, which leaves the rest to clients."""
RATE_BYTES_MIN = MIB
"""1 TiB takes 12 days at this rate; at a lower one, scrubs would hardly ever end."""
NEVER = "never"
UNLIMITED = "unlimited"


@dataclass(frozen=True, slots=True)
class ScrubConfig:
    """Seconds between scrubs, 0 for never, and bytes per second, 0 for no limit."""

    every_s: int = EVERY_S
    rate_bytes: int = RATE_BYTES


def read_scrub(root: Table) -> ScrubConfig:
    """The table `[scrub]`.

    Raises:
        ConfigError: a key or value in it is not acceptable.
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
        SizeError: `text` is not a rate, or the rate is too low.
    """
    if text == UNLIMITED:
        return 0
    try:
        return check_rate(parse_size(text))
    except SizeError as error:
        raise SizeError(f'{error}, or "{UNLIMITED}"') from error


def check_rate(rate_bytes: int) -> int:
    """Return the rate; raises SizeError when it is too low and not 0."""
    if rate_bytes and rate_bytes < RATE_BYTES_MIN:
        raise SizeError(f"too slow: {rate_bytes} bytes per second; at least 1M")
    return rate_bytes
