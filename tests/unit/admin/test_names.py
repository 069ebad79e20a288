"""Names of volumes and snapshots, and printing text safely."""

import pytest

import admin.names
import storage.catalogue.names
from admin.names import SnapshotName, check_name, parse_snapshot, printable
from storage.errors import InvalidArgumentError


@pytest.mark.parametrize("name", ["a", "0", "vm-1.root_disk+", "A" * 127])
def test_names_are_accepted(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "-a", "a/b", "a@b", "a b", "é", "a\n", "A" * 128, "\x1b[0m"]
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="use letters"):
        check_name(name)


def test_the_pool_has_the_same_rule() -> None:
    assert admin.names._NAME.pattern == storage.catalogue.names.NAME.pattern


def test_snapshots_are_written_with_an_at() -> None:
    assert parse_snapshot("vm@now") == SnapshotName("vm", "now")
    assert str(parse_snapshot("vm@now")) == "vm@now"
    for text in ("vm", "vm@", "@now", "vm@a@b", "a/b@c"):
        with pytest.raises(InvalidArgumentError):
            parse_snapshot(text)


def test_control_characters_are_shown_as_escapes() -> None:
    assert printable("a\x1b[31m\n\u202e\x9b\udcff é 日") == r"a\x1b[31m\n\u202e\x9b\udcff é 日"
