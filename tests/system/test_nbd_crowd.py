"""Sixty-four clients with sixteen requests in flight each, against the real daemon."""

from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.system.crowd import Address, Member, Turns, resident_mib, run_crowd
from tests.system.daemon_process import Daemon

pytestmark = pytest.mark.system

CLIENTS, IN_FLIGHT = 64, 16
CLIENTS_PER_VOLUME = 4
P99_RATIO_MAX, MAX_RATIO_MAX = 20, 100
"""How much longer than the median the slowest hundredth, and the slowest of all, may wait, counted
in answers to others. Where 1,024 requests are in flight, the median waits for as many."""
SHARE_MIN = 0.4
"""What the idlest client got, of what the busiest one did."""
RESIDENT_MIB_MAX, GROWTH_MIB_MAX = 640, 192
"""In all, the sum of what is configured: 256 MiB of pages, 64 of extents, 64 of buffers and as much
of them encoded, 1.5 for each client, 90 to begin with. Growth: after the first third, while
those caches still fill; a busy machine fills them later."""


def crowd(scratch: Path, requests: int) -> None:
    config = scratch / "pool.toml"
    config.write_text(
        'format = 1\n[nbd]\ntcp = "127.0.0.1:0"\n[[member]]\npath = "member.img"\nsize = "16G"\n'
    )
    with Daemon(scratch / "home", str(config)) as daemon:
        for number in range(CLIENTS // CLIENTS_PER_VOLUME):
            daemon.json("volume", "create", f"v{number}", "--size", "4M")
        port = urlsplit(daemon.uri("v0", endpoint=1)).port
        assert port is not None
        addresses: list[Address] = [str(scratch / "home" / "nbd.sock"), ("127.0.0.1", port)]
        turns = Turns()
        members = [
            Member(
                addresses[number % 2],
                f"v{number // CLIENTS_PER_VOLUME}",
                turns,
                region=(number % CLIENTS_PER_VOLUME) << 20,
                slots=IN_FLIGHT,
                seed=number,
            )
            for number in range(CLIENTS)
        ]
        resident: list[float] = []
        found = run_crowd(
            members, requests, lambda: resident.append(resident_mib(daemon.process.pid))
        )
        for member in members:
            member.sock.close()
    third = resident[len(resident) // 3]
    print(found, f"resident_mib: third={third:.0f} max={max(resident):.0f}")
    assert found.p99 <= P99_RATIO_MAX * found.p50
    assert found.longest <= MAX_RATIO_MAX * found.p50
    assert found.idlest >= SHARE_MIN * found.busiest
    assert max(resident) <= RESIDENT_MIB_MAX
    assert max(resident) - third <= GROWTH_MIB_MAX


def test_a_crowd_is_served_evenly(scratch: Path) -> None:
    crowd(scratch, 40_000)


@pytest.mark.long
def test_a_crowd_is_served_evenly_for_long(scratch: Path) -> None:
    crowd(scratch, 400_000)
