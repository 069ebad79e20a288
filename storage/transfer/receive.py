"""Receives a snapshot: checks a stream, and writes it into a volume that is not served.

That volume is called after the one that the snapshot is for, with `stream.SUFFIX` behind; it is
listed, can be deleted, and nothing else. From time to time the log notes how far it has got,
behind the data it speaks of: so after an interruption, a power cut included, it is known what is
there, and receiving goes on from there. When the end of the stream was seen and nothing followed,
one operation behind all the data turns the volume into the snapshot (see
`storage.catalogue.arrivals`).
"""

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio
from typing_extensions import Buffer

from blockdev.errors import DeviceError
from storage.catalogue.operations import Operation
from storage.errors import InUseError, StreamError
from storage.transfer.stream import Data, Decoder, Event, Failed, StreamHeader, Zeroes
from storage.transfer.targets import Targets
from storage.volumes.volume import Volume

T = TypeVar("T")

log = logging.getLogger("cenote.storage")

NOTE_BYTES = 64 << 20
"""Content between two notes of how far it has got: what is sent again after a crash at most."""
NOTE_S = 5.0
"""The same for slow streams."""
STOP_S = 5.0
"""How long an interrupted receive may take to note how far it has got."""
RETRY_S = 0.1
RETRIES = 20
"""So often the first and the last step wait for clients that only look at the volume."""


class Receiving:
    """One stream on its way in; made by `Pool.receive`. `feed` it, `finish` it when there is no
    more, and `close` it whatever happens.

    Args:
        volume: that the snapshot is to be of.
        snapshot: its name; None for the one that it has in the stream.
        discard: drop what was written to the volume since its last snapshot.
        carry_out: logs an operation.
        open_volume: opens a volume that is being received.
    """

    def __init__(
        self, targets: Targets, volume: str, snapshot: str | None, *, discard: bool,
        carry_out: Callable[[Operation], Awaitable[None]], open_volume: Callable[[str], Volume],
    ):  # fmt: skip
        self.header: StreamHeader | None = None
        self.snapshot = snapshot
        self._targets = targets
        self._volume = volume
        self._discard = discard
        self._carry_out = carry_out
        self._open_volume = open_volume
        self._decoder = Decoder()
        self._name = ""
        self._device: Volume | None = None
        self._position = 0
        """Everything before it was written."""
        self._noted = 0
        self._noted_at = trio.current_time()
        self._bytes_since = 0
        self._failure = ""

    async def feed(self, data: Buffer) -> None:
        """Take bytes of the stream, and return when they are written.

        Raises:
            StreamError: it is damaged; what came before is good.
            ExistsError, InUseError, BaseMissingError: see `Targets.begin`.
            NoSpaceError: the pool is full.
        """
        self._decoder.receive(data)
        while (event := self._decoder.next_event()) is not None:
            await self._take(event)

    async def finish(self) -> str:
        """Make the snapshot, of which all was fed, and return its name, `VOL@SNAP`.

        Raises:
            StreamError: there should have been more.
            InUseError: the volume has clients; all is there, and another attempt sends nothing.
        """
        self._decoder.close()
        if self._failure:
            raise StreamError(f"the sender gave up: {self._failure}")
        assert self.header is not None
        self._position = self.header.size_bytes
        operation = await _patiently(
            lambda: self._targets.complete(self._name, discard=self._discard)
        )
        self._targets.end(self._name)
        self._name = ""  # from here on there is nothing to note
        await self._carry_out(operation)
        return f"{self._volume}@{self.snapshot}"

    async def close(self) -> None:
        """Note how far it has got, if it is not done, in bounded time; and let go of it."""
        if self._device is None:
            self._targets.end(self._name)
            return
        with trio.CancelScope(shield=True, deadline=trio.current_time() + STOP_S):
            try:
                if self._name and self._position > self._noted:
                    await self._note(self._position)
            except DeviceError as error:
                log.warning("it is not noted how far %s has got: %s", self._name, error)
            finally:
                await self._device.close()
                self._targets.end(self._name)

    async def _take(self, event: Event) -> None:
        if isinstance(event, StreamHeader):
            await self._begin(event)
        elif isinstance(event, Data | Zeroes):
            assert self._device is not None
            if isinstance(event, Data):
                await self._device.write(event.offset, event.content())
                self._bytes_since += event.length
            else:
                await self._device.write_zeroes(event.offset, event.length)
            self._position = self._decoder.position
            late = trio.current_time() - self._noted_at >= NOTE_S
            if late or self._bytes_since >= NOTE_BYTES:
                await self._note(self._position)
            await trio.lowlevel.checkpoint()
        elif isinstance(event, Failed):
            self._failure = event.message

    async def _begin(self, header: StreamHeader) -> None:
        snapshot = self.snapshot = self.snapshot or header.name
        self._name, operation = await _patiently(
            lambda: self._targets.begin(header, self._volume, snapshot, discard=self._discard)
        )
        if operation is not None:
            await self._carry_out(operation)
        self.header, self._position = header, header.start
        self._device = self._open_volume(self._name)
        behind = self._device.size_bytes - header.size_bytes
        if behind:
            # The base is larger: growing again must not show what it had there (R12).
            await self._device.write_zeroes(header.size_bytes, behind)

    async def _note(self, position: int) -> None:
        await self._carry_out(self._targets.note(self._name, position))
        self._noted, self._noted_at, self._bytes_since = position, trio.current_time(), 0


async def _patiently(attempt: Callable[[], T]) -> T:
    """Try for a while when something is in use, then raise what is raised."""
    for _ in range(RETRIES):
        try:
            return attempt()
        except InUseError:
            await trio.sleep(RETRY_S)
    return attempt()
