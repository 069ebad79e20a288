"""Interface of a connected socket, plain or with TLS, for the server and the client."""

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
        """Return the bytes that are there, at most `size`; none at the end of the stream."""

    def recv_into(self, buffer: memoryview, /) -> int:
        """Fill the beginning of `buffer`; return the number of bytes, 0 at the end."""

    def send(self, data: Buffer, /) -> int:
        """Send the beginning of `data`; return the number of bytes."""

    def sendmsg(self, buffers: list[Buffer], /) -> int:
        """Send the beginning of `buffers`; return the number of bytes, over all buffers."""

    def fileno(self) -> int:
        """Return the descriptor, to wait for; negative once closed."""

    def close(self) -> None:
        """Close the socket. Closing twice is harmless."""


def has_hung_up(stream: Stream) -> bool:
    """Whether the peer closed its side, even while data from it is unread.

    Over TCP, a peer that has shut down only its sending side looks the same.
    """
    poll = select.poll()
    # A Unix socket tells the two apart: poll reports errors and hang-ups unasked.
    poll.register(stream.fileno(), 0 if stream.family == socket.AF_UNIX else select.POLLRDHUP)
    return bool(poll.poll(0))


def unread(stream: Stream) -> bytes:
    """Return the bytes that arrived, without receiving them; none of a TLS stream."""
    if not isinstance(stream, socket.socket):
        return b""
    (count,) = struct.unpack("i", fcntl.ioctl(stream, termios.FIONREAD, bytes(4)))
    try:
        return stream.recv(count, socket.MSG_PEEK) if count else b""
    except OSError:
        return b""
