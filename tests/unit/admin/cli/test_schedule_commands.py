"""`cenote schedule`, against the real API over a fake pool; and reading lengths of time."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from admin.periods import PeriodError, parse_period, period
from tests.unit.admin.conftest import Run
from tests.unit.admin.fake_pool import Served


def test_a_schedule_from_setting_to_removing(served: Served, run: Run) -> None:
    for name in ("root", "db-1", "web"):
        run("volume", "create", name, "--size", "1G")
    code, out, _ = run("schedule", "set", "web", "--every", "1h", "--keep", "hourly=24,daily=7")
    assert code == 0
    assert out.startswith("set schedule web, every 1h of web, next at 20")
    run("schedule", "set", "dbs", "--volume", "db-*", "--volume", "x", "--every", "15m",
        "--keep", "last=3")  # fmt: skip
    code, out, _ = run("schedule", "set", "gold", "--label", "tier=gold", "--every", "1w",
                       "--keep", "weekly=4")  # fmt: skip
    assert out == "set schedule gold, every 1w of no volume that there is\n"
    lines = run("schedule", "list")[1].splitlines()
    assert lines[0].split()[:5] == ["schedule", "every", "keep", "volumes", "snapshots"]
    assert [line.split()[:2] for line in lines[1:]] == [
        ["dbs", "15m"], ["gold", "1w"], ["nightly", "1d"], ["web", "1h"],
    ]  # fmt: skip
    code, out, _ = run("schedule", "run", "web", "--json")
    ran = json.loads(out)
    assert (ran["snapshots"], ran["last_error"], ran["every_s"]) == (1, None, 3600)
    assert ran["last_run"] < ran["next_run"]
    [snapshot] = json.loads(run("snapshot", "list", "web", "--json")[1])
    assert snapshot["schedule"] == "web"
    listed = {one["name"]: one for one in json.loads(run("schedule", "list", "--json")[1])}
    assert listed["nightly"]["source"] == "configuration"
    assert listed["nightly"]["matches"] == ["root", "db-1"]
    assert listed["dbs"]["volumes"] == ["db-*", "x"]
    assert run("schedule", "remove", "web")[1] == "deleted schedule web\n"
    assert len(json.loads(run("snapshot", "list", "web", "--json")[1])) == 1


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("set", "r", "--every", "1x", "--keep", "last=1"), 2, "--every: not a length of time"),
        (("set", "r", "--every", "1h", "--keep", "last"), 2, "--keep: not a pair: 'last'"),
        (("set", "r", "--every", "1h", "--keep", "last=x"), 2, "--keep: not a number: 'x'"),
        (("set", "r", "--every", "1h", "--keep", "often=1"), 30, "which snapshots to keep"),
        (("set", "r", "--every", "1s", "--keep", "last=1"), 30, "from a minute to a year"),
        (("set", "a b", "--every", "1h", "--keep", "last=1"), 30, "not a schedule name"),
        (("set", "r", "--every", "1h", "--keep", "last=1", "--label", "x"), 2, "write KEY=VALUE"),
        (("set", "nightly", "--every", "1h", "--keep", "last=1"), 32, "in the configuration"),
        (("remove", "none"), 31, "no schedule is called 'none'"),
        (("run", "none"), 31, "no schedule is called 'none'"),
    ],
)
def test_mistakes_are_refused(
    served: Served, run: Run, words: tuple[str, ...], code: int, message: str
) -> None:
    found, _, err = run("schedule", *words)
    assert found == code
    assert message in err


def test_no_schedules(served: Served, run: Run) -> None:
    served.scheduler._configured.clear()
    assert run("schedule", "list")[1].startswith("no schedules; set one: cenote schedule set")


@given(st.integers(1, 366 * 86400))
def test_periods_are_read_as_they_are_written(seconds: int) -> None:
    assert parse_period(period(seconds)) == seconds


@pytest.mark.parametrize("text", ["", "1", "h", "0h", "-1h", "1.5h", "1 month", "1H", "1e3s"])
def test_other_words_are_no_periods(text: str) -> None:
    with pytest.raises(PeriodError, match="write one such as"):
        parse_period(text)
