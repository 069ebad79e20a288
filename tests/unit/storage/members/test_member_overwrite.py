"""Repairs in place on devices that only take whole blocks."""

from uuid import UUID

import trio
import trio.testing

from blockdev.memory import MemoryDevice
from storage.format.superblock import MemberRow
from storage.members.member import Member, MemberDevice

BLOCK = 512
MIB = 1 << 20


class SlowDisk(MemoryDevice):
    """Lets other tasks run after each read."""

    def __init__(self) -> None:
        super().__init__(2 * MIB)
        self.block_bytes = BLOCK

    async def read(self, offset: int, length: int) -> bytes:
        data = await super().read(offset, length)
        for _ in range(3):
            await trio.lowlevel.checkpoint()
        return data


async def test_neighbors_repaired_at_once_are_both_repaired() -> None:
    """Goal: repairs of pieces in one block of the disk do not undo each other."""
    disk = SlowDisk()
    row = MemberRow(UUID(int=1), "h", disk.size_bytes, 1, None)
    member = Member(0, MemberDevice(disk, "m", "h"), row, MIB)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(member.overwrite, 100, b"a" * 50)
        nursery.start_soon(member.overwrite, 200, b"b" * 50)
    around = bytes(await disk.read(0, BLOCK))
    assert around == bytes(100) + b"a" * 50 + bytes(50) + b"b" * 50 + bytes(262)
