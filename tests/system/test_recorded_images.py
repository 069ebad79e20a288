"""Power cuts under real programs: file systems of the kernel, SQLite and fio find what they synced.

`python -m tests.system.recorded --images 1000` looks at more of them, and counts.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from blockdev.errors import DeviceError
from tests.crash.harness import ONE, TWO_OF_THREE, Shape
from tests.system.recorded import Recorded, look_at, memory_folder, record

pytestmark = pytest.mark.system

SECONDS, IMAGES = 3.0, 20
LONG_SECONDS, LONG_IMAGES = 20.0, 500
CARRIED_OUT = 10
"""A disk that lies carries out one flush of so many: half of its images are found to be wrong."""


@pytest.fixture
def folder() -> Iterator[Path]:
    with memory_folder() as path:
        yield path


def recorded(folder: Path, shape: Shape, seconds: float) -> Recorded:
    found = trio.run(record, folder, shape, seconds)
    kinds = {deed.kind for deeds in found.deeds.values() for deed in deeds}
    assert kinds == {"new", "replace", "delete", "line", "blocks", "block", "made", "committed"}
    return found


@pytest.mark.parametrize("shape", [ONE, TWO_OF_THREE], ids=str)
def test_what_programs_synced_is_there_after_any_power_cut(shape: Shape, folder: Path) -> None:
    """Goal: files that were fsynced, transactions that were committed and blocks that were flushed
    through a kernel's file system are there after a power cut at any moment, and nothing is torn.

    Method: see `tests.system.recorded`. And a disk that lies about its flushes is found by
    the same, so that it would find an engine that forgets them.
    """
    made = recorded(folder, shape, SECONDS)
    seen = look_at(made, folder, IMAGES)
    assert seen.images == IMAGES
    assert seen.held > 20 * IMAGES
    assert seen.checked_by_fsck
    with pytest.raises((AssertionError, DeviceError)):
        look_at(made, folder, IMAGES, carries_out=CARRIED_OUT)


@pytest.mark.long
@pytest.mark.parametrize("shape", [ONE, TWO_OF_THREE], ids=str)
def test_what_programs_synced_is_there_after_each_of_many_cuts(shape: Shape, folder: Path) -> None:
    """Goal and method: as above, a thousand images in all."""
    made = recorded(folder, shape, LONG_SECONDS)
    assert look_at(made, folder, LONG_IMAGES).images == LONG_IMAGES
