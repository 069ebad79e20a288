"""The part of the control API that sends and receives snapshots.

Bodies are streams in the format of `storage.transfer.stream`. The slower side sets the pace; only a
few chunks are held in memory.
"""

import logging
from contextlib import aclosing

import trio
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from admin.api.interfaces import Outgoing, PoolControl
from admin.names import SnapshotName, check_name, parse_snapshot
from storage.errors import NotFoundError, StreamError
from storage.info import SnapshotInfo

_log = logging.getLogger("cenote.api")

STREAM_TYPE = "application/vnd.cenote.snapshot"


class _Stream(StreamingResponse):
    """An answer that lets go of the snapshot at its end, also when the client disconnects."""

    def __init__(self, sending: Outgoing) -> None:
        self._sending = sending
        self._chunks = sending.chunks()
        super().__init__(self._chunks, media_type=STREAM_TYPE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            with trio.CancelScope(shield=True):
                await self._chunks.aclose()
                await self._sending.close()


def add_transfers(app: FastAPI, pool: PoolControl) -> None:
    """Add the routes of sending and receiving to `app`."""

    @app.get("/v1/volumes/{name}/snapshots/{snapshot}/stream")
    async def send(
        name: str, snapshot: str, since: str | None = None, resume: str | None = None
    ) -> StreamingResponse:
        what = SnapshotName(check_name(name, "volume name"), check_name(snapshot, "snapshot name"))
        base = None if since is None else str(parse_snapshot(since))
        sending = await pool.transfers.send(str(what), since=base, resume=resume)
        _log.info("sending %s since=%s resumed=%s", what, base, resume is not None)
        return _Stream(sending)

    @app.post("/v1/volumes/{name}/receive", status_code=201)
    async def receive(
        name: str, request: Request, snapshot: str | None = None, discard: bool = False
    ) -> SnapshotInfo:
        check_name(name, "volume name")
        if snapshot is not None:
            check_name(snapshot, "snapshot name")
        receiving = pool.transfers.receive(name, snapshot, discard=discard)
        try:
            async with aclosing(request.stream()) as chunks:
                async for chunk in chunks:
                    await receiving.feed(chunk)
            made = parse_snapshot(await receiving.finish())
        except ClientDisconnect:
            _log.info("receiving a snapshot of %s was interrupted", name)
            raise StreamError("the connection ended before the stream") from None
        finally:
            await receiving.close()
        _log.info("received %s", made)
        return _find(pool, made)


def _find(pool: PoolControl, name: SnapshotName) -> SnapshotInfo:
    for one in pool.management.snapshots(name.volume):
        if one.name == name.snapshot:
            return one
    raise NotFoundError(f"{name} was received, and deleted meanwhile")
