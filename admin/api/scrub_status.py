"""Values that describe scrubbing: its state, and the record kept in `HOME/pool/scrub.json`."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol
from uuid import UUID

from storage.verify.scrub_pass import ScrubPass


class ScrubState(StrEnum):
    """The state of a scrub."""

    RUNNING = "running"
    STOPPED = "stopped"
    """Stopped by a command; the next start continues the scrub."""
    DONE = "done"


@dataclass(frozen=True, slots=True)
class ScrubRun:
    """One scrub; times are UTC, ISO 8601.

    `rate_bytes` is the limit per second, 0 for no limit, None for that of the configuration.
    """

    state: ScrubState
    started: str
    ended: str | None
    rate_bytes: int | None
    result: ScrubPass


@dataclass(frozen=True, slots=True)
class ScrubRecord:
    """The scrubs of a pool: the current or last one, and the last finished one before it.

    `since` is the time when this record was begun, without a scrub.
    """

    pool: UUID
    since: str
    current: ScrubRun | None = None
    previous: ScrubRun | None = None


@dataclass(frozen=True, slots=True)
class ScrubInfo:
    """Scrubbing of the pool: the scrub that runs or ran last, and when the next one is due.

    `total_bytes` is an estimate while a scrub runs. `rate_bytes` 0 is no limit, `every_s` 0 never.
    `last_error` is the error that interrupted the running scrub; the scrub is tried again.
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
        """The record that was saved last, or None when there is none that can be read."""
        ...

    async def save(self, record: ScrubRecord) -> None:
        """Replace the record; after a crash the old or the new one is there.

        Raises:
            OSError: the record cannot be written.
        """
        ...
