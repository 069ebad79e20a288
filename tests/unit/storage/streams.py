"""Streams between pools, for tests."""

from contextlib import aclosing

from storage.pool import Pool


async def sent(
    pool: Pool, name: str, *, since: str | None = None, resume: str | None = None
) -> bytes:
    """Return a whole stream."""
    sending = await pool.transfers.send(name, since=since, resume=resume)
    parts = []
    try:
        async with aclosing(sending.chunks()) as chunks:
            async for chunk in chunks:
                parts.append(chunk)  # noqa: PERF401
    finally:
        await sending.close()
    return b"".join(parts)


async def receive(
    pool: Pool,
    stream: bytes,
    volume: str,
    snapshot: str | None = None,
    *,
    discard: bool = False,
    piece: int = 65536,
    finish: bool = True,
) -> str:
    """Receive a stream; without `finish`, end as if the connection had broken behind it."""
    receiving = pool.transfers.receive(volume, snapshot, discard=discard)
    try:
        for start in range(0, len(stream), piece):
            await receiving.feed(stream[start : start + piece])
        return await receiving.finish() if finish else ""
    finally:
        await receiving.close()
