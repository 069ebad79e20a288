"""Metadata contexts: queries of clients for them, and the replies. No I/O.

Source: NBD proto.md, "Metadata querying". A client lists or selects contexts by
queries of the form `namespace:leaf`; block status then describes ranges in each
selected context, under a number that the server chose.

    LIST_META_CONTEXT, SET_META_CONTEXT          reply META_CONTEXT
    offset  size  field                          offset  size  field
         0     4  length of the export name           0     4  number of the context
         4     -  export name                         4     -  its name
         -     4  number of queries
         -     4  length of a query, then the query; and so on
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from blockdev.device import Extent
from nbd.constants import STATE_HOLE, STATE_ZERO, OptionReply
from nbd.server.options import OptionError, decode_name, encode_reply


@dataclass(frozen=True, slots=True)
class ContextQuery:
    """The export and the queries of a context option, as the client sent them."""

    export: str
    queries: tuple[bytes, ...]


def decode_query(data: bytes) -> ContextQuery:
    """Decode the data of LIST_META_CONTEXT or SET_META_CONTEXT. Raises OptionError."""
    name, at = _take_string(data, 0, "export name")
    export = decode_name(name)
    if len(data) - at < 4:
        raise OptionError(OptionReply.ERR_INVALID, f"option is too short: bytes={len(data)}")
    count = int.from_bytes(data[at : at + 4])
    at += 4
    queries: list[bytes] = []
    for _ in range(count):  # a query takes at least four bytes of the option, or fails
        query, at = _take_string(data, at, "query")
        queries.append(query)
    if at != len(data):
        raise OptionError(
            OptionReply.ERR_INVALID, f"data behind the last query: bytes={len(data) - at}"
        )
    return ContextQuery(export, tuple(queries))


def listed(queries: Sequence[bytes], offered: Iterable[str]) -> list[str]:
    """Return the contexts to list: all without queries; for a query that ends in a colon, all that
    begin with it. Cost: linear in the offer, whatever the queries are.
    """
    if not queries:
        return list(offered)
    wanted = {*queries}
    return [
        name
        for name in offered
        if name.encode() in wanted or not wanted.isdisjoint(_prefixes(name.encode()))
    ]


def _prefixes(name: bytes) -> list[bytes]:
    """Return the prefixes of a name that end in a colon."""
    return [name[: at + 1] for at in range(len(name)) if name[at : at + 1] == b":"]


def selected(queries: Sequence[bytes], offered: Iterable[str]) -> list[str]:
    """Return the contexts that a query names exactly; other queries select nothing."""
    wanted = {*queries}
    return [name for name in offered if name.encode() in wanted]


def encode_context(option: int, number: int, name: str) -> bytes:
    """Return one META_CONTEXT reply."""
    return encode_reply(option, OptionReply.META_CONTEXT, number.to_bytes(4) + name.encode())


def allocation_state(extent: Extent) -> int:
    """Return the state of an extent in `base:allocation`."""
    return extent.hole * STATE_HOLE | extent.zero * STATE_ZERO


def _take_string(data: bytes, at: int, what: str) -> tuple[bytes, int]:
    """Return the string at `at` and where it ends."""
    start = at + 4
    length = int.from_bytes(data[at:start])
    if start > len(data) or length > len(data) - start:
        raise OptionError(OptionReply.ERR_INVALID, f"{what} overruns the option: bytes={length}")
    return data[start : start + length], start + length
