"""The part of the control API about scrubbing."""

from typing import Protocol

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict

from admin.api.scrub_status import ScrubInfo
from admin.config.scrub import check_rate
from admin.sizes import SizeError
from storage.errors import InvalidArgumentError


class ScrubControl(Protocol):
    """The scrubs of a pool; methods raise `DeviceError`s."""

    def info(self) -> ScrubInfo:
        """The current or last scrub, and when the next one is due."""
        ...

    async def start(self, rate_bytes: int | None = None, *, fresh: bool = False) -> ScrubInfo:
        """Begin a scrub, or continue one."""
        ...

    async def stop(self) -> ScrubInfo:
        """Stop the scrub that runs, if any."""
        ...


class ScrubStart(BaseModel):
    """Options of a scrub: bytes per second, 0 for no limit, and whether to start afresh."""

    model_config = ConfigDict(extra="forbid", strict=True)

    rate_bytes: int | None = None
    fresh: bool = False


def add_scrub(app: FastAPI, scrubs: ScrubControl) -> None:
    """Add the routes of scrubbing to `app`."""

    @app.get("/v1/scrub")
    async def get_scrub() -> ScrubInfo:
        return scrubs.info()

    @app.post("/v1/scrub/start")
    async def start_scrub(how: ScrubStart) -> ScrubInfo:
        if how.rate_bytes is not None:
            try:
                check_rate(how.rate_bytes)
            except SizeError as error:
                raise InvalidArgumentError(str(error)) from error
        return await scrubs.start(how.rate_bytes, fresh=how.fresh)

    @app.post("/v1/scrub/stop")
    async def stop_scrub() -> ScrubInfo:
        return await scrubs.stop()
