"""TLS and access rules of the server. Numbers in docstrings are those of docs/nbd.md."""

import os
import struct
from pathlib import Path

import pytest
import trio
import trio.testing

from blockdev.memory import MemoryDevice
from nbd.server.access import AccessRule
from nbd.server.handshake import Tls
from nbd.server.limits import Limits
from nbd.server.listeners import TlsTerms
from tests.unit.nbd.certificates import HOST, Certificates
from tests.unit.nbd.devices import serving
from tests.unit.nbd.server.test_memory import SharedSlow, sharing
from tests.unit.nbd.server.test_status import BASE, query
from tests.unit.nbd.wire import (
    ACK,
    EINVAL,
    EPERM,
    ERR_INVALID,
    ERR_POLICY,
    ERR_TLS_REQD,
    ERR_UNSUP,
    MIB,
    READ,
    SERVER,
    STATUS,
    WRITE,
    Exports,
    RawClient,
    Running,
    info_data,
    option,
    request,
    running,
    write,
)

STARTTLS = 5


def required(made: Certificates, *, mutual: bool = True) -> TlsTerms:
    return TlsTerms(Tls.REQUIRE, made.server(mutual=mutual))


def allowed(made: Certificates) -> TlsTerms:
    return TlsTerms(Tls.ALLOW, made.server())


async def begin(client: RawClient, made: Certificates) -> RawClient:
    """Begin TLS for a client that has sent its flags."""
    assert await client.option(STARTTLS) == [(ACK, b"")]
    assert isinstance(client.stream, trio.SocketStream)
    secure = trio.SSLStream(client.stream, made.client(), server_hostname=HOST)
    await secure.do_handshake()
    return RawClient(secure)


async def secured(run: Running, made: Certificates) -> RawClient:
    client = await run.connect()
    await client.greet()
    return await begin(client, made)


async def go(client: RawClient, name: bytes = b"") -> int:
    return (await client.option(7, info_data(name)))[-1][0]


@pytest.mark.parametrize("policy", [Tls.ALLOW, Tls.REQUIRE])
async def test_an_export_works_within_tls(tmp_path: Path, made: Certificates, policy: Tls) -> None:
    async with running(tmp_path, tls=TlsTerms(policy, made.server())) as run:
        client = await secured(run, made)
        assert await go(client) == ACK
        data = os.urandom(300_000)
        await client.send(write(5, data))
        assert await client.simple() == (7, 0, b"")
        assert await client.read(5, len(data)) == data
        (status,) = run.server.clients()
        assert status.peer.secure
        assert status.peer.names == ("Alice", "alice.test")
        await client.send(request(2))
        assert await client.ended()
        await run.idle()


async def test_plain_text_is_served_where_tls_is_only_allowed(
    tmp_path: Path, made: Certificates
) -> None:
    async with running(tmp_path, tls=allowed(made)) as run:
        assert await (await run.entered()).read(0, 4) == bytes(4)
        assert not run.server.clients()[0].peer.secure


async def test_required_tls_refuses_options_in_plain_text(
    tmp_path: Path, made: Certificates
) -> None:
    """23."""
    async with running(tmp_path, tls=required(made)) as run:
        client = await run.connect()
        await client.greet()
        for number in (3, 6, 7, 8, 9, 10, 11, 99):
            ((kind, _),) = await client.option(number, info_data(b"")[: 6 * (number in (6, 7))])
            assert kind == ERR_TLS_REQD, number
        secure = await begin(client, made)
        assert (await secure.option(3))[-1][0] == ACK
        old = await run.connect()
        await old.greet()
        await old.send(option(1))
        assert await old.ended()
        polite = await run.connect()
        await polite.greet()
        assert await polite.option(2) == [(ACK, b"")]
        assert await polite.ended()


async def test_tls_that_is_not_offered_is_unsupported(tmp_path: Path) -> None:
    """24."""
    async with running(tmp_path) as run:
        client = await run.connect()
        await client.greet()
        assert (await client.option(STARTTLS))[0][0] == ERR_UNSUP
        assert await go(client) == ACK


async def test_starttls_twice_or_with_data_is_invalid(tmp_path: Path, made: Certificates) -> None:
    """25."""
    async with running(tmp_path, tls=required(made)) as run:
        client = await run.connect()
        await client.greet()
        assert (await client.option(STARTTLS, b"x"))[0][0] == ERR_INVALID
        secure = await begin(client, made)
        assert (await secure.option(STARTTLS))[0][0] == ERR_INVALID
        assert await go(secure) == ACK


