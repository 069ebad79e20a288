"""Reports about sending and receiving snapshots."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from admin.api.wire import encode
from admin.reports.base import Report, line
from admin.sizes import human
from storage.info import ReceivingInfo


@dataclass(frozen=True, slots=True)
class TransferCounts:
    """The size of a snapshot, the bytes that a stream carried of it, and the time it took.

    A resumed stream begins at `start_bytes`. `data_bytes` and `zero_bytes` count bytes of the
    snapshot, `stream_bytes` the length of the stream itself.
    """

    size_bytes: int
    start_bytes: int
    data_bytes: int
    zero_bytes: int
    stream_bytes: int
    took_s: float


@dataclass(frozen=True, slots=True)
class SentReport(Report):
    """A snapshot that was sent; `received` is its name at the daemon that received it, if one did.

    `since` is the older snapshot that a stream of differences is based on.
    """

    sent: str
    since: str | None
    received: str | None
    counts: TransferCounts

    def text(self) -> Iterator[str]:
        """One line."""
        since = f" since {self.since}" if self.since else ""
        there = f", as {self.received}" if self.received else ""
        yield line(f"sent {self.sent}{since}{there}: {_summary(self.counts)}")

    def json_value(self) -> Any:
        """All fields on one level."""
        names = {"sent": self.sent, "since": self.since, "received": self.received}
        return {**names, **encode(self.counts)}


@dataclass(frozen=True, slots=True)
class ReceivedReport(Report):
    """A snapshot that was received."""

    received: str
    counts: TransferCounts

    def text(self) -> Iterator[str]:
        """One line."""
        yield line(f"received {self.received}: {_summary(self.counts)}; it is durable")

    def json_value(self) -> Any:
        """All fields on one level."""
        return {"received": self.received, **encode(self.counts)}


@dataclass(frozen=True, slots=True)
class TokenReport(Report):
    """How far an interrupted receive got."""

    receiving: ReceivingInfo

    def text(self) -> Iterator[str]:
        """The token alone, for `cenote send --resume`."""
        yield line(self.receiving.token)

    def json_value(self) -> Any:
        """The snapshot that is being received, how far it got, and the token."""
        return encode(self.receiving)


def _summary(counts: TransferCounts) -> str:
    rest = f" from {human(counts.start_bytes)} on" if counts.start_bytes else ""
    zeroes = f", {human(counts.zero_bytes)} zeroes" if counts.zero_bytes else ""
    return (
        f"{human(counts.data_bytes)} data{zeroes}{rest}, in {human(counts.stream_bytes)} and "
        f"{counts.took_s:.2f} s"
    )
