"""Deleting and rolling back with clients, in cases that real clients rarely cause."""

from dataclasses import replace

import pytest
import trio.testing

from admin.api.removal import TRIES_MAX, Changes
from admin.names import SnapshotName
from storage.errors import InUseError, NotFoundError
from tests.unit.admin.fake_pool import FakeClients, FakePool

SNAPSHOT = SnapshotName("root", "one")


async def prepared() -> tuple[FakePool, FakeClients, Changes]:
    pool = FakePool()
    clients = FakeClients(pool)
    await pool.create_volume("root", 4096)
    await pool.create_snapshot("root", "one")
    clients.connect(7, "root")
    return pool, clients, Changes(pool, clients)


async def test_a_refused_change_disconnects_no_client() -> None:
    pool, clients, changes = await prepared()
    with pytest.raises(InUseError, match="has snapshots"):
        await changes.delete_volume("root", snapshots=False, disconnect=True)
    with pytest.raises(NotFoundError):
        await changes.rollback(SnapshotName("root", "none"), disconnect=True)
    with pytest.raises(NotFoundError):
        await changes.disconnect(numbers=[7, 8], export=None)
    pool.protect("root@one")
    with pytest.raises(InUseError, match="root@one is protected"):
        await changes.delete_volume("root", snapshots=True, disconnect=True)
    with pytest.raises(InUseError, match="root@one is protected"):
        await changes.delete_snapshot(SNAPSHOT, disconnect=True)
    pool.protect("root")
    with pytest.raises(InUseError, match="root is protected"):
        await changes.delete_volume("root", snapshots=True, disconnect=True)
    assert [client.number for client in clients.clients()] == [7]


async def test_a_change_waits_for_a_handle_without_a_client(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Goal: a handle that a client opens only to ask for the size delays a change, no more."""
    pool, clients, changes = await prepared()
    pool.connect("root")  # a handle of no client that `clients` lists
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: changes.rollback(SNAPSHOT, disconnect=True))
        await trio.sleep(0.1)
        assert pool.calls == []
        assert clients.held[0]("root")
        assert not clients.held[0]("root@one")
        pool.disconnect("root")
    assert pool.calls == [("rollback", "root", "one")]
    assert clients.clients() == []
    assert clients.held == []


async def test_the_wait_for_a_handle_is_bounded(autojump_clock: trio.testing.MockClock) -> None:
    pool, clients, changes = await prepared()
    pool.connect("root@one")
    started = trio.current_time()
    with pytest.raises(InUseError, match="root@one has clients"):
        await changes.delete_volume("root", snapshots=True, disconnect=True)
    assert trio.current_time() - started < 0.02 * TRIES_MAX
    assert clients.held == []


async def test_a_handle_without_a_client_is_refused_in_the_pools_words() -> None:
    pool, clients, changes = await prepared()
    await clients.disconnect(lambda client: True, "")
    pool.connect("root")
    with pytest.raises(InUseError, match=r"^root has clients"):
        await changes.rollback(SNAPSHOT, disconnect=False)


async def test_a_volume_in_use_twice_names_both_exports() -> None:
    _, clients, changes = await prepared()
    clients.connect(8, "root@one")
    clients.connected[1] = replace(clients.connected[1], uid=None, names=["a.example"])
    with pytest.raises(InUseError) as caught:
        await changes.delete_volume("root", snapshots=True, disconnect=False)
    assert str(caught.value) == (
        "volume root is in use by client 7 (unix:pid=7 uid=1000), "
        "8 (unix:pid=8 certificate=a.example); stop it, disconnect it "
        "(cenote client disconnect --export root && cenote client disconnect --export root@one), "
        "or repeat with --disconnect"
    )
