"""Runs a plan: several lives of one pool, and power cuts at many operations of each life."""

import random
from dataclasses import dataclass
from functools import partial

from blockdev.errors import DeviceError
from storage.pool import create_pool
from tests.crash.harness import SEGMENT_BYTES
from tests.sim import members
from tests.sim.deterministic import Hang, environment, run
from tests.sim.disks import Photo, SimDisk, SimWorld, boot
from tests.sim.life import Life, Moment, Probe, check_stopped
from tests.sim.model import Model
from tests.sim.plan import Plan


@dataclass
class Outcome:
    """The result of one run."""

    seed: int
    crash_points: int = 0
    lives: int = 0
    refused: int = 0
    """Lives in which faults kept the pool from opening."""
    operations: int = 0
    hashed: int = 0
    """Hash of every device operation and its result, power cuts and recoveries included."""
    violation: str = ""


def _new_pool(plan: Plan) -> Photo:
    world = SimWorld(plan.seed)
    for _ in plan.shape.hosts:
        SimDisk(
            world, plan.shape.member_bytes, try_reads=bool(plan.seed % 2),
            garbles=plan.seed % 3 == 0,
        )  # fmt: skip
    devices = members.everybody(world, plan.shape).members
    env = environment(plan.seed)
    run(
        plan.seed,
        partial(
            create_pool, devices, copies=plan.shape.copies, segment_bytes=SEGMENT_BYTES, env=env
        ),
    )
    return world.photo()


def simulate(plan: Plan, *, probes: bool = True) -> Outcome:
    """Run a plan; the outcome's `violation` describes the first error, and is empty without one."""
    outcome = Outcome(plan.seed)
    model = Model()
    moment = Moment(_new_pool(plan), model.mark())
    try:
        for number in range(len(plan.lives)):
            moment = _live(plan, number, moment, model, outcome, probes)
    except (AssertionError, Hang, DeviceError) as error:
        outcome.violation = f"{type(error).__name__}: {error}"
    except Exception as error:
        outcome.violation = f"crashed: {error!r}"
    return outcome


def _live(
    plan: Plan, number: int, moment: Moment, model: Model, outcome: Outcome, probes: bool
) -> Moment:
    life = plan.lives[number]
    world = boot(moment.photo, life.seed, traced=True)
    this = Life(plan, life, number, world, model, moment.mark)
    this.run()
    outcome.lives += 1
    outcome.refused += this.was_refused
    outcome.operations += world.operations
    outcome.hashed = hash((outcome.hashed, world.hashed))
    rng = random.Random(f"after {life.seed}")
    left = this.last
    stopped = life.ends == "stop" and not this.was_refused
    if probes:
        step = max(1, len(this.moments) // life.crash_points)
        for one in this.moments[rng.randrange(step) :: step]:
            probe = Probe(plan, one, rng.getrandbits(32), again=rng.choice([0, 1, 1, 2]))
            outcome.hashed = hash((outcome.hashed, probe.run()))
            outcome.crash_points += probe.crash_points
    if stopped:
        _check(plan, left, rng.getrandbits(32))
        return left
    return rng.choice(this.moments) if this.moments else left


def _check(plan: Plan, left: Moment, seed: int) -> None:
    if plan.lying is None:
        world = boot(left.photo, seed)
        run(seed, partial(check_stopped, world, plan))
