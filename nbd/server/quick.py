"""The shortest way from socket to device and back, for short requests that are served at once.

The general loop of `nbd.server.session` can do everything, and takes longer over a read or write
of 4 KiB than the kernel. Usual requests are served here: no generator, no call but those of the
device and the reply; objects made for each request are the tuple of its header, a view of its
payload or data, and its reply. A client that waits for each answer is served without going
through that loop at all: 5.5 us of Python for a request and not 8.6, beside a `recv`, a `send`,
and 0.6 us for each look whether something came.

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
"""Replies leave after so many requests at the latest, before the client runs dry."""
BATCH_BYTES_MAX = 1 << 20
"""Replies are sent at this size: more would only grow memory."""

_READ = int(Command.READ)
_WRITE = int(Command.WRITE)


class QuickLane:
    """Serves usual requests of one connection; the parts are those of its session."""

    def __init__(
        self, device: BlockDevice, terms: Terms, parser: RequestParser, receiver: Receiver,
        sender: Sender, counters: Counters, payload_bytes_max: int,
    ) -> None:  # fmt: skip
        self.enough = 1
        """Bytes that are likely to come together, see `Receiver.look`."""
        self.limited = False
        """Whether the last batch ended for its size."""
        self.longest_bytes = min(SPARSE_BYTES_MIN - 1, payload_bytes_max)
        """Longer requests are not short."""
        self._device = device
        self._parser = parser
        self._receiver = receiver
        self._sender = sender
        self._counters = counters
        # What each batch needs, in one place: looking them up costs as much as a request.
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
        """Serve what is usual at the beginning of what was received; replies are queued. Return
        whether there is something else behind it that may be whole.
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
                break  # the general loop meets it again, and answers it
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
        """Say what was served last: who sent a write will send another, its header, and then
        its payload."""
        self.enough = self._parser.header_bytes + 1 if written else 1

    def serve_singles(self, most: int) -> tuple[int, int | None, bool]:
        """Receive and serve requests that come one by one, at most so many, as long as the next
        comes at once. The parser must be empty, and the sender, which may have the last reply
        left. Does not suspend.

        Returns:
            How often one came and was served; how much was received behind that, None for nothing
            and 0 for the end; and whether something of it is left that may be whole.

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
