"""The tree of volumes for people.

    root  20 GiB
    ├── @clean  2026-11-23T23:51:48+00:00, protected
    │   └── test  20 GiB
    └── @noon  2026-11-24T12:00:00+00:00

Snapshots are listed in their volume, oldest first, so that a thousand of them do not make a tree of
a thousand levels; clones are below what they stand on.
"""

import sys

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from admin.names import printable
from admin.sizes import human
from storage.info import NodeKind, TreeNode

PAGE_BYTES = 4 << 20
"""What one page of the map covers."""


def write_tree(nodes: list[TreeNode]) -> None:
    """Write the nodes to stdout, in the order of the list within each parent."""
    trees = {node.name: Tree(Text(printable(_words(node)))) for node in nodes}
    wide = None if sys.stdout.isatty() else 10_000
    for node in nodes:
        if node.parent in trees:
            trees[node.parent].children.append(trees[node.name])
    console = Console(file=sys.stdout, width=wide, highlight=False)
    for node in nodes:
        if node.parent not in trees:
            console.print(trees[node.name])


def _words(node: TreeNode) -> str:
    protected = ", protected" if node.protected else ""
    left = f"{human(node.pages_left * PAGE_BYTES)} of its map left"
    match node.kind:
        case NodeKind.VOLUME:
            return f"{node.name}  {human(node.size_bytes)}{protected}"
        case NodeKind.SNAPSHOT:
            return f"@{node.name.partition('@')[2]}  {node.created}{protected}"
        case NodeKind.KEPT:
            return "(no name any more, kept for those that stand on it)"
        case NodeKind.MERGING:
            return f"(deleted, going into the one that stands on it, {left})"
    return f"(deleted, on its way back to free space, {left})"
