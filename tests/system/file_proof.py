"""Holds a mounted file system against what `tests.system.file_work` was told is durable."""

import json
import sqlite3
from collections import defaultdict
from pathlib import Path

from tests.system.file_work import (
    BLOCK,
    KEPT_ROWS,
    LINE,
    MODES,
    Deed,
    block_of,
    content,
    line_of,
    row_of,
)


class Lost(AssertionError):
    """Something that was durable is not there, or something is there that never was."""


def read_deeds(text: str) -> list[Deed]:
    return [Deed(**json.loads(line)) for line in text.splitlines()]


class Proof:
    """What must be there after a power cut at `cut_s`: what was done by then.

    What had begun by then may be there, or not; nothing else.
    """

    def __init__(self, root: Path, seed: str, deeds: list[Deed], cut_s: float) -> None:
        self._root = root
        self._seed = seed
        self._deeds = [deed for deed in deeds if deed.begun_s <= cut_s]
        self._cut_s = cut_s
        self.held = 0
        """Things that were held against what is there."""

    def _is_done(self, deed: Deed) -> bool:
        return deed.done_s <= self._cut_s

    def _hold(self, good: bool, what: str) -> None:
        self.held += 1
        if not good:
            raise Lost(f"{self._root.name}: {what}")

    def _versions(self, *kinds: str) -> dict[str, list[Deed]]:
        """By name: the last deed that is done, if any is, and those under way."""
        found: dict[str, list[Deed]] = defaultdict(list)
        for deed in self._deeds:
            if deed.kind in kinds:
                if self._is_done(deed):
                    found[deed.name].clear()
                found[deed.name].append(deed)
        return found

    def files(self) -> None:
        """Raises Lost."""
        for name, deeds in self._versions("new", "replace", "delete").items():
            self._file(name, deeds)
        self._lines()
        self._blocks()

    def _file(self, name: str, deeds: list[Deed]) -> None:
        if not self._is_done(deeds[0]):
            return  # it was being made: whatever there is of it
        path = self._root / name
        found = path.read_bytes() if path.exists() else None
        possible = [
            None if deed.kind == "delete" else content(self._seed, name, deed.version)
            for deed in deeds
        ]
        size = None if found is None else len(found)
        self._hold(found in possible, f"{name}: {size=}, must be one of {deeds}")

    def _lines(self) -> None:
        done = [deed for deed in self._deeds if deed.kind == "line" and self._is_done(deed)]
        if done:
            found = (self._root / "lines").read_bytes()
            wanted = b"".join(line_of(self._seed, deed.version) for deed in done)
            self._hold(found.startswith(wanted), f"lines: {len(found)} of {len(done) * LINE} bytes")

    def _blocks(self) -> None:
        if not any(deed.kind == "blocks" and self._is_done(deed) for deed in self._deeds):
            return
        found = (self._root / "blocks").read_bytes()
        versions = self._versions("block")
        for number in range(len(found) // BLOCK):
            deeds = versions.get(str(number), [])
            possible = [deed.version for deed in deeds]
            if not deeds or not self._is_done(deeds[0]):
                possible.append(0)
            block = found[number * BLOCK : (number + 1) * BLOCK]
            good = any(block == block_of(self._seed, number, version) for version in possible)
            self._hold(good, f"block {number} is none of {possible}")

    def databases(self) -> None:
        """Raises Lost."""
        for mode in MODES:
            deeds = [deed for deed in self._deeds if deed.name == mode]
            if not any(deed.kind == "made" and self._is_done(deed) for deed in deeds):
                continue
            commits = [deed for deed in deeds if deed.kind == "committed"]
            low = sum(map(self._is_done, commits))
            self._database(mode, low, len(commits))

    def _database(self, mode: str, low: int, high: int) -> None:
        path = self._root / f"{mode}.db"
        self._hold(path.exists(), f"{path.name} is gone")
        database = sqlite3.connect(path)
        try:
            says = database.execute("PRAGMA integrity_check").fetchall()
            rows = database.execute("SELECT number, data FROM rows ORDER BY number").fetchall()
        except sqlite3.DatabaseError as error:
            raise Lost(f"{path.name}: {error}") from error
        finally:
            database.close()
        self._hold(says == [("ok",)], f"{path.name}: integrity_check: {says[:3]}")
        last = rows[-1][0] if rows else 0
        self._hold(low <= last <= high, f"{path.name}: {last} commits, not {low} to {high}")
        numbers = range(max(1, last - KEPT_ROWS + 1), last + 1)
        self._hold([row[0] for row in rows] == [*numbers], f"{path.name}: rows are missing")
        good = all(data == row_of(self._seed, mode, number) for number, data in rows)
        self._hold(good, f"{path.name}: wrong data")
