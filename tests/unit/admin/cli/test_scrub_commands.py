"""`cenote scrub`, against the real API over a fake scrub; and the table `[scrub]`."""

import json
from pathlib import Path

import pytest

from admin.cli.commands import scrub
from admin.config.load import load_config
from admin.config.scrub import EVERY_S, RATE_BYTES, ScrubConfig
from admin.errors import ConfigError
from blockdev.errors import DeviceError
from tests.unit.admin.conftest import Run
from tests.unit.admin.fake_pool import Served
from tests.unit.admin.fake_scrubs import LOST, MIB, REPAIRED


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrub, "LOOK_INTERVAL_S", 0.01)


def test_a_pool_that_was_never_scrubbed(served: Served, run: Run) -> None:
    code, out, _ = run("scrub", "status")
    assert code == 0
    assert out.startswith(
        "never scrubbed; scrub now: cenote scrub start\nschedule  every 30d, next"
    )
    assert json.loads(run("scrub", "status", "--json")[1])["current"] is None
    assert run("scrub", "stop")[0] == 0


def test_a_scrub_that_finds_nothing(served: Served, run: Run) -> None:
    code, out, _ = run("scrub", "start", "--wait")
    assert code == 0
    assert out.startswith("scrub     done, began 20")
    assert "found     0: repaired 0, unrepaired 0, lost 0\n" in out
    assert "read      3 MiB in 0 s" in out
    found = json.loads(run("scrub", "status", "--json")[1])
    assert found["current"]["state"] == "done"
    assert found["current"]["result"]["read_bytes"] == found["total_bytes"] == 3 * MIB
    assert found["rate_bytes"] == RATE_BYTES


def test_findings_are_shown_and_lost_data_sets_the_exit_status(served: Served, run: Run) -> None:
    served.pool.scrubber.finds = [REPAIRED]
    code, out, _ = run("scrub", "start", "--wait")
    assert code == 0
    assert "  repaired: map page on /n, segment 8 offset 64, 100 bytes: checksum mismatch" in out
    served.pool.scrubber.finds = [REPAIRED, LOST]
    code, out, _ = run("scrub", "start", "--wait")
    assert code == 1
    assert "found     2: repaired 1, unrepaired 0, lost 1" in out
    line = "  lost: data of root 8192+4096 on /m\\x1b, segment 7 offset 4096, 4096 bytes"
    assert line in out
    assert "before    done 20" in out
    code, out, _ = run("scrub", "status", "--json")
    assert code == 1
    finding = json.loads(out)["current"]["result"]["findings"][1]
    assert finding["holds"] == [{"export": "root", "offset": 8192, "length": 4096}]
    assert (finding["segment"], finding["outcome"]) == (7, "lost")


def test_a_stopped_scrub_continues_at_another_rate(served: Served, run: Run) -> None:
    code, out, _ = run("scrub", "start", "--rate", "1M")
    assert code == 0
    assert "1 MiB/s at most" in out
    code, out, _ = run("scrub", "stop")
    assert (code, out.startswith("scrub     stopped, began")) == (0, True)
    assert served.pool.scrubber.runs == 1
    code, out, _ = run("scrub", "start", "--rate", "unlimited", "--wait")
    assert (code, out.startswith("scrub     done")) == (0, True)
    assert "3 MiB in" in out, "read once, not twice"


def test_an_interruption_is_shown(served: Served, run: Run) -> None:
    served.pool.scrubber.raises = DeviceError("no member takes a superblock")
    run("scrub", "start")
    while json.loads(run("scrub", "status", "--json")[1])["last_error"] is None:
        pass
    assert "waits     no member takes a superblock; it is tried again" in run("scrub", "status")[1]


@pytest.mark.parametrize("rate", ["fast", "5GB", "1K", "-1"])
def test_rates_are_sizes(served: Served, run: Run, rate: str) -> None:
    code, _, err = run("scrub", "start", f"--rate={rate}")
    assert code == 2
    assert err.startswith("cenote: --rate: ")
    assert "unlimited" in err


def configured(directory: Path, text: str) -> ScrubConfig:
    file = directory / "pool.toml"
    file.write_text(f'format = 1\n{text}\n[[member]]\npath = "m.img"\nsize = "8G"\n')
    return load_config(file).scrub


def test_the_configuration(tmp_path: Path) -> None:
    assert configured(tmp_path, "") == ScrubConfig(EVERY_S, RATE_BYTES)
    text = '[scrub]\nevery = "2w"\nrate = "200M"'
    assert configured(tmp_path, text) == ScrubConfig(14 * 86400, 200 * MIB)
    text = '[scrub]\nevery = "never"\nrate = "unlimited"'
    assert configured(tmp_path, text) == ScrubConfig(0, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('every = "1 month"', "scrub.every: not a length of time"),
        ("every = 3", "scrub.every: expected a string"),
        ('rate = "10K"', "scrub.rate: too slow"),
        ('rate = "quick"', 'scrub.rate: not a size: .*, or "unlimited"'),
        ("speed = 3", "scrub.speed: unknown key"),
    ],
)
def test_a_wrong_configuration_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        configured(tmp_path, f"[scrub]\n{text}")
