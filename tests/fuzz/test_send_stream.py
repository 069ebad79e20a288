"""Any stream: receiving ends well or with a clear error, and no partial snapshot seems whole."""

import random
import tracemalloc
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockdev.errors import DeviceError
from storage.transfer.stream import DATA_BYTES_MAX, Data, Decoder
from tests.unit.storage.pools import MIB, assert_clean, new_members, opened, write
from tests.unit.storage.streams import receive, sent
from tests.unit.storage.transfer.test_stream import example
from tests.unit.storage.transfer.test_transfers import content

EXAMPLE = example()
Change = tuple[int, bytes]


def drain(stream: bytes, piece: int) -> None:
    decoder = Decoder()
    for start in range(0, len(stream), piece):
        decoder.receive(stream[start : start + piece])
        while (event := decoder.next_event()) is not None:
            if isinstance(event, Data):
                event.content()
    decoder.close()


@given(st.binary(max_size=2000), st.sampled_from([0, 8, 120, len(EXAMPLE)]))
@settings(deadline=None, max_examples=300)
def test_any_bytes_behind_a_good_beginning(data: bytes, good: int) -> None:
    with suppress(DeviceError):
        drain(EXAMPLE[:good] + data, 100)


@given(
    st.lists(st.tuples(st.integers(0, len(EXAMPLE) - 1), st.binary(max_size=9)), max_size=5),
    st.sampled_from([1, 50, 10_000]),
)
@settings(deadline=None, max_examples=300)
def test_any_changes_of_a_good_stream(changes: list[Change], piece: int) -> None:
    bad = bytearray(EXAMPLE)
    for at, data in changes:
        bad[at : at + len(data)] = data
    if bytes(bad) == EXAMPLE:
        drain(bytes(bad), piece)
    else:
        with pytest.raises(DeviceError):
            drain(bytes(bad), piece)


def test_memory_does_not_grow_with_claimed_lengths() -> None:
    """Goal: headers and records that claim gigabytes cost no more memory than fed bytes (R18)."""
    coin = random.Random(1)
    tracemalloc.start()
    try:
        for _ in range(3000):
            bad = bytearray(EXAMPLE[:200])
            for _ in range(coin.randrange(1, 6)):
                bad[coin.randrange(len(bad))] = coin.choice([0xFF, 0x7F, 0])
            with suppress(DeviceError):
                drain(bytes(bad), 64)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < DATA_BYTES_MAX


@pytest.mark.parametrize("seed", range(4))
async def test_a_pool_survives_any_stream(seed: int) -> None:
    """Goal: damaged streams change no volume, and the pool stays clean and usable.

    Method: mutate good streams anywhere, several bytes at once, and feed them in odd pieces, one
    after the other, beside the partial data that earlier streams left.
    """
    ours_members, theirs_members = await new_members(), await new_members(mib=128)
    coin = random.Random(seed)
    async with opened(ours_members) as ours, opened(theirs_members) as theirs:
        await ours.management.create_volume("v", 4 * MIB)
        await write(ours, "v", 0, coin.randbytes(MIB // 4) + b"text" * 50_000)
        await ours.management.create_snapshot("v", "one")
        whole = await sent(ours, "v@one")
        await write(ours, "v", 123_456, coin.randbytes(100_000))
        await ours.management.create_snapshot("v", "two")
        difference = await sent(ours, "v@two", since="v@one")
        await receive(theirs, whole, "v")
        before = await content(theirs, "v")
        for turn in range(60):
            bad = bytearray(coin.choice([whole, difference]))
            for _ in range(coin.choice([1, 1, 3])):
                at = coin.randrange(len(bad))
                bad[at : at + coin.choice([1, 0, 8])] = coin.randbytes(coin.choice([1, 0, 8]))
            if bytes(bad) in (whole, difference):
                continue
            target = coin.choice(["v", f"w{turn % 3}"])
            with pytest.raises(DeviceError):
                await receive(theirs, bytes(bad), target, piece=coin.choice([1000, 65536]))
            assert [f"{s.volume}@{s.name}" for s in theirs.management.snapshots()] == ["v@one"]
            assert await content(theirs, "v") == before
        for name in [v.name for v in theirs.management.volumes() if v.receiving]:
            await theirs.management.delete_volume(name)
        await receive(theirs, difference, "v")
        assert await content(theirs, "v") == await content(ours, "v")
    await assert_clean(theirs_members)
