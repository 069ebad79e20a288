"""`cenote send` and `cenote receive` against the real API over real pools in memory."""

import io
import json
import os
import pty
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from admin.api.server import serve_api
from admin.cli import main
from admin.config.scrub import ScrubConfig
from admin.daemon.exports import PoolExports
from admin.daemon.scheduler import Scheduler
from admin.daemon.scrubbing import Scrubbing
from admin.home import Home, find_home
from nbd.errors import UnknownExportError
from storage.pool import Pool
from storage.transfer.receive import Receiving
from tests.unit.admin.fake_pool import POOL, FakeClients, FakeMembers, FakePool, daemon_info
from tests.unit.admin.fake_scrubs import MemoryKeeper
from tests.unit.hang import HANG_S
from tests.unit.storage.pools import MIB, new_members, opened, read, write

BLOCK = 4096


@dataclass
class ServedPool:
    """A pool in a thread, behind the API of a home."""

    pool: Pool
    home: Home
    token: trio.lowlevel.TrioToken

    def do(self, act: Callable[..., Any], *args: object) -> Any:
        return trio.from_thread.run(act, *args, trio_token=self.token)

    def write(self, offset: int, data: bytes) -> None:
        self.do(write, self.pool, "v", offset, data)

    def content(self, name: str, length: int = 4 * MIB) -> bytes:
        data: bytes = self.do(read, self.pool, name, 0, length)
        return data


@contextmanager
def serving(home: Home) -> Iterator[ServedPool]:
    home.path.mkdir(mode=0o700)
    ready = threading.Event()
    made: list[tuple[ServedPool, trio.Event]] = []

    async def main() -> None:
        stop = trio.Event()
        clients = FakeClients(FakePool())
        async with opened(await new_members()) as pool, trio.open_nursery() as nursery:
            now = partial(datetime.now, UTC)
            members, scheduler = FakeMembers(), Scheduler(pool.management, {}, now)
            scrubs = Scrubbing(POOL, pool.scrubber, ScrubConfig(), MemoryKeeper(), now)
            daemon = daemon_info(home)
            await nursery.start(
                serve_api, pool, daemon, clients, members, scheduler, scrubs, home, stop
            )
            made.append((ServedPool(pool, home, trio.lowlevel.current_trio_token()), stop))
            ready.set()

    thread = threading.Thread(target=trio.run, args=(main,))
    thread.start()
    assert ready.wait(HANG_S)
    [(served, stop)] = made
    yield served
    served.token.run_sync_soon(stop.set)
    thread.join(HANG_S)
    assert not thread.is_alive()


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[ServedPool, ServedPool]]:
    with ExitStack() as stack:
        ours, theirs = (
            stack.enter_context(serving(find_home(tmp_path / name))) for name in ("a", "b")
        )
        ours.do(ours.pool.management.create_volume, "v", 4 * MIB)
        ours.write(0, random.Random(1).randbytes(2 * MIB))
        ours.do(ours.pool.management.create_snapshot, "v", "one")
        yield ours, theirs


Outcome = tuple[int, bytes, bytes]
Run = Callable[..., Outcome]


