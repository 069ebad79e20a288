"""The part of the control API about names, properties, and snapshots of several volumes."""

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict

from admin.names import check_name, parse_snapshot
from storage.info import SnapshotInfo, VolumeInfo
from storage.volumes.management import Management


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class NewName(_Body):
    """The new name of a volume or snapshot."""

    name: str


class NewGroup(_Body):
    """Several volumes, and one name for their snapshots."""

    volumes: list[str]
    name: str


class Flatten(_Body):
    """Whether to flatten a volume in the background, or to stop flattening it."""

    on: bool = True


class Notes(_Body):
    """Properties to change of `name`, a volume or `VOL@SNAP`; an empty label or 0 removes one."""

    name: str
    description: str | None = None
    labels: dict[str, str] | None = None
    protected: bool | None = None
    limits: dict[str, float | int] | None = None
    space: dict[str, int] | None = None


def add_naming(app: FastAPI, management: Management) -> None:
    """Add the routes."""

    @app.post("/v1/volumes/{name}/rename")
    async def rename_volume(name: str, new: NewName) -> VolumeInfo:
        return await management.rename_volume(
            check_name(name, "volume name"), check_name(new.name, "volume name")
        )

    @app.post("/v1/volumes/{name}/promote")
    async def promote(name: str) -> VolumeInfo:
        return await management.promote(check_name(name, "volume name"))

    @app.post("/v1/volumes/{name}/flatten")
    async def flatten(name: str, how: Flatten) -> VolumeInfo:
        return await management.flatten(check_name(name, "volume name"), on=how.on)

    @app.post("/v1/volumes/{name}/snapshots/{snapshot}/rename")
    async def rename_snapshot(name: str, snapshot: str, new: NewName) -> SnapshotInfo:
        return await management.rename_snapshot(
            check_name(name, "volume name"),
            check_name(snapshot, "snapshot name"),
            check_name(new.name, "snapshot name"),
        )

    @app.post("/v1/snapshots", status_code=201)
    async def create_snapshots(new: NewGroup) -> list[SnapshotInfo]:
        volumes = [check_name(name, "volume name") for name in new.volumes]
        return await management.create_snapshots(volumes, check_name(new.name, "snapshot name"))

    @app.patch("/v1/notes", status_code=204)
    async def note(notes: Notes) -> None:
        if "@" in notes.name:
            parse_snapshot(notes.name)
        else:
            check_name(notes.name, "volume name")
        await management.note(notes.name, notes.model_dump(exclude={"name"}, exclude_none=True))
