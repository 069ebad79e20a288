"""Lists every stored piece that a stopped pool still needs: data and metadata, with its places."""

from dataclasses import dataclass

from blockdev.simulation.world import SimulatedWorld
from storage.format.entry import KIND_MASK, RAW, unpack
from storage.members.roster import Roster
from storage.recovery import assemble, opening
from storage.recovery.opening import Opened
from tests.crash.harness import Shape, live, members

PAGE_CACHE_BYTES = 16 << 20


@dataclass(frozen=True)
class Piece:
    """Stored bytes under one hash. `places` are (disk, offset in bytes), in the order of reads."""

    kind: str
    segment: int
    offset: int
    stored_bytes: int
    places: tuple[tuple[int, int], ...]


def live_pieces(world: SimulatedWorld, shape: Shape) -> list[Piece]:
    """Return all pieces of a pool that was stopped cleanly, without writing to it."""
    found: dict[tuple[int, int], Piece] = {}
    again = world.reboot()

    async def body() -> None:
        offered = await assemble.read_all(members(again, shape))
        newest = assemble.newest_of(offered)
        attached = assemble.attach(newest, offered, ())
        roster = Roster(newest, attached, newest.members)
        opened = await opening.load_checkpoint(roster, attached, PAGE_CACHE_BYTES, repair=False)
        for kind, a, b in await _words(opened):
            at = unpack(a, b)
            held = opened.table[at.segment].places
            places = tuple((member.index, base + at.offset) for member, base in held)
            found[at.segment, at.offset] = Piece(
                kind, at.segment, at.offset, at.stored_bytes, places
            )

    live(again, body)
    return list(found.values())


async def _words(opened: Opened) -> list[tuple[str, int, int]]:
    sb, root = opened.roster.superblock, opened.root
    assert root is not None
    found = [("root", sb.root.a, sb.root.b)]
    for kind in ("catalogue", "segments", "directories", "usage"):
        found += [(kind, a, b) for a, b in getattr(root, kind)]
    for layer in opened.blockmap.layers.values():
        found += [("chunk", a, b) for a, b in layer.directory.located.values()]
        for number in layer.directory.pages():
            row = layer.directory.get(number)
            assert row is not None
            found += [("page", row[at], row[at + 1]) for at in (0, 2) if row[at]]
            merged = await opened.blockmap.read_merged(
                layer, number, lambda up, page: up.directory.get(page), lambda up: up.parent
            )
            own = merged.entries[merged.own].tolist()
            found += [("data", a, b) for a, b in own if a & KIND_MASK >= RAW]
    return found
