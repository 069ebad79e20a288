"""Devices that are slow or fail, for tests of the server."""

from collections.abc import Callable

import trio
from typing_extensions import Buffer

from blockdev.memory import MemoryDevice
from tests.unit.hang import HANG_S
from tests.unit.nbd.wire import MIB, Exports


class SlowDevice(MemoryDevice):
    """Serves no request at once: requests wait for `gate`. Lists finished requests in `events`."""

    def __init__(self, size_bytes: int = MIB, **options: int) -> None:
        super().__init__(size_bytes, **options)
        self.gate = trio.Event()
        self.started = 0
        self.events: list[str] = []

    async def _pass(self, what: str) -> None:
        self.started += 1
        await self.gate.wait()
        self.events.append(what)

    def try_read(self, offset: int, length: int) -> bytes:
        return None  # type: ignore[return-value]

    try_view = try_read

    def try_write(self, offset: int, data: Buffer) -> bool:
        return False

    async def read(self, offset: int, length: int) -> bytes:
        await self._pass("read")
        return super().try_read(offset, length)

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        await self._pass("write fua" if fua else "write")
        super().try_write(offset, data)

    async def flush(self) -> None:
        await self._pass("flush")

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        await self._pass("trim fua" if fua else "trim")

    async def write_zeroes(
        self,
        offset: int,
        length: int,
        *,
        fua: bool = False,
        no_hole: bool = False,
        fast: bool = False,
    ) -> None:
        await self._pass(f"zeroes{' fua' * fua}{' no_hole' * no_hole}{' fast' * fast}")

    async def cache(self, offset: int, length: int) -> None:
        await self._pass("cache")

    async def until_started(self, count: int) -> None:
        with trio.fail_after(HANG_S):
            while self.started < count:
                await trio.sleep(0.001)


class FailingDevice(MemoryDevice):
    """Raises from reads, writes and flushes, at once or when awaited."""

    def __init__(self, error: Exception, *, at_once: bool) -> None:
        super().__init__(MIB)
        self._error = error
        self._at_once = at_once

    def try_read(self, offset: int, length: int) -> bytes:
        if self._at_once:
            raise self._error
        return None  # type: ignore[return-value]

    try_view = try_read

    def try_write(self, offset: int, data: Buffer) -> bool:
        if self._at_once:
            raise self._error
        return False

    async def read(self, offset: int, length: int) -> bytes:
        raise self._error

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        raise self._error

    async def flush(self) -> None:
        raise self._error


def serving(device: Callable[[], MemoryDevice]) -> Exports:
    return Exports({"": device})
