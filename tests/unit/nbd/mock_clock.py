"""A mock clock for the tests of a folder: it jumps ahead whenever all tasks wait.

A `conftest.py` that imports `pytest_itemcollected` runs the tests of its folder on this clock. A
test that waits for anything besides trio's tasks and Unix sockets within the process, such as a
thread or a TCP connection, needs real time: it has `REAL_TIME` as a mark, or its module has.
"""

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

REAL_TIME = pytest.mark.trio(run=trio.run)


def run_without_real_time(
    test: Callable[..., Awaitable[Any]], *args: Any, clock: trio.abc.Clock | None, **how: Any
) -> Any:
    return trio.run(test, *args, clock=clock or MockClock(autojump_threshold=0), **how)


def pytest_itemcollected(item: pytest.Item) -> None:
    is_async = isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj)
    if is_async and item.get_closest_marker("trio") is None:
        item.add_marker(pytest.mark.trio(run=run_without_real_time))
