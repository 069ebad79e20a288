"""What may be tuned in a pool; nothing has to be."""

from dataclasses import dataclass

CHECKPOINT_RECORDS = 1_000_000
"""Replay takes about 1 s for these; half of the map's writing is saved by each doubling."""
CHECKPOINT_COMMITS = 12_288
"""Each costs replay 60 to 120 us, and as much again where the page cache has nothing of it."""


@dataclass(frozen=True)
class PoolSettings:
    """What may be tuned; nothing has to be. Sizes in bytes, times in seconds."""

    page_cache_bytes: int = 256 << 20
    extent_cache_bytes: int = 64 << 20
    buffer_bytes: int = 64 << 20
    """Memory for writes that are not durable yet."""
    flush_interval_s: float = 1.0
    """Writes nobody flushed are committed after this time."""
    checkpoint_interval_s: float = 60.0
    checkpoint_records: int = CHECKPOINT_RECORDS
    checkpoint_commits: int = CHECKPOINT_COMMITS
