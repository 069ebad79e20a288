"""Options and limits of the NBD client, each with the reason for its default."""

from dataclasses import dataclass

from nbd.constants import BASE_ALLOCATION


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """How to use a remote export; the defaults suit a member of a pool on a local network.

    `read_only`: refuse writes in the client, even if the server would take them.
    `connections`: opened when the server says that they share one cache. Four keep servers
        busy that work on one request of a connection at a time; more brings nothing here.
    `trust_unflushable`: open for writing even if the server knows neither FLUSH nor FUA. No
        data is then known to be durable: only for servers that write through, or scratch data.
    `contexts`: metadata contexts to select, where the server has them.
    `extended`: try extended headers, with 64-bit lengths, first.
    `connect_s`: from the first packet to the end of negotiation; a human's patience.
    `request_s`: how long a request may take. Less than guests wait for it (Linux: 30 s for
        a SCSI command, but several times), more than a busy disk needs for a flush.
    `reconnect_s`: how long requests wait for a server that went away; a restart, a failover.
        After that the device has failed for good. 0 fails at the first loss.
    `backoff_s`, `backoff_max_s`: the pause before trying again, doubled each time, and its maximum;
        each is shortened by up to a half at random, so that clients of one server spread out.
    `close_s`: how long closing waits for requests in flight and for the server to hang up.
    `requests_max`: requests in flight on one connection. Servers take 16 to 256 at once; more
        than some hundred would only wait there.
    `bytes_in_flight_max`: data of requests in flight on all connections; room for two of the
        longest, and the bound of memory that a client costs.
    `payload_bytes_max`: longest READ or WRITE, if the server takes so much: larger ones make
        other requests wait, and gain nothing.
    """

    read_only: bool = False
    connections: int = 4
    trust_unflushable: bool = False
    contexts: tuple[str, ...] = (BASE_ALLOCATION,)
    extended: bool = True
    connect_s: float = 10.0
    request_s: float = 60.0
    reconnect_s: float = 60.0
    backoff_s: float = 0.1
    backoff_max_s: float = 5.0
    close_s: float = 3.0
    requests_max: int = 128
    bytes_in_flight_max: int = 64 << 20
    payload_bytes_max: int = 32 << 20
