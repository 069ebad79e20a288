"""Takes figures and prints each as one JSON line."""

import json
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence

from bench.machine import describe_machine


def show(name: str, **figures: object) -> None:
    """Print one line, with the machine that measured it."""
    print(json.dumps(describe_machine() | {"name": name} | figures), flush=True)


async def seconds_of(act: Callable[[], Awaitable[object]]) -> float:
    """Return how long a call takes, in seconds."""
    began = time.monotonic()
    await act()
    return time.monotonic() - began


def milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    """Return median and 99th percentile of times in seconds, as milliseconds."""
    cuts = statistics.quantiles(seconds, n=100)
    return {"median": round(statistics.median(seconds) * 1e3, 2), "p99": round(cuts[98] * 1e3, 2)}
