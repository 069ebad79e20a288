"""Busy polling: when to poll a socket again instead of sleeping until it is readable.

A client that waits for each answer sends its next request some 10 to 30 us after
the last reply. Sleeping in epoll and being woken costs more than that, in trio and
in the kernel: polling the socket a few times more took 4 KiB requests at queue depth
1 from 12 to over 35 thousand a second (2 cores, fio over a Unix socket).

Polling must not burn a core or delay other clients, so a session polls only while
that has been paying off, while no other session is busy, and never where server
and client share one core.
"""

import os

LOOKS = 160
"""Polls of about 0.6 us: longer than a quick client takes to send again, shorter than a reply may
be late."""
SHALLOW = 4
"""Queue depth up to which polling pays. In deeper queues requests gather while the server sleeps,
and large batches are cheaper (4 KiB writes at depth 32: 190 thousand a second with polling, 218
without)."""
CREDIT_MAX = 8
"""A session polls while it has credit: a request that polling found earns one, and a round that
found none costs two."""
RETRY_EVERY = 64
"""A session that stopped polling tries again once in this many sleeps, in case its client became
quick."""
WORK_PER_LOOK = 8
"""Cost of one round of polling in a session's turn, counted in requests: other tasks wait for
256 / 8 rounds, about a millisecond."""


class Activity:
    """The session of a server that was busy last."""

    def __init__(self) -> None:
        self.last: object = None


class Pace:
    """Decides how often one session polls its socket before it sleeps."""

    def __init__(self, activity: Activity) -> None:
        self._activity = activity
        self._credit = CREDIT_MAX // 2
        self._sleeps = 0
        self._depth = 1.0
        self._many_cores = len(os.sched_getaffinity(0)) > 1

    def looks(self, served: int, waiting: int) -> int:
        """Return how often to poll the socket now.

        Args:
            served: requests since the last poll; 0 means that one is arriving in pieces.
            waiting: requests that wait for the device; their tasks need the processor.
        """
        activity = self._activity
        alone = activity.last is self
        activity.last = self
        # The estimate of the queue depth rises at once and falls slowly, so that a small
        # batch, which even a deep queue sends now and then, does not look like a shallow queue.
        self._depth = max(served, self._depth - (self._depth - served) / 16)
        if self._depth > SHALLOW or waiting or not alone or not self._many_cores:
            # After one request: a client that waits for each answer has sent nothing yet.
            return int(served != 1)
        if self._credit:
            return LOOKS
        self._sleeps += 1
        return LOOKS if self._sleeps % RETRY_EVERY == 0 else int(served != 1)

    def looked(self, *, found: int, missed: bool) -> None:
        """Note how often `LOOKS` polls found a request, and whether the last round found none."""
        self._credit = min(self._credit + found, CREDIT_MAX)
        if missed:
            self._credit = max(self._credit - 2, 0)
