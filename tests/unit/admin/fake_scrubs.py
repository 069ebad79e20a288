"""Fakes for tests of scrubbing: an engine without a pool, and a keeper without a file."""

import trio

from admin.api.scrub_status import ScrubRecord
from admin.api.wire import decode, encode
from blockdev.errors import DeviceError
from storage.throttle import Throttle
from storage.verify.scrub_pass import Finding, Held, Outcome, ScrubPass, Stage

MIB = 1 << 20
LOST = Finding(
    "data", ["/m\x1b"], 7, 4096, 4096, "checksum mismatch", Outcome.LOST, [Held("root", 8192, 4096)]
)
REPAIRED = Finding("map page", ["/n"], 8, 64, 100, "checksum mismatch", Outcome.REPAIRED)


class FakeEngine:
    """Pretends to read `mib` MiB and to find `finds`."""

    def __init__(self, mib: int = 3) -> None:
        self.mib = mib
        self.finds: list[Finding] = []
        self.raises: DeviceError | None = None
        self.runs = 0
        self.hold: trio.Event | None = None

    def new_pass(self) -> ScrubPass:
        return ScrubPass(5)

    async def run(self, scrub: ScrubPass, throttle: Throttle) -> None:
        self.runs += 1
        began = trio.current_time() - scrub.seconds
        while scrub.segment < self.mib:
            await throttle.take(MIB)
            if self.hold is not None:
                await self.hold.wait()
            if self.raises is not None:
                raise self.raises
            scrub.segment += 1
            scrub.done_bytes += MIB
            scrub.read_bytes += MIB
            scrub.seconds = trio.current_time() - began
        for finding in self.finds:
            scrub.add(finding)
        scrub.stage = Stage.DONE

    def total_bytes(self, scrub: ScrubPass) -> int:
        return self.mib * MIB


class MemoryKeeper:
    """Keeps the record as JSON values, as a file would."""

    def __init__(self) -> None:
        self.kept: object = None
        self.saves = 0

    def load(self) -> ScrubRecord | None:
        return None if self.kept is None else decode(ScrubRecord, self.kept)

    async def save(self, record: ScrubRecord) -> None:
        await trio.lowlevel.checkpoint()
        self.kept = encode(record)
        self.saves += 1
