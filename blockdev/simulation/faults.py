"""Planned faults of a simulated disk: which call of which operation fails, and how."""

from dataclasses import dataclass

from blockdev.errors import CacheLostError, DeviceError, NoSpaceError


@dataclass(frozen=True, slots=True)
class _Fault:
    """Calls `first` to `last` of one operation raise `error`, or with None do nothing."""

    first: int
    last: float
    error: type[DeviceError] | None


class FaultPlan:
    """The faults that a test plans for one disk.

    `at` is the first call that fails, counted from now: 1 is the next call of that
    operation; `times` calls in a row fail, all later ones if None; `error` is the class
    to raise.
    """

    def __init__(self) -> None:
        self.dead = False
        """While set, every operation raises DeviceError; flushed data stays."""
        self._cache_lost = False
        self._calls = dict.fromkeys(("read", "write", "trim", "flush", "allocate"), 0)
        self._faults: dict[str, list[_Fault]] = {kind: [] for kind in self._calls}

    def fail_read(
        self, at: int = 1, times: int | None = 1, error: type[DeviceError] = DeviceError
    ) -> None:
        """Make reads fail."""
        self._plan("read", at, times, error)

    def fail_write(
        self, at: int = 1, times: int | None = 1, error: type[DeviceError] = DeviceError
    ) -> None:
        """Make `write` and `write_zeroes` fail; at random each still leaves none, some sectors
        or all of its data on the disk.
        """
        self._plan("write", at, times, error)

    def fail_trim(
        self, at: int = 1, times: int | None = 1, error: type[DeviceError] = DeviceError
    ) -> None:
        """Make `trim` fail, as `fail_write`."""
        self._plan("trim", at, times, error)

    def fail_flush(
        self, at: int = 1, times: int | None = 1, error: type[DeviceError] = DeviceError
    ) -> None:
        """Make flushes fail; `SimulatedDisk.flush` says which writes are lost."""
        self._plan("flush", at, times, error)

    def fail_allocate(
        self, at: int = 1, times: int | None = 1, error: type[DeviceError] = NoSpaceError
    ) -> None:
        """Make `allocate` fail."""
        self._plan("allocate", at, times, error)

    def lose_write(self, at: int = 1, times: int | None = 1) -> None:
        """Make writes report success and change nothing: a lost write."""
        self._plan("write", at, times, None)

    def lose_flush(self, at: int = 1, times: int | None = 1) -> None:
        """Make flushes report success and save nothing: a lying disk."""
        self._plan("flush", at, times, None)

    def _plan(self, kind: str, at: int, times: int | None, error: type[DeviceError] | None) -> None:
        assert at >= 1
        first = self._calls[kind] + at
        last = float("inf") if times is None else first + times - 1
        self._faults[kind].append(_Fault(first, last, error))

    def _faulty(self, kind: str) -> bool:
        """Count a call and raise its planned error; True if the call must change nothing."""
        if self.dead:
            raise DeviceError("simulated disk is dead")
        if self._cache_lost:
            self._cache_lost = False
            raise CacheLostError("simulated disk lost its cache")
        self._calls[kind] += 1
        call = self._calls[kind]
        for fault in self._faults[kind]:
            if fault.first <= call <= fault.last:
                if fault.error is None:
                    return True
                raise fault.error(f"injected fault: operation={kind} {call=}")
        return False
