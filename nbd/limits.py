"""Every bound of the server, and why that number."""

from dataclasses import dataclass

from nbd.handshake import OPTION_BYTES_MAX, OPTIONS_MAX

PAYLOAD_BYTES_MAX = 32 << 20
"""Longest READ or WRITE; the protocol promises clients that 32 MiB works."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one server; the defaults suit some hundred virtual machines.

    `connections_max`: one guest uses 1 to 16; a descriptor each, so below a usual limit of 1024.
    `handshake_s`: a human's patience; half-open connections are gone after it.
    `option_bytes_max`, `options_max`: see `nbd.handshake`.
    `requests_in_flight_max`: requests that wait for the device, per connection. A Linux client
        sends 128 at once; beyond this the server stops reading.
    `bytes_in_flight_max`: their payloads and unsent replies, per connection; room for two of the
        longest requests. One batch and one payload being received come on top.
    `grace_s`: how long a stop waits for requests in flight and for clients to take their replies.
    """

    connections_max: int = 512
    handshake_s: float = 10.0
    option_bytes_max: int = OPTION_BYTES_MAX
    options_max: int = OPTIONS_MAX
    requests_in_flight_max: int = 256
    bytes_in_flight_max: int = 64 << 20
    grace_s: float = 3.0
