"""Fast path from socket to device and back, for short requests that are served at once.

The general loop of `nbd.server.session` handles every request, and takes longer over a read or
write of 4 KiB than the kernel. This module serves the usual requests: with no generator, and no
calls but those of the device and the reply; the only objects made for a request are the tuple of
its header, a view of its payload or data, and its reply. A client that waits for each answer is
served without that loop: 5.5 us of Python for a request instead of 8.6, beside a `recv`, a
`send`, and 0.6 us for each poll of the socket.

Unusual requests stay where they were received, and the general loop goes on with them.
"""

from blockdev.device import BlockDevice
from nbd.constants import Command, ExportFlag
from nbd.server.answers import SPARSE_BYTES_MIN
from nbd.server.pace import LOOKS
from nbd.server.receiver import Receiver
from nbd.server.sender import Sender
from nbd.server.terms import Counters, Terms
from nbd.server.transmission import RequestParser

BATCH_REQUESTS_MAX = 256
"""Most requests of one batch, so its replies leave while the client still has some in flight."""
BATCH_BYTES_MAX = 1 << 20
"""Read data of one batch: larger ones would only take more memory."""

_READ = int(Command.READ)
_WRITE = int(Command.WRITE)


class QuickLane:
    """Serves usual requests of one connection, with the parts of its session."""

    def __init__(
        self, device: BlockDevice, terms: Terms, parser: RequestParser, receiver: Receiver,
        sender: Sender, counters: Counters, payload_bytes_max: int,
    ) -> None:  # fmt: skip
        self.enough = 1
        """Bytes that are likely to arrive together, see `Receiver.look`."""
        self.limited = False
        """Whether the last batch ended because of its size."""
        self.longest_bytes = min(SPARSE_BYTES_MIN - 1, payload_bytes_max)
        """Longest request that is served here."""
        self._device = device
        self._parser = parser
        self._receiver = receiver
        self._sender = sender
        self._counters = counters
        # Attributes that each batch needs: looking them up costs as much as a request.
        self._fast = (
            device.try_view,
            device.try_write,
            terms.replies.data,
            terms.replies.done,
            device.block_bytes - 1,
            not terms.flags & ExportFlag.READ_ONLY,
            self.longest_bytes,
            *parser.usual,
        )

    def serve_received(self) -> bool:
        """Serve the usual requests at the start of the received bytes, and queue their replies.
        Return whether a request that may be whole is left behind them.
        """
        start, end = self._parser.span()
        if start < 0:
            self.limited = False
            return True
        (
            try_view, try_write, data_head, done, grain_mask, writable, longest,
            unpack_from, header, usual_magic, write_flags, buffer,
        ) = self._fast  # fmt: skip
        size_bytes = self._device.size_bytes
        replies = self._sender.replies
        served = read_bytes = written_bytes = 0
        more = self.limited = False
        while end - start >= header:
            more = True
            magic, flags, kind, cookie, offset, length = unpack_from(buffer, start)
            if (
                magic != usual_magic
                or not 0 < length <= longest
                or offset + length > size_bytes
                or (offset | length) & grain_mask
            ):
                break
            first = start + header
            try:
                if kind == _WRITE and flags == write_flags and writable:
                    last = first + length
                    if last > end:
                        more = False
                        break
                    if not try_write(offset, buffer[first:last]):
                        break
                    replies.append(done(kind, cookie, offset))
                    written_bytes += length
                    start = last
                elif kind == _READ and not flags:
                    data = try_view(offset, length)
                    if data is None:
                        break
                    replies.append(data_head(cookie, offset, length))
                    replies.append(data)
                    read_bytes += length
                    start = first
                else:
                    break
            except Exception:
                break  # the general loop meets the error again, and answers it
            served += 1
            if served >= BATCH_REQUESTS_MAX or read_bytes >= BATCH_BYTES_MAX:
                self.limited = True
                break
            more = False
        self._parser.served(start)
        if served:
            counters = self._counters
            counters.requests += served
            counters.read_bytes += read_bytes
            counters.written_bytes += written_bytes
            self.expect_another(written=written_bytes > 0)
        return more

    def expect_another(self, *, written: bool) -> None:
        """Note the kind of the last request: after a write, wait for a header and a payload."""
        self.enough = self._parser.header_bytes + 1 if written else 1

    def serve_singles(self, most: int) -> tuple[int, int | None, bool]:
        """Receive and serve requests that come one by one, at most `most`, as long as the next
        comes at once. The parser and the sender must be empty; on return the sender may have the
        last reply left. Does not suspend.

        Returns:
            The number of rounds that received and served just one request; the bytes received in
            a further round, None without one and 0 at the end of the stream; and whether a request
            that may be whole is left of them.

        Raises:
            OSError: the connection broke while receiving.
        """
        parser, receiver, sender, counters = (
            self._parser, self._receiver, self._sender, self._counters,
        )  # fmt: skip
        rounds, count, more = 0, None, False
        while rounds < most and receiver.arrived(LOOKS, self.enough):
            before = counters.requests
            count = receiver.receive(parser.room())
            if not count:
                break
            more = parser.received(count) and self.serve_received()
            if not sender.drain_now() or sender.failure:
                break
            if counters.requests - before != 1 or not parser.is_empty():
                break
            rounds += 1
            count = None
        return rounds, count, more
