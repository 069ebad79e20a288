"""Tells the service manager, if there is one, the state of the daemon: sd_notify(3)."""

import os
import socket


def notify(*lines: str) -> None:
    """Send `READY=1`, `STATUS=...` and the like to NOTIFY_SOCKET.

    Does nothing when NOTIFY_SOCKET is not set, and ignores errors of the socket.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):
        address = "\0" + address[1:]  # the abstract namespace of Linux
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.connect(address)
            channel.send("\n".join(lines).encode())
    except OSError:
        pass
