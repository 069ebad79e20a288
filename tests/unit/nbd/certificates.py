"""Certificates for tests: one authority, a server, clients, and faulty ones."""

import ssl
from datetime import UTC, datetime
from pathlib import Path

import trustme

from nbd.tls import client_context, server_context

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
HOST = "cenote.test"


class Certificates:
    """Files in a directory, made when asked for."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._authority = trustme.CA()
        self.ca = self._write("ca.pem", self._authority.cert_pem)

    def pair(
        self,
        name: str = HOST,
        *,
        not_after: datetime | None = None,
        common_name: str | None = None,
    ) -> tuple[Path, Path]:
        """Files of a certificate and its key."""
        made = self._authority.issue_cert(name, not_after=not_after, common_name=common_name)
        certificate = self._write(f"{name}.pem", made.cert_chain_pems[0])
        return certificate, self._write(f"{name}.key", made.private_key_pem)

    def server(self, *, mutual: bool = True, not_after: datetime | None = None) -> ssl.SSLContext:
        return server_context(*self.pair(not_after=not_after), self.ca if mutual else None)

    def client(self) -> ssl.SSLContext:
        return client_context(self.ca, *self.pair("alice.test", common_name="Alice"))

    def _write(self, name: str, blob: trustme.Blob) -> Path:
        path = self._directory / name
        blob.write_to_path(str(path))
        return path
