"""Compares docs/configuration.md with the code: keys, types, defaults and ranges.

The real parser reads the page's file with every key, through tables that note how the parser asks
for each key. Defaults, and ranges that the parser does not name, are tried out.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import pytest

from admin.config import load as config
from admin.config.load import Config, load_config
from admin.config.tables import Table
from admin.errors import ConfigError
from admin.sizes import compact
from storage.format.superblock import HOST_BYTES_MAX, MEMBERS_MAX

PAGE = (Path(__file__).parents[4] / "docs" / "configuration.md").read_text()
WHOLE_FILE = "## The whole file"
TABLE, REFUSED = "table", "refused"
"""Kinds of keys: a table, and a key that the parser only looks for, to refuse it."""

T = TypeVar("T")
WORDS: dict[type, tuple[str, str]] = {
    int: ("whole number", "whole numbers"), str: ("string", "strings"),
}  # fmt: skip


class Row(NamedTuple):
    """The columns of a key on the page, as they are written there."""

    type: str
    default: str
    allowed: str


class Asked(NamedTuple):
    """How the parser asks for a key: the kind of value, and the range that it names."""

    kind: str
    allowed: str = ""


class NotingTable(Table):
    """Notes in `asked` how each key is asked for, by path: `nbd.limits.memory`."""

    def __init__(
        self, asked: dict[str, Asked], file: Path, values: Mapping[str, object], path: str = ""
    ) -> None:
        super().__init__(file, values, path)
        self._asked = asked

    def has(self, key: str) -> bool:
        self._asked.setdefault(self._name(key), Asked(REFUSED))
        return super().has(key)

    def text(self, key: str, default: str | None = None) -> str:
        self._note(key, "string")
        return super().text(key, default)

    def whole(self, key: str, default: int, *, low: int, high: int) -> int:
        self._note(key, "whole number", f"{low} to {high}")
        return super().whole(key, default, low=low, high=high)

    def flag(self, key: str, default: bool) -> bool:
        self._note(key, "boolean", "`true`, `false`")
        return super().flag(key, default)

    def seconds(self, key: str, default: float, *, low: float, high: float) -> float:
        self._note(key, "seconds", f"{low:g} to {high:g}")
        return super().seconds(key, default, low=low, high=high)

    def choice(self, key: str, default: str, choices: Sequence[str]) -> str:
        self._note(key, "string", ", ".join(f'`"{word}"`' for word in choices))
        return super().choice(key, default, choices)

    def listed(self, key: str, kind: type[T]) -> tuple[T, ...] | None:
        one, many = WORDS[kind]
        self._note(key, f"{one} or list of {many}")
        return super().listed(key, kind)

    def size(self, key: str, *, low: int, high: int, grain: int = 1) -> int | None:
        steps = f", in steps of {compact(grain)}" if grain > 1 else ""
        self._note(key, "size", f"{compact(low)} to {compact(high)}{steps}")
        return super().size(key, low=low, high=high, grain=grain)

    def mapping(self, key: str, kind: type[T]) -> dict[str, T]:
        self._note(key, f"table of {WORDS[kind][1]}")
        return super().mapping(key, kind)

    def table(self, key: str) -> Table:
        self._note(key, TABLE)
        return self._noting(super().table(key))

    def tables(self, key: str) -> Iterator[Table]:
        self._note(key, TABLE)
        yield from map(self._noting, super().tables(key))

    def finish(self) -> None:
        """Also check that this class noted every key that was asked for."""
        assert {self._name(key) for key in self._known} <= self._asked.keys()
        super().finish()

    def _noting(self, table: Table) -> Table:
        return NotingTable(self._asked, table._file, table._values, table._path)

    def _name(self, key: str) -> str:
        return re.sub(r"\[\d+\]", "", self._at(key))

    def _note(self, key: str, kind: str, allowed: str = "") -> None:
        self._asked[self._name(key)] = Asked(kind, allowed)


# The page


def sections() -> dict[str, str]:
    """The sections of the page by the name of their table; the one of the whole file by ""."""
    found = {}
    for part in re.split(r"^(?=## )", PAGE, flags=re.MULTILINE):
        heading = re.match(r"## \[+([a-z.]+)\]+\n", part)
        if heading is not None or part.startswith(WHOLE_FILE):
            found[heading[1] if heading else ""] = part
    return found


def rows() -> dict[str, Row]:
    """Every key on the page, by its path."""
    return {
        f"{table}.{key}".lstrip("."): Row(kind, default, allowed)
        for table, text in sections().items()
        for key, kind, default, allowed in re.findall(
            r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \| ([^|]+) \| [^|]{20,} \|$", text, re.MULTILINE
        )
    }


def example() -> str:
    """The page's file with every key."""
    found = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert len(found) == 1
    return str(found[0])


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Asked]:
    """The keys that the parser asks for while it reads that file."""
    noted: dict[str, Asked] = {}
    monkeypatch.setattr(config, "Table", partial(NotingTable, noted))
    load(tmp_path, example())
    return noted


def load(directory: Path, text: str) -> Config:
    file = directory / "pool.toml"
    file.write_text(text)
    return load_config(file)


# Names, types and ranges


def test_the_page_has_every_table_and_every_key(asked: dict[str, Asked]) -> None:
    kinds = {key: one.kind for key, one in asked.items()}
    tables = {key for key, kind in kinds.items() if kind == TABLE}
    refused = {key for key, kind in kinds.items() if kind == REFUSED}
    assert sections().keys() == tables | {""}
    assert rows().keys() == kinds.keys() - tables - refused
    assert refused == {"nbd.psk"}


