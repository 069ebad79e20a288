"""What any input may cost, and what may come of it."""

import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from blockdev.errors import DeviceError

MEMORY_BYTES_MAX = 96 << 20
"""Beyond what was held before: far below what a length field can claim, some GiB."""
SECONDS_MAX = 5.0
"""Of processor time, for what takes milliseconds."""


@contextmanager
def bounded_memory() -> Iterator[None]:
    """Fail if what runs inside ever holds much more than before."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MEMORY_BYTES_MAX, f"held {peak >> 20} MiB at once"


def value_or_clear_error(parse: Callable[[], object], what: str) -> bool:
    """Whether it gave a value. Anything else than a value or an error with a message fails."""
    started = time.process_time()
    said = "nothing"
    try:
        parse()
    except DeviceError as error:
        said = str(error)
    except Exception as error:
        raise AssertionError(f"{what}: {error!r} instead of a clear error") from error
    took = time.process_time() - started
    assert took < SECONDS_MAX, f"{what}: takes {took:.1f} s"
    assert said, f"{what}: an error that says nothing"
    return said == "nothing"
