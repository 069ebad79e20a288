"""The client side of the control API, for commands: one request, one answer, no event loop."""

import json
import shlex
import socket
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

from admin.errors import DaemonNotRunningError, HomeError, InternalError, RemoteError
from admin.home import Home, holder
from admin.names import SnapshotName
from admin.status import ClientInfo, DaemonInfo
from admin.wire import decode
from storage.info import PoolInfo, SnapshotInfo, VolumeInfo

T = TypeVar("T")

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 300.0
"""A full, busy pool may have to clean before it can take one more record."""


class Client:
    """Talks to the daemon of one home. Methods raise RemoteError for what the daemon refuses,
    DaemonNotRunningError when none answers.
    """

    def __init__(self, home: Home, *, command: str = "cenote serve") -> None:
        self._home = home
        self._command = command
        self._http = _UnixConnection(home.control_socket)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.close()

    def daemon(self) -> DaemonInfo:
        """The daemon that answers."""
        return self._get(DaemonInfo, "/daemon")

    def pool(self) -> PoolInfo:
        """The state of the pool and its members."""
        return self._get(PoolInfo, "/pool")

    def clients(self) -> list[ClientInfo]:
        """The NBD connections."""
        return self._list(ClientInfo, "/clients")

    def volumes(self) -> list[VolumeInfo]:
        """All volumes."""
        return self._list(VolumeInfo, "/volumes")

    def volume(self, name: str) -> VolumeInfo:
        """One volume."""
        return self._get(VolumeInfo, _path(name))

    def create_volume(self, name: str, size_bytes: int) -> VolumeInfo:
        """Make an empty volume."""
        return self._post(VolumeInfo, "/volumes", name=name, size_bytes=size_bytes)

    def resize_volume(self, name: str, size_bytes: int) -> VolumeInfo:
        """Grow a volume."""
        answer = self._request("PATCH", _path(name), {"size_bytes": size_bytes})
        return self._decode(VolumeInfo, answer)

    def delete_volume(self, name: str, *, snapshots: bool = False) -> None:
        """Remove a volume; with `snapshots`, also those it has."""
        self._request("DELETE", _path(name) + ("?snapshots=true" if snapshots else ""))

    def snapshots(self, volume: str | None = None) -> list[SnapshotInfo]:
        """All snapshots, or those of one volume."""
        path = "/snapshots" if volume is None else f"{_path(volume)}/snapshots"
        return self._list(SnapshotInfo, path)

    def create_snapshot(self, name: SnapshotName) -> SnapshotInfo:
        """Keep the volume as it is now under a name."""
        return self._post(SnapshotInfo, f"{_path(name.volume)}/snapshots", name=name.snapshot)

    def delete_snapshot(self, name: SnapshotName) -> None:
        """Remove a snapshot."""
        snapshot = quote(name.snapshot, safe="")
        self._request("DELETE", f"{_path(name.volume)}/snapshots/{snapshot}")

    def rollback(self, name: SnapshotName) -> VolumeInfo:
        """Make the volume what the snapshot is."""
        return self._post(VolumeInfo, f"{_path(name.volume)}/rollback", snapshot=name.snapshot)

    def clone(self, source: SnapshotName, name: str) -> VolumeInfo:
        """Make a volume that starts as the snapshot."""
        return self._post(
            VolumeInfo, "/clones", volume=source.volume, snapshot=source.snapshot, name=name
        )

    def _get(self, kind: type[T], path: str) -> T:
        return self._decode(kind, self._request("GET", path))

    def _list(self, kind: type[T], path: str) -> list[T]:
        answer = self._request("GET", path)
        if not isinstance(answer, list):
            raise InternalError(f"unexpected answer of the daemon: {answer!r}")
        return [self._decode(kind, item) for item in answer]

    def _post(self, kind: type[T], path: str, **body: object) -> T:
        return self._decode(kind, self._request("POST", path, body))

    def _decode(self, kind: type[T], answer: object) -> T:
        try:
            return decode(kind, answer)
        except ValueError as error:
            raise InternalError(f"unexpected answer of the daemon: {error}") from error

    def _request(self, method: str, path: str, body: object = None) -> Any:
        try:
            self._http.request(
                method,
                f"/v1{path}",
                body=None if body is None else json.dumps(body),
                headers={"Content-Type": "application/json"},
            )
            response = self._http.getresponse()
            text = response.read()
            # The daemon does not keep a connection while somebody thinks about a question.
            self._http.close()
            answer = json.loads(text) if text else None
        except (OSError, HTTPException) as error:
            self._http.close()
            raise self._unreachable(error) from error
        except ValueError as error:
            raise InternalError(f"unexpected answer of the daemon: {error}") from error
        if 200 <= response.status < 300:
            return answer
        raise _remote_error(response.status, answer)

    def _unreachable(self, error: Exception) -> Exception:
        process = holder(self._home)
        if isinstance(error, PermissionError):
            return HomeError(f"not permitted to use {self._home.control_socket}; try as its owner")
        if process is not None:
            return DaemonNotRunningError(
                f"the daemon of {self._home.path} (process {process}) does not answer; "
                "it may be starting or stopping: try again"
            )
        return DaemonNotRunningError(
            f"no daemon is running for {shlex.quote(str(self._home.path))}; "
            f"start it: {self._command}"
        )


class _UnixConnection(HTTPConnection):
    """HTTP over a Unix socket. httpx could do this too, but takes 150 ms to import."""

    def __init__(self, path: Path) -> None:
        super().__init__("cenote", timeout=ANSWER_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(CONNECT_TIMEOUT_S)
        self.sock.connect(str(self._path))
        self.sock.settimeout(ANSWER_TIMEOUT_S)


def _remote_error(status: int, answer: object) -> Exception:
    match answer:
        case {
            "error": str(kind),
            "message": str(message),
            "errno": int(number),
            "exit_code": int(code),
        }:
            return RemoteError(kind, message, number, code)
    return InternalError(f"the daemon answered {status}: {str(answer)[:200]}")


def _path(volume: str) -> str:
    return f"/volumes/{quote(volume, safe='')}"
