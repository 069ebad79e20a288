"""Operations that do not fit the catalogue, which are bugs: they harm no stored data."""

import pytest
import trio

from storage.catalogue import operations
from storage.catalogue.catalogue import Catalogue
from storage.catalogue.lineage import LayerChanges
from storage.catalogue.operations import Operation
from storage.errors import DamagedError
from tests.unit.hang import HANG_S
from tests.unit.storage.pools import new_members, opened


async def test_a_misfit_is_not_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool fails, and opens again without the operation."""
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


async def test_the_caller_of_a_misfit_gets_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if it fails only in the durable catalogue: the caller must not wait for ever."""
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
            with trio.fail_after(HANG_S), pytest.raises(DamagedError):
                await pool.management.create_volume("v", 1 << 20)
