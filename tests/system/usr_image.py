"""A file system image of real files: those of this machine's /usr."""

import os
import shutil
from pathlib import Path

from tests.system.pool_daemon import run

IMAGE_SHARE = 1.625
"""Room for the data, for half a block lost per file, and for ext4's own tables."""
ROUNDS_MAX = 8


def copy_some_of_usr(target: Path, bytes_min: int) -> int:
    """Copy files of /usr in the order of their names until they sum to more than `bytes_min`.

    A small machine's /usr is copied several times. Returns the bytes copied.
    """
    copied = 0
    for number in range(ROUNDS_MAX):
        for directory, names, files in os.walk("/usr"):
            names.sort()
            below = target / str(number) / directory.lstrip("/")
            below.mkdir(parents=True, exist_ok=True)
            for file in sorted(files):
                copied += _copy_one(Path(directory) / file, below / file)
                if copied > bytes_min:
                    return copied
    raise AssertionError(f"/usr holds too little: bytes={copied}")


def _copy_one(source: Path, target: Path) -> int:
    if source.is_symlink():
        target.symlink_to(source.readlink())
        return 0
    if not source.is_file():
        return 0
    shutil.copy2(source, target)
    return target.stat().st_size


def make_usr_image(image: Path, bytes_min: int) -> int:
    """Make an ext4 image of more than so many bytes of /usr; returns the bytes of its files."""
    stage = image.with_name("stage")
    stage.mkdir()
    data_bytes = copy_some_of_usr(stage, bytes_min)
    with image.open("wb") as file:
        file.truncate(int(data_bytes * IMAGE_SHARE) >> 20 << 20)
    run("mke2fs", "-q", "-F", "-t", "ext4", "-d", stage, image, cwd=image.parent)
    shutil.rmtree(stage)
    return data_bytes
