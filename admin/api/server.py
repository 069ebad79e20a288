"""Runs the control API on its Unix socket, with Hypercorn's trio worker."""

import logging

import hypercorn.trio
import trio
from hypercorn.config import Config as HypercornConfig

from admin.api.app import build_app
from admin.api.drain import DrainRequests
from admin.api.interfaces import ClientControl, MemberControl, PoolControl, ScheduleControl
from admin.api.scrub import ScrubControl
from admin.api.values import DaemonInfo
from admin.errors import HomeError
from admin.home import Home
from nbd.server.listeners import listen_unix

HEADERS_BYTES_MAX = 64 * 1024
"""Longest request line with its headers: names and a token, far shorter than this."""
KEEP_ALIVE_S = 5.0
GRACE_S = 1.0
"""How long a request under way may take once the daemon stops."""


async def serve_api(
    pool: PoolControl,
    daemon: DaemonInfo,
    clients: ClientControl,
    members: MemberControl,
    schedules: ScheduleControl,
    scrubs: ScrubControl,
    home: Home,
    stop: trio.Event,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer on the control socket until `stop` is set; starts once clients can connect.

    Raises:
        HomeError: the socket cannot be made.
    """
    try:
        listener = listen_unix(home.control_socket)
    except OSError as error:
        raise HomeError(f"cannot listen on {home.control_socket}: {error.strerror}") from error
    config = HypercornConfig()
    config.bind = [f"fd://{listener.sock.detach()}"]  # Hypercorn closes it
    config.errorlog = logging.getLogger("hypercorn")
    config.accesslog = None
    config.include_server_header = False
    config.keep_alive_timeout = KEEP_ALIVE_S
    config.graceful_timeout = GRACE_S
    config.h11_max_incomplete_size = HEADERS_BYTES_MAX

    app = build_app(pool, daemon, clients, members, schedules, scrubs)

    async def serve(*, task_status: trio.TaskStatus[list[str]]) -> None:
        await hypercorn.trio.serve(
            DrainRequests(app),  # type: ignore[arg-type]
            config,
            shutdown_trigger=stop.wait,
            task_status=task_status,
        )

    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(serve)
            task_status.started()
    finally:
        home.control_socket.unlink(missing_ok=True)
