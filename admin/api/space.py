"""The part of the control API about space, and about members."""

from pathlib import Path

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict

from admin.api.interfaces import MemberControl, PoolControl
from admin.config.load import LOCAL_HOST
from admin.names import check_name
from storage.errors import InvalidArgumentError
from storage.info import MemberInfo, PoolSpace, VolumeSpace


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class NewMember(_Body):
    """A file or disk to add; `size_bytes` is the size of a file that is to be made."""

    path: str
    size_bytes: int | None = None
    host: str = LOCAL_HOST
    force: bool = False


class LargerMember(_Body):
    """A member by path or UUID; with `size_bytes`, its file is made that large first."""

    member: str
    size_bytes: int | None = None


def add_space(app: FastAPI, pool: PoolControl, members: MemberControl) -> None:
    """Add the routes of space and members to `app`."""

    @app.get("/v1/pool/space")
    async def pool_space(now: bool = False) -> PoolSpace:
        if now:
            await pool.checkpoint()
        return pool.space_info()

    @app.get("/v1/pool/space/volumes")
    async def volume_space(volume: str | None = None, now: bool = False) -> list[VolumeSpace]:
        if now:
            await pool.checkpoint()
        return pool.volume_space(None if volume is None else check_name(volume, "volume name"))

    @app.post("/v1/members", status_code=201)
    async def add_member(new: NewMember) -> MemberInfo:
        path = Path(new.path)
        if not path.is_absolute():
            raise InvalidArgumentError(f"not an absolute path: {new.path!r}")
        return await members.add(path, new.size_bytes, new.host, force=new.force)

    @app.post("/v1/members/grow")
    async def grow_member(larger: LargerMember) -> MemberInfo:
        return await members.grow(larger.member, larger.size_bytes)
