"""Work on a mounted file system, in a process of its own, that says what was durable and when.

    python -m tests.system.file_work files DIRECTORY SECONDS SEED > deeds

One line of JSON for each deed: when it was begun, and when the file system or database said that it
is durable. `tests.system.file_proof` holds what a power cut leaves against them. All content
follows from the seed.
"""

import contextlib
import itertools
import json
import os
import random
import sqlite3
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

BLOCK = 4096
BLOCKS = 48
LINE = 64
KEPT_ROWS = 60
FILES_MAX = 30
FILE_KINDS = {"new", "replace", "delete", "line", "block"}
MODES = {"wal": "FULL", "delete": "EXTRA"}
"""Journal modes of SQLite, each with the `synchronous` that makes a commit durable."""


@dataclass(frozen=True)
class Deed:
    """Something that is durable from `done_s` on and may have happened since `begun_s`."""

    kind: str
    name: str
    version: int
    begun_s: float
    done_s: float


def content(seed: str, name: str, version: int) -> bytes:
    """What a file holds: one byte to 200 KiB."""
    rng = random.Random(f"{seed} {name} {version}")
    size = rng.choice([rng.randint(1, 100), rng.randint(1, 20_000), rng.randint(1, 200_000)])
    noise = rng.randbytes(min(size, 30_000))
    return (noise * (size // len(noise) + 1))[:size]


def block_of(seed: str, number: int, version: int) -> bytes:
    return random.Random(f"{seed} block {number} {version}").randbytes(BLOCK)


def line_of(seed: str, number: int) -> bytes:
    return random.Random(f"{seed} line {number}").randbytes(LINE)


def row_of(seed: str, mode: str, number: int) -> bytes:
    rng = random.Random(f"{seed} {mode} {number}")
    return rng.randbytes(rng.choice([10, 500, 9000]))


def sync(path: Path) -> None:
    """Make a file, or the names in a directory, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Worker:
    """Does one thing after another, and says so."""

    def __init__(self, root: Path, seed: str) -> None:
        self._root = root
        self._seed = seed
        self._rng = random.Random(seed)
        self._files: list[str] = []
        self._number = itertools.count(1)
        self._lines = 0
        self._done = set[str]()

    @contextlib.contextmanager
    def _deed(self, kind: str, name: str, version: int) -> Iterator[None]:
        begun_s = time.monotonic()
        yield
        self._done.add(kind)
        print(json.dumps(asdict(Deed(kind, name, version, begun_s, time.monotonic()))), flush=True)

    # -- files

    def files(self, until_s: float) -> None:
        """New files, new versions of files, appended lines, blocks in place, deleted files.

        Goes on until each of them was done.
        """
        with (self._root / "lines").open("wb", buffering=0) as lines:
            blocks = os.open(self._root / "blocks", os.O_RDWR | os.O_CREAT)
            with self._deed("blocks", "blocks", 0):
                for number in range(BLOCKS):
                    os.pwrite(blocks, block_of(self._seed, number, 0), number * BLOCK)
                os.fsync(blocks)
                sync(self._root)
            while time.monotonic() < until_s or not self._done >= FILE_KINDS:
                act = self._rng.choice(["new", "new", "replace", "line", "line", "block", "delete"])
                if act == "line":
                    self._line(lines.fileno())
                elif act == "block":
                    self._block(blocks)
                else:
                    self._file(act)
            os.close(blocks)

    def _file(self, act: str) -> None:
        version = next(self._number)
        if len(self._files) >= FILES_MAX:
            act = "delete"
        if act == "new" or not self._files:
            name = f"file{version}"
            with self._deed("new", name, version):
                self._write(name, content(self._seed, name, version))
                sync(self._root)
            self._files.append(name)
            return
        name = self._rng.choice(self._files)
        with self._deed(act, name, version):
            if act == "replace":
                self._write("temporary", content(self._seed, name, version))
                (self._root / "temporary").rename(self._root / name)
            else:
                (self._root / name).unlink()
                self._files.remove(name)
            sync(self._root)

    def _write(self, name: str, data: bytes) -> None:
        with (self._root / name).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def _line(self, descriptor: int) -> None:
        with self._deed("line", "lines", self._lines):
            os.write(descriptor, line_of(self._seed, self._lines))
            os.fsync(descriptor)
            if not self._lines:
                sync(self._root)
        self._lines += 1

    def _block(self, descriptor: int) -> None:
        number, version = self._rng.randrange(BLOCKS), next(self._number)
        with self._deed("block", str(number), version):
            os.pwrite(descriptor, block_of(self._seed, number, version), number * BLOCK)
            os.fdatasync(descriptor)

    # -- databases

    def databases(self, until_s: float) -> None:
        """Transactions one after another, in a database for each journal mode."""
        databases = {}
        for mode, synchronous in MODES.items():
            with self._deed("made", mode, 0):
                database = sqlite3.connect(self._root / f"{mode}.db", isolation_level=None)
                database.execute(f"PRAGMA journal_mode={mode}")
                database.execute(f"PRAGMA synchronous={synchronous}")
                database.execute("PRAGMA wal_autocheckpoint=40")
                database.execute("CREATE TABLE rows (number INTEGER PRIMARY KEY, data BLOB)")
                sync(self._root)
            databases[mode] = database
        for number in itertools.count(1):
            for mode, database in databases.items():
                with self._deed("committed", mode, number):
                    self._transaction(database, mode, number)
            if time.monotonic() > until_s:
                break
        for database in databases.values():
            database.close()

    def _transaction(self, database: sqlite3.Connection, mode: str, number: int) -> None:
        row = number, row_of(self._seed, mode, number)
        database.execute("BEGIN")
        database.execute("INSERT INTO rows VALUES (?, ?)", row)
        database.execute("DELETE FROM rows WHERE number <= ?", (number - KEPT_ROWS,))
        database.execute("COMMIT")


def main() -> None:
    work, root, seconds, seed = sys.argv[1:]
    worker = Worker(Path(root), seed)
    until_s = time.monotonic() + float(seconds)
    worker.files(until_s) if work == "files" else worker.databases(until_s)


if __name__ == "__main__":
    main()
