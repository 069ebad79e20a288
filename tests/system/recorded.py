"""Records what real programs do to a pool, and looks at what power cuts would leave of it.

    python -m tests.system.recorded --images 1000        (as root)

Recording: a pool of members that note down all that is done to them, served over NBD in this
process; ext4 and xfs of the kernel on two of its volumes, fio on a third. Snapshots come and go,
the cleaner moves blocks, checkpoints are written.

Looking: for each cut the members as they may be then, the pool opened from them, one of the file
systems copied out and mounted, and held against what its programs were told is durable; the
file system's own checker, the databases' and the pool's find nothing.
"""

import argparse
import gc
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from admin.daemon.exports import PoolExports
from nbd.server.listeners import listen_unix
from nbd.server.server import Server
from storage.pool import MemberDevice, Pool, PoolSettings, create_pool, open_pool
from storage.verify.check import check_pool
from tests.crash.harness import MIB, ONE, TWO_OF_THREE, Shape
from tests.sim import deterministic, look
from tests.sim.disks import SimDisk, SimWorld, boot
from tests.system import mounts
from tests.system.file_proof import Lost, Proof, read_deeds
from tests.system.file_work import Deed
from tests.system.fio_blocks import FIO, hold_blocks
from tests.system.recording import Player, Recording, RecordingDevice

SIZES = {"ext4": 96 * MIB, "xfs": 320 * MIB, "fio": 16 * MIB}
KINDS = ("ext4", "xfs")
MEMBER_BYTES = 320 * MIB
SETTINGS = PoolSettings(flush_interval_s=0.5, checkpoint_interval_s=0.7)
FSCK_EVERY = 3
"""Images of which the file system's own checker looks at one: it takes longer than all else."""
COLLECT_EVERY = 5


@dataclass
class Recorded:
    """A recording, and what programs were told meanwhile."""

    shape: Shape
    recording: Recording
    made: int
    """Events until there was a pool."""
    deeds: dict[str, list[Deed]]
    fio_begun_s: float
    fio_done_s: float


def _members(shape: Shape, devices: list[RecordingDevice] | list[SimDisk]) -> list[MemberDevice]:
    return [
        MemberDevice(device, f"disk{i}", host)
        for i, (device, host) in enumerate(zip(devices, shape.hosts, strict=True))
    ]


# Recording


async def record(folder: Path, shape: Shape, seconds: float) -> Recorded:
    """Let programs work for so long."""
    recording = Recording([MEMBER_BYTES] * len(shape.hosts))
    members = _members(shape, [RecordingDevice(recording, i) for i in range(len(shape.hosts))])
    await create_pool(members, copies=shape.copies, segment_bytes=2 * MIB)
    recorded = Recorded(shape, recording, len(recording.events), {}, 0.0, 0.0)
    async with open_pool(members, settings=SETTINGS) as pool, trio.open_nursery() as nursery:
        for name, size in SIZES.items():
            await pool.management.create_volume(name, size)
        server = Server(PoolExports(pool))
        await nursery.start(server.serve, [listen_unix(folder / "sock")])
        nursery.start_soon(_snapshots, pool)
        nursery.start_soon(_cleaning, pool)
        work = partial(_programs, folder, seconds, recorded)
        await trio.to_thread.run_sync(work)
        server.stop()
        nursery.cancel_scope.cancel()
    return recorded


async def _snapshots(pool: Pool) -> None:
    number = 0
    while True:
        number += 1
        for name in KINDS:
            await pool.management.create_snapshot(name, f"s{number}")
            if number > 2:
                await pool.management.delete_snapshot(name, f"s{number - 2}")
        await trio.sleep(0.6)


async def _cleaning(pool: Pool) -> None:
    while True:
        await trio.sleep(0.4)
        await pool.cleaner.round()


def _programs(folder: Path, seconds: float, recorded: Recorded) -> None:
    with ExitStack() as stack:
        places = {}
        for kind in KINDS:
            uri = f"nbd+unix:///{kind}?socket={folder}/sock"
            file = stack.enter_context(mounts.export_as_file(folder / f"{kind}-fuse", uri))
            device = stack.enter_context(mounts.loop_device(file))
            mounts.run(*mounts.MAKE[kind], device)
            places[kind] = stack.enter_context(mounts.mounted(device, folder / kind, kind))
        workers = [
            threading.Thread(target=_work, args=(places[kind], work, seconds, recorded))
            for kind in KINDS
            for work in ("files", "databases")
        ]
        workers.append(threading.Thread(target=_fio, args=(folder, recorded)))
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert len(recorded.deeds) == len(workers) - 1
    assert recorded.fio_done_s


def _work(place: Path, work: str, seconds: float, recorded: Recorded) -> None:
    name = f"{place.name} {work}"
    module = "tests.system.file_work"
    command = [sys.executable, "-m", module, work, str(place), str(seconds), name]
    recorded.deeds[name] = read_deeds(mounts.run(*command))


def _fio(folder: Path, recorded: Recorded) -> None:
    recorded.fio_begun_s = time.monotonic()
    uri = f"nbd+unix:///fio?socket={folder}/sock"
    mounts.run("fio", *FIO, "--ioengine=nbd", f"--uri={uri}", "--rate_iops=1500")
    recorded.fio_done_s = time.monotonic()


# Looking


@dataclass
class Seen:
    """What looking at images came to."""

    images: int = 0
    held: int = 0
    """Files, lines, blocks, databases and commits that were held against what must be there."""
    checked_by_fsck: int = 0


