"""Interrupted receiving: a part is never taken for the whole snapshot, and receiving continues."""

import random
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import trio

from blockdev.errors import NoSpaceError
from storage.catalogue import operations
from storage.catalogue.arrivals import identify
from storage.catalogue.catalogue import Catalogue
from storage.catalogue.resume_token import ResumeToken
from storage.errors import (
    ExistsError,
    InUseError,
    InvalidArgumentError,
    NotFoundError,
    StreamError,
)
from storage.format.values import decode, encode
from storage.pool import Pool
from storage.transfer import receive as receive_module
from storage.transfer.stream import Decoder
from storage.transfer.targets import Targets
from tests.unit.hang import HANG_S
from tests.unit.storage.pools import MIB, assert_clean, new_members, opened, write
from tests.unit.storage.streams import receive, sent
from tests.unit.storage.transfer.test_transfers import content, new_volume, two_pools

BLOCK = 4096
PARTIAL = "v+receiving"


def partial_of(pool: Pool) -> tuple[int, str]:
    """Position and token of the snapshot that is being received into v."""
    info = pool.management.volume(PARTIAL).receiving
    assert info is not None
    return info.position_bytes, info.token


async def prepared(ours: Pool, theirs: Pool) -> bytes:
    """Give both pools v@one; return the difference from it to v@two, some 2 MiB in many records."""
    await new_volume(ours, mib=16)
    await receive(theirs, await sent(ours, "v@one"), "v")
    coin = random.Random(5)
    for block in coin.sample(range(4096), 100):
        await write(
            ours,
            "v",
            block * BLOCK,
            coin.randbytes(coin.choice([1, 5]) * BLOCK)[: (4096 - block) * BLOCK],
        )
    device = ours.open_export("v")
    for block in coin.sample(range(200), 10):
        await device.write_zeroes(block * BLOCK, 7 * BLOCK)
    await device.close()
    await ours.management.create_snapshot("v", "two")
    return await sent(ours, "v@two", since="v@one")


@pytest.mark.parametrize("seed", range(6))
async def test_receiving_continues_until_the_snapshot_is_whole(seed: int) -> None:
    """Goal: however often a stream is interrupted, also by restarts, the result is the same, and
    content that has arrived is not sent again."""
    coin = random.Random(seed)
    ours_members, theirs_members = await new_members(), await new_members()
    async with opened(ours_members) as ours:
        async with opened(theirs_members) as theirs:
            stream = await prepared(ours, theirs)
            before = await content(theirs, "v")
        token, attempts = None, 0
        while True:
            attempts += 1
            async with opened(theirs_members) as theirs:
                stream = await sent(ours, "v@two", since="v@one", resume=token)
                cut = min(len(stream), coin.randrange(1, 700_000))
                if cut == len(stream):
                    await receive(theirs, stream, "v")
                    break
                await receive(theirs, stream[:cut], "v", finish=False)
                if theirs.management.volumes()[-1].name == PARTIAL:
                    position, token = partial_of(theirs)
                    decoder = Decoder()
                    decoder.receive(stream[:cut])
                    while decoder.next_event():
                        pass
                    assert position == decoder.position
                assert await content(theirs, "v") == before
                assert [s.name for s in theirs.management.snapshots()] == ["one"]
        assert attempts > 1
        async with opened(theirs_members) as theirs:
            assert [v.name for v in theirs.management.volumes()] == ["v"]
            assert await content(theirs, "v@two") == await content(ours, "v@two")
            assert await content(theirs, "v@one") == before
    await assert_clean(theirs_members)


