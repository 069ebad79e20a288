"""Where writes come in: the open buffer, the queue of sealed ones, and whoever waits.

Taking a block costs one copy and one dictionary item; nothing here touches a device. Memory is
bounded: past the bound writers wait, they never fail (R20). A write is admitted only when
the pool has the space for it; without, it fails before anything was accepted.
"""

from collections import deque
from collections.abc import Callable
from typing import Protocol

import trio
from typing_extensions import Buffer

from blockdev.errors import ClosedError, DeviceError, NoSpaceError
from storage.format.commit import LayerMoves, Placed
from storage.format.entry import BLOCK_SHIFT
from storage.log.budget import MOVE_BYTES, SpaceBudget
from storage.log.buffer import WriteBuffer
from storage.map.layer import Layer
from storage.map.overlay import Overlay

RECORDS_MAX = 4096
"""Zero ranges and operations in one buffer; keeps record tables small."""


class Target(Protocol):
    """What is written to: its head layer may change, or it may close, while a writer waits."""

    layer: Layer
    closed: bool


class Intake:
    """Buffers on their way to the committer.

    `room_in_segment` says how many bytes the open segment has left; `on_sealed` is told of each
    sealed buffer, so that it can be encoded ahead.
    """

    def __init__(
        self,
        space: SpaceBudget,
        room_in_segment: Callable[[], int],
        on_sealed: Callable[[WriteBuffer], None],
    ):
        self.failure: DeviceError | None = None
        """Set when nothing is taken any more."""
        self.open: WriteBuffer | None = None
        self.queue: deque[WriteBuffer] = deque()
        """Sealed, oldest first; the committer takes them off."""
        self.starved = False
        """A writer waits for memory: flush without being asked."""
        self.stalled: NoSpaceError | None = None
        """Commits wait for space below."""
        self.kick = trio.Event()
        """Set when the committer has something to do."""
        self._newest: WriteBuffer | None = None
        self._left = False
        self._pulse = trio.Event()
        self._space = space
        self._room_in_segment = room_in_segment
        self._on_sealed = on_sealed

    def try_put(self, layer: Layer, block: int, count: int, data: Buffer) -> bool:
        """Take `count` whole blocks into the open buffer; False when that needs waiting.

        Cost: one copy and a dictionary item per block; no system call, no suspension.
        """
        buffer = self.open
        if buffer is not None:
            part = buffer.layers.get(layer.number)
            if part is None:
                part = self._join(buffer, layer)
            if buffer.put(part, block, count, data):
                return True
        if self._fits() < count:
            return False
        assert self.open is not None
        return self.open.put(self._join(self.open, layer), block, count, data)

    async def put(self, target: Target, block: int, count: int, data: Buffer) -> None:
        """Take whole blocks, waiting for memory; may be spread over several commits, and, when
        a snapshot is made meanwhile, over two layers.

        Raises:
            NoSpaceError: the pool is full; earlier blocks of `data` may have been taken.
        """
        view = memoryview(data)
        done = 0
        while done < count:
            _refuse_closed(target)
            n = min(self._fits(), count - done)
            if n:
                piece = view[done << BLOCK_SHIFT : (done + n) << BLOCK_SHIFT]
                taken = self.try_put(target.layer, block + done, n, piece)
                assert taken
                done += n
            else:
                await self.wait_for_room()

    def _fits(self) -> int:
        """Blocks that the open buffer still takes; a full one is sealed and another opened."""
        if self.failure is not None:
            raise self.failure
        if self.open is not None and self.open.used < self.open.capacity:
            return self.open.capacity - self.open.used
        self.seal()
        buffer = self._open_buffer()
        return 0 if buffer is None else buffer.capacity

    async def put_zeroes(self, target: Target, first: int, end: int) -> None:
        """Zero the blocks [first, end): one range record, whatever its length."""
        while True:
            buffer = self.open or self._open_buffer(reserve=True)
            if buffer is not None:
                break
            await self.wait_for_room()
            _refuse_closed(target)
        self._join(buffer, target.layer).put_zeroes(first, end)
        buffer.records += 1
        if buffer.records >= RECORDS_MAX:
            self.seal()

    def refuse_operations(self) -> None:
        """Raise if no operation can be logged now."""
        if self.failure is not None:
            raise self.failure
        if self.stalled is not None:
            raise NoSpaceError(str(self.stalled))

    def put_operation(self, operation: bytes) -> WriteBuffer:
        """Log an operation behind all writes so far and seal (R9); returns the buffer."""
        self.refuse_operations()
        # One more small buffer beyond the bound at most: operations are rare and serial.
        buffer = self.open or self._open_buffer(reserve=True, unbounded=True)
        assert buffer is not None
        buffer.operations.append(operation)
        self.seal()
        return buffer

    def put_moves(self, moves: list[LayerMoves], placed: list[Placed]) -> WriteBuffer:
        """Log where blocks were moved to, behind all writes so far; returns the buffer. What it
        takes of the log comes out of the reserve, as moves are what gives space back.
        """
        if self.failure is not None:
            raise self.failure
        # A commit of its own: the open buffer may be made to fit what is left of a segment.
        self.seal()
        buffer = self.open = WriteBuffer(0, trio.current_time())
        self._space.held(buffer)
        buffer.moves, buffer.placed = moves, placed
        self._space.claim(buffer, sum(len(each.rows) for each in moves) * MOVE_BYTES)
        self.seal()
        buffer.wanted = True
        return buffer

    def _join(self, buffer: WriteBuffer, layer: Layer) -> Overlay:
        part = buffer.layers.get(layer.number)
        if part is None:
            part = buffer.layer(layer.number)
            layer.overlays.insert(0, part)
        return part

    def _open_buffer(self, *, reserve: bool = False, unbounded: bool = False) -> WriteBuffer | None:
        if self.failure is not None:
            raise self.failure
        room = self._room_in_segment()
        blocks = 0 if self.stalled else self._space.grant(room, unbounded, self.queue)
        if not blocks and not (reserve and self._space.has_memory(unbounded)):
            return None
        self.open = WriteBuffer(blocks, trio.current_time())
        self._space.held(self.open)
        return self.open

    async def wait_for_room(self) -> None:
        """Wait until it is worth trying again to put something. Raises as `put`."""
        if self.failure is not None:
            raise self.failure
        if self.stalled:
            raise NoSpaceError(str(self.stalled))
        await self._refuse_left()
        space = self._space
        if space.busy or space.paused or space.is_paced or space.comes_back:
            # A flush of what is written gives memory back, and tells what space is left.
            self.starved = True
            self.kick.set()
            await self._pulse.wait()
        else:
            await space.make_room()

    def seal(self) -> None:
        """Close the open buffer; what is in it becomes the next commit."""
        buffer = self.open
        if buffer is None:
            return
        self.open = None
        if buffer.empty:
            self._space.released(buffer)
            return
        self.queue.append(buffer)
        self._newest = buffer
        self._on_sealed(buffer)
        self.kick.set()

    def last(self) -> WriteBuffer | None:
        """The newest buffer that is not durable, sealed now; None when all is durable."""
        self.seal()
        if self._newest is not None and self._newest.done.is_set():
            self._newest = None
        return self._newest

    async def flush(self) -> None:
        """Return when everything taken before this call is durable.

        Raises:
            NoSpaceError: it cannot be written for lack of space; it is kept, try again.
            DeviceError: it is lost.
        """
        buffer = self.last()
        if buffer is not None:
            await self.wait(buffer)
        elif self.failure is not None:
            raise self.failure

    async def wait(self, buffer: WriteBuffer) -> None:
        """Return when a buffer is durable. Raises as `flush`; cancelling has no effect on it."""
        buffer.wanted = True
        self.kick.set()
        while not buffer.done.is_set():
            if self.stalled is not None:
                raise NoSpaceError(str(self.stalled))
            await self._refuse_left()
            await self._pulse.wait()
        if buffer.error is not None:
            raise buffer.error

    async def close(self) -> None:
        """Make all durable, then take nothing more. Raises as `flush`."""
        while self.last() is not None:
            await self.flush()
        if self.failure is None:
            self.failure = ClosedError("the pool is closed")
        self.pulse()

    def leave(self) -> None:
        """Nothing is written any more, and nobody was asked: whoever waits for that is told."""
        self._left = True
        self.pulse()

    async def _refuse_left(self) -> None:
        if self._left:
            # Mostly by a cancellation that is the caller's as well, and comes first.
            await trio.lowlevel.checkpoint_if_cancelled()
            raise ClosedError("the pool was left without being closed")

    def nudge(self, age_s: float) -> None:
        """Start to commit an open buffer that is older than `age_s`, without waiting for it."""
        if self.open is not None and trio.current_time() - self.open.opened_at >= age_s:
            buffer = self.last()
            if buffer is not None:
                buffer.wanted = True

    def pulse(self) -> None:
        """Wake whoever waits for memory, space or durability to look again."""
        self._pulse.set()
        self._pulse = trio.Event()


def _refuse_closed(target: Target) -> None:
    if target.closed:
        raise ClosedError("the volume was closed while a write to it waited")
