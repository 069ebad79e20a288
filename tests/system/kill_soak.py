"""`kill -9`, again and again, under several clients, snapshots, clones and the cleaner.

    python -m tests.system.kill_soak --kills 500

The real daemon on two members with two copies, so small that the cleaner always has work. Clients
write stamped blocks to a volume each; beside them snapshots are made and deleted, cloned,
and the clones flattened and deleted. After each kill every block holds its last flushed stamp or a
later one, what was acknowledged of snapshots and clones is there, and none of them changes ever.
"""

import argparse
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from xxhash import xxh3_128_hexdigest

from admin.api.client import Client
from admin.errors import DaemonNotRunningError
from admin.home import Home
from admin.names import SnapshotName
from tests.system.pool_daemon import PoolDaemon, pool_daemon, scratch_directory
from tests.system.processes import POLL_S
from tests.system.stamps import Model, StampedClient

VOLUMES = ("a", "b", "c", "d")
VOLUME_BYTES = 6 << 20
MEMBER_SIZE = "160M"
SNAPSHOTS_MAX, CLONES_MAX = 6, 3
WRITE_S_MIN, WRITE_S_MAX = 0.05, 0.7
CHANGES_MIN = 2
"""Changes of snapshots and clones before a kill, however slow the machine is."""
CHECK_EVERY = 20
LOOKS = 3
"""Snapshots and clones read after each kill; in the end all of them."""


@dataclass
class Exports:
    """Snapshots or clones: which are there for certain, which may be, and what they held."""

    certain: set[str] = field(default_factory=set)
    possible: set[str] = field(default_factory=set)
    """Being made or deleted when the daemon was killed."""
    digests: dict[str, str] = field(default_factory=dict)

    def settle(self, found: set[str], what: str) -> None:
        """The daemon runs again. Raises AssertionError."""
        missing = self.certain - found - self.possible
        strange = found - self.certain - self.possible
        assert not missing, f"{what} are gone: {sorted(missing)}"
        assert not strange, f"{what} come from nowhere: {sorted(strange)}"
        self.certain, self.possible = set(found), set()
        self.digests = {name: digest for name, digest in self.digests.items() if name in found}

    def saw(self, name: str, digest: str) -> None:
        """Hold what was read against what was read before. Raises AssertionError."""
        before = self.digests.setdefault(name, digest)
        assert before == digest, f"{name} has changed"


