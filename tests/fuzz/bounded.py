"""Bounds for parsers under any input: memory, time, and the kinds of errors."""

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from blockdev.errors import DeviceError

MEMORY_BYTES_MAX = 96 << 20
"""Address space beyond that held before: far less than a length field can claim, some GiB."""
SECONDS_MAX = 5.0
"""Processor time for an input that takes milliseconds."""


@contextmanager
def bounded_memory() -> Iterator[None]:
    """Limit the address space, within the block, to little more than the process has: an allocation
    of more raises MemoryError, which is no clear error. Tracing allocations takes 10 times as long.
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
    """Return whether `parse` gave a value; False when it gave a DeviceError with a message.

    Raises:
        AssertionError: another error, an error without a message, or too much time.
    """
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
