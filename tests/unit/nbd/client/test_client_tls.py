"""The client's checks of a server with TLS, and that it never falls back to plain text."""

import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
import trustme

from nbd.client import ClientOptions, describe, open_nbd
from nbd.errors import NbdError, ProtocolError, TlsError, UnreachableError
from nbd.server.handshake import Tls
from nbd.server.limits import Limits
from nbd.server.listeners import TlsTerms, listen_tcp
from nbd.server.server import Server
from nbd.tls import server_context
from tests.unit.hang import HANG_S
from tests.unit.nbd.certificates import HOST, LONG_AGO
from tests.unit.nbd.client.scripted import ACK, Peer, Scripted, option_reply, scripted
from tests.unit.nbd.client.serving import Exports, KeptDevice, content, served
from tests.unit.nbd.mock_clock import REAL_TIME
from tests.unit.nbd.wire import MIB

ONCE = ClientOptions(reconnect_s=0, connect_s=HANG_S)


@dataclass
class Pki:
    """An authority, and a directory for clients as libnbd names its files."""

    folder: Path
    authority: trustme.CA

    def server(self, *names: str, mutual: bool = False, **how: object) -> ssl.SSLContext:
        made = self.authority.issue_cert(*names, **how)  # type: ignore[arg-type]
        certificate, key = self.folder / "server.pem", self.folder / "server.key"
        made.cert_chain_pems[0].write_to_path(str(certificate))
        made.private_key_pem.write_to_path(str(key))
        return server_context(certificate, key, self.folder / "ca-cert.pem" if mutual else None)

    def introduce_client(self) -> None:
        made = self.authority.issue_cert("client.test")
        made.cert_chain_pems[0].write_to_path(str(self.folder / "client-cert.pem"))
        made.private_key_pem.write_to_path(str(self.folder / "client-key.pem"))


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    folder = tmp_path / "pki"
    folder.mkdir()
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca-cert.pem"))
    return Pki(folder, authority)


def required(context: ssl.SSLContext) -> TlsTerms:
    return TlsTerms(Tls.REQUIRE, context)


async def works(uri: str) -> None:
    async with open_nbd(uri, ONCE) as device:
        await device.write(1000, b"hello" * 50_000)
        await device.flush()
        assert await content(device, 1000, 250_000) == b"hello" * 50_000


async def looks(uri: str) -> None:
    await describe(uri, ONCE)


async def refused(uri: str, about: str, error: type[NbdError] = TlsError) -> None:
    for act in (works, looks):
        with pytest.raises(error, match=about) as caught:
            await act(uri)
        assert type(caught.value) is error


@asynccontextmanager
async def over_tcp(context: ssl.SSLContext) -> AsyncIterator[str]:
    listeners = listen_tcp("127.0.0.1", 0, required(context))
    port = listeners[0].sock.getsockname()[1]
    server = Server(Exports({"": KeptDevice(MIB)}), Limits(handshake_s=HANG_S))
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve, listeners)
        yield f"nbds://127.0.0.1:{port}/?tls-certificates="
        nursery.cancel_scope.cancel()


# Checks of the server


@REAL_TIME
async def test_the_certificate_must_name_the_host_of_the_uri(pki: Pki) -> None:
    async with over_tcp(pki.server("127.0.0.1")) as uri:
        await works(f"{uri}{pki.folder}")
        await refused(f"{uri}{pki.folder}&tls-hostname={HOST}", "certificate is refused: Hostname")
    async with over_tcp(pki.server(HOST)) as uri:
        await refused(f"{uri}{pki.folder}", "certificate is refused: IP address mismatch")
        await works(f"{uri}{pki.folder}&tls-hostname={HOST}")
        await works(f"{uri}{pki.folder}&tls-verify-peer=0")


async def test_unix_sockets_need_a_host_name_to_check(tmp_path: Path, pki: Pki) -> None:
    terms = required(pki.server(HOST))
    async with served(tmp_path, KeptDevice(MIB), tls=terms) as uri:
        uri += f"&tls-certificates={pki.folder}"
        await refused(uri, "add tls-hostname=")
        await refused(f"{uri}&tls-hostname=other.test", "certificate is refused: Hostname")
        await works(f"{uri}&tls-hostname={HOST}")
        await works(f"{uri}&tls-verify-peer=0")


