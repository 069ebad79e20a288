"""Replies on their way to one client's socket.

Whoever queues replies calls `drain`. One task at a time sends; the others leave
their replies to it. Buffers are handed to the kernel as they are and let go only
once it has taken them. All are bytes-like objects whose `len` counts bytes, as
devices promise.
"""

from collections.abc import Callable

import trio
from typing_extensions import Buffer

from nbd.constants import IOV_MAX
from nbd.stream import Stream


class Sender:
    """The queue of one connection: append to `replies`, then `drain`."""

    def __init__(self, sock: Stream) -> None:
        self.replies: list[Buffer] = []
        self.failure: OSError | None = None
        """Why the connection is dead; what is queued later is dropped."""
        self.sent_bytes = 0
        """How much went out so far."""
        self.on_failure: Callable[[], None] = lambda: None
        self.progress = trio.lowlevel.ParkingLot()
        """Whoever waits for the queue to shrink; woken when it is empty or a task finished."""
        self._sock = sock
        self._sending = False
        self._gathering = False

    def drain_now(self) -> bool:
        """Send what is queued, as `drain`; return False where that would suspend."""
        if self._sending:
            return True
        try:
            if not self._send():
                return False
        except OSError as error:
            self._fail(error)
        if self.progress:
            self.progress.unpark_all()
        return True

    async def drain(self) -> None:
        """Send all that is queued; return at once when another task is at it.

        Does not suspend while the socket takes it all. When cancelled, the rest
        stays queued at the right byte.
        """
        if self._sending:
            return
        self._sending = True
        try:
            while not self._send():
                await trio.lowlevel.wait_writable(self._sock)
        except OSError as error:
            self._fail(error)
        finally:
            self._sending = False
            if self.progress:
                self.progress.unpark_all()

    async def drain_together(self, *, alone: bool) -> None:
        """Drain for a task; unless `alone`, let others that finish in this moment join."""
        if self._gathering:
            return
        if not alone:
            self._gathering = True
            try:
                await trio.lowlevel.checkpoint()
            finally:
                self._gathering = False
        await self.drain()

    def _send(self) -> bool:
        """Send what the socket takes; return whether that was everything."""
        replies = self.replies
        if len(replies) == 1:
            # A quick client's only answer, often; this spares 0.5 us of lists.
            reply = replies[0]
            try:
                sent = self._sock.send(reply)
            except BlockingIOError:
                return False
            self.sent_bytes += sent
            if sent == len(reply):  # type: ignore[arg-type]
                replies.clear()
                return True
            replies[0] = memoryview(reply)[sent:]
            return False
        while replies:
            some = replies if len(replies) <= IOV_MAX else replies[:IOV_MAX]
            try:
                sent = self._sock.sendmsg(some)
            except BlockingIOError:
                return False
            self.sent_bytes += sent
            if sent == sum(map(len, replies)):  # type: ignore[arg-type]
                replies.clear()
            elif not self._forget(some, sent):
                return False
        return True

    def _fail(self, error: OSError) -> None:
        self.failure = error
        self.replies.clear()
        self.on_failure()

    def _forget(self, some: list[Buffer], sent: int) -> bool:
        """Drop the first `sent` bytes of the queue; return whether they were all of `some`."""
        for index, reply in enumerate(some):
            size = len(reply)  # type: ignore[arg-type]
            if sent < size:
                del self.replies[:index]
                self.replies[0] = memoryview(reply)[sent:]
                return False
            sent -= size
        del self.replies[: len(some)]
        return True
