"""Requests that are answered before they have arrived.

Hypercorn hands the parts of a request over through a queue. When that is full as the answer ends,
nobody takes the last message, that the request is over, and the connection stays open for ever,
with a client that still sends. So what is left is thrown away while the answer goes out; then the
connection is closed, which the client sees, and it reads the answer.
"""

import trio
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class DrainRequests:
    """An ASGI layer: from the end of each answer on it takes what comes of its request."""

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
