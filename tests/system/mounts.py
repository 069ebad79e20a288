"""File systems of the kernel on our volumes: libnbd's nbdfuse, a loop device, mount.

Needs root. The kernel's own NBD client would need a module that not every kernel has.
"""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.system.processes import PATIENCE_S, wait_for_path

MAKE = {
    "ext4": ("mkfs.ext4", "-F", "-q", "-b", "4096", "-E", "lazy_itable_init=0", "-J", "size=4"),
    "xfs": ("mkfs.xfs", "-f", "-q"),
}
CHECK = {"ext4": ("e2fsck", "-f", "-n"), "xfs": ("xfs_repair", "-n", "-f")}
"""Each reports and changes nothing, and fails when something is wrong."""
OPTIONS = {"ext4": "discard,noatime", "xfs": "discard,noatime,nouuid"}


def run(*command: str | Path) -> str:
    """Run a program and return what it says; a failure shows all of it."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=PATIENCE_S,
        check=False,
    )  # fmt: skip
    words = " ".join(map(str, command))
    assert done.returncode == 0, f"{words}: status={done.returncode}\n{done.stdout}"
    return done.stdout


@contextlib.contextmanager
def export_as_file(folder: Path, uri: str) -> Iterator[Path]:
    """An NBD export as a file."""
    folder.mkdir()
    file = folder / "export"
    process = subprocess.Popen(["nbdfuse", str(file), uri])
    try:
        wait_for_path(file, process)
        yield file
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def loop_device(file: Path) -> Iterator[str]:
    """A file as a disk of the kernel."""
    device = run("losetup", "--find", "--show", file).strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "-d", device], check=False)


@contextlib.contextmanager
def mounted(device: str, folder: Path, kind: str) -> Iterator[Path]:
    """A disk's file system; mounting it replays its journal."""
    folder.mkdir(exist_ok=True)
    run("mount", "-t", kind, "-o", OPTIONS[kind], device, folder)
    try:
        yield folder
    finally:
        run("umount", folder)
