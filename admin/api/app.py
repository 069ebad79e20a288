"""The control API: HTTP and JSON on the control socket.

    GET    /v1/daemon                          DaemonInfo
    GET    /v1/pool                            PoolInfo
    GET    /v1/pool/space                      PoolSpace; ?now=true checkpoints first
    GET    /v1/pool/space/volumes              list of VolumeSpace; ?volume=VOL, ?now=true
    POST   /v1/members                         {path, size_bytes, host, force} -> MemberInfo
    POST   /v1/members/grow                    {member, size_bytes} -> MemberInfo
    GET    /v1/clients                         list of ClientInfo
    POST   /v1/clients/disconnect              {numbers} or {export} or {everyone: true}
                                               -> list of ClientInfo, the disconnected clients
    GET    /v1/exports                         list of ExportInfo
    GET    /v1/volumes                         list of VolumeInfo
    POST   /v1/volumes                         {name, size_bytes} -> VolumeInfo
    GET    /v1/volumes/VOL                     VolumeInfo
    PATCH  /v1/volumes/VOL                     {size_bytes} -> VolumeInfo
    DELETE /v1/volumes/VOL                     ?snapshots=true: with its snapshots; ?disconnect
    GET    /v1/tree                            list of TreeNode: volumes and snapshots
    GET    /v1/snapshots                       list of SnapshotInfo, of all volumes
    GET    /v1/volumes/VOL/snapshots           list of SnapshotInfo
    POST   /v1/volumes/VOL/snapshots           {name} -> SnapshotInfo
    DELETE /v1/volumes/VOL/snapshots/SNAP      ?disconnect
    POST   /v1/volumes/VOL/rollback            {snapshot, disconnect} -> VolumeInfo
    POST   /v1/clones                          {volume, snapshot, name} -> VolumeInfo
    GET    /v1/volumes/VOL/snapshots/SNAP/stream   ?since=VOL@SNAP, ?resume=TOKEN -> a stream
    POST   /v1/volumes/VOL/receive             a stream, ?snapshot=NAME, ?discard=true
                                               -> SnapshotInfo
    GET    /v1/schedules                       list of ScheduleInfo
    PUT    /v1/schedules/NAME                  {every_s, keep, volumes, labels} -> ScheduleInfo
    DELETE /v1/schedules/NAME
    POST   /v1/schedules/NAME/run              ScheduleInfo
    GET    /v1/scrub                           ScrubInfo
    POST   /v1/scrub/start                     {rate_bytes, fresh} -> ScrubInfo
    POST   /v1/scrub/stop                      ScrubInfo

With `disconnect` true, the clients of a volume or snapshot that is deleted or rolled back are
disconnected; otherwise the request is refused while it has clients.

An error is `{error, message, errno, exit_code}` with the HTTP status of its kind.
The OpenAPI document is at /v1/openapi.json. Only the daemon imports this module: FastAPI
takes longer to import than most commands take to run.
"""

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException

from admin.api.interfaces import (
    ClientControl,
    MemberControl,
    PoolControl,
    ScheduleControl,
)
from admin.api.naming import add_naming
from admin.api.removal import Changes
from admin.api.schedules import add_schedules
from admin.api.scrub import ScrubControl, add_scrub
from admin.api.space import add_space
from admin.api.transfers import add_transfers
from admin.api.values import ClientInfo, DaemonInfo, ExportInfo
from admin.errors import AdminError, InternalError, describe
from admin.names import SnapshotName, check_name
from admin.sizes import SizeError, volume_size
from blockdev.errors import BusyError, ClosedError, DeviceError, NoSpaceError, ReadOnlyError
from storage.errors import (
    BaseMissingError,
    ExistsError,
    FencedError,
    InUseError,
    InvalidArgumentError,
    NotFoundError,
    StreamError,
)
from storage.info import PoolInfo, SnapshotInfo, TreeNode, VolumeInfo
from storage.volumes.management import Management

_log = logging.getLogger("cenote.api")

_STATUS_BY_ERROR: dict[type[DeviceError], int] = {
    InvalidArgumentError: 400,
    ReadOnlyError: 403,
    NotFoundError: 404,
    ExistsError: 409,
    InUseError: 409,
    BusyError: 409,
    ClosedError: 503,
    BaseMissingError: 409,
    StreamError: 422,
    FencedError: 503,
    NoSpaceError: 507,
}
"""HTTP statuses; any other error of the pool is a 500."""


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class NewVolume(_Body):
    """A volume to create."""

    name: str
    size_bytes: int


class NewSize(_Body):
    """The new size of a volume."""

    size_bytes: int
    shrink: bool = False


class NewSnapshot(_Body):
    """A snapshot to create."""

    name: str


class Rollback(_Body):
    """The snapshot to roll back to."""

    snapshot: str
    disconnect: bool = False


class Disconnect(_Body):
    """The clients to disconnect: exactly one of the fields is given."""

    numbers: list[int] | None = None
    export: str | None = None
    everyone: bool = False


class NewClone(_Body):
    """A volume to create from `volume@snapshot`, or from the volume as it is now."""

    volume: str
    snapshot: str | None = None
    name: str


