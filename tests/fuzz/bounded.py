"""What any input may cost, and what may come of it."""

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from blockdev.errors import DeviceError

MEMORY_BYTES_MAX = 96 << 20
"""Beyond what was held before: far below what a length field can claim, some GiB."""
SECONDS_MAX = 5.0
"""Of processor time, for what takes milliseconds."""


@contextmanager
def bounded_memory() -> Iterator[None]:
    """Let what runs inside hold little more address space than the process has: to ask for more
    raises MemoryError, which is no clear error. To trace every allocation takes 10 times as long.
    """
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    most = pages * resource.getpagesize() + MEMORY_BYTES_MAX
    resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


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
