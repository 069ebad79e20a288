"""FileDevice and its worker threads: bounds, cancellation, closing under load."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from blockdev import file, rawio
from blockdev.errors import BusyError, ClosedError, DeviceError
from blockdev.file import FLUSH_THREADS_MAX, IO_THREADS_MAX, FileDevice
from tests.unit.hang import HANG_S

MIB = 1 << 20
PAGE = 4096


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "device.raw"


class Gate:
    """Holds worker threads inside a function until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.waiting = 0
        self._event = threading.Event()
        self._real = rawio.write_exactly
        monkeypatch.setattr(file, "write_exactly", self._write)

    def open(self) -> None:
        self._event.set()

    def _write(self, fd: int, offset: int, view: memoryview, *, durable: bool = False) -> None:
        self.waiting += 1
        assert self._event.wait(HANG_S)
        self._real(fd, offset, view, durable=durable)


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(HANG_S):
        while not condition():
            await trio.sleep(0.001)


async def test_a_cancelled_write_runs_to_completion(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: no caller can reuse the buffer or close the file while a thread uses it."""
    device = FileDevice.create(path, MIB)
    gate = Gate(monkeypatch)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(device.write, 0, b"whole")
        await until(lambda: gate.waiting)
        nursery.cancel_scope.cancel()
        gate.open()
    assert await device.read(0, 5) == b"whole"
    await device.close()


async def test_closing_waits_for_threads_and_refuses_new_requests(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = FileDevice.create(path, MIB)
    gate = Gate(monkeypatch)
    closed = []

    async def close() -> None:
        await device.close()
        closed.append(True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(device.write, 0, b"whole")
        await until(lambda: gate.waiting)
        nursery.start_soon(close)
        nursery.start_soon(close)
        await wait_all_tasks_blocked()
        assert not closed
        with pytest.raises(ClosedError, match=f"path={path}"):
            await device.write(0, b"late")
        with pytest.raises(BusyError):
            FileDevice.open(path)
        gate.open()
    assert len(closed) == 2
    assert path.read_bytes()[:5] == b"whole"
    await FileDevice.open(path).close()


async def test_threads_are_bounded_and_flushes_do_not_queue_behind_writes(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = FileDevice.create(path, MIB)
    gate = Gate(monkeypatch)
    async with trio.open_nursery() as nursery:
        for index in range(IO_THREADS_MAX + 5):
            nursery.start_soon(device.write, index * PAGE, b"x")
        await until(lambda: gate.waiting == IO_THREADS_MAX)
        for _ in range(FLUSH_THREADS_MAX + 1):
            await device.flush()
        assert gate.waiting == IO_THREADS_MAX
        gate.open()
    await device.close()


async def test_a_closed_device_leaks_no_descriptor(path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    device = FileDevice.create(path, MIB)
    for _ in range(3):
        with pytest.raises(BusyError):
            FileDevice.open(path)
    await device.close()
    with pytest.raises(DeviceError):
        FileDevice.open("/dev/null")
    assert len(os.listdir("/proc/self/fd")) == before
