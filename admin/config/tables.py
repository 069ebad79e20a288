"""Strict reading of TOML tables: callers ask for keys by name and type, other keys are refused.

Messages read `FILE: KEY.PATH: problem; acceptable values`.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

from admin.errors import ConfigError
from admin.sizes import SizeError, compact, parse_size

T = TypeVar("T")
_KINDS: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    str: "a string",
    list: "a list",
    dict: "a table",
}


class Table:
    """One table of a file. Ask for the keys, then call `finish` to refuse the others.

    Methods raise ConfigError for a key or value that is not as expected.
    """

    def __init__(self, file: Path, values: Mapping[str, object], path: str = "") -> None:
        self._file = file
        self._values = values
        self._path = path
        self._known: list[str] = []

    def fail(self, key: str, message: str) -> NoReturn:
        """Raise ConfigError about `key` of this table."""
        raise ConfigError(f"{self._file}: {self._at(key)}: {message}")

    def has(self, key: str) -> bool:
        """Whether the file gives `key`."""
        return key in self._values

    def text(self, key: str, default: str | None = None) -> str:
        """The string at `key`; required without a default, and never empty."""
        value = self._typed(key, str, default)
        if not value:
            self.fail(key, "is empty; give a value or remove the line")
        return value

    def whole(self, key: str, default: int, *, low: int, high: int) -> int:
        """The whole number at `key`, between `low` and `high`."""
        value = self._typed(key, int, default)
        if not low <= value <= high:
            self.fail(key, f"expected {low} to {high}, got {value}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """The boolean at `key`."""
        return self._typed(key, bool, default)

    def seconds(self, key: str, default: float, *, low: float, high: float) -> float:
        """The number of seconds at `key`, with or without a fraction."""
        self._known.append(key)
        value = self._values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.fail(key, f"expected a number of seconds, got {_shown(value)}")
        if not low <= value <= high:
            self.fail(key, f"expected {low:g} to {high:g} seconds, got {value}")
        return float(value)

    def choice(self, key: str, default: str, choices: Sequence[str]) -> str:
        """The string at `key`, one of `choices`."""
        value = self._typed(key, str, default)
        if value not in choices:
            words = ", ".join(f'"{word}"' for word in choices)
            self.fail(key, f"expected one of {words}; got {_shown(value)}")
        return value

    def listed(self, key: str, kind: type[T]) -> tuple[T, ...] | None:
        """The list at `key`, of one kind and never empty, or None; a lone value makes a list."""
        self._known.append(key)
        if key not in self._values:
            return None
        value = self._values[key]
        items = value if isinstance(value, list) else [value]
        for item in items:
            if not isinstance(item, kind) or isinstance(item, bool):
                self.fail(key, f"expected {_KINDS[kind]} or a list of such, got {_shown(item)}")
        if not items or "" in items:
            self.fail(key, "is empty; give a value or remove the line")
        return tuple(items)

    def size(self, key: str, *, low: int, high: int, grain: int = 1) -> int | None:
        """The size at `key` in bytes (a string such as "8G", or a number of bytes), or None."""
        self._known.append(key)
        if key not in self._values:
            return None
        value = self._values[key]
        if isinstance(value, bool) or not isinstance(value, str | int):
            self.fail(key, f'expected a size such as "8G", got {_shown(value)}')
        try:
            size_bytes = parse_size(value) if isinstance(value, str) else value
        except SizeError as error:
            self.fail(key, str(error))
        if not low <= size_bytes <= high:
            self.fail(key, f"expected {compact(low)} to {compact(high)}, got {_shown(value)}")
        if size_bytes % grain:
            below = size_bytes // grain * grain
            near = below if below >= low else below + grain
            self.fail(
                key, f"expected a multiple of {compact(grain)}; the nearest is {compact(near)}"
            )
        return size_bytes

    def table(self, key: str) -> "Table":
        """The table at `key`; an empty one when the file has none."""
        return Table(self._file, self._typed(key, dict, {}), self._at(key))

    def mapping(self, key: str, kind: type[T]) -> dict[str, T]:
        """The table at `key`, of any keys, with values of one kind; empty when there is none."""
        values = self._typed(key, dict, {})
        inner = Table(self._file, values, self._at(key))
        return {name: inner._typed(name, kind, None) for name in values}

    def tables(self, key: str) -> Iterator["Table"]:
        """The tables of the array at `key`, in order."""
        self._known.append(key)
        values = self._values.get(key, [])
        if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
            self.fail(key, f"expected one or more tables, each starting with [[{key}]]")
        for index, value in enumerate(values):
            yield Table(self._file, value, f"{self._at(key)}[{index}]")

    def finish(self) -> None:
        """Refuse keys that were not asked for; the message suggests a similar one."""
        for key in self._values:
            if key not in self._known:
                self.fail(key, f"unknown key{suggest(key, self._known)}")

    def _at(self, key: str) -> str:
        return f"{self._path}.{key}" if self._path else key

    def _typed(self, key: str, kind: type[T], default: T | None) -> T:
        self._known.append(key)
        if key not in self._values:
            if default is None:
                self.fail(key, f"is missing; expected {_KINDS[kind]}")
            return default
        value = self._values[key]
        # bool is a kind of int in Python, and is not one in TOML.
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            self.fail(key, f"expected {_KINDS[kind]}, got {_shown(value)}")
        return value


def suggest(word: str, known: Sequence[str]) -> str:
    """`; did you mean ...?` when a known word is similar, else the list of known words."""
    near = difflib.get_close_matches(word.lower(), known, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(sorted(known))}" if known else ""


def _shown(value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
