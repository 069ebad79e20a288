"""TLS over a pair of sockets: which peers are accepted. TLS items of docs/nbd.md."""

import socket
import ssl
import warnings
from pathlib import Path

import pytest
import trio

from nbd.errors import TlsError
from nbd.tls import TlsSocket, client_context
from tests.unit.nbd.certificates import HOST, LONG_AGO, Certificates
from tests.unit.nbd.secured import Pair, Side, connect, receive, shake


async def reason_to_the_client(client: Side) -> str:
    """Return the error of a refused client: with TLS 1.3, it comes only when receiving."""
    if isinstance(client, TlsSocket):
        with pytest.raises(OSError, match="TLS") as caught:
            await receive(client)
        return str(caught.value)
    return str(client)


async def test_both_sides_check_certificates_and_exchange_data(
    sockets: Pair, made: Certificates
) -> None:
    server, client = await connect(sockets, made)
    assert server.version() == client.version() == "TLSv1.3"
    assert server.peer_names() == ["Alice", "alice.test"]
    assert client.peer_names()[-1] == HOST
    assert server.family == socket.AF_UNIX
    assert server.fileno() == sockets[0].fileno()
    assert client.send(b"hello") == 5
    assert await receive(server) == b"hello"
    assert server.sendmsg([b"wel", bytearray(b"com"), memoryview(b"e")]) == 7
    assert await receive(client) == b"welcome"


async def test_tls_1_2_works(sockets: Pair, made: Certificates) -> None:
    context = made.client()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    server, client = await shake(sockets, made.server(), context)
    assert isinstance(server, TlsSocket)
    assert isinstance(client, TlsSocket)
    assert server.version() == "TLSv1.2"
    server.send(b"hello")
    assert await receive(client) == b"hello"


async def test_tls_1_1_is_refused(sockets: Pair, made: Certificates) -> None:
    """Checklist 27."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings(action="ignore"):
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    server, client = await shake(sockets, made.server(), context)
    assert "1.2 is the oldest accepted" in str(server)
    assert "1.2 is the oldest accepted" in str(client)


async def test_a_server_of_another_authority_is_refused(
    sockets: Pair, made: Certificates, tmp_path: Path
) -> None:
    stranger = Certificates(tmp_path)
    server, client = await shake(sockets, stranger.server(mutual=False), made.client())
    assert isinstance(client, TlsError)
    assert "the peer's certificate is refused: unable to get local issuer" in str(client)
    assert "does not know the authority of our certificate" in str(server)


async def test_a_client_of_another_authority_is_refused(
    sockets: Pair, made: Certificates, tmp_path: Path
) -> None:
    stranger = Certificates(tmp_path)
    context = client_context(made.ca, *stranger.pair())
    server, client = await shake(sockets, made.server(), context)
    assert isinstance(server, TlsError)
    assert "the peer's certificate is refused: unable to get local issuer" in str(server)
    assert "does not know the authority" in await reason_to_the_client(client)


async def test_a_client_without_a_certificate_is_refused_where_one_is_required(
    sockets: Pair, made: Certificates
) -> None:
    context = client_context(made.ca, None, None)
    server, client = await shake(sockets, made.server(), context)
    assert str(server) == "TLS handshake failed: the client shows no certificate"
    assert "wants a client certificate" in await reason_to_the_client(client)


async def test_a_client_needs_no_certificate_where_none_is_asked_for(
    sockets: Pair, made: Certificates
) -> None:
    context = client_context(made.ca, None, None)
    server, _ = await shake(sockets, made.server(mutual=False), context)
    assert isinstance(server, TlsSocket)
    assert server.peer_names() == []


async def test_an_expired_server_is_refused(sockets: Pair, made: Certificates) -> None:
    server, client = await shake(sockets, made.server(not_after=LONG_AGO), made.client())
    assert "certificate has expired" in str(client)
    assert "our certificate has expired" in str(server)


async def test_an_expired_client_is_refused(sockets: Pair, made: Certificates) -> None:
    context = client_context(made.ca, *made.pair("late.test", not_after=LONG_AGO))
    server, _ = await shake(sockets, made.server(), context)
    assert "certificate has expired" in str(server)


async def test_a_server_of_another_name_is_refused(sockets: Pair, made: Certificates) -> None:
    """Checklist 27 (CVE-2024-7383)."""
    server, client = await shake(sockets, made.server(), made.client(), "other.test")
    assert "certificate is not valid for 'other.test'" in str(client)
    assert isinstance(server, TlsError)


@pytest.mark.parametrize("hostname", [None, "", ".", "a" * 300])
async def test_a_client_that_checks_needs_a_host_name(
    sockets: Pair, made: Certificates, hostname: str | None
) -> None:
    with pytest.raises(TlsError, match="host name"):
        await TlsSocket.handshake(sockets[1], made.client(), server_side=False, hostname=hostname)


async def test_a_client_can_skip_the_check_of_the_server(sockets: Pair, made: Certificates) -> None:
    context = client_context(None, None, None, verify=False)
    server, client = await shake(sockets, made.server(mutual=False), context, None)
    assert isinstance(server, TlsSocket)
    assert isinstance(client, TlsSocket)
    assert client.peer_names() == []  # not verified, so not returned


@pytest.mark.parametrize("text", [b"NBDMAGICIHAVEOPT" * 8, b"GET / HTTP/1.1\r\n\r\n", bytes(99)])
async def test_plain_text_is_refused(sockets: Pair, made: Certificates, text: bytes) -> None:
    sockets[1].send(text)
    with pytest.raises(TlsError, match="does not speak TLS"):
        await TlsSocket.handshake(sockets[0], made.server(), server_side=True)


async def test_a_client_refuses_a_server_in_plain_text(sockets: Pair, made: Certificates) -> None:
    sockets[0].send(b"NBDMAGICIHAVEOPT" * 8)
    with pytest.raises(TlsError, match="does not speak TLS"):
        await TlsSocket.handshake(sockets[1], made.client(), server_side=False, hostname=HOST)


async def test_a_peer_that_leaves_during_the_handshake_is_an_error(
    sockets: Pair, made: Certificates
) -> None:
    sockets[1].close()
    with pytest.raises(TlsError, match="went away"):
        await TlsSocket.handshake(sockets[0], made.server(), server_side=True)


async def test_a_handshake_with_a_silent_peer_can_be_cancelled(
    sockets: Pair, made: Certificates, autojump_clock: trio.testing.MockClock
) -> None:
    with trio.move_on_after(10) as patience:
        await TlsSocket.handshake(sockets[0], made.server(), server_side=True)
    assert patience.cancelled_caught
