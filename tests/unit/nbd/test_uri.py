"""NBD URIs: parsing, refusals with a reason, and round trips."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbd.uri import NbdUri, UriError, is_uri, parse_uri


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nbd://host", NbdUri(False, "", "host")),
        ("nbd://host/", NbdUri(False, "", "host")),
        ("NBD://host:1234/disk", NbdUri(False, "disk", "host", 1234)),
        ("nbd://host:/disk", NbdUri(False, "disk", "host")),
        ("nbd://host//disk", NbdUri(False, "/disk", "host")),
        ("nbd://host/a/b%20c%2fd+e", NbdUri(False, "a/b c/d+e", "host")),
        ("nbd://host/%C3%A9", NbdUri(False, "é", "host")),
        ("nbd://host/disk%231", NbdUri(False, "disk#1", "host")),
        ("nbd:///disk", NbdUri(False, "disk", "localhost")),
        ("nbd://[::1]/disk", NbdUri(False, "disk", "::1")),
        ("nbd://[fe80::1%25eth0]:5/", NbdUri(False, "", "fe80::1%eth0", 5)),
        ("nbd://127.0.0.1?", NbdUri(False, "", "127.0.0.1")),
        ("nbd+unix:///?socket=/run/a+b%20c", NbdUri(False, "", socket="/run/a+b c")),
        ("nbd+unix:///disk?socket=nbd.sock", NbdUri(False, "disk", socket="nbd.sock")),
        ("nbd+unix:///?socket=%00/abstract", NbdUri(False, "", socket="\0/abstract")),
        ("nbds://host/disk", NbdUri(True, "disk", "host")),
        (
            "nbds://host?tls-certificates=/etc/pki&tls-hostname=other&tls-verify-peer=0",
            NbdUri(
                True,
                host="host",
                tls_certificates=Path("/etc/pki"),
                tls_hostname="other",
                tls_verify_peer=False,
            ),
        ),
        (
            "nbds+unix:///x?socket=s&tls-type=x509&tls-verify-peer=1",
            NbdUri(True, "x", socket="s"),
        ),
    ],
)
def test_uris(text: str, expected: NbdUri) -> None:
    assert parse_uri(text) == expected
    assert is_uri(text)


@pytest.mark.parametrize(
    ("text", "about"),
    [
        ("", "not an NBD URI"),
        ("/dev/sda", "not an NBD URI"),
        ("host:10809", "not an NBD URI"),
        ("http://host/", "scheme"),
        ("nbd+vsock://2/", "AF_VSOCK"),
        ("nbds+vsock://2/", "AF_VSOCK"),
        ("nbd+ssh://host/", "scheme"),
        ("nbd://user@host/", "user names"),
        ("nbd://host:0/", "port"),
        ("nbd://host:65536/", "port"),
        ("nbd://host:x/", "host and port"),
        ("nbd://[::1/", "host and port"),
        ("nbd://a:b:c/", "host and port"),
        ("nbd://host?socket=/x", "nbd+unix"),
        ("nbd+unix:///disk", "socket="),
        ("nbd+unix:///disk?socket=", "socket="),
        ("nbd+unix://host/disk?socket=x", "no host"),
        ("nbd+unix:///?socket=a&socket=b", "twice"),
        ("nbd+unix:///?socket=a%00b", "NUL"),
        ("nbd+unix:///?socket=%00a%00b", "NUL"),
        ("nbd://host/disk#1", "%23"),
        ("nbd://host/?what=1", "unknown parameter"),
        ("nbds://host/?tls-psk-file=keys", "pre-shared keys"),
        ("nbds://host/?tls-username=alice", "pre-shared keys"),
        ("nbds://host/?tls-priority=NORMAL", "unknown parameter"),
        ("nbds://host/?tls-type=psk", "x509"),
        ("nbds://host/?tls-type=anon", "x509"),
        ("nbds://host/?tls-verify-peer=maybe", "0 or 1"),
        ("nbds://host/?tls-certificates=", "directory"),
        ("nbd://host/?tls-hostname=x", "nbds"),
        ("nbd://host/%00", "NUL"),
        ("nbd://host/%ff", "UTF-8"),
        ("nbd://host/%4", "percent"),
        ("nbd://host/%zz", "percent"),
        ("nbd://host/" + "x" * 4097, "4096"),
    ],
)
def test_bad_uris_are_refused_with_a_reason(text: str, about: str) -> None:
    with pytest.raises(UriError) as caught:
        parse_uri(text)
    assert about in str(caught.value)


def test_paths_are_no_uris() -> None:
    assert not is_uri("/dev/nbd0")
    assert not is_uri("nbd.img")
    assert is_uri("nbd+vsock://2/")


@settings(deadline=None)
@given(st.text())
def test_any_text_is_a_uri_or_refused(text: str) -> None:
    for whole in (text, f"nbd://{text}", f"nbds+unix:///{text}?socket={text}"):
        try:
            uri = parse_uri(whole)
        except UriError:
            continue
        assert parse_uri(str(uri)).export == uri.export


@settings(deadline=None)
@given(st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=50))
def test_export_names_survive_a_round_trip(name: str) -> None:
    assert parse_uri(str(NbdUri(False, name, "host"))).export == name
