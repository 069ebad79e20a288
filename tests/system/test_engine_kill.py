"""`kill -9` in the middle of writing: what was flushed is there, and nothing is garbage.

The kernel keeps what a killed process wrote, so this proves recovery of the real daemon with
real clients, not survival of power cuts; simulated disks do that elsewhere.
"""

import json
import random
import subprocess
import threading
import time
from pathlib import Path

import pytest

from admin.api.client import Client
from admin.home import Home
from tests.system.kill_soak import soak
from tests.system.pool_daemon import PoolDaemon, pool_daemon, run
from tests.system.processes import PATIENCE_S, POLL_S
from tests.system.stamps import BATCH, BLOCK_BYTES, Model, StampedClient

pytestmark = pytest.mark.system

VOLUMES = ("left", "right")
VOLUME_BYTES, FIO_BYTES = 16 << 20, 8 << 20
BATCHES_MAX = 24
"""Each client's batches of writes before a kill: half a second's, as a checkpoint starts within a
second of a recovery, so that some kills meet one."""
FIO_WRITES_MAX = 4096
FIO_EVERY = 5
CHECK_EVERY = 5


class Rounds:
    """One pool through many kills."""

    def __init__(self, daemon: PoolDaemon, seed: int) -> None:
        self.daemon = daemon
        self.rng = random.Random(seed)
        self.models = {name: Model(VOLUME_BYTES // 4096) for name in VOLUMES}
        self.start_s: list[float] = []
        self.writes = 0
        self.flushes = 0

    def start_and_verify(self) -> None:
        """Start the daemon: every block holds its last flushed stamp or a later one."""
        self.start_s.append(self.daemon.start())
        for name in VOLUMES:
            client = self._client(name)
            wrong = client.verify()
            client.close()
            assert not wrong, (
                f"after kill {len(self.start_s) - 1}, volume {name}, {len(wrong)} blocks: "
                f"{wrong[:5]}\n{self.daemon.log_tail()}"
            )

    def write_and_kill(self) -> None:
        """Write to all volumes at once, and kill the daemon in the middle."""
        clients = [self._client(name) for name in VOLUMES]
        problems: list[BaseException] = []

        def write(client: StampedClient) -> None:
            try:
                client.write_until_killed()
            except BaseException as error:
                problems.append(error)

        threads = [threading.Thread(target=write, args=(client,)) for client in clients]
        for thread in threads:
            thread.start()
        writes = self.rng.randint(1, BATCHES_MAX) * BATCH
        for client in clients:
            client.wait_for(writes=writes, flushes=1)
        self.daemon.kill()
        for thread in threads:
            thread.join()
        assert not problems, f"{problems[0]!r}\n{self.daemon.log_tail()}"
        self.writes += sum(client.writes for client in clients)
        self.flushes += sum(client.flushes for client in clients)

    def _client(self, name: str) -> StampedClient:
        rng = random.Random(self.rng.random())
        return StampedClient(self.daemon.socket, name, self.models[name], rng)


@pytest.mark.parametrize(
    ("members", "copies", "kills"), [(1, 1, 25), (3, 2, 25)], ids=["1-member", "3-members"]
)
def test_flushed_writes_survive_kills(scratch: Path, members: int, copies: int, kills: int) -> None:
    """Goal: after `kill -9`, each block holds its last flushed write or a later one.

    Method: two clients write stamped blocks at random places, with flushes, FUA and zeroes,
    until the daemon is killed; it starts again, all blocks are read, and so on. Every
    few rounds it is fio that writes when the daemon dies, and verifies anew after the
    restart; and the offline check has to find the pool clean as the kill left it.
    """
    began = time.monotonic()
    with pool_daemon(scratch, members=members, copies=copies, member_size="4G") as daemon:
        rounds = Rounds(daemon, seed=members)
        daemon.start()
        for name in VOLUMES:
            daemon.create_volume(name, VOLUME_BYTES)
        daemon.create_volume("fio", FIO_BYTES)
        daemon.stop()
        for number in range(1, kills + 1):
            rounds.start_and_verify()
            if number % FIO_EVERY == 0:
                _fio_is_killed(daemon, rounds.rng)
            else:
                rounds.write_and_kill()
            if number % CHECK_EVERY == 0:
                daemon.assert_check_is_clean()
        rounds.start_and_verify()
        _fio_verifies(daemon)
        daemon.stop()
        daemon.assert_check_is_clean()
    starts = sorted(rounds.start_s)
    print(
        f"\nkills={kills} writes={rounds.writes} flushes={rounds.flushes} "
        f"start_s: median={starts[len(starts) // 2]:.2f} max={starts[-1]:.2f} "
        f"seconds={time.monotonic() - began:.0f}"
    )
    assert rounds.flushes > kills


FIO_JOB = (
    "--name=kill", "--ioengine=nbd", "--rw=randwrite", "--bs=4k", "--iodepth=16", "--fsync=32",
    f"--size={FIO_BYTES}", "--verify=crc32c", "--output-format=json",
)  # fmt: skip


def _fio_is_killed(daemon: PoolDaemon, rng: random.Random) -> None:
    """Kill the daemon under fio, which has to notice; then one more round verifies."""
    _fio_verifies(daemon)
    command = ["fio", *FIO_JOB, f"--uri={daemon.uri('fio')}", "--do_verify=0"]
    command += ["--time_based", "--runtime=3600"]
    fio = subprocess.Popen(
        command, cwd=daemon.directory, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    with fio:
        _wait_for_writes(daemon, "fio", rng.randint(1, FIO_WRITES_MAX) * BLOCK_BYTES)
        assert fio.poll() is None, "fio ended before the daemon was killed"
        daemon.kill()
        assert fio.wait(PATIENCE_S) != 0


def _wait_for_writes(daemon: PoolDaemon, export: str, more_bytes: int) -> None:
    """Wait until clients of an export have written so much more."""
    with Client(Home(daemon.home)) as api:
        wanted = _written(api, export) + more_bytes
        deadline = time.monotonic() + PATIENCE_S
        while _written(api, export) < wanted:
            assert time.monotonic() < deadline, f"no {more_bytes} bytes are written"
            time.sleep(POLL_S)


def _written(api: Client, export: str) -> int:
    return sum(one.written_bytes for one in api.exports() if one.name == export)


def _fio_verifies(daemon: PoolDaemon) -> None:
    """A fresh job of fio: writes everything once in random order, then verifies it."""
    text = run("fio", *FIO_JOB, f"--uri={daemon.uri('fio')}", "--do_verify=1", cwd=daemon.directory)
    job = json.loads(text[text.index("{") : text.rindex("}") + 1])["jobs"][0]
    assert job["error"] == 0
    assert job["write"]["io_bytes"] >= FIO_BYTES
    assert job["read"]["io_bytes"] >= FIO_BYTES


@pytest.mark.parametrize("kills", [6, pytest.param(500, marks=pytest.mark.long)])
def test_snapshots_and_clones_survive_kills_too(kills: int) -> None:
    """Goal: as above, while snapshots and clones come and go and the cleaner is at work; what was
    acknowledged of them is there, and never changes. Method: see `tests.system.kill_soak`.
    """
    run = soak(kills, seed=kills)
    assert run.kills == kills
    assert run.flushes > kills
    assert run.changes > kills
    assert run.looks
