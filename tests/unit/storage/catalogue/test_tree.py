"""Volumes, snapshots and clones as a tree."""

from storage.info import NodeKind, TreeNode
from storage.pool import Pool
from tests.unit.storage.pools import MIB, new_members, opened, write

BLOCK = 4096


def shape(nodes: list[TreeNode]) -> dict[str, str | None]:
    """Return the parent of each node by its name; layers without a name go by their kind."""
    return {
        (node.kind.value if node.name.startswith("#") else node.name): node.parent for node in nodes
    }


def clones(pool: Pool) -> dict[str, int]:
    return {f"{one.volume}@{one.name}": one.clones for one in pool.management.snapshots()}


async def test_clones_are_shown_under_the_snapshots_they_were_made_from() -> None:
    members = await new_members()
    async with opened(members) as pool:
        await pool.management.create_volume("root", MIB)
        await pool.management.create_snapshot("root", "a")
        await pool.management.create_snapshot("root", "b")
        await pool.management.clone("root", "a", "one")
        await pool.management.create_snapshot("one", "x")
        await pool.management.clone("one", "x", "two")
        await pool.management.create_snapshot("two", "y")
        assert shape(pool.management.tree()) == {
            "root": None, "root@a": "root", "root@b": "root",
            "one": "root@a", "one@x": "one",
            "two": "one@x", "two@y": "two",
        }  # fmt: skip
        # A clone that has snapshots of its own counts, too.
        assert clones(pool) == {
            "root@a": 1, "root@b": 0, "one@x": 1, "two@y": 0,
        }  # fmt: skip
        await pool.management.promote("one")
        assert shape(pool.management.tree()) == {
            "one": None, "one@a": "one", "one@x": "one",
            "root": "one@a", "root@b": "root",
            "two": "one@x", "two@y": "two",
        }  # fmt: skip
        await pool.management.delete_volume("root", snapshots=True)
        assert clones(pool) == {"one@a": 0, "one@x": 1, "two@y": 0}


async def test_layers_of_deleted_snapshots_are_shown() -> None:
    """They have two children, or are being merged, or are being given back."""
    members = await new_members(mib=128)
    async with opened(members) as pool:
        await pool.management.create_volume("v", 64 * MIB)
        for page in range(9):
            await write(pool, "v", page * 4 * MIB, b"x" * BLOCK)
        await pool.management.create_snapshot("v", "s")
        await pool.management.clone("v", "s", "c")
        await pool.checkpoint()
        await pool.management.delete_snapshot("v", "s")
        nodes = pool.management.tree()
        assert shape(nodes) == {"v": None, "kept": "v", "c": "#1"}
        await pool.management.delete_volume("v")
        [merging, freeing] = sorted(
            (node for node in pool.management.tree() if node.name.startswith("#")),
            key=lambda n: n.name,
        )
        assert (merging.kind, merging.parent, merging.pages_left) == (NodeKind.MERGING, "c", 9)
        assert (freeing.kind, freeing.parent, freeing.pages_left) == (NodeKind.FREEING, None, 0)
        for _ in range(3):
            await pool.checkpoint()
        assert shape(pool.management.tree()) == {"c": None}


async def test_clones_of_a_head_are_shown_under_nameless_layers() -> None:
    members = await new_members()
    async with opened(members) as pool:
        await pool.management.create_volume("v", MIB)
        await pool.management.clone("v", None, "a")
        await pool.management.clone("v", None, "b")
        nodes = pool.management.tree()
        kept = {node.name: node.parent for node in nodes if node.kind is NodeKind.KEPT}
        assert list(kept.values()) == ["v", "v"]
        assert {node.parent for node in nodes if node.name in "ab"} == set(kept)
        assert shape(nodes)["v"] is None