async def test_a_cut_or_damaged_stream_never_makes_a_snapshot() -> None:
    async with two_pools(256) as (ours, theirs):
        stream = await prepared(ours, theirs)
        before = await content(theirs, "v")
        coin = random.Random(1)
        for _ in range(60):
            bad = bytearray(stream)
            at = coin.randrange(len(bad))
            if coin.random() < 0.5:
                bad[at] ^= 1 << coin.randrange(8)
            else:
                del bad[at:]
            with pytest.raises((StreamError, InvalidArgumentError)):
                await receive(theirs, bytes(bad), "v")
            assert [s.name for s in theirs.management.snapshots()] == ["one"]
            assert await content(theirs, "v") == before
        with pytest.raises(StreamError, match="something follows"):
            await receive(theirs, stream + b"x", "v")
        with pytest.raises(StreamError, match="something follows"):
            await receive(theirs, stream + stream, "v", piece=len(stream))
        assert len(theirs.management.snapshots()) == 1
        # Content before the damage is kept, and not sent again.
        position, token = partial_of(theirs)
        assert position == ours.management.volume("v").size_bytes or position > 8 * MIB
        rest = await sent(ours, "v@two", resume=token)
        assert len(rest) < len(stream) // 2
        await receive(theirs, rest, "v")
        assert await content(theirs, "v") == await content(ours, "v")


async def test_a_partly_received_volume_can_only_be_deleted() -> None:
    """It cannot be used otherwise, and the target volume cannot be renamed meanwhile."""
    async with two_pools() as (ours, theirs):
        stream = await prepared(ours, theirs)
        await receive(theirs, stream[:500_000], "v", finish=False)
        assert [v.name for v in theirs.management.volumes()] == ["v", PARTIAL]
        info = theirs.management.volume(PARTIAL)
        assert info.origin == "v@one"
        assert info.receiving is not None
        assert info.receiving.snapshot == "v@two"
        for refused in (
            theirs.management.resize_volume(PARTIAL, 64 * MIB),
            theirs.management.create_snapshot(PARTIAL, "s"),
            theirs.management.create_snapshots([PARTIAL, "v"], "s"),
            theirs.management.clone(PARTIAL, None, "c"),
            theirs.management.rename_volume(PARTIAL, "c"),
            theirs.management.promote(PARTIAL),
            theirs.management.note(PARTIAL, {"description": "mine"}),
            theirs.transfers.send(f"{PARTIAL}@two"),
        ):
            with pytest.raises(InvalidArgumentError, match="not whole"):
                await refused
        with pytest.raises(InvalidArgumentError, match="not whole"):
            theirs.open_export(PARTIAL)
        with pytest.raises(InUseError, match="being received into"):
            await theirs.management.rename_volume("v", "w")
        with pytest.raises(InvalidArgumentError, match="not whole"):
            await receive(theirs, await sent(ours, "v@one"), PARTIAL)
        # Its space is reported, as that of any volume.
        await theirs.checkpoint()
        by_name = {one.name: one for one in theirs.volume_space()}
        assert by_name[PARTIAL].stored_bytes > by_name["v@one"].stored_bytes
        assert theirs.volume_space(PARTIAL)[0] == by_name[PARTIAL]
        # Its base may be deleted: the layer stays as long as it is needed. But then no snapshot
        # holds the data of the volume any more.
        await theirs.management.delete_snapshot("v", "one")
        await theirs.checkpoint()
        rest = await sent(ours, "v@two", resume=partial_of(theirs)[1])
        with pytest.raises(InUseError, match="was written to"):
            await receive(theirs, rest, "v")
        await receive(theirs, rest, "v", discard=True)
        assert await content(theirs, "v@two") == await content(ours, "v@two")


async def test_another_stream_does_not_continue_an_interrupted_one() -> None:
    async with two_pools() as (ours, theirs):
        stream = await prepared(ours, theirs)
        await receive(theirs, stream[:500_000], "v", finish=False)
        position, token = partial_of(theirs)
        await write(ours, "v", 0, b"x")
        await ours.management.create_snapshot("v", "three")
        other = await sent(ours, "v@three", since="v@one")
        with pytest.raises(ExistsError, match=rf"--resume {token}.*volume delete v\+receiving"):
            await receive(theirs, other, "v")
        with pytest.raises(ExistsError, match="was interrupted"):
            await receive(theirs, stream, "v", "zwei")
        ahead = str(replace(ResumeToken.parse(token), position=position + 8 * MIB))
        with pytest.raises(StreamError, match="only what is before"):
            await receive(theirs, await sent(ours, "v@two", resume=ahead), "v")
        await theirs.management.delete_volume(PARTIAL)
        with pytest.raises(StreamError, match="nothing of it is here"):
            await receive(theirs, await sent(ours, "v@two", resume=token), "v")
        await receive(theirs, other, "v")
        with pytest.raises(ExistsError, match="has this snapshot already"):
            await receive(theirs, other, "v", "four")
        await theirs.management.create_volume("w+receiving", BLOCK)
        with pytest.raises(ExistsError, match="in the way"):
            await receive(theirs, await sent(ours, "v@one"), "w")


