"""Numbers of the NBD wire protocol. Everything on the wire is big-endian.

Source: doc/proto.md of the NBD project, sections "Fixed newstyle negotiation",
"Option types", "Transmission phase" and "Error values".
"""

import errno
import struct
from enum import IntEnum, IntFlag

# Magic numbers.
INIT_MAGIC = 0x4E42444D41474943  # b"NBDMAGIC"
OPTION_MAGIC = 0x49484156454F5054  # b"IHAVEOPT"
OPTION_REPLY_MAGIC = 0x3E889045565A9
REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698
STRUCTURED_REPLY_MAGIC = 0x668E33EF
EXTENDED_REQUEST_MAGIC = 0x21E41C71
EXTENDED_REPLY_MAGIC = 0x6E8A278C

STRING_BYTES_MAX = 4096
"""Longest name, description or error text ("Values": strings)."""

OPTION_HEADER = struct.Struct(">QII")
"""Header of each option of a client: OPTION_MAGIC, the option, length of the data behind it."""

BASE_ALLOCATION = "base:allocation"
"""Holes and zeroes: the metadata context that every export has."""

STATE_HOLE = 1 << 0
STATE_ZERO = 1 << 1
"""Flags of a range in `base:allocation`."""

IOV_MAX = 1024
"""Linux takes no more buffers in one `sendmsg` (uio.h: UIO_MAXIOV)."""


class HandshakeFlag(IntFlag):
    """Sent by the server first, and echoed by the client as far as it agrees."""

    FIXED_NEWSTYLE = 1 << 0
    NO_ZEROES = 1 << 1


class Option(IntEnum):
    """Options: the requests of a client during negotiation."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10
    EXTENDED_HEADERS = 11


class OptionReply(IntEnum):
    """Types of replies to an option; errors have the top bit set."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = 1 << 31 | 1
    ERR_POLICY = 1 << 31 | 2
    ERR_INVALID = 1 << 31 | 3
    ERR_PLATFORM = 1 << 31 | 4
    ERR_TLS_REQD = 1 << 31 | 5
    ERR_UNKNOWN = 1 << 31 | 6
    ERR_SHUTDOWN = 1 << 31 | 7
    ERR_BLOCK_SIZE_REQD = 1 << 31 | 8
    ERR_TOO_BIG = 1 << 31 | 9
    ERR_EXT_HEADER_REQD = 1 << 31 | 10


class Info(IntEnum):
    """Kinds of information in an INFO reply."""

    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


class ExportFlag(IntFlag):
    """Transmission flags: the abilities of an export."""

    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_FUA = 1 << 3
    ROTATIONAL = 1 << 4
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6
    SEND_DF = 1 << 7
    CAN_MULTI_CONN = 1 << 8
    SEND_RESIZE = 1 << 9
    SEND_CACHE = 1 << 10
    SEND_FAST_ZERO = 1 << 11


class Command(IntEnum):
    """Request types."""

    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7


class CommandFlag(IntFlag):
    """Request flags."""

    FUA = 1 << 0
    NO_HOLE = 1 << 1
    DF = 1 << 2
    REQ_ONE = 1 << 3
    FAST_ZERO = 1 << 4
    PAYLOAD_LEN = 1 << 5


class Chunk(IntEnum):
    """Structured reply chunk types; errors have bit 15 set."""

    NONE = 0
    OFFSET_DATA = 1
    OFFSET_HOLE = 2
    BLOCK_STATUS = 5
    BLOCK_STATUS_EXT = 6
    ERROR = 1 << 15 | 1
    ERROR_OFFSET = 1 << 15 | 2


CHUNK_DONE = 1
"""The only flag of a structured reply chunk: the last one of its request."""


class WireError(IntEnum):
    """The only error numbers that may go on the wire: those of Linux, on every system."""

    EPERM = 1
    EIO = 5
    ENOMEM = 12
    EINVAL = 22
    ENOSPC = 28
    EOVERFLOW = 75
    ENOTSUP = 95
    ESHUTDOWN = 108


_WIRE_ERRORS = {
    errno.EPERM: WireError.EPERM,
    errno.EROFS: WireError.EPERM,
    errno.ENOMEM: WireError.ENOMEM,
    errno.EINVAL: WireError.EINVAL,
    errno.ENOSPC: WireError.ENOSPC,
    errno.EDQUOT: WireError.ENOSPC,
    errno.EFBIG: WireError.ENOSPC,
    errno.EOVERFLOW: WireError.EOVERFLOW,
    errno.ENOTSUP: WireError.ENOTSUP,
    errno.ESHUTDOWN: WireError.ESHUTDOWN,
}


def wire_error(number: int | None) -> WireError:
    """Return the error that may be sent for a local errno; EIO where none fits."""
    return _WIRE_ERRORS.get(number or errno.EIO, WireError.EIO)
