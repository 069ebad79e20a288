"""What commands say when snapshots were sent and received; see `admin.reports.base`."""

from dataclasses import dataclass
from typing import Any

from admin.api.wire import encode
from admin.reports.base import Report
from storage.info import ReceivingInfo


@dataclass(frozen=True, slots=True)
class TransferCounts:
    """What a stream brought of a snapshot of `size_bytes`, from `start_bytes` on. `stream_bytes` is
    its own length."""

    size_bytes: int
    start_bytes: int
    data_bytes: int
    zero_bytes: int
    stream_bytes: int
    took_s: float


@dataclass(frozen=True, slots=True)
class SentReport(Report):
    """A snapshot that was sent; `received` is its name at a daemon it was sent to."""

    sent: str
    since: str | None
    received: str | None
    counts: TransferCounts

    def json_value(self) -> Any:
        """All fields on one level."""
        names = {"sent": self.sent, "since": self.since, "received": self.received}
        return {**names, **encode(self.counts)}


@dataclass(frozen=True, slots=True)
class ReceivedReport(Report):
    """A snapshot that was received."""

    received: str
    counts: TransferCounts

    def json_value(self) -> Any:
        """All fields on one level."""
        return {"received": self.received, **encode(self.counts)}


@dataclass(frozen=True, slots=True)
class TokenReport(Report):
    """How far an interrupted receive got."""

    receiving: ReceivingInfo

    def json_value(self) -> Any:
        """The fields of what is being received."""
        return encode(self.receiving)
