"""Opens a remote export: composition of the client's parts only."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from random import Random

import trio

from nbd.client.device import NbdDevice
from nbd.client.dial import Dialed, Dialer
from nbd.client.ledger import Ledger
from nbd.client.link import Link
from nbd.client.negotiation import Agreement
from nbd.client.options import ClientOptions
from nbd.client.requests import Requests
from nbd.uri import NbdUri, parse_uri

_DEFAULTS = ClientOptions()


@asynccontextmanager
async def open_nbd(
    uri: str | NbdUri, options: ClientOptions = _DEFAULTS, *, random: Random | None = None
) -> AsyncIterator[NbdDevice]:
    """Open a remote export; leaving the context closes it, without a flush.

    Args:
        random: spreads out attempts to reconnect; the system's by default.

    Raises:
        UriError: the text is no usable NBD URI.
        UnreachableError: no server there, or it does not answer. It is tried once.
        TlsError: TLS was asked for or demanded, and cannot be set up.
        UnknownExportError: the server has no such export.
        RefusedError: the server refuses the export.
        ProtocolError: the server breaks the protocol.
        ReadOnlyError, UnsupportedError: the export cannot be written to, or not safely.
    """
    dialer = Dialer(parse_uri(uri) if isinstance(uri, str) else uri, options)
    async with open_dialed(dialer.dial, options, random or Random()) as device:
        yield device


@asynccontextmanager
async def open_dialed(
    dial: Callable[[], Awaitable[Dialed]], options: ClientOptions, random: Random
) -> AsyncIterator[NbdDevice]:
    """Open a remote export as `open_nbd` does, over connections made by `dial`."""
    first = await dial()
    try:
        ledger = Ledger()
        requests = Requests(options, ledger)
        device = NbdDevice(options, requests, ledger, first.agreement)
    except BaseException:
        first.stream.close()
        raise

    def came_up(agreement: Agreement) -> None:
        requests.connections_changed()
        device.came_up(agreement)

    link = Link(dial, options, random, ledger, on_done=requests.ended, on_up=came_up)
    requests.attach(link)
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        try:
            await nursery.start(link.run, first)
            yield device
        except Exception as error:  # raised again below, outside of the nursery's group
            failure = error
        finally:
            # Shielded, so that a cancelled owner sends DISC too; takes `close_s` at most.
            with trio.CancelScope(shield=True):
                await device.close()
    if failure is not None:
        raise failure