async def test_plain_text_behind_starttls_ends_the_connection(
    tmp_path: Path, made: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    """26, CVE-2021-3716."""
    async with running(tmp_path, tls=allowed(made)) as run:
        client = await run.connect()
        await client.greet()
        await client.send(option(STARTTLS) + option(7, info_data(b"")))
        assert await client.ended()
        assert "plain text behind STARTTLS" in caplog.text


async def test_starttls_discards_earlier_agreements(tmp_path: Path, made: Certificates) -> None:
    """26."""
    async with running(tmp_path, tls=allowed(made)) as run:
        client = await run.connect()
        await client.greet()
        assert await client.option(8) == [(ACK, b"")]
        await client.option(10, query(BASE))
        secure = await begin(client, made)
        ((kind, _),) = await secure.option(10, query(BASE))
        assert kind == ERR_INVALID, "structured replies are forgotten"
        assert await go(secure) == ACK
        assert await secure.ask(STATUS, 0, 512) == EINVAL
        assert await secure.read(0, 4) == bytes(4), "answered simply"


@pytest.mark.parametrize("size", [70_000, 200_000])
async def test_requests_behind_a_large_write_are_served(
    tmp_path: Path, made: Certificates, size: int
) -> None:
    """They are decrypted with the end of the payload, so they do not make the socket readable."""
    device = MemoryDevice(MIB)
    handles = serving(lambda: Handle(device))
    async with running(tmp_path, handles, tls=required(made)) as run:
        clients = [await secured(run, made) for _ in range(2)]
        for client in clients:
            assert await go(client) == ACK
        for _ in range(40):
            for client in clients:
                stream = write(0, bytes(size), cookie=1) + request(READ, 0, 4, cookie=2)
                half = size // 2 // 16384 * 16384
                await client.send(stream[:half])
                await trio.testing.wait_all_tasks_blocked()
                await client.send(stream[half:])
                assert await client.simple() == (1, 0, b"")
                assert await client.simple(4) == (2, 0, bytes(4))


class Handle(MemoryDevice):
    """One of many handles of one disk."""

    def __init__(self, disk: MemoryDevice) -> None:
        super().__init__(disk.size_bytes)
        self._memory = disk._memory

    async def close(self) -> None:
        pass


@pytest.mark.parametrize("nonsense", [b"\0" * 400, b"GET / HTTP/1.0\r\n\r\n", b""])
async def test_a_failed_handshake_ends_one_connection(
    tmp_path: Path, made: Certificates, nonsense: bytes
) -> None:
    async with running(tmp_path, tls=required(made)) as run:
        client = await run.connect()
        await client.greet()
        assert await client.option(STARTTLS) == [(ACK, b"")]
        if nonsense:
            await client.send(nonsense)
            while await client.stream.receive_some(100):  # the alert
                pass
        else:
            await client.stream.aclose()
        await run.idle()
        assert await go(await secured(run, made)) == ACK


async def test_stalled_tls_handshakes_end(tmp_path: Path, made: Certificates) -> None:
    async with running(tmp_path, tls=required(made), limits=Limits(handshake_s=10)) as run:
        client = await run.connect()
        await client.greet()
        assert await client.option(STARTTLS) == [(ACK, b"")]
        await run.idle()


@pytest.mark.parametrize("when", ["greeting", "handshake", "transmission"])
async def test_a_client_can_be_disconnected_at_any_time(
    tmp_path: Path, made: Certificates, when: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with running(tmp_path, tls=required(made)) as run:
        if when == "transmission":
            client = await secured(run, made)
            assert await go(client) == ACK
        else:
            client = await run.connect()
            await client.greet()
            if when == "handshake":
                assert await client.option(STARTTLS) == [(ACK, b"")]
        began = trio.current_time()
        gone = await run.server.disconnect(lambda client: True, "because")
        assert trio.current_time() == began, "no request is in flight"
        assert len(gone) == 1
        assert await client.ended()
        assert not run.server.clients()
    assert ("because" in caplog.text) or when == "transmission"


async def test_disconnect_waits_for_writes_and_then_drops_them(tmp_path: Path) -> None:
    """No write of a disconnected client lands after `disconnect` returned."""
    device = SharedSlow(MIB)
    async with running(tmp_path, sharing(device), Limits(grace_s=2)) as run:
        client = await run.entered()
        await client.send(write(0, b"one"))
        await device.until_started(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run.server.disconnect, lambda client: True, "wanted")
            await trio.testing.wait_all_tasks_blocked(0.01)
            device.gate.set()
            assert await client.simple() == (7, 0, b"")
        assert device.events == ["write"]
        device.gate = trio.Event()
        other = await run.entered()
        await other.send(write(0, b"two"))
        await device.until_started(2)
        await run.server.disconnect(lambda client: True, "wanted")
        device.gate.set()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert device.events == ["write"]


async def test_only_the_chosen_clients_are_disconnected(tmp_path: Path) -> None:
    async with running(tmp_path) as run:
        first, second = await run.entered(), await run.entered()
        number = run.server.clients()[0].number
        await run.server.disconnect(lambda client: client.number == number, "wanted")
        assert await first.ended()
        assert await second.read(0, 4) == bytes(4)


async def test_counters_outlast_clients(tmp_path: Path) -> None:
    exports = Exports({name: lambda: MemoryDevice(MIB) for name in ("a", "b")})
    async with running(tmp_path, exports) as run:
        assert run.server.counters() == {}
        for _ in range(2):
            client = await run.entered(b"a")
            await client.send(write(0, bytes(1000)))
            await client.simple()
            await client.read(0, 300)
            assert await client.ask(99) == EINVAL
            await client.stream.aclose()
            await run.idle()
        staying = await run.entered(b"a")
        await staying.read(0, 11)
        await run.entered(b"b")
        counters = run.server.counters()
        a = counters["a"]
        assert (a.requests, a.read_bytes, a.written_bytes, a.errors) == (7, 611, 2000, 2)
        assert counters["b"].requests == 0
        assert run.server.counters() == counters, "asking does not count"


def rule(*exports: str, read_only: bool = False, **who: frozenset[object]) -> AccessRule:
    return AccessRule(exports, read_only, **who)  # type: ignore[arg-type]


async def test_access_by_rules(tmp_path: Path, made: Certificates) -> None:
    """Rules in order: this user's id, another user's id, a certificate, all clients read-only."""
    names = ("mine", "theirs", "alice", "fixed")
    exports = Exports({name: lambda: MemoryDevice(MIB) for name in names})
    rules = [
        rule("mi*", uids=frozenset({os.getuid()})),
        rule("theirs", uids=frozenset({os.getuid() + 1})),
        rule("alice", certificates=frozenset({"Alice"})),
        rule("*", read_only=True),
    ]
    async with running(tmp_path, exports, tls=allowed(made), rules=rules) as run:
        plain = await run.connect()
        await plain.greet()
        listed = [data[4:] for kind, data in await plain.option(3) if kind == SERVER]
        assert listed == [b"mine", b"fixed"]
        for name in (b"theirs", b"alice"):
            assert await go(plain, name) == ERR_POLICY
            assert (await plain.option(6, info_data(name)))[0][0] == ERR_POLICY
        await plain.option(8)
        refused = await plain.option(10, query(BASE, export=b"theirs"))
        assert refused[0][0] == ERR_POLICY
        assert not exports.opened, "not even opened"
        old = await run.connect()
        await old.greet()
        await old.send(option(1, b"theirs"))
        assert await old.ended()

        mine = await run.entered(b"mine")
        assert await mine.ask(WRITE, 0, 1, data=b"x") == 0
        fixed = await run.connect()
        flags = int.from_bytes((await fixed.enter(b"fixed"))[0][8:])
        assert flags & 2
        assert not flags & (1 << 5 | 1 << 6 | 1 << 11)
        assert await fixed.ask(WRITE, 0, 1, data=b"x") == EPERM
        assert await fixed.ask(4, 0, 512) == await fixed.ask(6, 0, 512) == EPERM
        assert [client.read_only for client in run.server.clients()][-1]

        alice = await secured(run, made)
        listed = [data[4:] for kind, data in await alice.option(3) if kind == SERVER]
        assert listed == [b"mine", b"alice", b"fixed"]
        assert await go(alice, b"alice") == ACK
        assert await alice.ask(WRITE, 0, 1, data=b"x") == 0


async def test_the_log_recognizes_oldstyle_clients(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Such a client sends a request at once, or waits for a size and leaves without a byte."""
    caplog.set_level("INFO")
    async with running(tmp_path) as run:
        client = await run.connect()
        await client.send(struct.pack(">IHHQQI", 0x25609513, 0, READ, 1, 0, 512))
        assert await client.receive(18)
        assert await client.ended()
        silent = await run.connect()
        await silent.receive(18)
        await silent.stream.aclose()
        await run.idle()
    assert "oldstyle NBD" in caplog.text
    assert "without a word of newstyle NBD" in caplog.text
