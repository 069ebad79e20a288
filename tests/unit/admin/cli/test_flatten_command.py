"""`cenote volume flatten`, against the real API over a fake pool."""

import json

import pytest

from admin.cli.commands import flatten
from storage.info import Flattening
from tests.unit.admin.conftest import Run
from tests.unit.admin.fake_pool import Served


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flatten, "LOOK_INTERVAL_S", 0)


@pytest.fixture
def clone(served: Served, run: Run) -> str:
    run("volume", "create", "root", "--size", "1G")
    run("clone", "root", "test")
    return "test"


def test_flatten_waits_until_it_is_done(served: Served, run: Run, clone: str) -> None:
    code, out, _ = run("volume", "flatten", clone)
    assert code == 0
    assert out.startswith("flattened volume test, 1 GiB")
    assert served.pool.looks[clone] == []


def test_flatten_in_the_background_is_listed_and_canceled(
    served: Served, run: Run, clone: str
) -> None:
    out = run("volume", "flatten", clone, "--background")[1]
    assert out.startswith("flattening in the background: volume test")
    served.pool.looks[clone] = [Flattening(1, 3), Flattening(1, 3, "no room")]
    assert "root, flattening, 33 %, waits" in run("volume", "list")[1]
    listed = json.loads(run("volume", "list", "--json")[1])
    assert listed[1]["flattening"] == {"pages_done": 1, "pages": 3, "error": None}
    out = run("volume", "flatten", clone, "--cancel")[1]
    assert out.startswith("no longer flattening volume test")


def test_flatten_reports_an_error_that_it_waits_for(served: Served, run: Run, clone: str) -> None:
    async def stuck(name: str, *, on: bool = True):  # type: ignore[no-untyped-def]
        served.pool.looks[name] = [Flattening(1, 3, "copies wait for room")]
        return served.pool.volumes()[1]

    served.pool.flatten = stuck  # type: ignore[method-assign]
    code, _, err = run("volume", "flatten", clone)
    assert code == 41
    assert "as soon as that is possible: copies wait for room" in err


def test_a_volume_that_is_no_clone_is_refused(served: Served, run: Run, clone: str) -> None:
    code, _, err = run("volume", "flatten", "root")
    assert code == 30
    assert "nothing to flatten" in err
    assert run("volume", "flatten", "none")[0] != 0
