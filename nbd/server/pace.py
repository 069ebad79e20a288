"""When to look at a socket again instead of sleeping until it is readable.

A client that waits for each answer sends its next request some 10 to 30 us after
the last reply. Sleeping in epoll and being woken costs more than that, in trio and
in the kernel: asking the socket a few times more took 4 KiB requests at queue depth
1 from 12 to over 35 thousand a second (2 cores, fio over a Unix socket).

It must not burn a core or hold up others, so a session looks again only while
that has been paying off, while it alone keeps the server busy, and never where
server and client share one core.
"""

import os

LOOKS = 160
"""Tries of about 0.6 us: longer than a quick client thinks, shorter than a reply may be late."""
SHALLOW = 4
"""Deeper queues gain nothing: requests gather while the server sleeps, and large batches
are cheaper (4 KiB writes at depth 32: 190 thousand a second with looking, 218 without)."""
HOPE_MAX = 8
RETRY_EVERY = 64
"""A session that gave up tries once in so many sleeps whether its client became quick."""
WORK_PER_LOOK = 8
"""What one round of looking counts towards the session's turn, in requests: others wait
behind it for 256 / 8 rounds, about a millisecond."""


class Activity:
    """Which session of a server was busy last."""

    def __init__(self) -> None:
        self.last: object = None


class Pace:
    """How often one session looks at its socket before it sleeps."""

    def __init__(self, activity: Activity) -> None:
        self._activity = activity
        self._hope = HOPE_MAX // 2
        self._sleeps = 0
        self._depth = 1.0
        self._many_cores = len(os.sched_getaffinity(0)) > 1

    def looks(self, served: int, waiting: int) -> int:
        """Return how often to try the socket now.

        Args:
            served: requests since the last try; none means that one is arriving in pieces.
            waiting: requests that wait for the device; their tasks need the processor.
        """
        activity = self._activity
        alone = activity.last is self
        activity.last = self
        # Rises at once and sinks slowly, so it tells a client's queue depth from one
        # of the small batches that even a deep queue sends now and then.
        self._depth = max(served, self._depth - (self._depth - served) / 16)
        if self._depth > SHALLOW or waiting or not alone or not self._many_cores:
            # Who waits for each answer cannot have sent anything yet.
            return int(served != 1)
        if self._hope:
            return LOOKS
        self._sleeps += 1
        return LOOKS if self._sleeps % RETRY_EVERY == 0 else int(served != 1)

    def looked(self, *, found: int, missed: bool) -> None:
        """Learn how often it paid off to try `LOOKS` times, and whether it then did not."""
        self._hope = min(self._hope + found, HOPE_MAX)
        if missed:
            self._hope = max(self._hope - 2, 0)