async def test_unknown_authorities_and_expired_certificates_are_refused(
    tmp_path: Path, pki: Pki
) -> None:
    for number, (authority, until, about) in enumerate(
        [
            (trustme.CA(), None, "unable to get local issuer certificate"),
            (pki.authority, LONG_AGO, "certificate has expired"),
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        context = Pki(pki.folder, authority).server(HOST, not_after=until)
        async with served(folder, KeptDevice(MIB), tls=required(context)) as uri:
            uri += f"&tls-hostname={HOST}"
            await refused(f"{uri}&tls-certificates={pki.folder}", about)
            await works(f"{uri}&tls-certificates={pki.folder}&tls-verify-peer=0")
            # The system knows no authority of tests.
            await refused(uri, "unable to get local issuer|expired")


async def test_a_server_that_demands_a_client_certificate(tmp_path: Path, pki: Pki) -> None:
    terms = required(pki.server(HOST, mutual=True))
    async with served(tmp_path, KeptDevice(MIB), tls=terms) as uri:
        uri += f"&tls-certificates={pki.folder}&tls-hostname={HOST}"
        # With TLS 1.3 the server refuses after the handshake, at the first option.
        await refused(uri, "the server wants a client certificate", UnreachableError)
        pki.introduce_client()
        await works(uri)
        (pki.folder / "client-key.pem").unlink()
        await refused(uri, "key cannot be read")


async def test_missing_files_are_named(tmp_path: Path) -> None:
    where = "nbds://127.0.0.1:1/?tls-certificates="
    await refused(f"{where}{tmp_path}/none", "no such directory")
    await refused(f"{where}{tmp_path}", "ca-cert.pem")


# Never in plain text


async def test_a_server_that_demands_tls_says_so(tmp_path: Path, pki: Pki) -> None:
    terms = required(pki.server(HOST))
    async with served(tmp_path, KeptDevice(MIB), tls=terms) as uri:
        await refused(uri.replace("nbds", "nbd"), "server demands TLS; use nbds")


@pytest.mark.parametrize("greeting", [b"NBDMAGICIHAVEOPT\x00\x03", b"NBDMAGICIHAVEOPT\x00\x02"])
async def test_an_attacker_cannot_take_tls_away(tmp_path: Path, greeting: bytes) -> None:
    """27: by an answer that the server has no TLS, or is too old for it."""
    async with scripted(Scripted(tmp_path / "s", greeting=greeting)) as server:
        uri = server.uri.replace("nbd+", "nbds+") + f"&tls-hostname={HOST}"
        await refused(uri, "is not spoken to without")
        assert set(server.options) <= {5}


@pytest.mark.parametrize("what", [b"\0", b"\x16\x03\x01", bytes(20)])
async def test_plain_text_behind_starttls_is_refused(tmp_path: Path, what: bytes) -> None:
    """26: an attacker could have put it there before encryption began (CVE-2021-3716)."""

    async def inject(peer: Peer, number: int, data: bytes) -> bool:
        peer.tamper = lambda sent: (sent + what, True)
        await option_reply(peer, number, ACK)
        await peer.receive(1)
        return True

    async with scripted(Scripted(tmp_path / "s", on_option=inject)) as server:
        uri = server.uri.replace("nbd+", "nbds+") + f"&tls-hostname={HOST}"
        await refused(uri, "plain text behind STARTTLS", ProtocolError)


async def test_plain_text_instead_of_tls_is_refused(tmp_path: Path) -> None:
    async def plain(peer: Peer, number: int, data: bytes) -> bool:
        await option_reply(peer, number, ACK)
        assert (await peer.receive(1)) == b"\x16"  # a client hello
        await option_reply(peer, 7, ACK)
        await peer.receive(1 << 20)
        return True

    async with scripted(Scripted(tmp_path / "s", on_option=plain)) as server:
        uri = server.uri.replace("nbd+", "nbds+") + f"&tls-hostname={HOST}"
        await refused(uri, "the peer does not speak TLS")


async def test_a_handshake_that_stalls_times_out(tmp_path: Path) -> None:
    async def silent(peer: Peer, number: int, data: bytes) -> bool:
        await option_reply(peer, number, ACK)
        await trio.sleep_forever()
        return True

    async with scripted(Scripted(tmp_path / "s", on_option=silent)) as server:
        uri = server.uri.replace("nbd+", "nbds+") + f"&tls-hostname={HOST}"
        started = trio.current_time()
        await refused(uri, "no answer in time", UnreachableError)
        assert trio.current_time() - started == pytest.approx(2 * HANG_S)  # two attempts


async def test_a_connection_cut_inside_tls_is_an_error(tmp_path: Path, pki: Pki) -> None:
    """An attacker could cut it, so its end answers no request."""
    terms = required(pki.server(HOST))
    async with served(tmp_path, KeptDevice(MIB), tls=terms) as uri:
        uri += f"&tls-certificates={pki.folder}&tls-hostname={HOST}"
        async with open_nbd(uri, ONCE) as device:
            (connection,) = device._requests._link.connections  # type: ignore[union-attr]
            connection._sock.shutdown(socket.SHUT_RD)
            with pytest.raises(Exception, match="did not say goodbye"):
                await device.read(0, 512)
