"""Runs trio so that one seed gives one run, bit for bit, in any process.

Each source of chance, and how it is fixed:

    order of tasks     trio shuffles what can run with `trio._core._run._r`; it is seeded for each
                       run, and `_ALLOW_DETERMINISTIC_SCHEDULING` makes trio sort the batch by age
                       first, as tasks come out of sets in the order of their addresses
    time               a MockClock that jumps when all wait; the wall clock stands still
    threads            none: `storage.environment.in_line`
    randomness         `random.Random` of the seed for disks, engine and workload each
    hashes of strings  nothing may go through a set of strings; a test runs another PYTHONHASHSEED
    garbage            collected between runs only, so that no finalizer runs at a random time
"""

import gc
import itertools
import logging
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import trio
import trio.testing

from blockdev.errors import DeviceError
from blockdev.simulation.power import PowerCut
from storage.environment import Environment, in_line
from storage.format import superblock

Body = Callable[[], Awaitable[object]]

_COLLECT_EVERY_RUNS = 10
"""A pool and its disks are garbage in reference cycles; a whole collection costs 1/5 of a run."""
_runs = itertools.count(1)

HANGS_AFTER_S = 50_000.0
"""Seconds of the mock clock, which jumps when all tasks wait: only an endless wait takes that."""


class Hang(AssertionError):
    """All tasks of a run wait for ever."""


def environment(seed: object) -> Environment:
    """Return an environment without threads, with a stopped clock and seeded randomness."""
    noise = random.Random(f"environment {seed}")
    return Environment(
        offload=in_line,
        wall_clock=lambda: datetime(2030, 1, 1, tzinfo=UTC),
        random_bytes=noise.randbytes,
    )


def run(seed: object, body: Body) -> bool:
    """Run `body`; True when it ended in a power cut. Any other error is raised without a group.

    Raises:
        Hang: `body` waits for ever.
    """
    scheduler = trio._core._run
    scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    scheduler._r.seed(f"scheduler {seed}")
    return run_to_its_end(body)


def run_to_its_end(body: Body) -> bool:
    """Run `body` on a clock of its own; returns and raises as `run`."""
    failure: BaseException | None = None
    was_cut = False

    async def bounded() -> None:
        with trio.fail_after(HANGS_AFTER_S):
            await body()

    try:
        trio.run(bounded, clock=trio.testing.MockClock(autojump_threshold=0))
    except* PowerCut:
        was_cut = True
    except* Exception as group:
        failure = _innermost(group)
    if not gc.isenabled() and next(_runs) % _COLLECT_EVERY_RUNS == 0:
        gc.collect()
    if isinstance(failure, trio.TooSlowError):
        raise Hang("something waits for ever") from failure
    if failure is not None:
        raise failure
    return was_cut


def _innermost(error: BaseException) -> BaseException:
    """Return one error of a group: an assertion or bug before device errors, which it may cause."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    leaves = [_innermost(each) for each in error.exceptions]
    return next((e for e in leaves if not isinstance(e, DeviceError)), leaves[0])


@contextmanager
def superblocks_decoded_once() -> Iterator[None]:
    """Around many runs: decode each superblock once.

    Decoding is a pure function of bytes, and each opening reads the same 27 superblocks of three
    members three times over: a third of its time.
    """
    decode = superblock.decode
    known: dict[bytes, superblock.Superblock | None] = {}

    def decode_once(data: bytes) -> superblock.Superblock | None:
        if data[:8] != superblock.MAGIC:
            return decode(data)
        if data not in known:
            if len(known) > 500:
                known.clear()
            known[data] = decode(data)
        return known[data]

    superblock.decode = decode_once  # type: ignore[assignment]
    try:
        yield
    finally:
        superblock.decode = decode


@contextmanager
def garbage_collected_between_runs() -> Iterator[None]:
    """Around many runs: collect no garbage within a run, and never look at objects of before.
    Nested in another use of this context, or with collection off, it does nothing.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        gc.enable()


@contextmanager
def quiet_and_quick() -> Iterator[None]:
    """Around many runs: no log, no garbage collected within a run, superblocks decoded once."""
    log = logging.getLogger("cenote.storage")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        with superblocks_decoded_once(), garbage_collected_between_runs():
            yield
    finally:
        log.setLevel(level)
