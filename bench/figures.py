"""How figures are taken and printed: one JSON line each."""

import json
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence

from bench.machine import describe_machine


def show(name: str, **figures: object) -> None:
    """Print one line, with the machine it was measured on."""
    print(json.dumps(describe_machine() | {"name": name} | figures), flush=True)


async def seconds_of(act: Callable[[], Awaitable[object]]) -> float:
    """How long something takes."""
    began = time.monotonic()
    await act()
    return time.monotonic() - began


def milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    """Median and 99th percentile of times."""
    cuts = statistics.quantiles(seconds, n=100)
    return {"median": round(statistics.median(seconds) * 1e3, 2), "p99": round(cuts[98] * 1e3, 2)}
