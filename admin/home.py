"""The home of a daemon: one directory with its sockets, its lock and its records of the pool.

    HOME/lock           flock held while a daemon runs; holds its process number
    HOME/control.sock   the control API
    HOME/nbd.sock       the exports
    HOME/pool/          pool.json, and the member of the built-in configuration

The directory is made with mode 0700 and the sockets with 0600, as a user that can open the control
socket can do everything. To let other users reach the exports alone, set `nbd.unix_mode` and
`chmod o+x HOME`; the control socket and the records stay closed to them.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from admin.errors import AlreadyRunningError, HomeError

SOCKET_PATH_BYTES_MAX = 107
"""`sun_path` of Linux has 108 bytes, the last of them a zero (unix(7))."""
_LOCK_TRIES = 4
_LOCK_DELAY_S = 0.05


@dataclass(frozen=True, slots=True)
class Home:
    """The paths of one home."""

    path: Path

    @property
    def control_socket(self) -> Path:
        """Where the control API listens."""
        return self.path / "control.sock"

    @property
    def nbd_socket(self) -> Path:
        """Where NBD clients connect."""
        return self.path / "nbd.sock"

    @property
    def lock_file(self) -> Path:
        """Locked while a daemon runs."""
        return self.path / "lock"

    @property
    def pool_dir(self) -> Path:
        """The daemon's records of its pool, and the member of the built-in configuration."""
        return self.path / "pool"


def find_home(explicit: Path | None = None) -> Home:
    """The home to use: `--home`, else CENOTE_HOME, else /var/lib/cenote for root and
    $XDG_DATA_HOME/cenote (~/.local/share/cenote) for others.

    Raises:
        HomeError: the path is too long for the sockets in it.
    """
    if explicit is not None:
        path = explicit
    elif chosen := os.environ.get("CENOTE_HOME"):
        path = Path(chosen)
    elif os.geteuid() == 0:
        path = Path("/var/lib/cenote")
    else:
        data = os.environ.get("XDG_DATA_HOME", "")
        path = (Path(data) if data.startswith("/") else Path.home() / ".local/share") / "cenote"
    home = Home(path.expanduser().absolute())
    for name in (home.control_socket, home.nbd_socket):
        length = len(os.fsencode(name))
        if length > SOCKET_PATH_BYTES_MAX:
            raise HomeError(
                f"path too long for a Unix socket; choose a shorter --home: {name} "
                f"bytes={length} max={SOCKET_PATH_BYTES_MAX}"
            )
    return home


@contextmanager
def hold(home: Home) -> Iterator[None]:
    """Create the home if needed and be its only daemon until the context ends.

    Raises:
        AlreadyRunningError: another daemon holds the home.
        HomeError: the home cannot be created or written.
    """
    try:
        home.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        home.pool_dir.mkdir(mode=0o700, exist_ok=True)
        lock = os.open(home.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HomeError(f"cannot use {home.path} as home: {error.strerror}") from error
    try:
        _lock(home, lock)
        os.truncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())
        yield
    finally:
        # The file stays: removing it would let two daemons lock two files of one name.
        os.close(lock)


def holder(home: Home) -> str | None:
    """The process number of the daemon that holds the home, or None when none does."""
    try:
        lock = os.open(home.lock_file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read_holder(lock)
    finally:
        os.close(lock)
    return None


def _lock(home: Home, lock: int) -> None:
    # A command that calls `holder` takes the lock for an instant, so one refusal proves nothing.
    for _ in range(_LOCK_TRIES):
        with suppress(BlockingIOError):
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(_LOCK_DELAY_S)
    raise AlreadyRunningError(
        f"a daemon already serves {home.path} (process {_read_holder(lock)}); "
        "use it, stop it, or choose another --home"
    )


def _read_holder(lock: int) -> str:
    return os.pread(lock, 32, 0).decode("ascii", "replace").strip() or "unknown"
