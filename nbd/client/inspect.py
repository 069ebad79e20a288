"""Describes the exports of a server without using them."""

from dataclasses import dataclass, replace

from nbd.client.dial import Dialer, Haggle
from nbd.client.negotiation import (
    Mode,
    RemoteExport,
    agree_on_mode,
    inspect,
    list_exports,
)
from nbd.client.opening import open_nbd
from nbd.client.options import ClientOptions
from nbd.errors import NbdError, RefusedError, TlsError, UnknownExportError
from nbd.uri import NbdUri, parse_uri

INSPECTED_MAX = 256
"""Most exports to ask about one by one; servers bound how many options they answer."""

_DEFAULTS = ClientOptions()
_UNTOLD = "server tells of exports only to those who enter them"


@dataclass(frozen=True, slots=True)
class ExportReport:
    """A server's description of one export; where `about` is None, `problem` says why."""

    name: str
    mode: Mode
    tls: bool
    about: RemoteExport | None = None
    problem: str = ""


async def describe(uri: str | NbdUri, options: ClientOptions = _DEFAULTS) -> list[ExportReport]:
    """Ask about the export that the URI names or, if it names none, about all of the server.

    A server that does not list its exports is asked about its default export. Exports of a server
    without INFO are entered to describe them. Exports after the first INSPECTED_MAX are only named.

    Raises:
        NbdError: as `open_nbd`, if the server describes no export at all.
    """
    where = parse_uri(uri) if isinstance(uri, str) else uri
    async with Dialer(where, options).haggling() as haggle:
        reports = await _ask_all(haggle, where, options) if haggle.fixed else []
        if not haggle.fixed:
            reports = [ExportReport(where.export, Mode.SIMPLE, where.tls, problem=_UNTOLD)]
    return [
        await _look_inside(one, where, options) if one.problem == _UNTOLD else one
        for one in reports
    ]


async def _ask_all(haggle: Haggle, where: NbdUri, options: ClientOptions) -> list[ExportReport]:
    mode = await agree_on_mode(haggle, extended=options.extended)
    names = [where.export] if where.export else await _names(haggle)
    reports = []
    for number, name in enumerate(names):
        if number < INSPECTED_MAX:
            reports.append(await _ask(haggle, name, mode, where.tls))
        else:
            reports.append(ExportReport(name, mode, where.tls, problem="not asked about"))
    return reports


async def _names(haggle: Haggle) -> list[str]:
    try:
        return await list_exports(haggle)
    except RefusedError:
        return [""]


async def _ask(haggle: Haggle, name: str, mode: Mode, tls: bool) -> ExportReport:
    try:
        about = await inspect(haggle, name, contexts=mode is not Mode.SIMPLE)
    except (RefusedError, UnknownExportError, TlsError) as error:
        return ExportReport(name, mode, tls, problem=str(error))
    return ExportReport(name, mode, tls, about, "" if about is not None else _UNTOLD)


async def _look_inside(report: ExportReport, where: NbdUri, options: ClientOptions) -> ExportReport:
    """Enter an export to describe it, for old servers without INFO."""
    only_look = replace(options, read_only=True, connections=1, reconnect_s=0)
    try:
        async with open_nbd(replace(where, export=report.name), only_look) as device:
            about = replace(device.export, contexts=tuple(sorted(device.contexts)))
            return replace(report, mode=device.mode, about=about, problem="")
    except NbdError as error:
        return replace(report, problem=str(error))
