"""Runs tests on a mock clock: it jumps ahead whenever all tasks wait."""

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock


def run_without_real_time(
    test: Callable[..., Awaitable[Any]], *args: Any, clock: trio.abc.Clock | None, **how: Any
) -> Any:
    return trio.run(test, *args, clock=clock or MockClock(autojump_threshold=0), **how)


def pytest_itemcollected(item: pytest.Item) -> None:
    if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
        item.add_marker(pytest.mark.trio(run=run_without_real_time))
