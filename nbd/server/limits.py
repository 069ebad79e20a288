"""Every bound of the server, and why that number."""

from dataclasses import dataclass

from nbd.server.handshake import OPTION_BYTES_MAX, OPTIONS_MAX

PAYLOAD_BYTES_MAX = 32 << 20
"""Longest READ or WRITE; the protocol promises clients that 32 MiB works."""
PAYLOAD_BYTES_LEAST = 256 << 10
"""Less cannot be asked of clients: it is what one `recv` takes, and what nbdcopy sends."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one server; the defaults suit some hundred virtual machines.

    `connections_max`: one guest uses 1 to 16; a descriptor each, so below a usual limit of 1024.
    `handshake_s`: a human's patience; half-open connections are gone after it.
    `option_bytes_max`, `options_max`: see `nbd.server.handshake`.
    `payload_bytes_max`: longest READ or WRITE. Less than the usual is told to clients, and those
        that do not listen get errors.
    `requests_in_flight_max`: requests that wait for the device, per connection. A Linux client
        sends 128 at once; beyond this the server stops reading.
    `bytes_in_flight_max`: their payloads and unsent replies, per connection; room for two of the
        longest requests. One batch and one payload being received come on top.
    `memory_bytes_max`: payloads and replies of all connections together; room for a busy host's
        guests, and little beside the memory of the guests themselves. Each connection costs up to
        1.5 MiB more for what it receives and for the replies of one batch.
    `patience_s`: how long others wait for that memory before a client is dropped that holds some
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
