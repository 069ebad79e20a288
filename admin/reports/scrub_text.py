"""Reports about scrubbing as text."""

from admin.api.scrub_status import ScrubInfo, ScrubRun, ScrubState
from admin.periods import period
from admin.reports.pool import write_text
from admin.reports.scrub import ScrubReport
from admin.reports.text import line
from admin.sizes import human
from storage.verify.scrub_pass import Finding

__all__ = ["write_text"]


@write_text.register
def _(report: ScrubReport) -> None:
    info = report.scrub
    if info.current is None:
        line("never scrubbed; scrub now: cenote scrub start")
    else:
        _run(info, info.current)
    if info.previous is not None:
        result = info.previous.result
        line(
            f"before    done {info.previous.ended}, found {result.found}, "
            f"repaired {result.repaired}, lost {result.lost}"
        )
    every = f"every {period(info.every_s)}" if info.every_s else "only when asked for"
    line(f"schedule  {every}" + (f", next at {info.next_run}" if info.next_run else ""))


def _run(info: ScrubInfo, run: ScrubRun) -> None:
    result = run.result
    line(f"scrub     {run.state}, {_when(info, run)}")
    rate = f"{human(info.rate_bytes)}/s at most" if info.rate_bytes else "no limit"
    speed = human(int(result.read_bytes / result.seconds)) if result.seconds else "0 B"
    line(f"read      {human(result.read_bytes)} in {result.seconds:.0f} s, {speed}/s, {rate}")
    line(
        f"found     {result.found}: repaired {result.repaired}, "
        f"unrepaired {result.unrepaired}, lost {result.lost}"
        + (f"; harmless {result.harmless}" if result.harmless else "")
    )
    for finding in result.findings:
        line(f"  {_finding(finding)}")
    if result.found > len(result.findings):
        line(f"  and {result.found - len(result.findings)} more, see the log")
    for skipped in result.skipped:
        line(f"not read  {skipped}")
    if info.last_error:
        line(f"waits     {info.last_error}; it is tried again")


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
