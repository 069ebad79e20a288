"""Lets the daemon answer a request before all of it has arrived.

Hypercorn hands over the parts of a request through a queue. If the queue is full when the answer
ends, Hypercorn cannot add its last message, that the request is over, and the connection stays
open for ever, with a client that still sends. So the rest of the request is discarded while the
answer goes out. Then the connection is closed; the client notices, and reads the answer.
"""

import trio
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class DrainRequests:
    """ASGI middleware: discards the rest of a request while the end of its answer goes out."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_and_drain(message: Message) -> None:
            if message["type"] != "http.response.body" or message.get("more_body"):
                await send(message)
                return
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_drain, receive)
                await send(message)
                nursery.cancel_scope.cancel()

        await self._app(scope, receive, send_and_drain)


async def _drain(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
