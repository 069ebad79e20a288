"""Streams of snapshots between daemons, files and pipes, for commands."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO
from uuid import UUID

from admin.api.client import Client
from admin.errors import RemoteError
from admin.names import SnapshotName
from admin.reports.output import drop_stdout
from admin.reports.transfers import ReceivedReport, SentReport, TransferCounts
from blockdev.errors import DeviceError
from storage.catalogue.resume_token import ResumeToken
from storage.errors import NotFoundError, StreamError
from storage.info import ReceivingInfo
from storage.transfer.stream import SUFFIX, Decoder, Failed

Progress = Callable[[str, int, int], None]

PIECE_BYTES = 256 << 10


@dataclass(frozen=True, slots=True)
class Destination:
    """The volume that receives a snapshot, and the snapshot's name there; None keeps its name.

    With `discard`, data written to the volume since its last snapshot may be lost.
    """

    volume: str
    snapshot: str | None
    discard: bool


class Follower:
    """Decodes a stream that passes through: counts it, and checks that it is whole.

    Args:
        what: the name of the work, for `progress`.
    """

    def __init__(self, what: str, progress: Progress) -> None:
        self._what = what
        self._progress = progress
        self._decoder = Decoder()
        self._started = time.monotonic()
        self._bytes = 0
        self._failure = ""
        self._problem: DeviceError | None = None

    def through(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the pieces unchanged, also after damage, which the receiver finds itself."""
        for piece in pieces:
            self._bytes += len(piece)
            if self._problem is None:
                self._look(piece)
            yield piece

    def finish(self) -> TransferCounts:
        """Return the counts.

        Raises:
            StreamError, DeviceError: the stream was damaged, not whole, or given up by its sender.
        """
        if self._problem is not None:
            raise self._problem
        self._decoder.close()
        if self._failure:
            raise StreamError(f"the sender gave up: {self._failure}")
        header, totals = self._decoder.header, self._decoder.totals
        assert header is not None
        return TransferCounts(
            size_bytes=header.size_bytes,
            start_bytes=header.start,
            data_bytes=totals.data_bytes,
            zero_bytes=totals.zero_bytes,
            stream_bytes=self._bytes,
            took_s=round(time.monotonic() - self._started, 3),
        )

    def _look(self, piece: bytes) -> None:
        decoder = self._decoder
        try:
            decoder.receive(piece)
            while (event := decoder.next_event()) is not None:
                if isinstance(event, Failed):
                    self._failure = event.message
        except DeviceError as error:
            self._problem = error
        if decoder.header is not None:
            self._progress(self._what, decoder.position, decoder.header.size_bytes)


def send(
    client: Client, name: SnapshotName, since: SnapshotName | None, resume: str | None,
    out: BinaryIO, progress: Progress,
) -> SentReport:  # fmt: skip
    """Write the stream of a snapshot to a file, such as stdout."""
    follower = Follower(f"sending {name}", progress)
    try:
        for piece in follower.through(client.send(name, since=since, resume=resume)):
            out.write(piece)
        out.flush()
    except BrokenPipeError:
        drop_stdout()
        raise StreamError("the stream has no reader any more; it is not whole") from None
    return SentReport(str(name), since and str(since), None, follower.finish())


def send_to(
    client: Client, name: SnapshotName, since: SnapshotName | None, resume: str | None,
    there: Client, destination: Destination, progress: Progress,
) -> SentReport:  # fmt: skip
    """Send a snapshot to another daemon, continuing an attempt that was interrupted."""
    if resume is None:
        resume = _token_for(client, name, there, destination.volume)
    follower = Follower(f"sending {name}", progress)
    stream = client.send(name, since=since, resume=resume)
    made = _received(there, destination, follower.through(stream))
    return SentReport(str(name), since and str(since), made, follower.finish())


def receive(
    client: Client, destination: Destination, source: BinaryIO, progress: Progress
) -> ReceivedReport:
    """Receive a snapshot from the stream in a file."""
    follower = Follower(f"receiving {destination.volume}", progress)
    made = _received(client, destination, follower.through(_pieces(source)))
    return ReceivedReport(made, follower.finish())


def interrupted(client: Client, volume: str) -> ReceivingInfo:
    """The snapshot that a volume is receiving, or was receiving when it was interrupted.

    Raises:
        NotFoundError: there is none.
    """
    found = _find(client, volume)
    if found is None:
        raise NotFoundError(f"no snapshot is being received into {volume}")
    return found


def _pieces(source: BinaryIO) -> Iterator[bytes]:
    # `read1` returns the bytes that are there, and does not wait until a piece is full.
    read = getattr(source, "read1", source.read)
    while piece := read(PIECE_BYTES):
        yield piece


def _received(client: Client, destination: Destination, stream: Iterable[bytes]) -> str:
    try:
        made = client.receive(
            destination.volume, destination.snapshot, discard=destination.discard, stream=stream
        )
    except RemoteError as error:
        raise _with_token(client, destination.volume, error) from error
    return f"{made.volume}@{made.name}"


def _with_token(client: Client, volume: str, error: RemoteError) -> RemoteError:
    """The error, with the command that continues the receive if part of it was kept."""
    kept = _find(client, volume)
    if kept is None or kept.token in str(error):
        return error
    hint = (
        f"{error}; what arrived is kept: go on with cenote send ... --resume {kept.token}, "
        f"or delete it: cenote volume delete {volume}{SUFFIX}"
    )
    return RemoteError(error.kind, hint, error.remote_errno, error.remote_exit_code)


def _find(client: Client, volume: str) -> ReceivingInfo | None:
    named = (one for one in client.volumes() if one.name == volume + SUFFIX)
    return next((one.receiving for one in named), None)


def _token_for(client: Client, name: SnapshotName, there: Client, volume: str) -> str | None:
    """The token to resume sending this snapshot, if the other daemon received a part of it."""
    kept = _find(there, volume)
    if kept is None:
        return None
    uuids = [one.uuid for one in client.snapshots(name.volume) if one.name == name.snapshot]
    same = uuids and UUID(uuids[0]) == ResumeToken.parse(kept.token).snapshot
    return kept.token if same else None
