"""The report about scrubbing."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from admin.api.scrub_status import ScrubInfo, ScrubRun, ScrubState
from admin.api.wire import encode
from admin.periods import period
from admin.reports.base import Report, line
from admin.sizes import human
from storage.verify.scrub_pass import Finding


@dataclass(frozen=True, slots=True)
class ScrubReport(Report):
    """The scrub that runs or ran last, the one before it, and when the next one is due."""

    scrub: ScrubInfo

    @property
    def exit_code(self) -> int:
        """1 when the scrub found damage that it could not repair."""
        current = self.scrub.current
        result = None if current is None else current.result
        return int(result is not None and result.lost + result.unrepaired > 0)

    def text(self) -> Iterator[str]:
        """The scrub with its findings, then the schedule."""
        info = self.scrub
        if info.current is None:
            yield line("never scrubbed; scrub now: cenote scrub start")
        else:
            yield from _run(info, info.current)
        if info.previous is not None:
            result = info.previous.result
            yield line(
                f"before    done {info.previous.ended}, found {result.found}, "
                f"repaired {result.repaired}, lost {result.lost}"
            )
        every = f"every {period(info.every_s)}" if info.every_s else "only when asked for"
        yield line(f"schedule  {every}" + (f", next at {info.next_run}" if info.next_run else ""))

    def json_value(self) -> Any:
        """The fields."""
        return encode(self.scrub)


def _run(info: ScrubInfo, run: ScrubRun) -> Iterator[str]:
    result = run.result
    yield line(f"scrub     {run.state}, {_when(info, run)}")
    rate = f"{human(info.rate_bytes)}/s at most" if info.rate_bytes else "no limit"
    speed = human(int(result.read_bytes / result.seconds)) if result.seconds else "0 B"
    yield line(f"read      {human(result.read_bytes)} in {result.seconds:.0f} s, {speed}/s, {rate}")
    yield line(
        f"found     {result.found}: repaired {result.repaired}, "
        f"unrepaired {result.unrepaired}, lost {result.lost}"
        + (f"; harmless {result.harmless}" if result.harmless else "")
    )
    for finding in result.findings:
        yield line(f"  {_finding(finding)}")
    if result.found > len(result.findings):
        yield line(f"  and {result.found - len(result.findings)} more, see the log")
    for skipped in result.skipped:
        yield line(f"not read  {skipped}")
    if info.last_error:
        yield line(f"waits     {info.last_error}; it is tried again")


def _when(info: ScrubInfo, run: ScrubRun) -> str:
    if run.state is ScrubState.DONE:
        return f"began {run.started}, ended {run.ended}"
    total = max(info.total_bytes, 1)
    percent = min(100 * run.result.done_bytes // total, 99)
    return f"began {run.started}, {percent} % of {human(info.total_bytes)}"


def _finding(finding: Finding) -> str:
    held = ", ".join(f"{h.export} {h.offset}+{h.length}" for h in finding.holds)
    place = f"segment {finding.segment} " if finding.segment else ""
    return (
        f"{finding.outcome}: {finding.what}{f' of {held}' if held else ''} on "
        f"{', '.join(finding.members)}, {place}offset {finding.offset}, {finding.length} bytes: "
        f"{finding.problem}"
    )