def cuts(recorded: Recorded, images: int, rng: random.Random) -> list[int]:
    """Half of them right behind where something became durable, the others anywhere."""
    recording = recorded.recording
    promises = [promise for promise in recording.promises() if promise >= recorded.made]
    step = max(1.0, len(promises) / (images // 2))
    chosen = {promises[int(i * step)] + 1 for i in range(min(images // 2, len(promises)))}
    while len(chosen) < min(images, len(recording.events)):
        chosen.add(rng.randrange(recorded.made, len(recording.events)) + 1)
    return sorted(chosen)


def look_at(recorded: Recorded, folder: Path, images: int, *, carries_out: int = 1) -> Seen:
    """Look at so many images. Raises AssertionError if anything is not as it must be."""
    player = Player(recorded.recording, carries_out=carries_out)
    seen = Seen()
    rng = random.Random(f"cuts {images}")
    for number, cut in enumerate(cuts(recorded, images, rng)):
        player.forward(cut)
        try:
            with deterministic.quiet_and_quick():
                _Image(recorded, folder, number, player, seen).look()
        except Exception as error:
            error.add_note(f"cut={cut} image={number} shape={recorded.shape}")
            raise
        seen.images += 1
        if number % COLLECT_EVERY == 0:
            gc.collect()  # an image is some 100 MiB, in cycles
    return seen


class _Image:
    """The members after one power cut."""

    def __init__(
        self, recorded: Recorded, folder: Path, number: int, player: Player, seen: Seen
    ) -> None:
        self._recorded = recorded
        self._folder = folder
        self._number = number
        self._kind = KINDS[number % len(KINDS)]
        self._cut_s = player.now_s
        self._world = boot(player.photo(), number)
        self._world.pauses_reads = False
        self._seen = seen

    def look(self) -> None:
        file = self._folder / "image"
        deterministic.run(self._number, partial(self._open, file))
        deterministic.run(self._number, partial(_no_damage, self._world, self._recorded.shape))
        if file.exists():
            self._look_at_files(file)
            file.unlink()

    async def _open(self, file: Path) -> None:
        members = _members(self._recorded.shape, _disks(self._world))
        env = deterministic.environment(self._number)
        async with open_pool(members, settings=SETTINGS, env=env) as pool:
            names = {volume.name for volume in pool.management.volumes()}
            if self._kind in names and self._is_made():
                await _copy_out(pool, self._kind, file)
            if "fio" in names and self._cut_s > self._recorded.fio_begun_s:
                blocks = await look._image(pool, "fio", holes=True)
                done = self._cut_s >= self._recorded.fio_done_s
                self._seen.held += hold_blocks(blocks.blocks, all_of_them=done)

    def _is_made(self) -> bool:
        """Whether the file system was there for certain."""
        deeds = self._recorded.deeds[f"{self._kind} files"]
        return deeds[0].begun_s <= self._cut_s

    def _look_at_files(self, file: Path) -> None:
        with (
            mounts.loop_device(file) as device,
            mounts.mounted(device, self._folder / self._kind, self._kind) as root,
        ):
            for work in ("files", "databases"):
                name = f"{self._kind} {work}"
                proof = Proof(root, name, self._recorded.deeds[name], self._cut_s)
                proof.files() if work == "files" else proof.databases()
                self._seen.held += proof.held
        if self._number // len(KINDS) % FSCK_EVERY == 0:
            mounts.run(*mounts.CHECK[self._kind], file)
            self._seen.checked_by_fsck += 1


def _disks(world: SimWorld) -> list[SimDisk]:
    return [disk for disk in world.disks if isinstance(disk, SimDisk)]


async def _copy_out(pool: Pool, name: str, file: Path) -> None:
    volume = pool.open_export(name)
    with file.open("wb") as target:
        target.truncate(volume.size_bytes)
        for start, end in await look._data(volume):
            for at in range(start, end, look.READ_BYTES):
                target.seek(at)
                target.write(await volume.read(at, min(look.READ_BYTES, end - at)))
    await volume.close()


async def _no_damage(world: SimWorld, shape: Shape) -> None:
    report = await check_pool(_members(shape, _disks(world)))
    if report.damage:
        raise Lost(f"a check of the pool finds damage: {report.damage[:5]}")


# All of it


@contextmanager
def memory_folder() -> Iterator[Path]:
    """A directory with a short path, in memory: images are made and thrown away."""
    path = Path(tempfile.mkdtemp(prefix="cenote-", dir="/dev/shm"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Power cuts under real programs.")
    parser.add_argument("--images", type=int, default=1000, help="in all, over both shapes")
    parser.add_argument("--seconds", type=float, default=20, help="how long programs work")
    arguments = parser.parse_args()
    for shape in (ONE, TWO_OF_THREE):
        with memory_folder() as folder:
            recorded = trio.run(record, folder, shape, arguments.seconds)
            deeds = sum(map(len, recorded.deeds.values()))
            promises = len(recorded.recording.promises())
            print(
                f"{shape}: {len(recorded.recording.events)} events, {promises} flushes and FUA "
                f"writes, {deeds} things acknowledged",
                flush=True,
            )
            began_s = time.monotonic()
            seen = look_at(recorded, folder, arguments.images // 2)
            took_s = time.monotonic() - began_s
            print(f"{shape}: {seen}, {took_s / seen.images:.2f} s an image", flush=True)


if __name__ == "__main__":
    main()
