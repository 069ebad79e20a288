"""The client of the control API against the real API over a fake pool."""

import socket
import stat
import threading

import httpx
import pytest

from admin.api.client import Client
from admin.errors import DaemonNotRunningError, InternalError, RemoteError, exit_code_of
from admin.home import Home, hold
from admin.names import SnapshotName
from blockdev.errors import NoSpaceError
from nbd.server.listeners import listen_unix
from storage.errors import FencedError
from tests.unit.admin.fake_pool import Served

SNAPSHOT = SnapshotName("a", "s")


def raw(home: Home, method: str, path: str, body: object = None) -> httpx.Response:
    transport = httpx.HTTPTransport(uds=str(home.control_socket))
    with httpx.Client(transport=transport, base_url="http://x") as client:
        return client.request(method, path, json=body)


def test_a_volume_from_creation_to_deletion(served: Served) -> None:
    with Client(served.home) as client:
        made = client.create_volume("a", 8192)
        assert (made.name, made.size_bytes, made.origin) == ("a", 8192, None)
        assert client.volumes() == [made]
        assert client.volume("a") == made
        assert client.resize_volume("a", 4096).size_bytes == 4096
        snapshot = client.create_snapshot(SNAPSHOT)
        assert (snapshot.volume, snapshot.name) == ("a", "s")
        assert client.snapshots() == client.snapshots("a") == [snapshot]
        assert client.clone(SNAPSHOT, "b").origin == "a@s"
        assert client.rollback(SNAPSHOT).name == "a"
        client.delete_snapshot(SNAPSHOT)
        client.delete_volume("a")
        assert [volume.name for volume in client.volumes()] == ["b"]
        assert client.pool() == served.pool.info()
        assert client.daemon().process == 42
        assert client.daemon().uri("b") == f"nbd+unix:///b?socket={served.home.nbd_socket}"
        assert client.clients()[0].export == "a\x07b"
        assert [(one.name, one.requests) for one in client.exports()] == [("a\x07b", 5)]
        assert client.disconnect(export="none") == []
        assert [one.number for one in client.disconnect(numbers=[1])] == [1]
        assert client.disconnect() == client.clients() == []


def test_errors_keep_their_class_and_exit_status(served: Served) -> None:
    with Client(served.home) as client:
        with pytest.raises(RemoteError, match="no such volume: a") as caught:
            client.volume("a")
        assert (caught.value.kind, exit_code_of(caught.value)) == ("NotFoundError", 31)
        served.pool.raises = NoSpaceError("pool is full: free=0")
        with pytest.raises(RemoteError, match="pool is full") as caught:
            client.create_volume("a", 4096)
        assert exit_code_of(caught.value) == 11
        served.pool.raises = ZeroDivisionError("oops")
        with pytest.raises(RemoteError, match="internal error: ZeroDivisionError") as caught:
            client.create_volume("a", 4096)
        assert exit_code_of(caught.value) == 9


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "kind"),
    [
        ("GET", "/v1/volumes/none", None, 404, "NotFoundError"),
        ("GET", "/v1/nothing", None, 404, "NotFoundError"),
        ("PUT", "/v1/volumes", None, 405, "InvalidArgumentError"),
        ("POST", "/v1/volumes", {"name": "a"}, 400, "InvalidArgumentError"),
        ("POST", "/v1/volumes", {"name": "a", "size_bytes": "4096"}, 400, "InvalidArgumentError"),
        ("POST", "/v1/volumes", {"name": "a", "size_bytes": 5000}, 400, "InvalidArgumentError"),
        ("POST", "/v1/volumes", {"name": "a", "size_bytes": 0}, 400, "InvalidArgumentError"),
        ("POST", "/v1/volumes", {"name": "a@b", "size_bytes": 4096}, 400, "InvalidArgumentError"),
        (
            "POST",
            "/v1/volumes",
            {"name": "a", "size_bytes": 4096, "sise": 1},
            400,
            "InvalidArgumentError",
        ),
        ("DELETE", "/v1/volumes/used", None, 409, "InUseError"),
        ("POST", "/v1/volumes", {"name": "used", "size_bytes": 4096}, 409, "ExistsError"),
        ("POST", "/v1/clients/disconnect", {}, 400, "InvalidArgumentError"),
        (
            "POST",
            "/v1/clients/disconnect",
            {"numbers": [1], "everyone": True},
            400,
            "InvalidArgumentError",
        ),
        ("POST", "/v1/clients/disconnect", {"numbers": [1, 9]}, 404, "NotFoundError"),
    ],
)
def test_http_statuses_of_refused_requests(
    served: Served, method: str, path: str, body: object, status: int, kind: str
) -> None:
    assert raw(served.home, "POST", "/v1/volumes", {"name": "used", "size_bytes": 4096}).is_success
    served.clients.connect(2, "used")
    response = raw(served.home, method, path, body)
    assert response.status_code == status
    assert response.json()["error"] == kind
    assert set(response.json()) == {"error", "message", "errno", "exit_code"}


@pytest.mark.parametrize(
    ("error", "status"), [(FencedError("fenced"), 503), (NoSpaceError("full"), 507)]
)
def test_http_statuses_of_pool_errors(served: Served, error: Exception, status: int) -> None:
    served.pool.raises = error
    body = {"name": "a", "size_bytes": 4096}
    assert raw(served.home, "POST", "/v1/volumes", body).status_code == status


def test_the_control_socket_is_private(served: Served) -> None:
    assert stat.S_IMODE(served.home.control_socket.stat().st_mode) == 0o600


def test_a_missing_daemon_is_reported(home: Home) -> None:
    with Client(home, command="cenote serve --home x") as client:
        with pytest.raises(DaemonNotRunningError, match="start it: cenote serve --home x"):
            client.volumes()
        listen_unix(home.control_socket).close()  # leaves its socket, as a dead daemon does
        with pytest.raises(DaemonNotRunningError, match="no daemon is running"):
            client.volumes()
        with hold(home), pytest.raises(DaemonNotRunningError, match="starting or stopping"):
            client.volumes()


def test_an_answer_that_is_no_json_is_an_internal_error(home: Home) -> None:
    with listen_unix(home.control_socket).sock as listener, Client(home) as client:
        listener.setblocking(True)
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{]"
        with pytest.raises(InternalError, match="unexpected answer"):
            _answer_while(listener, answer, client)


def _answer_while(listener: socket.socket, answer: bytes, client: Client) -> None:
    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        client.volumes()
    finally:
        thread.join()