def test_types_and_ranges_are_those_that_the_parser_asks_for(asked: dict[str, Asked]) -> None:
    for key, row in rows().items():
        kind, allowed = asked[key]
        # Some strings are parsed further, as `TRIED` shows.
        assert row.type == kind or (kind == "string" and row.type in ("size", "time")), key
        if key != "format":  # of which only one is taken
            assert row.allowed.startswith(allowed), key


# Defaults

LEAST = {
    "": {"format": "1"},
    "pool": {},
    "member": {"path": '"a.img"'},
    "nbd": {},
    "nbd.limits": {},
    "export": {"name": '"*"'},
    "schedule": {
        "name": '"s"', "volumes": '"*"', "labels": '{tier = "gold"}', "every": '"1h"',
        "keep": "{last = 3}",
    },
    "scrub": {},
    "cache": {},
}  # fmt: skip
"""A file with every table and as few keys as possible; values are TOML."""


def with_key(key: str, value: str | None) -> str:
    """The file of `LEAST` with another value of one key, or without the key."""
    where, _, name = key.rpartition(".")
    lines = []
    for table, least in LEAST.items():
        array = table in ("member", "export", "schedule")
        lines += [f"[[{table}]]" if array else f"[{table}]"] * bool(table)
        values = {**least, name: value} if table == where else least
        lines += [f"{each} = {literal}" for each, literal in values.items() if literal is not None]
    return "\n".join(lines)


@pytest.mark.parametrize("key", rows())
def test_defaults_are_those_of_the_code(tmp_path: Path, key: str) -> None:
    """Goal: a key with its default changes nothing; a file without a required key is refused."""
    default = rows()[key].default
    if default == "required":
        with pytest.raises(ConfigError):
            load(tmp_path, with_key(key, None))
        return
    absent = load(tmp_path, with_key(key, None))
    literal = re.fullmatch(r"`(.+)`", default)
    if literal is not None:
        assert load(tmp_path, with_key(key, literal[1])) == absent
    else:
        assert default == ("by the pool's size" if key == "pool.segment" else "none")


# Ranges that the parser does not name


def labels_of(names: Sequence[str]) -> str:
    pairs = ", ".join(f"{name} = 'x'" for name in names)
    return f"{{{pairs}}}"


LONG = "a" * 127
MANY = [f"v{number}" for number in range(257)]
TRIED: dict[str, tuple[list[str], list[str]]] = {
    "format": (["1"], ["0", "2"]),
    "pool.segment": (['"1M"', '"256M"'], ['"3M"', '"512K"', '"512M"']),
    "nbd.unix_mode": (['"0600"', '"0666"', '"0677"'], ['"0700"', '"0500"', '"0678"']),
    "nbd.tcp": (
        ['"127.0.0.1:0"', '"storage.example:10809"', '"[::1]:65535"'],
        ['"127.0.0.1:65536"', '"::1:10809"', '":10809"', '"storage.example"'],
    ),
    "export.name": (['"web*"', '["a.-_+b", "[!a]?@*"]'], ['"a/b"', '"a b"', "[]"]),
    "export.uids": (["0", "[4294967294]"], ["-1", "4294967295", "[]"]),
    "schedule.name": (['"1"', f'"{LONG}"', '"a.-_+"'], ['"-a"', '"a b"', f'"{LONG}a"']),
    "schedule.volumes": ([str(MANY[:256])], [str(MANY)]),
    "schedule.labels": (
        [labels_of(MANY[:32])], [labels_of(MANY[:33])],
    ),
    "schedule.every": (['"1m"', '"366d"', '"60s"'], ['"59s"', '"367d"']),
    "schedule.keep": (
        [f"{{{rule} = 1}}" for rule in ("last", "hourly", "daily", "weekly", "monthly", "yearly")]
        + ["{daily = 10000}"],
        ["{}", "{daily = 0}", "{daily = 10001}", "{secondly = 1}"],
    ),
    "scrub.every": (['"1s"', '"52w"', '"never"'], ['"0d"', '"always"']),
    "scrub.rate": (['"1M"', '"1T"', '"unlimited"', '"0"'], ['"1023K"', '"never"', "1048576"]),
}  # fmt: skip
"""Accepted and refused TOML for each range that the page describes in its own words."""

FREE = {
    "member.path", "member.host", "nbd.certificate", "nbd.key", "nbd.client_ca",
    "export.certificates",
}  # fmt: skip
"""The parser takes any text for these."""


def test_every_range_that_the_parser_does_not_name_is_tried(asked: dict[str, Asked]) -> None:
    own = {key for key, row in rows().items() if row.allowed != asked[key].allowed}
    assert own == TRIED.keys() | FREE


@pytest.mark.parametrize("key", TRIED)
def test_ranges_are_as_the_page_says(tmp_path: Path, key: str) -> None:
    accepted, refused = TRIED[key]
    for value in accepted:
        load(tmp_path, with_key(key, value))
    for value in refused:
        with pytest.raises(ConfigError):
            load(tmp_path, with_key(key, value))


def test_limits_that_the_pool_checks_when_a_member_joins() -> None:
    assert rows()["member.host"].allowed == f"1 to {HOST_BYTES_MAX} printable bytes"
    assert f"1 to {MEMBERS_MAX}." in sections()["member"]
