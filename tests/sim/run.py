"""Runs many seeds of the simulation, in several processes, and sums up.

    python -m tests.sim.run --crash-points 100000 --jobs 2     many seeds
    python -m tests.sim.run --seed 7                           one of them
    python -m tests.sim.run --seed 7 --lives 2 --only 3,8-12   as a failure says

Exit status 1 when anything was wrong. Failing seeds are made smaller first;
`--no-shrink` is quicker.
"""

import argparse
import multiprocessing
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

from tests.sim.actions import WEIGHTS
from tests.sim.deterministic import quiet_and_quick
from tests.sim.plan import BY_NAME, Plan, make_plan, unspell
from tests.sim.shrink import shrink
from tests.sim.simulation import Outcome, simulate

RUN_S_MAX = 120
"""Seconds of processor time of one run, which needs a few: a run that takes more is endless."""

SAY_EVERY = 5_000
"""Crash points between two lines of progress."""


class Endless(AssertionError):
    """A run does not end."""


@dataclass(frozen=True)
class Job:
    """One seed to run."""

    seed: int
    shape: str | None
    size: float
    shrinks: bool


def guarded(plan: Plan) -> Outcome:
    """Run a plan; a run that takes too long is a violation too."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise Endless(f"a run takes more than {RUN_S_MAX} s")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, RUN_S_MAX)
    try:
        with quiet_and_quick():
            return simulate(plan)
    except Endless as error:
        return Outcome(plan.seed, violation=f"Endless: {error}")
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def run_job(job: Job) -> tuple[Outcome, str]:
    """Return the outcome of a seed; if it fails, also the command that runs its smallest form."""
    plan = make_plan(job.seed, WEIGHTS, shape=job.shape, size=job.size)
    outcome = guarded(plan)
    if not outcome.violation:
        return outcome, ""
    # A given shape is not drawn, so the rest of the plan draws other numbers than without it.
    how = f"--size {job.size}" + (f" --shape {job.shape}" if job.shape else "")
    again = f"--seed {job.seed}"
    if job.shrinks and not outcome.violation.startswith("Endless"):
        small = shrink(plan, lambda p: guarded(p).violation, outcome.violation)
        outcome.violation = small.violation
        again = small.arguments
    return outcome, f"python -m tests.sim.run {again} {how}"


def _jobs(arguments: argparse.Namespace) -> Iterator[Job]:
    seed = arguments.first
    while arguments.seeds is None or seed < arguments.first + arguments.seeds:
        yield Job(seed, arguments.shape, arguments.size, arguments.shrink)
        seed += 1


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.sim.run", description="Simulated pools, power cuts and faults."
    )
    parser.add_argument("--seed", type=int, help="run this seed only")
    parser.add_argument("--only", help="of one seed: these actions and faults only")
    parser.add_argument("--lives", type=int, help="of one seed: its first lives only")
    parser.add_argument("--shape", choices=BY_NAME, help="pools of this shape only")
    parser.add_argument("--size", type=float, default=1.0, help="more or fewer actions")
    parser.add_argument("--crash-points", type=int, default=10_000, help="how many to reach")
    parser.add_argument("--seeds", type=int, help="how many seeds at most")
    parser.add_argument("--first", type=int, default=10_000_001, help="the first seed")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--no-shrink", dest="shrink", action="store_false")
    return parser.parse_args()


def _one(arguments: argparse.Namespace) -> int:
    plan = make_plan(arguments.seed, WEIGHTS, shape=arguments.shape, size=arguments.size)
    everything = {item.number for item in plan.items()}
    kept = everything if arguments.only is None else unspell(arguments.only)
    plan = plan.only(kept, arguments.lives)
    outcome = guarded(plan)
    for life in plan.lives:
        print(f"life: faults={[(f.kind, f.member, f.at) for f in life.faults]} ends={life.ends}")
        for number, items in enumerate(life.clients):
            print(f"  client {number}: {', '.join(item.kind for item in items)}")
    print(outcome)
    return 1 if outcome.violation else 0


def main() -> int:
    """Run the seeds that the command line asks for; return the exit status."""
    arguments = _parsed()
    if arguments.seed is not None:
        return _one(arguments)
    started = time.monotonic()
    runs = lives = points = refused = operations = said = 0
    wrong: list[str] = []
    with multiprocessing.get_context("fork").Pool(arguments.jobs, maxtasksperchild=20) as pool:
        for outcome, again in pool.imap_unordered(run_job, _jobs(arguments)):
            runs += 1
            lives += outcome.lives
            points += outcome.crash_points
            refused += outcome.refused
            operations += outcome.operations
            if outcome.violation:
                wrong.append(f"seed {outcome.seed}: {outcome.violation}\n  {again}")
                print(wrong[-1], flush=True)
            if points >= said + SAY_EVERY:
                said = points
                print(f"{points} crash points in {runs} runs, {len(wrong)} violations", flush=True)
            if points >= arguments.crash_points:
                break
        pool.terminate()
    took = time.monotonic() - started
    print(
        f"{points} crash points in {runs} runs, {lives} lives, {operations} device operations: "
        f"{len(wrong)} violations; {refused} lives did not open for faults; "
        f"{took:.0f} s, {points / took:.0f} crash points/s"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
