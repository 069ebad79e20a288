"""What the server and the client need of a connected socket, plain or with TLS around it."""

import fcntl
import select
import socket
import struct
import termios
from typing import Protocol

from typing_extensions import Buffer


class Stream(Protocol):
    """A connected socket that never blocks: it raises BlockingIOError instead."""

    @property
    def family(self) -> int:
        """The address family."""

    def recv(self, size: int, /) -> bytes:
        """Return what is there, up to `size` bytes; nothing at the end."""

    def recv_into(self, buffer: memoryview, /) -> int:
        """Fill the beginning of `buffer`; return how much, 0 at the end."""

    def send(self, data: Buffer, /) -> int:
        """Send the beginning of `data`; return how much."""

    def sendmsg(self, buffers: list[Buffer], /) -> int:
        """Send the beginning of `buffers`; return how much of all together."""

    def fileno(self) -> int:
        """Return the descriptor, to wait for; negative once closed."""

    def close(self) -> None:
        """Close it. Closing twice is harmless."""


def has_hung_up(stream: Stream) -> bool:
    """Whether the peer closed its side, even while data of it is still unread.

    Over TCP, a peer that will not send but still receives looks the same.
    """
    poll = select.poll()
    # A Unix socket tells the two apart: errors and hang-ups are reported unasked.
    poll.register(stream.fileno(), 0 if stream.family == socket.AF_UNIX else select.POLLRDHUP)
    return bool(poll.poll(0))


def unread(stream: Stream) -> bytes:
    """Return what arrived and was not received yet, without receiving it; of TLS nothing."""
    if not isinstance(stream, socket.socket):
        return b""
    (count,) = struct.unpack("i", fcntl.ioctl(stream, termios.FIONREAD, bytes(4)))
    try:
        return stream.recv(count, socket.MSG_PEEK) if count else b""
    except OSError:
        return b""
