"""What every block device promises, over our client, from every server there is."""

from collections.abc import AsyncIterator

import pytest

from nbd.client import NbdDevice, open_nbd
from tests.contract.test_block_device import *  # noqa: F403 - the same promises
from tests.contract.test_status import *  # noqa: F403
from tests.system.remote_servers import RemoteServer

pytestmark = pytest.mark.system

# These the client answers by itself, whatever the server.
del test_ranges_outside_are_refused, test_the_fast_paths_serve_no_range_outside  # noqa: F821


@pytest.fixture
async def device(remote: RemoteServer) -> AsyncIterator[NbdDevice]:
    """The whole of an export, all zeroes."""
    async with open_nbd(remote.uri) as opened:
        await opened.write_zeroes(0, opened.size_bytes)
        yield opened
    remote.check_after_use()
