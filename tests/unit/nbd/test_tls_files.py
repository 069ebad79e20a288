"""Files of certificates and keys: every mistake has its own message. TLS items of docs/nbd.md."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from nbd.errors import TlsError
from nbd.tls import client_context, server_context
from tests.unit.nbd.certificates import Certificates


@pytest.fixture
def made(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


def error_of(certificate: Path, key: Path, ca: Path | None = None) -> str:
    with pytest.raises(TlsError) as caught:
        server_context(certificate, key, ca)
    return str(caught.value)


def test_a_missing_file_is_named(made: Certificates, tmp_path: Path) -> None:
    certificate, key = made.pair()
    missing = tmp_path / "missing.pem"
    text = f"cannot be read: No such file or directory: path={missing}"
    assert error_of(missing, key) == f"certificate {text}"
    assert error_of(certificate, missing) == f"key {text}"
    assert error_of(certificate, key, missing) == f"certificate authority {text}"
    assert error_of(tmp_path, key) == f"certificate cannot be read: Is a directory: path={tmp_path}"


def test_a_file_that_is_not_pem_is_named(made: Certificates, tmp_path: Path) -> None:
    certificate, key = made.pair()
    other = tmp_path / "other"
    other.write_bytes(bytes(range(256)))
    no_certificate = f"no certificate in PEM form in this file: path={other}"
    assert error_of(other, key) == no_certificate
    assert error_of(certificate, other) == f"no private key in PEM form in this file: path={other}"
    assert error_of(certificate, key, other) == no_certificate
    assert f"path={certificate}" in error_of(certificate, certificate)  # swapped by mistake


def test_damage_inside_pem_is_an_error_that_names_the_file(
    made: Certificates, tmp_path: Path
) -> None:
    certificate, key = made.pair()
    damaged = tmp_path / "damaged"
    for path in (certificate, key):
        text = path.read_text()
        damaged.write_text(text[:100] + "!" + text[101:])
        pair = (damaged, key) if path == certificate else (certificate, damaged)
        assert f"={damaged}" in error_of(*pair)
    damaged.write_text(made.ca.read_text()[:100])
    assert f"path={damaged}" in error_of(certificate, key, damaged)


def test_a_key_of_another_certificate_is_refused(made: Certificates) -> None:
    certificate, _ = made.pair()
    _, other_key = made.pair("other.test")
    assert error_of(certificate, other_key) == (
        f"key does not belong to the certificate: key={other_key} certificate={certificate}"
    )


def test_a_key_with_a_password_is_refused_without_asking(
    made: Certificates, tmp_path: Path
) -> None:
    certificate, key = made.pair()
    locked = tmp_path / "locked.key"
    for form in (PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL):
        locked.write_bytes(
            load_pem_private_key(key.read_bytes(), None).private_bytes(
                Encoding.PEM, form, BestAvailableEncryption(b"secret")
            )
        )
        text = error_of(certificate, locked)
        assert "key has a password" in text
        assert f"path={locked}" in text


def test_a_client_needs_certificate_and_key(made: Certificates) -> None:
    certificate, key = made.pair()
    for one in ((certificate, None), (None, key)):
        with pytest.raises(TlsError, match="come together"):
            client_context(made.ca, *one)
    with pytest.raises(TlsError, match="cannot be read"):
        client_context(Path("/missing"), None, None)


def test_a_client_without_an_authority_trusts_the_systems_authorities() -> None:
    context = client_context(None, None, None)
    assert context.check_hostname
    assert not client_context(None, None, None, verify=False).check_hostname
