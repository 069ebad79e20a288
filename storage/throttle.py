"""Limits requests and bytes per second, with bursts; the limits may change at any time.

Each limit is a bucket that `burst_s` seconds fill. A request takes its share of every bucket at
once and waits until the emptiest of them is out of debt. So waiting requests pass in the order in
which they came, and a request larger than a bucket is slow but passes.
Source: ITU-T I.371, annex A: virtual scheduling, or GCRA.
"""

from dataclasses import dataclass

import trio


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one volume; 0 is no limit. `burst_s`: how much idle time may be made up for."""

    requests_per_s: int = 0
    bytes_per_s: int = 0
    burst_s: float = 1.0

    @property
    def unlimited(self) -> bool:
        """Whether no request ever has to wait."""
        return not (self.requests_per_s or self.bytes_per_s)


class Throttle:
    """Delays the requests to one volume so that they keep its limits; the clock is trio's."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._free_at = 0.0
        """When the bucket of requests is out of debt, by trio's clock; the next is the same for the
        bucket of bytes."""
        self._bytes_free_at = 0.0
        self._changed = trio.Event()

    def change(self, limits: Limits) -> None:
        """Apply other limits from now on, also to requests that wait already."""
        self.limits = limits
        self._free_at = self._bytes_free_at = 0.0
        self._changed.set()
        self._changed = trio.Event()

    def try_take(self, length: int) -> bool:
        """Let a request of `length` bytes pass now, or change nothing."""
        now = trio.current_time()
        if self._free_at > now or self._bytes_free_at > now:
            return False
        self._reserve(length, now)
        return True

    async def take(self, length: int) -> None:
        """Wait until a request of `length` bytes may pass; cancelled, its share stays taken."""
        while True:
            changed = self._changed
            with trio.move_on_at(self._reserve(length, trio.current_time())):
                await changed.wait()
                continue
            return

    def _reserve(self, length: int, now: float) -> float:
        """Take the shares of a request; return the time at which it may pass."""
        limits = self.limits
        oldest = now - limits.burst_s
        passes_at = now
        if limits.requests_per_s:
            passes_at = max(passes_at, self._free_at)
            self._free_at = max(self._free_at, oldest) + 1 / limits.requests_per_s
        if limits.bytes_per_s:
            passes_at = max(passes_at, self._bytes_free_at)
            self._bytes_free_at = max(self._bytes_free_at, oldest) + length / limits.bytes_per_s
        return passes_at
