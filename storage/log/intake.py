"""The intake of writes: the open buffer, the queue of sealed buffers, and the waiting writers.

Taking a block costs one copy and one dictionary item; nothing here touches a device. Memory is
bounded: past the bound writers wait, they never fail (R20). A block is taken only when the pool
has the space for its commit; otherwise the write fails.
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
"""Zero ranges in one buffer; keeps record tables small."""


class Target(Protocol):
    """A volume as writers see it: while one waits, its head layer may change, or it may close."""

    layer: Layer
    closed: bool


class Intake:
    """Buffers on their way to the committer.

    `room_in_segment` says how many bytes the open segment has left; `on_sealed` is called with each
    sealed buffer, so that the committer can encode it ahead.
    """

    def __init__(
        self,
        space: SpaceBudget,
        room_in_segment: Callable[[], int],
        on_sealed: Callable[[WriteBuffer], None],
    ):
        self.failure: DeviceError | None = None
        """Set when no more writes are taken; every call raises it then."""
        self.open: WriteBuffer | None = None
        self.queue: deque[WriteBuffer] = deque()
        """Sealed buffers, oldest first; the committer takes them off."""
        self.starved = False
        """Set while a writer waits for memory or space: the committer then flushes unasked."""
        self.stalled: NoSpaceError | None = None
        """Set while sealed buffers cannot be written for lack of space."""
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

        Raises:
            DeviceError: the log has failed, or the pool is closed.
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
        """Take whole blocks, waiting for memory; they may be spread over several commits, and, when
        a snapshot is made meanwhile, over two layers.

        On error or cancellation, earlier blocks of `data` may have been taken.

        Raises:
            NoSpaceError: the pool is full.
            DeviceError: the log has failed, or the volume or the pool is closed.
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
        """Blocks that the open buffer still takes; a full one is sealed and another opened. 0 when
        the writer has to wait."""
        if self.failure is not None:
            raise self.failure
        if self.open is not None and self.open.used < self.open.capacity:
            return self.open.capacity - self.open.used
        self.seal()
        buffer = self._open_buffer()
        return 0 if buffer is None else buffer.capacity

    async def put_zeroes(self, target: Target, first: int, end: int) -> None:
        """Zero the blocks [first, end): one range record of any length. Raises as `put`."""
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
        """Raise if no operation can be logged now.

        Raises:
            NoSpaceError: sealed buffers wait for space.
            DeviceError: the log has failed, or the pool is closed.
        """
        if self.failure is not None:
            raise self.failure
        if self.stalled is not None:
            raise NoSpaceError(str(self.stalled))

    def put_operation(self, operation: bytes) -> WriteBuffer:
        """Log an operation after all writes so far, and seal the buffer (R9); returns the buffer.
        Raises as `refuse_operations`."""
        self.refuse_operations()
        # At most one small buffer beyond the bound: operations are rare and serial.
        buffer = self.open or self._open_buffer(reserve=True, unbounded=True)
        assert buffer is not None
        buffer.operations.append(operation)
        self.seal()
        return buffer

    def put_moves(self, moves: list[LayerMoves], placed: list[Placed]) -> WriteBuffer:
        """Log the new places of moved blocks, after all writes so far; returns the buffer. Its
        space in the log comes out of the reserve, as moves give space back.
        """
        if self.failure is not None:
            raise self.failure
        # A commit of its own: the open buffer may be sized to the rest of a segment.
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
        """Wait until putting blocks may succeed, or free space (`make_room`). Raises as `put`."""
        if self.failure is not None:
            raise self.failure
        if self.stalled:
            raise NoSpaceError(str(self.stalled))
        await self._refuse_left()
        space = self._space
        if space.busy or space.paused or space.is_paced or space.comes_back:
            # A flush of the written commits gives memory back, and shows how much space is left.
            self.starved = True
            self.kick.set()
            await self._pulse.wait()
        else:
            await space.make_room()

    def seal(self) -> None:
        """Seal the open buffer, which becomes the next commit; an empty one is dropped."""
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
        """Seal the open buffer; return the newest buffer that is not durable, None if all are."""
        self.seal()
        if self._newest is not None and self._newest.done.is_set():
            self._newest = None
        return self._newest

    async def flush(self) -> None:
        """Return when all writes taken before this call are durable.

        Raises:
            NoSpaceError: writes wait for lack of space; they are kept, try again.
            DeviceError: writes are lost.
        """
        buffer = self.last()
        if buffer is not None:
            await self.wait(buffer)
        elif self.failure is not None:
            raise self.failure

    async def wait(self, buffer: WriteBuffer) -> None:
        """Return when a buffer is durable. Raises as `flush`; cancelling does not affect it."""
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
        """Make all writes durable, then take no more. Raises as `flush`."""
        while self.last() is not None:
            await self.flush()
        if self.failure is None:
            self.failure = ClosedError("the pool is closed")
        self.pulse()

    def leave(self) -> None:
        """The pool ended without a close: every waiter gets ClosedError."""
        self._left = True
        self.pulse()

    async def _refuse_left(self) -> None:
        if self._left:
            # Mostly a cancellation ended the pool. If this task is cancelled as well, Cancelled
            # comes before ClosedError.
            await trio.lowlevel.checkpoint_if_cancelled()
            raise ClosedError("the pool was left without being closed")

    def nudge(self, age_s: float) -> None:
        """Start to commit an open buffer that is older than `age_s`, without waiting for it."""
        if self.open is not None and trio.current_time() - self.open.opened_at >= age_s:
            buffer = self.last()
            if buffer is not None:
                buffer.wanted = True

    def pulse(self) -> None:
        """Wake every task that waits for memory, space or durability, to look again."""
        self._pulse.set()
        self._pulse = trio.Event()


def _refuse_closed(target: Target) -> None:
    if target.closed:
        raise ClosedError("the volume was closed while a write to it waited")
