"""`cenote scrub`: verify every copy of all live data, and repair bad copies."""

import time
from dataclasses import dataclass
from typing import Annotated

import typer

from admin.api.client import Client
from admin.api.scrub_status import ScrubInfo, ScrubState
from admin.cli.commands.common import HomeOption, JsonOption, ask_daemon, examples, new_noun
from admin.config.scrub import UNLIMITED, parse_rate
from admin.errors import UsageError
from admin.reports.output import progress
from admin.reports.scrub import ScrubReport
from admin.sizes import SizeError

app = new_noun("Scrubs: everything is read on every copy, and repaired.")

LOOK_INTERVAL_S = 0.5


@dataclass(frozen=True, slots=True)
class StartOptions:
    """Options of a scrub; `rate_bytes` is None for that of the configuration, 0 for no limit."""

    rate_bytes: int | None
    fresh: bool
    wait: bool


def start(client: Client, options: StartOptions) -> ScrubReport:
    """Begin or continue a scrub; with `wait`, show the progress until it ends."""
    info = client.start_scrub(rate_bytes=options.rate_bytes, fresh=options.fresh)
    if options.wait:
        with progress(in_bytes=True) as show:
            while _is_running(info):
                assert info.current is not None
                result = info.current.result
                show(f"scrubbing {result.stage}", result.done_bytes, info.total_bytes)
                time.sleep(LOOK_INTERVAL_S)
                info = client.scrub()
    return ScrubReport(info)


def _is_running(info: ScrubInfo) -> bool:
    return info.current is not None and info.current.state is ScrubState.RUNNING


def status(client: Client, _: None) -> ScrubReport:
    """Report the current or last scrub."""
    return ScrubReport(client.scrub())


def stop(client: Client, _: None) -> ScrubReport:
    """Stop the scrub that runs."""
    return ScrubReport(client.stop_scrub())


@app.command(
    "start",
    epilog=examples(
        "cenote scrub start",
        "cenote scrub start --wait",
        "cenote scrub start --rate 200M",
        "cenote scrub start --rate unlimited --fresh --wait --json",
    ),
)
def start_command(
    context: typer.Context,
    rate: Annotated[
        str | None,
        typer.Option(
            "--rate", metavar="RATE", help="Bytes per second of all members together, such as "
            f"200M, or {UNLIMITED} [that of the configuration, else 50M].",
        ),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="From the beginning, not where one was stopped.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Show how far it is, and return when it ends.")
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Read everything that is live, on every member, and repair bad copies from good ones.

    It goes on in the background, also when this command is interrupted or the daemon restarted,
    while clients use their volumes. While one runs, --rate changes how fast it is. Damage of which
    no good copy is left is reported with the volume and the range, and reads of it fail.
    Exit status 1 when some damage could not be repaired.
    """
    try:
        rate_bytes = None if rate is None else parse_rate(rate)
    except SizeError as error:
        raise UsageError(f"--rate: {error}") from error
    ask_daemon(context, home, as_json, start, StartOptions(rate_bytes, fresh, wait))


@app.command("status", epilog=examples("cenote scrub status", "cenote scrub status --json"))
def status_command(
    context: typer.Context, home: HomeOption = None, as_json: JsonOption = False
) -> None:
    """Show the scrub that runs or ran last: what was read, how fast, and what was found.

    \b
      repaired    a bad copy was written over with a good one
      unrepaired  a good copy is left, but the bad one cannot be written
      lost        no copy is good: reads of that range fail
      harmless    damaged, but nothing alive lies there

    Exit status 1 when damage was found that could not be repaired.
    """
    ask_daemon(context, home, as_json, status, None)


@app.command("stop", epilog=examples("cenote scrub stop"))
def stop_command(
    context: typer.Context, home: HomeOption = None, as_json: JsonOption = False
) -> None:
    """Stop the scrub that runs. The next start goes on there."""
    ask_daemon(context, home, as_json, stop, None)
