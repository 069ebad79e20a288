"""Receives a snapshot: checks a stream, and writes it into a volume of its own.

The name of that volume is the name of the snapshot's volume with `stream.SUFFIX` appended. It can
be listed and deleted, and is not served. From time to time the position of the receiver is noted in
the log, after the data before it: so after an interruption, a power cut included, everything before
the noted position is there, and receiving continues from it. When the stream has ended and is
whole, one operation logged after all the data turns the volume into the snapshot (see
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
"""Content between two notes of the position: about so many bytes are sent again after a crash."""
NOTE_S = 5.0
"""Seconds between two notes, for slow streams."""
STOP_S = 5.0
"""Seconds that an interrupted receive may take to note its position."""
RETRY_S = 0.1
RETRIES = 20
"""Tries of the first and the last step: a client may be looking at the volume for a moment."""


class Receiving:
    """One stream that is received; made by `Transfers.receive`. `feed` it, `finish` it after the
    last bytes, and `close` it in any case.

    Args:
        volume: the volume that gets the snapshot.
        snapshot: the name of the snapshot; None for its name in the stream.
        discard: drop data written to the volume since its last snapshot.
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
        """All content before this offset is written."""
        self._noted = 0
        self._noted_at = trio.current_time()
        self._bytes_since = 0
        self._failure = ""

    async def feed(self, data: Buffer) -> None:
        """Take bytes of the stream, and return when the whole records in them are written.

        Raises:
            StreamError: the stream is damaged; all content before the damage is written.
            ExistsError, InUseError, BaseMissingError: see `Targets.begin`.
            NoSpaceError: the pool is full.
        """
        self._decoder.receive(data)
        while (event := self._decoder.next_event()) is not None:
            await self._take(event)

    async def finish(self) -> str:
        """Make the snapshot after the whole stream was fed, and return its name, `VOL@SNAP`.

        Raises:
            StreamError: the stream is not whole, or its sender gave up.
            ExistsError, InUseError: as from `Targets.complete`; all content is kept, so another
                attempt sends none.
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
        self._name = ""  # from here on there is no position to note
        await self._carry_out(operation)
        return f"{self._volume}@{self.snapshot}"

    async def close(self) -> None:
        """Note the position if the stream is not finished, within STOP_S; release the volume."""
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
            # The base is larger: growing again must not show the content of its end (R12).
            await self._device.write_zeroes(header.size_bytes, behind)

    async def _note(self, position: int) -> None:
        await self._carry_out(self._targets.note(self._name, position))
        self._noted, self._noted_at, self._bytes_since = position, trio.current_time(), 0


async def _patiently(attempt: Callable[[], T]) -> T:
    """Return the result of `attempt`; InUseError is raised only if it persists for two seconds."""
    for _ in range(RETRIES):
        try:
            return attempt()
        except InUseError:
            await trio.sleep(RETRY_S)
    return attempt()
