"""Describes commit and machine of a measurement, for every line of figures."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parent.parent


def describe_machine() -> dict[str, object]:
    """Return the commit (with a + when files differ from it), the day and the machine."""
    commit = _git("rev-parse", "--short", "HEAD") or "unknown"
    changed = _git("status", "--porcelain", "--untracked-files=no")
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    memory_gib = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30))
    return {
        "commit": commit + "+" * bool(changed),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} x {model}, {memory_gib} GiB, Linux {platform.release()}",
    }


def _git(*words: str) -> str:
    done = subprocess.run(
        ["git", *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        check=False,
    )  # fmt: skip
    return done.stdout.strip()
