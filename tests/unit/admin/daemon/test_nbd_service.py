"""The NBD server as configured: certificates, warnings, the mode of its socket."""

import stat
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trustme

from admin.config.nbd import NbdConfig, TcpAddress, TlsFiles
from admin.daemon.nbd_service import NbdService, load_tls
from admin.errors import ConfigError
from admin.home import Home
from nbd.server.access import AccessRule
from nbd.server.handshake import Tls
from tests.unit.admin.daemon.test_service import FakeServedPool

ANYWHERE = TcpAddress("0.0.0.0", 0)
CLEAR = "travels in the clear"
OPEN = "may use every volume"
RULE = AccessRule(("*",), certificates=frozenset({"a"}))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    """A server's certificate and key, and an authority of clients' certificates."""
    directory = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    server = authority.issue_cert("localhost")
    server.cert_chain_pems[0].write_to_path(directory / "server.pem")
    server.private_key_pem.write_to_path(directory / "server.key")
    authority.cert_pem.write_to_path(directory / "ca.pem")
    other = authority.issue_cert("other")
    other.private_key_pem.write_to_path(directory / "other.key")
    (directory / "empty.pem").write_text("")
    return TlsFiles(directory / "server.pem", directory / "server.key", directory / "ca.pem")


async def warnings_of(
    config: NbdConfig, home: Home, caplog: pytest.LogCaptureFixture
) -> tuple[list[str], list[str]]:
    """Return the endpoints and the warnings in the log."""
    caplog.clear()
    service = NbdService(FakeServedPool(), config, home, load_tls(config, None))
    async with trio.open_nursery() as nursery:
        endpoints = await nursery.start(service.run)
        service.stop()
    return endpoints, [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]


@pytest.mark.parametrize(
    ("tls", "checked", "rules", "warned"),
    [
        (Tls.OFF, False, (), [CLEAR, OPEN]),
        (Tls.OFF, False, (AccessRule(("*",), uids=frozenset({1})),), [CLEAR]),
        (Tls.OFF, False, (AccessRule(("*",)),), [CLEAR, OPEN]),
        (Tls.ALLOW, True, (), [CLEAR, OPEN]),
        (Tls.REQUIRE, False, (), [OPEN]),
        (Tls.REQUIRE, True, (), []),
        (Tls.ALLOW, True, (RULE,), [CLEAR]),
        (Tls.ALLOW, True, (AccessRule(("pub*",), read_only=True), RULE), [CLEAR]),
        (Tls.REQUIRE, True, (replace(RULE, exports=("a",)),), []),
    ],
)
async def test_open_access_from_the_network_is_warned_of(
    home: Home,
    caplog: pytest.LogCaptureFixture,
    files: TlsFiles,
    tls: Tls,
    checked: bool,
    rules: tuple[AccessRule, ...],
    warned: list[str],
) -> None:
    config = NbdConfig(
        unix=False,
        tcp=ANYWHERE,
        tls=tls,
        files=None
        if tls is Tls.OFF
        else replace(files, client_ca=files.client_ca if checked else None),
        rules=rules,
    )
    (endpoint,), said = await warnings_of(config, home, caplog)
    assert endpoint.startswith("nbds://" if tls is Tls.REQUIRE else "nbd://")
    assert endpoint.endswith("/{name}")
    assert len(said) == len(warned)
    assert all(words in line for words, line in zip(warned, said, strict=True))


async def test_loopback_addresses_cause_no_warning(
    home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    config = NbdConfig(tcp=TcpAddress("127.0.0.1", 0))
    assert (await warnings_of(config, home, caplog))[1] == []


async def test_a_unix_socket_for_other_users_is_warned_of(
    home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    config = NbdConfig(unix_mode=0o666)
    _, said = await warnings_of(config, home, caplog)
    assert [f"chmod o+x {home.path}" in said[0], OPEN in said[1]] == [True, True]
    home.path.chmod(0o711)
    _, said = await warnings_of(config, home, caplog)
    assert len(said) == 1
    config = NbdConfig(unix_mode=0o666, rules=(AccessRule(("*",), uids=frozenset({0})),))
    assert (await warnings_of(config, home, caplog))[1] == []


async def test_the_unix_socket_has_the_configured_mode(home: Home) -> None:
    service = NbdService(FakeServedPool(), NbdConfig(unix_mode=0o660), home)
    async with trio.open_nursery() as nursery:
        await nursery.start(service.run)
        assert stat.S_IMODE(home.nbd_socket.stat().st_mode) == 0o660
        service.stop()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"certificate": "none.pem"}, "certificate cannot be read: No such file"),
        ({"certificate": "empty.pem"}, "no certificate in PEM form"),
        ({"key": "none.key"}, "key cannot be read: No such file"),
        ({"key": "server.pem"}, "no private key in PEM form"),
        ({"key": "other.key"}, "key does not belong to the certificate"),
        ({"client_ca": "none.pem"}, "authority cannot be read: No such file"),
        ({"client_ca": "empty.pem"}, "no certificate in PEM form"),
    ],
)
def test_wrong_certificates_and_keys_are_named(
    files: TlsFiles, change: dict[str, str], message: str
) -> None:
    directory = files.certificate.parent
    wrong = {name: directory / path for name, path in change.items()}
    config = NbdConfig(unix_tls=Tls.REQUIRE, files=replace(files, **wrong))
    with pytest.raises(ConfigError, match=message) as caught:
        load_tls(config, Path("pool.toml"))
    assert str(caught.value).startswith("pool.toml: nbd: ")
    assert str(*wrong.values()) in str(caught.value)
