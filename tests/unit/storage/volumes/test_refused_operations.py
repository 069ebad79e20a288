"""Operations that do not fit the catalogue: mistakes of ours, which harm nothing stored."""

import pytest
import trio

from storage.catalogue import operations
from storage.catalogue.catalogue import Catalogue
from storage.catalogue.lineage import LayerChanges
from storage.catalogue.operations import Operation
from storage.errors import DamagedError
from tests.unit.storage.pools import new_members, opened


async def test_none_gets_into_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool stops, and the next one opens without it."""
    members = await new_members()

    def misfit(catalogue: Catalogue, operation: Operation) -> LayerChanges:
        raise DamagedError("it does not fit")

    with monkeypatch.context() as patch:
        async with opened(members) as pool:
            await pool.management.create_volume("v", 1 << 20)
            patch.setattr(operations, "apply", misfit)
            with pytest.raises(DamagedError):
                await pool.management.create_volume("w", 1 << 20)
            assert isinstance(pool.failure, DamagedError)
    async with opened(members) as pool:
        assert [volume.name for volume in pool.management.volumes()] == ["v"]


async def test_who_waits_for_one_hears_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It failed only when the durable catalogue was to take it: nobody waits for ever."""
    right, calls = operations.apply, 0

    def misfit(catalogue: Catalogue, operation: Operation) -> LayerChanges:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise DamagedError("it does not fit")
        return right(catalogue, operation)

    with monkeypatch.context() as patch:
        async with opened(await new_members()) as pool:
            patch.setattr(operations, "apply", misfit)
            with trio.fail_after(10), pytest.raises(DamagedError):
                await pool.management.create_volume("v", 1 << 20)
