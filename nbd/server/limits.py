"""Limits of the NBD server, each with the reason for its number."""

from dataclasses import dataclass

from nbd.server.handshake import OPTION_BYTES_MAX, OPTIONS_MAX

PAYLOAD_BYTES_MAX = 32 << 20
"""Longest READ or WRITE; the protocol promises clients that 32 MiB works."""
PAYLOAD_BYTES_LEAST = 256 << 10
"""Smallest `payload_bytes_max` that clients work with: nbdcopy sends it, one `recv` takes it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one server; the defaults suit some hundred virtual machines.

    `connections_max`: one guest uses 1 to 16; each takes a descriptor, so the number stays below
        a usual limit of 1024.
    `handshake_s`: time for a negotiation, a human's patience; half-open connections then end.
    `option_bytes_max`, `options_max`: see `nbd.server.handshake`.
    `payload_bytes_max`: longest READ or WRITE. Clients are told it; a longer one is refused.
    `requests_in_flight_max`: requests that wait for the device, per connection. A Linux client
        sends 128 at once; beyond this the server stops reading.
    `bytes_in_flight_max`: their payloads and unsent replies, per connection; room for two of the
        longest requests. One batch and one payload being received come on top.
    `memory_bytes_max`: payloads and replies of all connections together; room for a busy host's
        guests, and little beside the memory of the guests themselves. Each connection costs up to
        1.5 MiB more for its receive buffer and for the replies of one batch.
    `patience_s`: how long clients wait for that memory before a client is dropped that holds some
        and neither sends the rest of its request nor takes its replies.
    `grace_s`: how long a stop waits for requests in flight and for clients to take their replies.
    """

    connections_max: int = 512
    handshake_s: float = 10.0
    option_bytes_max: int = OPTION_BYTES_MAX
    options_max: int = OPTIONS_MAX
    payload_bytes_max: int = PAYLOAD_BYTES_MAX
    requests_in_flight_max: int = 256
    bytes_in_flight_max: int = 64 << 20
    memory_bytes_max: int = 512 << 20
    patience_s: float = 10.0
    grace_s: float = 3.0