def build_app(
    pool: PoolControl,
    daemon: DaemonInfo,
    clients: ClientControl,
    members: MemberControl,
    schedules: ScheduleControl,
    scrubs: ScrubControl,
) -> FastAPI:
    """Make the application that answers for `pool`, its clients, members, schedules and scrubs."""
    app = FastAPI(
        title="Cenote", version=daemon.version, openapi_url="/v1/openapi.json", docs_url=None,
        redoc_url=None,
    )  # fmt: skip

    @app.get("/v1/daemon")
    async def get_daemon() -> DaemonInfo:
        return daemon

    @app.get("/v1/pool")
    async def get_pool() -> PoolInfo:
        return pool.info()

    changes = Changes(pool.management, clients)
    _add_clients(app, clients, changes)
    _add_volumes(app, pool.management, changes)
    _add_snapshots(app, pool.management, changes)
    add_naming(app, pool.management)
    add_space(app, pool, members)
    add_transfers(app, pool)
    add_schedules(app, schedules)
    add_scrub(app, scrubs)
    _add_errors(app)
    return app


def _add_clients(app: FastAPI, clients: ClientControl, changes: Changes) -> None:
    @app.get("/v1/clients")
    async def list_clients() -> list[ClientInfo]:
        return clients.clients()

    @app.get("/v1/exports")
    async def list_exports() -> list[ExportInfo]:
        return clients.exports()

    @app.post("/v1/clients/disconnect")
    async def disconnect(whom: Disconnect) -> list[ClientInfo]:
        if [whom.numbers is not None, whom.export is not None, whom.everyone].count(True) != 1:
            raise InvalidArgumentError("give one of numbers, export and everyone")
        return await changes.disconnect(numbers=whom.numbers, export=whom.export)


def _add_volumes(app: FastAPI, management: Management, changes: Changes) -> None:
    @app.get("/v1/volumes")
    async def list_volumes() -> list[VolumeInfo]:
        return management.volumes()

    @app.post("/v1/volumes", status_code=201)
    async def create_volume(new: NewVolume) -> VolumeInfo:
        return await management.create_volume(_volume(new.name), _size(new.size_bytes))

    @app.get("/v1/volumes/{name}")
    async def get_volume(name: str) -> VolumeInfo:
        return _find(management, _volume(name))

    @app.patch("/v1/volumes/{name}")
    async def resize_volume(name: str, new: NewSize) -> VolumeInfo:
        return await management.resize_volume(
            _volume(name), _size(new.size_bytes), shrink=new.shrink
        )

    @app.delete("/v1/volumes/{name}", status_code=204)
    async def delete_volume(name: str, snapshots: bool = False, disconnect: bool = False) -> None:
        await changes.delete_volume(_volume(name), snapshots=snapshots, disconnect=disconnect)

    @app.post("/v1/clones", status_code=201)
    async def create_clone(new: NewClone) -> VolumeInfo:
        snapshot = None if new.snapshot is None else _snapshot(new.snapshot)
        return await management.clone(_volume(new.volume), snapshot, _volume(new.name))


def _add_snapshots(app: FastAPI, management: Management, changes: Changes) -> None:
    @app.get("/v1/tree")
    async def get_tree() -> list[TreeNode]:
        return management.tree()

    @app.get("/v1/snapshots")
    async def list_all_snapshots() -> list[SnapshotInfo]:
        return management.snapshots()

    @app.get("/v1/volumes/{name}/snapshots")
    async def list_snapshots(name: str) -> list[SnapshotInfo]:
        return management.snapshots(_volume(name))

    @app.post("/v1/volumes/{name}/snapshots", status_code=201)
    async def create_snapshot(name: str, new: NewSnapshot) -> SnapshotInfo:
        return await management.create_snapshot(_volume(name), _snapshot(new.name))

    @app.delete("/v1/volumes/{name}/snapshots/{snapshot}", status_code=204)
    async def delete_snapshot(name: str, snapshot: str, disconnect: bool = False) -> None:
        which = SnapshotName(_volume(name), _snapshot(snapshot))
        await changes.delete_snapshot(which, disconnect=disconnect)

    @app.post("/v1/volumes/{name}/rollback")
    async def rollback(name: str, to: Rollback) -> VolumeInfo:
        which = SnapshotName(_volume(name), _snapshot(to.snapshot))
        await changes.rollback(which, disconnect=to.disconnect)
        return _find(management, name)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(DeviceError)
    async def pool_error(request: Request, error: DeviceError) -> JSONResponse:
        kinds = (_STATUS_BY_ERROR.get(kind) for kind in type(error).__mro__)
        status = next((status for status in kinds if status is not None), 500)
        if status == 500:
            _log.error("%s %s: %s", request.method, request.url.path, error)
        return JSONResponse(describe(error), status)

    @app.exception_handler(AdminError)
    async def refused(_: Request, error: AdminError) -> JSONResponse:
        return JSONResponse(describe(error), 409)

    @app.exception_handler(RequestValidationError)
    async def bad_body(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return JSONResponse(describe(InvalidArgumentError(f"{where}: {first['msg'].lower()}")), 400)

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> JSONResponse:
        what = f"{str(error.detail).lower()}: {request.method} {request.url.path}"
        kind = NotFoundError if error.status_code == 404 else InvalidArgumentError
        return JSONResponse(describe(kind(what)), error.status_code)

    @app.exception_handler(Exception)
    async def mistake(request: Request, error: Exception) -> JSONResponse:
        _log.error("%s %s", request.method, request.url.path, exc_info=error)
        return JSONResponse(describe(InternalError(f"internal error: {error!r}")), 500)


def _find(management: Management, name: str) -> VolumeInfo:
    for volume in management.volumes():
        if volume.name == name:
            return volume
    raise NotFoundError(f"no such volume: {name}")


def _volume(name: str) -> str:
    return check_name(name, "volume name")


def _snapshot(name: str) -> str:
    return check_name(name, "snapshot name")


def _size(size_bytes: int) -> int:
    try:
        return volume_size(size_bytes)
    except SizeError as error:
        raise InvalidArgumentError(str(error)) from error
