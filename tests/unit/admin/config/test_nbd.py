"""Reading `[nbd]` and `[[export]]`: keys, defaults and mistakes."""

from dataclasses import fields
from pathlib import Path

import pytest

from admin.config.load import load_config
from admin.config.nbd import NbdConfig, TcpAddress, TlsFiles, parse_address
from admin.errors import ConfigError
from admin.sizes import KIB, MIB
from nbd.server.access import Access, AccessRule, Peer, decide
from nbd.server.handshake import Tls
from nbd.server.limits import Limits

TLS = 'tcp = "0.0.0.0:1"\ntls = "require"\ncertificate = "s.pem"\nkey = "s.key"\n'


def load(tmp_path: Path, text: str) -> NbdConfig:
    file = tmp_path / "pool.toml"
    file.write_text(f'format = 1\n[[member]]\npath = "a.img"\n{text}')
    return load_config(file).nbd


def test_every_key_is_read(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        """
        [nbd]
        unix_mode = "0660"
        unix_tls = "allow"
        tcp = "[::1]:10810"
        tls = "require"
        certificate = "tls/server.pem"
        key = "/etc/server.key"
        client_ca = "tls/ca.pem"
        connections = 7
        [nbd.limits]
        requests = 8
        bytes = "32M"
        memory = "100M"
        request_size = "1M"
        option_size = "16K"
        options = 17
        handshake_s = 1.5
        patience_s = 2
        grace_s = 0
        [[export]]
        name = "web*"
        read_only = true
        certificates = ["a.example", "b.example"]
        [[export]]
        name = ["db", "log@old"]
        uids = 107
        """,
    )
    assert config == NbdConfig(
        unix_mode=0o660,
        unix_tls=Tls.ALLOW,
        tcp=TcpAddress("::1", 10810),
        tls=Tls.REQUIRE,
        files=TlsFiles(
            tmp_path / "tls/server.pem", Path("/etc/server.key"), tmp_path / "tls/ca.pem"
        ),
        limits=Limits(
            connections_max=7,
            handshake_s=1.5,
            payload_bytes_max=MIB,
            option_bytes_max=16 * KIB,
            options_max=17,
            requests_in_flight_max=8,
            bytes_in_flight_max=32 * MIB,
            memory_bytes_max=100 * MIB,
            patience_s=2.0,
            grace_s=0.0,
        ),
        rules=(
            AccessRule(("web*", "web*@*"), True, frozenset({"a.example", "b.example"})),
            AccessRule(("db", "log@old", "db@*"), uids=frozenset({107})),
        ),
    )


def test_every_limit_can_be_set(tmp_path: Path) -> None:
    """Each limit is given a value that is not its default."""
    given = load(
        tmp_path,
        """
        [nbd]
        connections = 7
        [nbd.limits]
        requests = 8
        bytes = "32M"
        memory = "100M"
        request_size = "1M"
        option_size = "16K"
        options = 17
        handshake_s = 1.5
        patience_s = 2
        grace_s = 0
        """,
    ).limits
    same = [one.name for one in fields(Limits) if getattr(given, one.name) == one.default]
    assert same == []


def test_defaults(tmp_path: Path) -> None:
    assert load(tmp_path, "") == NbdConfig()


