"""What the daemon tells, and keeps in `HOME/pool/scrub.json`, about scrubbing."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol
from uuid import UUID

from storage.verify.scrub_pass import ScrubPass


class ScrubState(StrEnum):
    """Where a scrub is."""

    RUNNING = "running"
    STOPPED = "stopped"
    """By command; it goes on from there when it is started."""
    DONE = "done"


@dataclass(frozen=True, slots=True)
class ScrubRun:
    """One scrub; times are UTC, ISO 8601. `rate_bytes` is set if it was started with another rate
    than that of the configuration; 0 is none."""

    state: ScrubState
    started: str
    ended: str | None
    rate_bytes: int | None
    result: ScrubPass


@dataclass(frozen=True, slots=True)
class ScrubRecord:
    """What is kept of the scrubs of a pool: the current or last one, and the last one before that
    came to its end. `since` is when nothing was known of any."""

    pool: UUID
    since: str
    current: ScrubRun | None = None
    previous: ScrubRun | None = None


@dataclass(frozen=True, slots=True)
class ScrubInfo:
    """Scrubbing of the pool: the scrub that runs or ran last, and when the next one is due.

    `total_bytes` is an estimate while it runs. `rate_bytes` 0 is no limit, `every_s` 0 never.
    `last_error` is what interrupts a scrub that runs; it is tried again.
    """

    every_s: int
    rate_bytes: int
    next_run: str | None
    total_bytes: int
    last_error: str | None
    current: ScrubRun | None
    previous: ScrubRun | None


class Keeper(Protocol):
    """Keeps the record over restarts."""

    def load(self) -> ScrubRecord | None:
        """What was kept last; None when there is nothing that can be used."""
        ...

    async def save(self, record: ScrubRecord) -> None:
        """Replace it; after a crash the old or the new one is there.

        Raises:
            OSError: it cannot be written.
        """
        ...
