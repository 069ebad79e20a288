"""Writes FORMAT.md from the docstrings that define the on-disk format, so that both stay equal.

usage: python -m tools.format_md
"""

import inspect
from pathlib import Path
from types import ModuleType

from storage.catalogue import operations, resume_token
from storage.checkpoint import metadata_writer
from storage.format import checkpoint_root, commit, entry, pages, superblock
from storage.members import member
from storage.transfer import stream

HEAD = """\
# On-disk format, version 1

Everything is little-endian; checksums are xxh3_64. This page is made from the docstrings of
the modules named in each heading (`python -m tools.format_md`); a test holds the two together.

A pool is a set of members. Each member is a device with superblocks at both ends and slots of one
segment each between. Log segments hold commits; metadata segments hold pages, directories,
tables and roots. A superblock points to the newest root; the root says where the log is
replayed from; everything else is reached from there:

    superblock -> root -> catalogue            volumes, snapshots, layers
                       -> segment table        number -> slots, live bytes
                       -> directory index -> directory chunks -> pages -> extents
                       -> usage table          layer -> stored blocks and bytes
                       -> log position -> commit -> commit -> ... end

All numbers that identify something (commits, segments, layers, epochs) only ever rise and are not
reused. A reader refuses what it does not know: a newer version, an unknown incompatible feature,
a record that may not be skipped (R19).

Snapshots travel between pools as streams, whose format is in the last two sections and has a
version of its own.

Version 1 is not final before the first release: until then a pool made before a
change to this page may be refused, with a clear error. So are pools from before checkpoints had
a usage table.
"""

SECTIONS: list[tuple[str, ModuleType]] = [
    ("Member", member),
    ("Superblock", superblock),
    ("Map entry", entry),
    ("Commit", commit),
    ("Catalogue operations", operations),
    ("Checkpoint root", checkpoint_root),
    ("Metadata segments", metadata_writer),
    ("Map page and directory", pages),
    ("Stream of a snapshot", stream),
    ("Resume token", resume_token),
]


def render() -> str:
    """Return the whole page."""
    parts = [HEAD]
    for title, module in SECTIONS:
        path = module.__name__.replace(".", "/") + ".py"
        doc = inspect.getdoc(module) or ""
        parts.append(f"## {title} (`{path}`)\n\n```text\n{doc}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    Path(__file__).parent.parent.joinpath("FORMAT.md").write_text(render())
