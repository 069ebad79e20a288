"""The shortest way from socket to device and back, for a client that waits for each answer.

Its next request is all that there is to do, so the time until its answer leaves counts, and the
general loop of `nbd.session`, which is made for many requests at once, takes longer over a
single one than the system calls do: 8.5 us for a write of 4 KiB. Here it is 4, beside a `recv`, a
`send`, and 0.6 us for each look whether something came. Objects made for each request: the
tuple of its header, a view of its payload or data, and its reply.

Whatever is not one usual request, whole, that the device serves at once, stays where it was
received, and the general loop begins with it anew.
"""

from blockdev.device import BlockDevice
from nbd.answers import SPARSE_BYTES_MIN
from nbd.constants import Command, ExportFlag
from nbd.pace import LOOKS
from nbd.receiver import Receiver
from nbd.sender import Sender
from nbd.terms import Counters, Terms
from nbd.transmission import RequestParser

_READ = int(Command.READ)
_WRITE = int(Command.WRITE)


class QuickLane:
    """Serves single requests of one connection; the parts are those of its session."""

    def __init__(
        self, device: BlockDevice, terms: Terms, parser: RequestParser, receiver: Receiver,
        sender: Sender, counters: Counters, payload_bytes_max: int,
    ) -> None:  # fmt: skip
        self._device = device
        self._replies = terms.replies
        self._writable = not terms.flags & ExportFlag.READ_ONLY
        self._longest = min(SPARSE_BYTES_MIN - 1, payload_bytes_max)
        self._parser = parser
        self._receiver = receiver
        self._sender = sender
        self._counters = counters
        self._enough = 1

    def serve(self, most: int) -> tuple[int, int | None]:
        """Serve at most so many requests, as long as the next one comes at once; return how many,
        and how much was received into the room of the parser and not served: None for nothing.

        The parser must be empty, and the sender, which may have the last reply left. Does not
        suspend.

        Raises:
            OSError: the connection broke while receiving.
        """
        device, parser, receiver, sender = self._device, self._parser, self._receiver, self._sender
        try_view, try_write, size_bytes = device.try_view, device.try_write, device.size_bytes
        data_head, done = self._replies.data, self._replies.done
        grain_mask, longest, writable = device.block_bytes - 1, self._longest, self._writable
        arrived, receive, drain_now = receiver.arrived, receiver.receive, sender.drain_now
        replies = sender.replies
        unpack_from, header, magic_of, write_flags = parser.usual
        room = parser.room()
        enough = self._enough
        served = read_bytes = written_bytes = 0
        count = None
        while served < most and arrived(LOOKS, enough):
            count = receive(room)
            if not count or count < header:
                break
            magic, flags, kind, cookie, offset, length = unpack_from(room)
            if (
                magic != magic_of
                or not 0 < length <= longest
                or offset + length > size_bytes
                or (offset | length) & grain_mask
            ):
                break
            try:
                if kind == _WRITE and flags == write_flags and count == header + length:
                    if not writable or not try_write(offset, room[header:count]):
                        break
                    replies.append(done(kind, cookie, offset))
                    written_bytes += length
                    # Who has just sent a small write will send another: header, then payload.
                    enough = header + 1
                elif kind == _READ and not flags and count == header:
                    data = try_view(offset, length)
                    if data is None:
                        break
                    replies.append(data_head(cookie, offset, length))
                    replies.append(data)
                    read_bytes += length
                    enough = 1
                else:
                    break
            except Exception:
                break  # the general loop meets it again, and answers it
            served += 1
            count = None
            if not drain_now() or sender.failure:
                break
        self._enough = enough
        self._counters.requests += served
        self._counters.read_bytes += read_bytes
        self._counters.written_bytes += written_bytes
        return served, count