@pytest.fixture
def run(capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command with some stdin: exit status, stdout, stderr."""

    def run(at: ServedPool, *words: str, stdin: bytes = b"") -> Outcome:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = main.main(["--home", str(at.home.path), *words])
        return code, *capsysbinary.readouterr()

    return run


def test_streams_through_a_file(two: tuple[ServedPool, ServedPool], run: Run) -> None:
    ours, theirs = two
    code, stream, said = run(ours, "send", "v@one")
    assert code == 0
    assert said.startswith(b"sent v@one: 2 MiB data, in 2 MiB and ")
    code, out, said = run(theirs, "receive", "w@eins", stdin=stream)
    assert (code, said) == (0, b"")
    assert out.startswith(b"received w@eins: 2 MiB data, in 2 MiB and ")
    assert out.endswith(b" s; it is durable\n")
    assert theirs.content("w@eins") == ours.content("v@one")
    ours.write(BLOCK, bytes(4 * BLOCK))
    ours.do(ours.pool.management.create_snapshot, "v", "two")
    code, stream, said = run(ours, "send", "v@two", "--since", "v@one", "--json")
    told = json.loads(said)
    assert (told["since"], told["zero_bytes"], told["data_bytes"]) == ("v@one", 4 * BLOCK, 0)
    assert told["stream_bytes"] == len(stream)
    code, out, _ = run(theirs, "receive", "w", "--json", stdin=stream)
    assert json.loads(out)["received"] == "w@two"
    assert theirs.content("w") == ours.content("v")
    assert run(ours, "send", "v@one", "--quiet")[2] == b""


def test_an_interrupted_receive_is_resumed_by_its_token(
    two: tuple[ServedPool, ServedPool], run: Run
) -> None:
    ours, theirs = two
    stream = run(ours, "send", "v@one")[1]
    code, out, said = run(theirs, "receive", "v", stdin=stream[:MIB])
    assert (code, out) == (34, b"")
    token = run(theirs, "receive", "v", "--token")[1].decode().strip()
    assert f"what arrived is kept: go on with cenote send ... --resume {token}" in said.decode()
    told = json.loads(run(theirs, "receive", "v", "--token", "--json")[1])
    assert told == {"snapshot": "v@one", "position_bytes": 768 << 10, "token": token}
    listed = run(theirs, "volume", "list")[1].decode()
    assert "v+receiving is not whole: v@one is being received, 18 %" in listed
    code, rest, said = run(ours, "send", "v@one", "--resume", token)
    assert said.startswith(b"sent v@one: 1.2 MiB data from 768 KiB on, in 1.2 MiB and ")
    assert run(theirs, "receive", "v", stdin=rest)[0] == 0
    assert theirs.content("v@one") == ours.content("v@one")
    code, _, said = run(theirs, "receive", "v", "--token")
    assert (code, said) == (31, b"cenote: no snapshot is being received into v\n")


def test_sending_to_a_daemon_resumes_by_itself(
    two: tuple[ServedPool, ServedPool], run: Run
) -> None:
    ours, theirs = two
    stream = run(ours, "send", "v@one")[1]
    assert run(theirs, "receive", "w", stdin=stream[:MIB])[0] == 34
    to = ("--to", str(theirs.home.control_socket), "--as", "w")
    code, out, _ = run(ours, "send", "v@one", *to)
    assert code == 0
    assert out.startswith(b"sent v@one, as w@one: 1.2 MiB data from 768 KiB on")
    assert run(ours, "send", "v@one", *to)[0] == 32
    ours.write(0, b"x")
    ours.do(ours.pool.management.create_snapshot, "v", "two")
    theirs.do(write, theirs.pool, "w", 0, b"y")
    words = ("send", "v@two", "--since", "v@one", *to, "--json")
    code, _, said = run(ours, *words)
    assert code == 33
    assert "--discard" in json.loads(said)["message"]
    code, out, _ = run(ours, *words, "--discard")
    assert json.loads(out)["received"] == "w@two"
    assert theirs.content("w") == ours.content("v")


def test_the_receiver_reports_damage(two: tuple[ServedPool, ServedPool], run: Run) -> None:
    ours, theirs = two
    bad = bytearray(run(ours, "send", "v@one")[1])
    bad[MIB] ^= 1
    code, _, said = run(theirs, "receive", "v", "--json", stdin=bytes(bad))
    error = json.loads(said)
    assert (code, error["error"], error["exit_code"]) == (34, "StreamError", 34)
    assert "checksum mismatch behind offset 786432" in error["message"]
    for junk in (b"", b"x", b"PK\3\4" * 1000, bytes(3 * MIB)):
        code, _, said = run(theirs, "receive", "other", stdin=junk)
        assert code == 34, said
        assert b"this is no stream of cenote send" in said
    assert [v.name for v in theirs.pool.management.volumes()] == ["v+receiving"]


def test_a_refusal_reaches_a_client_that_still_sends(
    two: tuple[ServedPool, ServedPool], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: a refusal ends the command, however much of the stream is on its way.

    Method: the pool refuses late, so that all buffers on the way are full. On a loaded machine they
    may be filled in part; the outcome is the same.
    """
    right = Receiving.feed

    async def slowly(self: Receiving, data: bytes) -> None:
        await trio.sleep(0.2)
        await right(self, data)

    monkeypatch.setattr(Receiving, "feed", slowly)
    code, _, said = run(two[1], "receive", "other", stdin=bytes(16 * MIB))
    assert code == 34
    assert b"this is no stream of cenote send" in said


@pytest.mark.parametrize(
    ("words", "code", "about"),
    [
        (("send", "v@none"), 31, b"no snapshot 'none'"),
        (("send", "v"), 30, b"VOLUME@SNAPSHOT"),
        (("send", "v@one", "--since", "one"), 30, b"VOLUME@SNAPSHOT"),
        (("send", "v@one", "--resume", "nonsense"), 30, b"not a token"),
        (("send", "v@one", "--as", "w"), 2, b"are for --to"),
        (("send", "v@one", "--to", "/nonexistent"), 3, b"no daemon is running"),
        (("receive", "a/b"), 30, b"not a volume name"),
        (("receive", "a@b@c"), 30, b"not a snapshot name"),
    ],
)
def test_refusals(
    two: tuple[ServedPool, ServedPool], run: Run, words: tuple[str, ...], code: int, about: bytes
) -> None:
    found, out, said = run(two[0], *words, stdin=b"x")
    assert (found, out) == (code, b"")
    assert about in said


def test_streams_are_not_for_terminals(two: tuple[ServedPool, ServedPool]) -> None:
    ours, theirs = pty.openpty()
    try:
        for words in (("send", "v@one"), ("receive", "w")):
            done = subprocess.run(
                [sys.executable, "-m", "admin", *words],
                stdin=theirs, stdout=theirs, stderr=subprocess.PIPE,
                cwd=Path(__file__).parents[4],
                env={**os.environ, "CENOTE_HOME": str(two[0].home.path)}, check=False,
            )  # fmt: skip
            assert done.returncode == 2
            assert b"terminal" in done.stderr
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_closed_pipe_ends_sending(two: tuple[ServedPool, ServedPool]) -> None:
    """The command reports the closed pipe, and the daemon lets go of the snapshot."""
    ours, _ = two
    with subprocess.Popen(
        [sys.executable, "-m", "admin", "send", "v@one"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=Path(__file__).parents[4],
        env={**os.environ, "CENOTE_HOME": str(ours.home.path)},
    ) as sending:  # fmt: skip
        assert sending.stdout is not None
        sending.stdout.read(1000)
        sending.stdout.close()
        assert sending.wait(HANG_S) == 34
        assert sending.stderr is not None
        assert sending.stderr.read().startswith(b"cenote: the stream has no reader any more")

    async def delete() -> None:
        with trio.fail_after(HANG_S):
            while ours.pool.registry.handles("v@one"):
                await trio.sleep(0.01)
        await ours.pool.management.delete_snapshot("v", "one")

    ours.do(delete)


async def test_a_volume_that_is_being_received_is_no_export() -> None:
    async with opened(await new_members()) as pool:
        await pool.management.create_volume("v", MIB)
        await pool.management.create_snapshot("v", "one")
        sending = await pool.transfers.send("v@one")
        receiving = pool.transfers.receive("w")
        chunks = sending.chunks()
        await receiving.feed(await anext(chunks))
        exports = PoolExports(pool)
        assert exports.names() == ["v", "v@one"]
        with pytest.raises(UnknownExportError, match="not whole"):
            await exports.open("w+receiving")
        await chunks.aclose()
        await receiving.close()
        await sending.close()
