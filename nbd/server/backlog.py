"""What one client has in flight, and how long it waits when that is too much."""

from collections.abc import Callable

import trio

from nbd.server.limits import Limits
from nbd.server.memory import Holder, Memory
from nbd.server.sender import Sender

HANGUP_LOOK_S = 0.5
"""How often to look whether a client is gone while nothing is read from it. Should it be back
sooner, `Server` looks before it lets it in: writes of the old connection must not land later."""


class Backlog:
    """Requests that wait for the device, and answers that wait for the client.

    Args:
        holder: in whose name memory is taken.
        is_gone: whether the client went without a goodbye.
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
        """How many wait for the device."""
        self._holder = holder
        self._is_gone = is_gone
        self._sender = sender
        self._memory = memory
        self._requests_max = limits.requests_in_flight_max
        self._bytes_max = limits.bytes_in_flight_max
        self._bytes = 0  # of data, of requests that wait and of answers to them
        self._unsent_bytes = 0  # of those: answered
        self.payload: memoryview | None = None
        """Where a payload is received into that has its memory; counts for the server alone."""

    def begin(self, size: int) -> None:
        """Count a request with so much data."""
        self.requests += 1
        self._bytes += size
        self._memory.take(self._holder, size)

    def finish(self, size: int) -> None:
        """Count it as answered. What was read is held until it is sent: see `sent`."""
        self.requests -= 1
        self._unsent_bytes += size

    def sent(self) -> None:
        """Say that replies were sent, by whichever task sends the last of them."""
        if self._unsent_bytes and not self._sender.replies:
            self._bytes -= self._unsent_bytes
            self._memory.give(self._holder, self._unsent_bytes)
            self._unsent_bytes = 0

    def close(self) -> None:
        """Give back all memory."""
        self._memory.give(self._holder, self._holder.held_bytes)

    def is_full(self) -> bool:
        """Whether the next request must wait to be served.

        One whose payload is there never waits for memory of others, who may be waiting for
        the memory that it holds.
        """
        memory = self._memory
        return (
            self.requests >= self._requests_max
            or self._bytes >= self._bytes_max
            or (memory.used_bytes >= memory.bytes_max and self.payload is None)
        )

    async def wait_for_room(self) -> None:
        """Wait until replies left and requests finished; the socket fills up meanwhile.

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
        """Say which payload is underway now; another one before was served."""
        if self.payload is not None and payload is not self.payload:
            self._memory.give(self._holder, len(self.payload))
            self.payload = None

    async def receiving(self, payload: memoryview) -> None:
        """Count the buffer of a payload before more is received into it.

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
