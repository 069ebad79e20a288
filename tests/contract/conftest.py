"""Run the suite once for every device in tests.contract.devices."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from blockdev.device import BlockDevice
from tests.contract.devices import DEVICES, Factory


@pytest.fixture(params=sorted(DEVICES))
def make_device(request: pytest.FixtureRequest) -> Factory:
    return DEVICES[request.param]


@pytest.fixture
async def device(make_device: Factory, tmp_path: Path) -> AsyncIterator[BlockDevice]:
    async with make_device(tmp_path) as made:
        yield made
