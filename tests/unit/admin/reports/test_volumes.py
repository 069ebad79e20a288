"""The report of `cenote volume tree`, against the real API over a fake pool."""

import json

from storage.info import NodeKind, TreeNode
from tests.unit.admin.conftest import Run
from tests.unit.admin.fake_pool import CREATED, Served


def test_volumes_snapshots_and_clones_are_shown_as_a_tree(served: Served, run: Run) -> None:
    assert run("volume", "tree")[1].startswith("no volumes; make one:")
    for words in (
        ("volume", "create", "root", "--size", "20G"),
        ("snapshot", "create", "root@clean"),
        ("snapshot", "create", "root@noon"),
        ("clone", "root@clean", "test"),
        ("snapshot", "create", "test@mine"),
        ("volume", "create", "other", "--size", "1G"),
    ):
        assert run(*words)[0] == 0
    served.pool.protect("root@noon")
    served.pool.waiting = [
        TreeNode("#7", NodeKind.KEPT, "other"),
        TreeNode("#8", NodeKind.MERGING, "other", pages_left=3),
        TreeNode("#9", NodeKind.FREEING, None, pages_left=300),
    ]
    code, out, _ = run("volume", "tree")
    assert code == 0
    assert out.splitlines() == [
        "root  20 GiB",
        f"├── @clean  {CREATED}",
        "│   └── test  20 GiB",
        f"│       └── @mine  {CREATED}",
        f"└── @noon  {CREATED}, protected",
        "other  1 GiB",
        "├── (no name any more, kept for those that stand on it)",
        "└── (deleted, going into the one that stands on it, 12 MiB of its map left)",
        "(deleted, on its way back to free space, 1.1 GiB of its map left)",
    ]
    assert run("snapshot", "list", "--tree")[1] == out
    assert run("volume", "tree", "test")[1].splitlines() == out.splitlines()[:5]
    nodes = json.loads(run("snapshot", "list", "--tree", "--json")[1])
    assert {node["name"]: node["parent"] for node in nodes} == {
        "root": None, "root@clean": "root", "root@noon": "root", "test": "root@clean",
        "test@mine": "test", "other": None, "#7": "other", "#8": "other", "#9": None,
    }  # fmt: skip
    assert nodes[-1]["kind"] == "freeing"
    assert run("volume", "tree", "none")[0] == 31


def test_a_thousand_clones_of_clones_are_shown(served: Served, run: Run) -> None:
    served.pool.waiting = [
        TreeNode(f"v{i}", NodeKind.VOLUME, f"v{i - 1}" if i else None) for i in range(1000)
    ]
    code, out, _ = run("volume", "tree")
    assert code == 0
    assert len(out.splitlines()) == 1000
