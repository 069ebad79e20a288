"""The client that verifies kills would notice lost and garbled writes."""

import random
import threading
from pathlib import Path

import pytest

from tests.system.pool_daemon import PoolDaemon, copy_sparse, pool_daemon
from tests.system.stamps import BLOCK_BYTES, Model, StampedClient, stamped

pytestmark = pytest.mark.system

ZERO = bytes(BLOCK_BYTES)


def test_the_model_tells_old_from_new() -> None:
    """Goal: a flush makes older content wrong, and nothing else does.

    Method: write one block twice, with a flush after the first and then after the second.
    """
    model = Model(blocks=1)
    first = model.write(0, zero=False)
    model.flushed(1)
    second = model.write(0, zero=False)
    assert Model(1).settle(0, first) is not None, "a stamp never written"
    assert model.settle(0, ZERO) is not None
    assert model.settle(0, second[:-1] + b"x") is not None
    assert model.settle(0, stamped(1, 2)) is not None
    assert model.settle(0, first) is None
    third = model.write(0, zero=True)
    model.flushed(3)
    assert model.settle(0, first) is not None
    assert model.settle(0, third) is None


def test_a_pool_set_back_in_time_is_noticed(scratch: Path) -> None:
    """Goal: the client that the kills rely on finds flushed writes that are lost.

    Method: put the member back as it was before the last writes, and read.
    """
    with pool_daemon(scratch, member_size="512M") as daemon:
        model = Model(blocks=2048)
        daemon.start()
        daemon.create_volume("data", 2048 * BLOCK_BYTES)
        _write_and_kill(daemon, model)
        member, older = scratch / "member-0.img", scratch / "older.img"
        copy_sparse(member, older)
        daemon.start()
        assert not _wrong(daemon, model)
        _write_and_kill(daemon, model)
        copy_sparse(older, member)
        daemon.start()
        assert _wrong(daemon, model)


def _wrong(daemon: PoolDaemon, model: Model) -> list[str]:
    client = StampedClient(daemon.socket, "data", model, random.Random(1))
    wrong = client.verify()
    client.close()
    return wrong


def _write_and_kill(daemon: PoolDaemon, model: Model) -> None:
    client = StampedClient(daemon.socket, "data", model, random.Random(2))
    writer = threading.Thread(target=client.write_until_killed)
    writer.start()
    client.wait_for(writes=1, flushes=3)
    daemon.kill()
    writer.join()
