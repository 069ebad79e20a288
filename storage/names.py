"""What volumes, snapshots and sizes may be."""

import re

from storage.entry import BLOCK_BYTES
from storage.errors import InvalidArgumentError
from storage.superblock import HOST_BYTES_MAX

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,126}")
"""Safe in a file name, in an NBD URI and next to the `@` of a snapshot."""

VOLUME_BYTES_MAX = BLOCK_BYTES << 40


def check_name(name: str, what: str) -> str:
    """Return the name.

    Raises:
        InvalidArgumentError: it is not acceptable; the message says what is.
    """
    if not NAME.fullmatch(name):
        raise InvalidArgumentError(
            f"bad {what} name {name[:140]!r}: use 1 to 127 letters, digits and . _ + -, "
            "beginning with a letter or a digit"
        )
    return name


def check_size(size_bytes: int) -> int:
    """Return the size of a volume. Raises as `check_name`."""
    if size_bytes <= 0:
        raise InvalidArgumentError(f"a volume cannot have {size_bytes} bytes: name a size above 0")
    if size_bytes > VOLUME_BYTES_MAX:
        raise InvalidArgumentError(
            f"{size_bytes} bytes are too many: a volume has at most {VOLUME_BYTES_MAX} (4 PiB)"
        )
    if size_bytes % BLOCK_BYTES:
        above = -(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES
        raise InvalidArgumentError(
            f"{size_bytes} bytes are not a multiple of {BLOCK_BYTES}: try {above}"
        )
    return size_bytes


def check_host(host: str) -> str:
    """Return a host label. Raises as `check_name`."""
    if not host or len(host.encode()) > HOST_BYTES_MAX or not host.isprintable():
        raise InvalidArgumentError(
            f"bad host label {host[:80]!r}: use 1 to {HOST_BYTES_MAX} printable bytes"
        )
    return host
