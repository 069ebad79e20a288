"""The part of the control API about schedules of automatic snapshots."""

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict

from admin.api.interfaces import ScheduleControl
from admin.api.values import ScheduleInfo
from admin.names import check_name
from storage.catalogue.schedule import Schedule


class NewSchedule(BaseModel):
    """A schedule: seconds between snapshots, rules for keeping them, and the volumes it covers."""

    model_config = ConfigDict(extra="forbid", strict=True)

    every_s: int
    keep: dict[str, int]
    volumes: list[str] = []
    labels: dict[str, str] = {}


def add_schedules(app: FastAPI, schedules: ScheduleControl) -> None:
    """Add the routes of schedules to `app`."""

    @app.get("/v1/schedules")
    async def list_schedules() -> list[ScheduleInfo]:
        return schedules.infos()

    @app.put("/v1/schedules/{name}")
    async def set_schedule(name: str, new: NewSchedule) -> ScheduleInfo:
        schedule = Schedule(new.every_s, new.keep, tuple(new.volumes), new.labels)
        return await schedules.set(check_name(name, "schedule name"), schedule)

    @app.delete("/v1/schedules/{name}", status_code=204)
    async def remove_schedule(name: str) -> None:
        await schedules.remove(check_name(name, "schedule name"))

    @app.post("/v1/schedules/{name}/run")
    async def run_schedule(name: str) -> ScheduleInfo:
        return await schedules.run_now(check_name(name, "schedule name"))
