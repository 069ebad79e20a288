"""Messages to the service manager, and the formats of the log."""

import json
import logging
import socket
from pathlib import Path

import pytest

from admin.daemon.logs import JournalFormatter, JsonFormatter
from admin.daemon.notify import notify
from tests.unit.hang import HANG_S


@pytest.mark.parametrize("abstract", [False, True])
def test_lines_reach_the_service_manager(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, abstract: bool
) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + path if abstract else path)
        manager.settimeout(HANG_S)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + path if abstract else path)
        notify("READY=1", "STATUS=serving")
        assert manager.recv(1024) == b"READY=1\nSTATUS=serving"


def test_a_missing_service_manager_is_no_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "none"))
    notify("READY=1")


def entry(message: str) -> logging.LogRecord:
    return logging.LogRecord("cenote.x", logging.WARNING, "", 0, message, None, None)


def test_log_entries_as_json_and_for_the_journal() -> None:
    parsed = json.loads(JsonFormatter().format(entry("two\nlines")))
    assert (parsed["level"], parsed["logger"]) == ("warning", "cenote.x")
    assert parsed["message"] == "two\nlines"
    assert JournalFormatter().format(entry("two\nlines")) == "<4>two\n<4>lines"
