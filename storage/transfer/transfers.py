"""Sending snapshots to other pools, and receiving them."""

from collections.abc import Awaitable, Callable

from storage.catalogue.catalogue import Catalogue
from storage.catalogue.records import SnapshotRecord
from storage.catalogue.resume_token import ResumeToken
from storage.environment import Environment
from storage.errors import InvalidArgumentError, NotFoundError
from storage.map.blockmap import BlockMap
from storage.members.segments import SegmentTable
from storage.transfer.receive import Receiving
from storage.transfer.send import Sending
from storage.transfer.stream import StreamHeader
from storage.transfer.targets import Targets
from storage.volumes.exports import Exports
from storage.volumes.operation_log import OperationLog
from storage.volumes.registry import Registry


class Transfers:
    """Begins to send and to receive snapshots of one pool.

    Args:
        flush: makes everything written so far durable.
    """

    def __init__(
        self, live: Catalogue, registry: Registry, blockmap: BlockMap, table: SegmentTable,
        exports: Exports, operations: OperationLog, flush: Callable[[], Awaitable[None]],
        env: Environment,
    ):  # fmt: skip
        self._live = live
        self._registry = registry
        self._map = blockmap
        self._table = table
        self._exports = exports
        self._operations = operations
        self._flush = flush
        self._env = env
        self._targets = Targets(live, registry, blockmap)

    async def send(
        self, name: str, *, since: str | None = None, resume: str | None = None
    ) -> Sending:
        """Begin to send a snapshot `VOL@SNAP`, or its difference to the one called `since`, which
        may be any other of the pool. Both stay open until the result is closed.

        Args:
            resume: the token of an interrupted receive, to go on where that got.

        Raises:
            NotFoundError: there is no such snapshot.
            InvalidArgumentError: the token is of another stream, or is none.
        """
        record = self._snapshot_named(name)
        token = None if resume is None else ResumeToken.parse(resume)
        if token is not None:
            since = self._resumed(name, since, token)
        if since == name:
            raise InvalidArgumentError(f"{name} does not differ from itself")
        base = None if since is None else self._snapshot_named(since)
        start = 0 if token is None else min(token.position, record.size_bytes)
        volume, _, snapshot = name.partition("@")
        header = StreamHeader(
            record.identity, base.identity if base else None, record.size_bytes, start,
            volume, snapshot, since or "", record.created,
        )  # fmt: skip
        device = self._exports.open(name)
        other = None if since is None else self._exports.open(since)
        try:
            if any(one is not None and one.layer.drained_overlays() for one in (device, other)):
                await self._flush()  # one of them was made a moment ago
        except BaseException:
            await device.close()
            if other is not None:
                await other.close()
            raise
        return Sending(header, device, other, self._map, self._table, self._env)

    def receive(
        self, volume: str, snapshot: str | None = None, *, discard: bool = False
    ) -> Receiving:
        """Begin to receive a snapshot into a volume, which may exist if the stream is a difference
        to a snapshot that it has. Nothing happens before the first bytes are fed.

        Args:
            snapshot: its name; that in the stream by default.
            discard: drop what was written to the volume since its last snapshot.
        """
        return Receiving(
            self._targets, volume, snapshot, discard=discard,
            carry_out=self._operations.carry_out, open_volume=self._exports.open_arrival,
        )  # fmt: skip

    def _snapshot_named(self, name: str) -> SnapshotRecord:
        volume, at, snapshot = name.partition("@")
        if not at:
            raise InvalidArgumentError(f"{name} is no snapshot: name one, VOL@SNAP")
        return self._registry.snapshot_record(volume, snapshot)

    def _resumed(self, name: str, since: str | None, token: ResumeToken) -> str | None:
        """What the interrupted stream was the difference to."""
        if self._snapshot_named(name).identity != token.snapshot:
            raise InvalidArgumentError(f"the token is not of a stream of {name}")
        if token.base is None:
            if since is not None:
                raise InvalidArgumentError("the interrupted stream had no --since: leave it out")
            return None
        if since is not None:
            if self._snapshot_named(since).identity != token.base:
                raise InvalidArgumentError(f"the interrupted stream was not since {since}")
            return since
        own = name.partition("@")[0]
        for volume in [own, *sorted(self._live.volumes)]:
            if (found := self._targets.find(volume, token.base)) is not None:
                return f"{volume}@{found}"
        raise NotFoundError(
            f"the snapshot that the interrupted stream is the difference to is gone ({token.base}):"
            " delete what was received of it, and send another"
        )
