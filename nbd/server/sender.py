"""Sends queued replies to one client's socket.

A task that queues replies calls `drain`. One task at a time sends; other tasks leave
their replies to it. Buffers go to the kernel uncopied, and are released only once it
has taken them. All are bytes-like objects whose `len` counts bytes, as devices promise.
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
        """The error that ended the connection; replies queued later are dropped."""
        self.sent_bytes = 0
        """Bytes sent so far."""
        self.on_failure: Callable[[], None] = lambda: None
        self.progress = trio.lowlevel.ParkingLot()
        """Tasks that wait for the queue to shrink; woken at the end of each drain."""
        self._sock = sock
        self._sending = False
        self._gathering = False

    def drain_now(self) -> bool:
        """Send the queued replies as `drain` does; return False where that would suspend."""
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
        """Send all queued replies; return at once if another task is sending.

        Does not suspend while the socket takes them. When cancelled, the unsent bytes
        stay queued.
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
        """Drain; unless `alone`, first let other tasks that finish now queue their replies."""
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
        """Send as much as the socket takes; return whether the queue is empty."""
        replies = self.replies
        if len(replies) == 1:
            # Often the only reply to a quick client; this path saves 0.5 us of list handling.
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