class Soak:
    """One pool through many kills."""

    def __init__(self, daemon: PoolDaemon, seed: int) -> None:
        self.daemon = daemon
        self.rng = random.Random(seed)
        self.models = {name: Model(VOLUME_BYTES // 4096) for name in VOLUMES}
        self.snapshots, self.clones = Exports(), Exports()
        self.kills = self.writes = self.flushes = self.changes = self.looks = self.checks = 0
        self._number = 0
        self._killed = threading.Event()
        self._problems: list[BaseException] = []

    def run(self, kills: int) -> None:
        """Raises AssertionError."""
        self.daemon.start()
        for name in VOLUMES:
            self.daemon.create_volume(name, VOLUME_BYTES)
        for _ in range(kills):
            self._work_and_kill()
            self.kills += 1
            if self.kills % CHECK_EVERY == 0:
                self.daemon.assert_check_is_clean()
                self.checks += 1
                print(self, flush=True)
            self.daemon.start()
            self._verify(LOOKS)
        self._verify(SNAPSHOTS_MAX + CLONES_MAX)
        self.daemon.stop()
        self.daemon.assert_check_is_clean()

    def __str__(self) -> str:
        return (
            f"{self.kills} kills, {self.writes} writes, {self.flushes} flushes, {self.changes} "
            f"changes of snapshots and clones, {self.looks} of them read again, {self.checks} "
            "offline checks between; nothing is wrong"
        )

    # -- working

    def _work_and_kill(self) -> None:
        self._killed.clear()
        rng = random.Random(self.rng.random())
        clients = [self._client(name) for name in VOLUMES]
        threads = [self._thread(client.write_until_killed) for client in clients]
        threads.append(self._thread(lambda: self._change_until_killed(rng)))
        changes = self.changes + CHANGES_MIN
        time.sleep(self.rng.uniform(WRITE_S_MIN, WRITE_S_MAX))
        for client in clients:
            client.wait_for(writes=1, flushes=1)
        while self.changes < changes and not self._problems:
            time.sleep(POLL_S)
        self._killed.set()
        self.daemon.kill()
        for thread in threads:
            thread.join()
        assert not self._problems, f"{self._problems[0]!r}\n{self.daemon.log_tail()}"
        self.writes += sum(client.writes for client in clients)
        self.flushes += sum(client.flushes for client in clients)

    def _thread(self, work: Callable[[], None]) -> threading.Thread:
        def guarded() -> None:
            try:
                work()
            except BaseException as error:
                self._problems.append(error)

        thread = threading.Thread(target=guarded)
        thread.start()
        return thread

    def _client(self, name: str) -> StampedClient:
        rng = random.Random(self.rng.random())
        return StampedClient(self.daemon.socket, name, self.models[name], rng)

    def _change_until_killed(self, rng: random.Random) -> None:
        with Client(Home(self.daemon.home)) as api:
            try:
                while not self._killed.is_set():
                    self._change(api, rng)
                    self.changes += 1
            except DaemonNotRunningError:
                assert self._killed.is_set(), "the daemon does not answer"

    def _change(self, api: Client, rng: random.Random) -> None:
        snapshots, clones = sorted(self.snapshots.certain), sorted(self.clones.certain)
        self._number += 1
        act = rng.choice(["snapshot", "snapshot", "delete", "clone", "flatten", "delete clone"])
        if act == "snapshot" and len(snapshots) < SNAPSHOTS_MAX:
            name = f"{rng.choice(VOLUMES)}@s{self._number}"
            self._make(self.snapshots, name, lambda: api.create_snapshot(_snapshot(name)))
        elif act == "delete" and snapshots:
            name = rng.choice(snapshots)
            self._remove(self.snapshots, name, lambda: api.delete_snapshot(_snapshot(name)))
        elif act == "clone" and snapshots and len(clones) < CLONES_MAX:
            source, name = rng.choice(snapshots), f"clone{self._number}"
            if source in self.snapshots.digests:
                self.clones.digests[name] = self.snapshots.digests[source]
            self._make(self.clones, name, lambda: api.clone(_snapshot(source), name))
        elif act == "flatten" and clones:
            name = rng.choice(clones)
            if api.volume(name).origin is not None and api.volume(name).flattening is None:
                api.flatten(name)
        elif act == "delete clone" and clones:
            name = rng.choice(clones)
            self._remove(self.clones, name, lambda: api.delete_volume(name, snapshots=True))
        else:
            time.sleep(0.02)

    def _make(self, exports: Exports, name: str, call: Callable[[], object]) -> None:
        exports.possible.add(name)
        call()
        exports.possible.discard(name)
        exports.certain.add(name)

    def _remove(self, exports: Exports, name: str, call: Callable[[], object]) -> None:
        exports.possible.add(name)
        exports.certain.discard(name)
        call()
        exports.possible.discard(name)

    # -- verifying

    def _verify(self, looks: int) -> None:
        for name in VOLUMES:
            client = self._client(name)
            wrong = client.verify()
            client.close()
            assert not wrong, (
                f"after kill {self.kills}, volume {name}, {len(wrong)} blocks: {wrong[:5]}\n"
                f"{self.daemon.log_tail()}"
            )
        with Client(Home(self.daemon.home)) as api:
            found = {f"{one.volume}@{one.name}" for one in api.snapshots()}
            volumes = {volume.name for volume in api.volumes()} - set(VOLUMES)
        self.snapshots.settle(found, "snapshots")
        self.clones.settle(volumes, "clones")
        for exports in (self.snapshots, self.clones):
            names = sorted(exports.certain)
            for name in self.rng.sample(names, min(looks, len(names))):
                exports.saw(name, self._digest(name))
                self.looks += 1

    def _digest(self, export: str) -> str:
        client = StampedClient(self.daemon.socket, export, Model(0), self.rng)
        try:
            return xxh3_128_hexdigest(client.read(0, VOLUME_BYTES // 4096))
        finally:
            client.close()


def _snapshot(name: str) -> SnapshotName:
    return SnapshotName(*name.split("@"))


def soak(kills: int, seed: int) -> Soak:
    """Kill so often. Raises AssertionError."""
    with (
        scratch_directory() as scratch,
        pool_daemon(scratch, members=2, copies=2, member_size=MEMBER_SIZE) as daemon,
    ):
        run = Soak(daemon, seed)
        run.run(kills)
        return run


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill the daemon again and again.")
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    began_s = time.monotonic()
    run = soak(arguments.kills, arguments.seed)
    print(f"{time.monotonic() - began_s:.0f} s: {run}")


if __name__ == "__main__":
    main()
