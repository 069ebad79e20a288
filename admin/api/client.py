"""The client side of the control API, for commands: one request, one answer, no event loop."""

import json
import shlex
import socket
from collections.abc import Iterable, Iterator
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote, urlencode

from admin.api.scrub_status import ScrubInfo
from admin.api.values import ClientInfo, DaemonInfo, ExportInfo, ScheduleInfo
from admin.api.wire import decode
from admin.errors import DaemonNotRunningError, HomeError, InternalError, RemoteError
from admin.home import Home, holder
from admin.names import SnapshotName
from storage.errors import NotFoundError
from storage.info import (
    MemberInfo,
    PoolInfo,
    PoolSpace,
    SnapshotInfo,
    TreeNode,
    VolumeInfo,
    VolumeSpace,
)

T = TypeVar("T")

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 300.0
"""A full, busy pool may have to clean segments before it can commit one more record."""
STREAM_PIECE_BYTES = 256 << 10
"""The most that is read of a stream at once."""


class Client:
    """Talks to the daemon of one home.

    Methods raise RemoteError for an error that the daemon answers, DaemonNotRunningError when no
    daemon answers, and HomeError when the socket may not be used.

    Args:
        command: the command that starts the daemon, for the message when none answers.
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

    def exports(self) -> list[ExportInfo]:
        """The counts of each export that had clients."""
        return self._list(ExportInfo, "/exports")

    def disconnect(
        self, *, numbers: list[int] | None = None, export: str | None = None
    ) -> list[ClientInfo]:
        """End connections by number, those of an export, or all if neither is given."""
        everyone = numbers is None and export is None
        answer = self._request(
            "POST",
            "/clients/disconnect",
            {"numbers": numbers, "export": export, "everyone": everyone},
        )
        return self._decoded_list(ClientInfo, answer)

    def pool_space(self, *, now: bool = False) -> PoolSpace:
        """The bytes of the pool by use; with `now`, after a checkpoint."""
        return self._get(PoolSpace, "/pool/space" + _query(now=now))

    def volume_space(self, volume: str | None = None, *, now: bool = False) -> list[VolumeSpace]:
        """The space of volumes, each followed by its snapshots; with `now`, after a checkpoint."""
        words = {"volume": volume, "now": "true" if now else None}
        query = urlencode({key: value for key, value in words.items() if value is not None})
        return self._list(VolumeSpace, f"/pool/space/volumes?{query}")

    def add_member(
        self, path: str, *, size_bytes: int | None, host: str | None, force: bool
    ) -> MemberInfo:
        """Make a file or disk a member."""
        body = {"path": path, "size_bytes": size_bytes, "force": force}
        return self._post(MemberInfo, "/members", **body, **({"host": host} if host else {}))

    def grow_member(self, member: str, size_bytes: int | None) -> MemberInfo:
        """Use all of a member whose disk or file has become larger."""
        return self._post(MemberInfo, "/members/grow", member=member, size_bytes=size_bytes)

    def volumes(self) -> list[VolumeInfo]:
        """All volumes."""
        return self._list(VolumeInfo, "/volumes")

    def volume(self, name: str) -> VolumeInfo:
        """One volume."""
        return self._get(VolumeInfo, _path(name))

    def create_volume(self, name: str, size_bytes: int) -> VolumeInfo:
        """Make an empty volume."""
        return self._post(VolumeInfo, "/volumes", name=name, size_bytes=size_bytes)

    def resize_volume(self, name: str, size_bytes: int, *, shrink: bool = False) -> VolumeInfo:
        """Grow a volume; with `shrink`, also shrink it."""
        body = {"size_bytes": size_bytes, "shrink": shrink}
        return self._decode(VolumeInfo, self._request("PATCH", _path(name), body))

    def rename_volume(self, name: str, new_name: str) -> VolumeInfo:
        """Give a volume another name."""
        return self._post(VolumeInfo, f"{_path(name)}/rename", name=new_name)

    def promote(self, name: str) -> VolumeInfo:
        """Move the snapshots that a clone descends from to the clone."""
        return self._post(VolumeInfo, f"{_path(name)}/promote")

    def flatten(self, name: str, *, on: bool = True) -> VolumeInfo:
        """Copy all data that a clone inherits to it, in the background; or stop copying."""
        return self._post(VolumeInfo, f"{_path(name)}/flatten", on=on)

    def note(self, name: str, notes: dict[str, object]) -> None:
        """Change description, labels or protection of a volume or of `VOL@SNAP`."""
        self._request("PATCH", "/notes", {"name": name, **notes})

    def delete_volume(
        self, name: str, *, snapshots: bool = False, disconnect: bool = False
    ) -> None:
        """Remove a volume; with `snapshots`, its snapshots too; with `disconnect`, also while it
        has clients."""
        self._request("DELETE", _path(name) + _query(snapshots=snapshots, disconnect=disconnect))

    def snapshots(self, volume: str | None = None) -> list[SnapshotInfo]:
        """All snapshots, or those of one volume."""
        path = "/snapshots" if volume is None else f"{_path(volume)}/snapshots"
        return self._list(SnapshotInfo, path)

    def snapshot(self, name: SnapshotName) -> SnapshotInfo:
        """One snapshot.

        Raises:
            NotFoundError: the volume has none of that name.
        """
        for one in self.snapshots(name.volume):
            if one.name == name.snapshot:
                return one
        raise NotFoundError(f"volume {name.volume!r} has no snapshot {name.snapshot!r}")

    def tree(self) -> list[TreeNode]:
        """Volumes, snapshots and clones, each with the name of its parent in the tree."""
        return self._list(TreeNode, "/tree")

    def create_snapshot(self, name: SnapshotName) -> SnapshotInfo:
        """Make a snapshot of a volume as it is now."""
        return self._post(SnapshotInfo, f"{_path(name.volume)}/snapshots", name=name.snapshot)

    def create_snapshots(self, volumes: list[str], name: str) -> list[SnapshotInfo]:
        """Make snapshots of several volumes at one moment, all with the same name."""
        answer = self._request("POST", "/snapshots", {"volumes": volumes, "name": name})
        return self._decoded_list(SnapshotInfo, answer)

    def rename_snapshot(self, name: SnapshotName, new_name: str) -> SnapshotInfo:
        """Give a snapshot another name."""
        snapshot = quote(name.snapshot, safe="")
        path = f"{_path(name.volume)}/snapshots/{snapshot}/rename"
        return self._post(SnapshotInfo, path, name=new_name)

    def delete_snapshot(self, name: SnapshotName, *, disconnect: bool = False) -> None:
        """Remove a snapshot; with `disconnect`, also while it has clients."""
        snapshot = quote(name.snapshot, safe="")
        query = _query(disconnect=disconnect)
        self._request("DELETE", f"{_path(name.volume)}/snapshots/{snapshot}{query}")

    def rollback(self, name: SnapshotName, *, disconnect: bool = False) -> VolumeInfo:
        """Roll a volume back to a snapshot; with `disconnect`, also while it has clients."""
        return self._post(
            VolumeInfo,
            f"{_path(name.volume)}/rollback",
            snapshot=name.snapshot,
            disconnect=disconnect,
        )

    def schedules(self) -> list[ScheduleInfo]:
        """The schedules of automatic snapshots."""
        return self._list(ScheduleInfo, "/schedules")

    def set_schedule(
        self, name: str, *, every_s: int, keep: dict[str, int], volumes: list[str],
        labels: dict[str, str],
    ) -> ScheduleInfo:  # fmt: skip
        """Set a schedule, or replace the one of that name."""
        body = {"every_s": every_s, "keep": keep, "volumes": volumes, "labels": labels}
        return self._decode(ScheduleInfo, self._request("PUT", _schedule(name), body))

    def remove_schedule(self, name: str) -> None:
        """Remove a schedule; its snapshots stay."""
        self._request("DELETE", _schedule(name))

    def run_schedule(self, name: str) -> ScheduleInfo:
        """Make the snapshots of a schedule now, and delete those that it no longer keeps."""
        return self._post(ScheduleInfo, f"{_schedule(name)}/run")

    def scrub(self) -> ScrubInfo:
        """The current or last scrub, and when the next one is due."""
        return self._get(ScrubInfo, "/scrub")

    def start_scrub(self, *, rate_bytes: int | None, fresh: bool) -> ScrubInfo:
        """Begin a scrub, or continue one; the rate counts from now on, 0 is no limit."""
        return self._post(ScrubInfo, "/scrub/start", rate_bytes=rate_bytes, fresh=fresh)

    def stop_scrub(self) -> ScrubInfo:
        """Stop the scrub that runs, if any."""
        return self._post(ScrubInfo, "/scrub/stop")

    def clone(self, source: SnapshotName | str, name: str) -> VolumeInfo:
        """Make a volume that starts as the snapshot, or as the volume is now."""
        if isinstance(source, str):
            return self._post(VolumeInfo, "/clones", volume=source, name=name)
        return self._post(
            VolumeInfo, "/clones", volume=source.volume, snapshot=source.snapshot, name=name
        )

    def send(
        self, name: SnapshotName, *, since: SnapshotName | None, resume: str | None
    ) -> Iterator[bytes]:
        """Ask for a stream and return its pieces as they arrive.

        The client can send no other request until all pieces were taken. The pieces raise
        DaemonNotRunningError when the connection ends before the stream.
        """
        snapshot = quote(name.snapshot, safe="")
        words = {"since": since and str(since), "resume": resume}
        query = urlencode({key: value for key, value in words.items() if value is not None})
        path = f"/v1{_path(name.volume)}/snapshots/{snapshot}/stream?{query}"
        try:
            self._http.request("GET", path)
            response = self._http.getresponse()
        except (OSError, HTTPException) as error:
            self._http.close()
            raise self._unreachable(error) from error
        if response.status != 200:
            self._taken(response)
        return self._pieces(response)

    def _pieces(self, response: HTTPResponse) -> Iterator[bytes]:
        try:
            while piece := response.read1(STREAM_PIECE_BYTES):
                yield piece
        except (OSError, HTTPException) as error:
            raise DaemonNotRunningError(f"the daemon ended the stream early: {error!r}") from error
        finally:
            self._http.close()

    def receive(
        self, volume: str, snapshot: str | None, *, discard: bool, stream: Iterable[bytes]
    ) -> SnapshotInfo:
        """Send a stream to the daemon, which makes a snapshot of it."""
        words = {"snapshot": snapshot, "discard": "true" if discard else None}
        query = urlencode({key: value for key, value in words.items() if value is not None})
        try:
            # The length is unknown, so http.client sends the stream in chunks.
            self._http.request("POST", f"/v1{_path(volume)}/receive?{query}", body=stream)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the daemon refused the rest; its answer says why
        except (OSError, HTTPException) as error:
            self._http.close()
            raise self._unreachable(error) from error
        try:
            response = self._http.getresponse()
        except (OSError, HTTPException) as error:
            self._http.close()
            raise self._unreachable(error) from error
        return self._decode(SnapshotInfo, self._taken(response))

    def _get(self, kind: type[T], path: str) -> T:
        return self._decode(kind, self._request("GET", path))

    def _list(self, kind: type[T], path: str) -> list[T]:
        return self._decoded_list(kind, self._request("GET", path))

    def _decoded_list(self, kind: type[T], answer: object) -> list[T]:
        if not isinstance(answer, list):
            raise InternalError(f"unexpected answer of the daemon: {answer!r}")
        return [self._decode(kind, item) for item in answer]

    def _post(self, kind: type[T], path: str, /, **body: object) -> T:
        # A route that reads no body gets none: the daemon resets a connection with unread bytes.
        return self._decode(kind, self._request("POST", path, body or None))

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
        except (OSError, HTTPException) as error:
            self._http.close()
            raise self._unreachable(error) from error
        return self._taken(response)

    def _taken(self, response: HTTPResponse) -> Any:
        """Return the value of an answer, or raise the error that it carries."""
        try:
            text = response.read()
            answer = json.loads(text) if text else None
        except (OSError, HTTPException) as error:
            raise self._unreachable(error) from error
        except ValueError as error:
            raise InternalError(f"unexpected answer of the daemon: {error}") from error
        finally:
            # The daemon closes idle connections, and the user may take long to answer a question.
            self._http.close()
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
    """HTTP over a Unix socket; not by httpx, which takes 150 ms to import."""

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


def _schedule(name: str) -> str:
    return f"/schedules/{quote(name, safe='')}"


def _query(**flags: bool) -> str:
    words = "&".join(f"{key}=true" for key, value in flags.items() if value)
    return f"?{words}" if words else ""
