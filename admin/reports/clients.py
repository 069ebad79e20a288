"""Reports about NBD clients and the exports that they use."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from admin.api.values import ClientInfo, ExportInfo
from admin.api.wire import encode
from admin.reports.base import Report, counted, line, table
from admin.sizes import human

_COUNTS = ("requests", "read", "written", "errors")


@dataclass(frozen=True, slots=True)
class ClientsReport(Report):
    """The NBD connections."""

    clients: list[ClientInfo]

    def text(self) -> Iterator[str]:
        """A table."""
        if not self.clients:
            yield line("no clients")
            return
        yield table(
            ("id", "client", "user", "certificate", "tls", "export", *_COUNTS, "since"),
            [
                (
                    str(client.number),
                    client.address,
                    "-" if client.uid is None else str(client.uid),
                    ", ".join(client.names) or "-",
                    "yes" if client.tls else "no",
                    _export(client),
                    *_counts(client),
                    client.since,
                )
                for client in self.clients
            ],
            right=("id", *_COUNTS),
        )

    def json_value(self) -> Any:
        """The list."""
        return encode(self.clients)


@dataclass(frozen=True, slots=True)
class DisconnectedReport(Report):
    """The clients that were disconnected."""

    disconnected: list[ClientInfo]

    def text(self) -> Iterator[str]:
        """Their number, then a line for each."""
        yield line(f"disconnected {counted(len(self.disconnected), 'client')}")
        for client in self.disconnected:
            yield line(f"  {client.number}  {client.identity}, {client.export or 'no export yet'}")


@dataclass(frozen=True, slots=True)
class ExportsReport(Report):
    """The exports that had clients since the daemon started, with counts of requests and bytes."""

    exports: list[ExportInfo]

    def text(self) -> Iterator[str]:
        """A table."""
        if not self.exports:
            yield line("no export had a client yet")
            return
        yield table(
            ("export", "clients", *_COUNTS),
            [(export.name, str(export.clients), *_counts(export)) for export in self.exports],
            right=("clients", *_COUNTS),
        )

    def json_value(self) -> Any:
        """The list."""
        return encode(self.exports)


def _export(client: ClientInfo) -> str:
    if client.export is None:
        return "-"
    return f"{client.export} (read-only)" if client.read_only else client.export


def _counts(one: ClientInfo | ExportInfo) -> tuple[str, ...]:
    return str(one.requests), human(one.read_bytes), human(one.written_bytes), str(one.errors)
