"""Bounds the requests and unsent answers of one client, and waits where they are too many."""

from collections.abc import Callable

import trio

from nbd.server.limits import Limits
from nbd.server.memory import Holder, Memory
from nbd.server.sender import Sender

HANGUP_LOOK_S = 0.5
"""Interval of checks whether a client is gone while nothing is read from it. If it reconnects
sooner, the server checks first: writes of the old connection must not land later."""


class Backlog:
    """Requests that wait for the device, and answers that wait for the client.

    Args:
        holder: the session for which memory is counted.
        is_gone: returns whether the client hung up without DISC.
    """

    def __init__(
        self,
        holder: Holder,
        is_gone: Callable[[], bool],
        sender: Sender,
        memory: Memory,
        limits: Limits,
    ) -> None:
        self.requests = 0
        """Number of requests that wait for the device."""
        self._holder = holder
        self._is_gone = is_gone
        self._sender = sender
        self._memory = memory
        self._requests_max = limits.requests_in_flight_max
        self._bytes_max = limits.bytes_in_flight_max
        self._bytes = 0  # data of waiting requests and of their unsent answers
        self._unsent_bytes = 0  # the part of `_bytes` that is answered
        self.payload: memoryview | None = None
        """Buffer of the large payload being received; counted in `memory`, not in `_bytes`."""

    def begin(self, size: int) -> None:
        """Count a request with `size` bytes of data."""
        self.requests += 1
        self._bytes += size
        self._memory.take(self._holder, size)

    def finish(self, size: int) -> None:
        """Count a request as answered. Its memory is held until the answer is sent: see `sent`."""
        self.requests -= 1
        self._unsent_bytes += size

    def sent(self) -> None:
        """Give back the memory of answers once all queued replies are sent."""
        if self._unsent_bytes and not self._sender.replies:
            self._bytes -= self._unsent_bytes
            self._memory.give(self._holder, self._unsent_bytes)
            self._unsent_bytes = 0

    def close(self) -> None:
        """Give back all memory."""
        self._memory.give(self._holder, self._holder.held_bytes)

    def is_full(self) -> bool:
        """Whether the next request must wait to be served.

        A request whose payload has arrived never waits for memory of other clients: they may
        wait for the memory that it holds.
        """
        memory = self._memory
        return (
            self.requests >= self._requests_max
            or self._bytes >= self._bytes_max
            or (memory.used_bytes >= memory.bytes_max and self.payload is None)
        )

    async def wait_for_room(self) -> None:
        """Wait until replies are sent and requests finished; nothing is received meanwhile.

        Raises:
            OSError: the client is gone.
        """
        sender = self._sender
        while (sender.replies or self.is_full()) and not sender.failure:
            if sender.replies or not self._memory.is_full():
                with trio.move_on_after(HANGUP_LOOK_S):
                    await sender.progress.park()
            else:
                await self._memory.wait_for_room(HANGUP_LOOK_S)
            if self._is_gone():
                raise ConnectionResetError("the client left without its answers")

    def received(self, payload: memoryview | None) -> None:
        """Note the payload being received now; an earlier one was served, so free its memory."""
        if self.payload is not None and payload is not self.payload:
            self._memory.give(self._holder, len(self.payload))
            self.payload = None

    async def receiving(self, payload: memoryview) -> None:
        """Wait for memory, and count the buffer of a payload before more is received into it.

        Raises:
            OSError: the client is gone.
        """
        if payload is self.payload:
            return
        while self._memory.is_full():
            await self._memory.wait_for_room(HANGUP_LOOK_S)
            if self._is_gone():
                raise ConnectionResetError("the client left within a request")
        self._memory.take(self._holder, len(payload))
        self.payload = payload
