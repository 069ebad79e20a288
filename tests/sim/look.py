"""Reads the whole content of a pool: names, sizes, snapshots and every byte."""

from blockdev.device import BlockDevice
from storage.pool import Pool
from tests.crash.model import BLOCK, ZERO_BLOCK, Image, State, VolumeModel

READ_BYTES = 512 << 10
_ZEROES = bytes(READ_BYTES)


async def contents(pool: Pool, *, holes: bool = False) -> State:
    """Return the content of a pool. With `holes`, extents reported as zero are believed and not
    read, which is quicker and shows data that is wrongly reported as zero.

    Raises:
        DeviceError: some data cannot be read.
    """
    found: State = {}
    for volume in pool.management.volumes():
        model = VolumeModel(await _image(pool, volume.name, holes))
        assert model.head.size_bytes == volume.size_bytes
        for snap in pool.management.snapshots(volume.name):
            model.snapshots[snap.name] = await _image(pool, f"{volume.name}@{snap.name}", holes)
        found[volume.name] = model
    return found


async def _image(pool: Pool, name: str, holes: bool) -> Image:
    device = pool.open_export(name)
    image = Image(device.size_bytes)
    try:
        for start, end in await _data(device) if holes else [(0, device.size_bytes)]:
            for at in range(start, end, READ_BYTES):
                await _read(device, image, at, min(READ_BYTES, end - at))
    finally:
        await device.close()
    return image


async def _data(device: BlockDevice) -> list[tuple[int, int]]:
    found = []
    at = 0
    while at < device.size_bytes:
        for extent in await device.extents(at, device.size_bytes - at):
            if not extent.zero:
                found.append((at, at + extent.length_bytes))
            at += extent.length_bytes
    return found


async def _read(device: BlockDevice, image: Image, offset: int, length: int) -> None:
    data = device.try_read(offset, length)
    if data is None:
        data = await device.read(offset, length)
    plain = bytes(data)
    assert len(plain) == length
    if plain == _ZEROES[:length]:
        return
    for at in range(0, length, BLOCK):
        block = plain[at : at + BLOCK]
        if block != ZERO_BLOCK:
            image.blocks[(offset + at) // BLOCK] = block