async def test_wrong_tokens_are_refused() -> None:
    async with two_pools() as (ours, theirs):
        stream = await prepared(ours, theirs)
        await receive(theirs, stream[:500_000], "v", finish=False)
        token = partial_of(theirs)[1]
        assert str(ResumeToken.parse(token)) == token
        send = partial(ours.transfers.send, resume=token)
        with pytest.raises(InvalidArgumentError, match="not of a stream of v@one"):
            await send("v@one")
        await ours.management.create_snapshot("v", "three")
        with pytest.raises(InvalidArgumentError, match="not since v@three"):
            await send("v@two", since="v@three")
        whole = str(ResumeToken(ResumeToken.parse(token).snapshot, None, 0))
        with pytest.raises(InvalidArgumentError, match="leave it out"):
            await ours.transfers.send("v@two", since="v@one", resume=whole)
        for bad in (
            "",
            "1.",
            "2" + token[1:],
            token[:-1],
            token + "A",
            "1.????",
            token[:9] + "A" * 50,
        ):
            with pytest.raises(InvalidArgumentError, match="--token"):
                await ours.transfers.send("v@two", resume=bad)
        await ours.management.delete_snapshot("v", "one")
        with pytest.raises(NotFoundError, match="is gone"):
            await send("v@two")


async def test_a_volume_receives_one_stream_at_a_time() -> None:
    async with two_pools() as (ours, theirs):
        stream = await prepared(ours, theirs)
        first = theirs.transfers.receive("v")
        await first.feed(stream[:300_000])
        with pytest.raises(InUseError, match="right now"):
            await receive(theirs, stream, "v")
        with pytest.raises(InUseError):
            await theirs.management.delete_volume(PARTIAL)
        await first.feed(stream[300_000:])
        assert await first.finish() == "v@two"
        await first.close()
        assert [v.name for v in theirs.management.volumes()] == ["v"]


def refusals(monkeypatch: pytest.MonkeyPatch, name: str) -> trio.Event:
    """Return an event that is set once a method of Targets refused because of a client."""
    right, refused = getattr(Targets, name), trio.Event()

    def noted(*args: Any, **how: Any) -> Any:
        try:
            return right(*args, **how)
        except InUseError:
            refused.set()
            raise

    monkeypatch.setattr(Targets, name, noted)
    return refused


async def test_first_and_last_step_wait_for_a_client_that_closes_soon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with two_pools() as (ours, theirs):
        stream = await prepared(ours, theirs)
        receiving = theirs.transfers.receive("v")
        await receiving.feed(stream)
        handle = theirs.open_export("v")
        with pytest.raises(InUseError, match="stop its clients"):
            await receiving.finish()
        await receiving.close()
        await handle.close()
        # All content is there: only the end of the stream is sent again.
        rest = await sent(ours, "v@two", resume=partial_of(theirs)[1])
        assert len(rest) < 300
        receiving = theirs.transfers.receive("v")
        monkeypatch.setattr(receive_module, "RETRIES", int(HANG_S / receive_module.RETRY_S))
        for name, step in (
            ("begin", partial(receiving.feed, rest)),
            ("complete", receiving.finish),
        ):
            handle = theirs.open_export("v")
            refused = refusals(monkeypatch, name)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(step)
                await refused.wait()
                await handle.close()
        await receiving.close()
        assert await content(theirs, "v") == await content(ours, "v")


