"""Reports about any NBD server: its exports, and a copy from or to one."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from admin.reports.base import Report, counted, line
from admin.sizes import human


@dataclass(frozen=True, slots=True)
class MapSummary:
    """Bytes of an export that are data, zeroes that take space, and holes; and its extents."""

    data_bytes: int
    zero_bytes: int
    hole_bytes: int
    extents: int


@dataclass(frozen=True, slots=True)
class ExportAbout:
    """The properties of an export as its server states them.

    With a `problem` the server refused to state them, and the fields after `tls` mean nothing.
    """

    name: str
    mode: str
    tls: bool
    size_bytes: int = 0
    description: str = ""
    read_only: bool = False
    flags: list[str] = field(default_factory=list)
    block_bytes: int = 1
    preferred_bytes: int = 1
    payload_bytes_max: int = 0
    contexts: list[str] = field(default_factory=list)
    problem: str = ""
    map: MapSummary | None = None


@dataclass(frozen=True, slots=True)
class InfoReport(Report):
    """All exports of an NBD server, or the one that was asked for."""

    uri: str
    exports: list[ExportAbout]

    def text(self) -> Iterator[str]:
        """A few lines for each export, with a blank line between two."""
        for number, export in enumerate(self.exports):
            if number:
                yield line()
            yield from _about(export)
        if not self.exports:
            yield line("the server has no exports")


@dataclass(frozen=True, slots=True)
class CopiedReport(Report):
    """A finished copy.

    Each byte of the source was copied, made a zero in the destination, or skipped because it was
    a zero there already. `verified` is None when the copy was not read back; `mismatches` are
    offsets near which it differs.
    """

    source: str
    destination: str
    size_bytes: int
    copied_bytes: int
    zeroed_bytes: int
    skipped_bytes: int
    took_s: float
    verified: bool | None
    mismatches: list[int]

    @property
    def exit_code(self) -> int:
        """1 when the copy differs from its source."""
        return 1 if self.mismatches else 0

    def text(self) -> Iterator[str]:
        """The counts, then the result of reading the copy back, if it was read back."""
        rate = f"{human(int(self.size_bytes / self.took_s))}/s" if self.took_s else "at once"
        yield line(f"copied {human(self.size_bytes)} in {self.took_s:.2f} s, {rate}; it is durable")
        yield line(
            f"  {human(self.copied_bytes)} data, {human(self.zeroed_bytes)} made zeroes, "
            f"{human(self.skipped_bytes)} were zeroes already"
        )
        if self.mismatches:
            offsets = ", ".join(map(str, self.mismatches))
            yield line(f"the copy differs from what was read, near these offsets: {offsets}")
            yield line("check the destination and the way to it, then copy again")
        elif self.verified:
            yield line("verified: the copy reads back as what was copied")


def _about(export: ExportAbout) -> Iterator[str]:
    yield line(f"export    {export.name or '(default)'}")
    if export.problem:
        yield line(f"  problem   {export.problem}")
        return
    write = "read-only" if export.read_only else "read and write"
    yield line(f"  size      {human(export.size_bytes)} ({export.size_bytes}), {write}")
    if export.description:
        yield line(f"  about     {export.description}")
    yield line(f"  flags     {', '.join(export.flags) or 'none'}")
    yield line(
        f"  blocks    {human(export.block_bytes)} at least, {human(export.preferred_bytes)} "
        f"preferred, {human(export.payload_bytes_max)} at most"
    )
    yield line(f"  contexts  {', '.join(export.contexts) or 'none'}")
    yield line(f"  protocol  {export.mode}, {'TLS' if export.tls else 'no TLS'}")
    if (found := export.map) is not None:
        yield line(
            f"  map       {human(found.data_bytes)} data, {human(found.zero_bytes)} zeroes, "
            f"{human(found.hole_bytes)} holes, {counted(found.extents, 'extent')}"
        )