def test_a_rule_for_a_volume_covers_its_snapshots(tmp_path: Path) -> None:
    rules = load(
        tmp_path,
        """
        [[export]]
        name = "db@public"
        [[export]]
        name = "db"
        uids = [5]
        """,
    ).rules
    peers = Peer("unix:pid=1", 5), Peer("unix:pid=2", 6)
    for export, owner, other in (
        ("db", Access.WRITE, Access.NONE),
        ("db@daily", Access.WRITE, Access.NONE),
        ("db@public", Access.WRITE, Access.WRITE),
        ("db2", Access.WRITE, Access.WRITE),
    ):
        assert [decide(rules, export, peer) for peer in peers] == [owner, other], export


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("psk = 'keys'", r"nbd.psk: pre-shared keys are not supported"),
        ("tls = 'yes'", r"nbd.tls: expected one of \"off\", \"allow\", \"require\"; got 'yes'"),
        ("tls = true", r"nbd.tls: expected a string, got true"),
        ("tls = 'require'", r"nbd.tls: is for TCP, and tcp has no address; unix_tls is for"),
        ("unix = false\ntcp = 'a:1'\nunix_tls = 'allow'", r"nbd.unix_tls: is for the Unix socket,"),
        ("unix_tls = 'allow'", r"nbd.certificate: is missing; TLS needs"),
        ("unix_tls = 'allow'\ncertificate = 'a'", r"nbd.key: is missing; TLS needs the key"),
        ("certificate = 'a'\nkey = 'b'", r"nbd.certificate: has no effect while TLS is off"),
        ("client_ca = 'a'", r"nbd.client_ca: has no effect while TLS is off; set tls"),
        ("certificat = 'a'", r"nbd.certificat: unknown key; did you mean 'certificate'"),
        ("unix_mode = '0777'", r"nbd.unix_mode: expected \"0600\", \"0660\" or \"0666\", got"),
        ("unix_mode = '0060'", r"nbd.unix_mode: expected"),
        ("unix_mode = 432", r"nbd.unix_mode: expected a string, got 432"),
        ("connections = 0", r"nbd.connections: expected 1 to 4096, got 0"),
        ("limits = 3", r"nbd.limits: expected a table"),
        ("[nbd.limits]\nbytes = '1M'", r"nbd.limits.bytes: expected 32M to 16G"),
        ("[nbd.limits]\nmemory = '1M'", r"nbd.limits.memory: expected 64M to 1T"),
        ("[nbd.limits]\nhandshake_s = '10'", r"handshake_s: expected a number of seconds, got"),
        ("[nbd.limits]\ngrace_s = true", r"grace_s: expected a number of seconds, got true"),
        ("[nbd.limits]\ngrace_s = 61", r"grace_s: expected 0 to 60 seconds, got 61"),
        ("[nbd.limits]\ngrace_s = nan", r"grace_s: expected 0 to 60 seconds, got nan"),
        ("[nbd.limits]\ngrace = 1", r"nbd.limits.grace: unknown key; did you mean 'grace_s'"),
        ("[[export]]", r"export\[0\].name: is missing; expected names of volumes"),
        ("[[export]]\nname = []", r"export\[0\].name: is empty"),
        ("[[export]]\nname = ['a', '']", r"export\[0\].name: is empty"),
        ("[[export]]\nname = 3", r"export\[0\].name: expected a string or a list of such, got 3"),
        ("[[export]]\nname = 'a b'", r"export\[0\].name: no volume is called so: 'a b'"),
        ("[[export]]\nname = 'a'\nuids = []", r"export\[0\].uids: is empty; give a value"),
        ("[[export]]\nname = 'a'\nuids = ['qemu']", r"export\[0\].uids: expected a whole number"),
        ("[[export]]\nname = 'a'\nuids = [true]", r"export\[0\].uids: expected a whole number"),
        ("[[export]]\nname = 'a'\nuids = [-1]", r"export\[0\].uids: not the number of a user: -1"),
        ("[[export]]\nname = 'a'\ncertificates = ['b']", r"export\[0\].certificates: clients show"),
        (
            f"{TLS}[[export]]\nname = 'a'\ncertificates = ['b']",
            r"export\[0\].certificates: clients show none without nbd.client_ca",
        ),
        (
            "unix = false\ntcp = 'a:1'\n[[export]]\nname = 'a'\nuids = [1]",
            r"export\[0\].uids: users are known on the Unix socket, which is off",
        ),
        ("[[export]]\nname = 'a'\nreadonly = true", r"export\[0\].readonly: .*'read_only'"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(tmp_path, f"[nbd]\n{text}")
    assert str(caught.value).startswith(f"{tmp_path / 'pool.toml'}: ")


@pytest.mark.parametrize("text", ["", "a", "a:", ":1", "a:b", "a:70000", "::1:3", "a:\u0663"])
def test_other_addresses_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_address(text)
