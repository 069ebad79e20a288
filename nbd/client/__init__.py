"""The NBD client: remote exports as block devices.

    async with open_nbd("nbd://host/disk") as device:
        await device.write(0, b"hello")
        await device.flush()

    for about in await describe("nbd://host"):
        ...

`nbd.client.device` says what happens when the server goes away; `nbd.client.options` holds every
limit.
"""

from nbd.client.device import NbdDevice
from nbd.client.inspect import ExportReport, describe
from nbd.client.negotiation import Mode, RemoteExport
from nbd.client.opening import open_nbd
from nbd.client.options import ClientOptions

__all__ = [
    "ClientOptions",
    "ExportReport",
    "Mode",
    "NbdDevice",
    "RemoteExport",
    "describe",
    "open_nbd",
]