async def test_a_full_pool_interrupts_receiving_which_continues_with_room() -> None:
    ours_members, theirs_members = await new_members(), await new_members(mib=24)
    async with opened(ours_members) as ours, opened(theirs_members) as theirs:
        await ours.management.create_volume("v", 16 * MIB)
        await write(ours, "v", 0, random.Random(2).randbytes(9 * MIB))
        await ours.management.create_snapshot("v", "one")
        await theirs.management.create_volume("ballast", 16 * MIB)
        await write(theirs, "ballast", 0, random.Random(3).randbytes(7 * MIB))
        await theirs.flush()
        with pytest.raises(NoSpaceError):
            await receive(theirs, await sent(ours, "v@one"), "v")
        await theirs.management.delete_volume("ballast")
        for _ in range(3):
            await theirs.checkpoint()
        position, token = partial_of(theirs)
        assert position
        await receive(theirs, await sent(ours, "v@one", resume=token), "v")
        assert await content(theirs, "v") == await content(ours, "v")
    await assert_clean(theirs_members)


async def test_a_sender_that_fails_says_why() -> None:
    """Blocks have no good copy: no wrong byte is sent, and the receiver gets the reason."""
    ours_members, theirs_members = await new_members(), await new_members()
    async with opened(ours_members) as ours:
        await new_volume(ours)
        segments = [segment for segment in ours.table.all() if segment.live_bytes > MIB // 2]
        [(member, offset)] = segments[0].places
    await member.device.write(offset + MIB // 2, b"\xee" * (MIB // 4))
    async with opened(ours_members) as ours, opened(theirs_members) as theirs:
        stream = await sent(ours, "v@one")
        with pytest.raises(StreamError, match=r"the sender gave up: .*no copy has the right"):
            await receive(theirs, stream, "v")
        assert [v.name for v in theirs.management.volumes()] == [PARTIAL]
        assert theirs.management.snapshots() == []


async def test_the_position_is_noted_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """So little is sent again after a crash; see also the tests of power cuts."""
    monkeypatch.setattr(receive_module, "NOTE_BYTES", 256 << 10)
    async with two_pools() as (ours, theirs):
        await new_volume(ours)
        stream = await sent(ours, "v@one")
        receiving = theirs.transfers.receive("v")
        await receiving.feed(stream[: len(stream) * 9 // 10])
        assert partial_of(theirs)[0] == 768 << 10
        await receiving.close()


# Identities


async def test_snapshots_of_earlier_versions_get_an_identity() -> None:
    """Goal: catalogues and logs without identities load, and each snapshot gets the same identity
    every time."""
    members = await new_members()
    async with opened(members) as pool:
        await new_volume(pool)
        await pool.management.create_snapshot("v", "two")
        stored = decode(pool.durable.pack())
        for volume in stored["volumes"]:
            del volume[7:]
            for snapshot in volume[5]:
                del snapshot[5:]
        old = Catalogue.unpack(encode(stored))
        assert len({s.identity for s in old.volumes["v"].snapshots.values()}) == 1
        op = {"op": "snapshot", "v": "v", "snap": "three", "head": old.next_layer, "at": ""}
        operations.apply(old, op)
        group = {"op": "group", "snap": "four", "items": [["v", old.next_layer]], "at": ""}
        operations.apply(old, group)
        copy = old.copy()
        for catalogue in (old, copy):
            identify(catalogue, pool.info().uuid)
        found = [s.identity for s in old.volumes["v"].snapshots.values()]
        assert len(set(found)) == 4
        assert found == [s.identity for s in copy.volumes["v"].snapshots.values()]
        again = Catalogue.unpack(old.pack())
        assert found == [s.identity for s in again.volumes["v"].snapshots.values()]


async def test_identities_outlive_renaming_and_restarts() -> None:
    members = await new_members()
    async with opened(members) as pool:
        await new_volume(pool)
        await pool.management.create_snapshots(["v"], "two")
        before = [s.uuid for s in pool.management.snapshots()]
        await pool.management.rename_snapshot("v", "one", "eins")
        await pool.management.rename_volume("v", "w")
        assert [s.uuid for s in pool.management.snapshots()] == before
    async with opened(members) as pool:
        assert [s.uuid for s in pool.management.snapshots()] == before
        assert len(set(before)) == 2
