"""Settings of a pool that may be tuned; none has to be."""

from dataclasses import dataclass

CHECKPOINT_RECORDS = 1_000_000
"""Replay takes about 1 s for these; each doubling halves what checkpoints write of the map."""
CHECKPOINT_COMMITS = 12_288
"""A commit costs replay 60 to 120 us, and twice that if it is not in the page cache."""


@dataclass(frozen=True)
class PoolSettings:
    """Settings of a pool. Sizes in bytes, times in seconds."""

    page_cache_bytes: int = 256 << 20
    extent_cache_bytes: int = 64 << 20
    buffer_bytes: int = 64 << 20
    """Memory for writes that are not durable yet."""
    flush_interval_s: float = 1.0
    """Writes that no client flushed are committed after this time."""
    checkpoint_interval_s: float = 60.0
    checkpoint_records: int = CHECKPOINT_RECORDS
    checkpoint_commits: int = CHECKPOINT_COMMITS
