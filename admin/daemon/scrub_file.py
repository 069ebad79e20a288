"""`HOME/pool/scrub.json`: how far the scrub of the pool is, and what the last one found."""

import json

import trio

from admin.api.scrub_status import ScrubRecord
from admin.api.wire import decode, encode
from admin.daemon.pool_record import write_durably
from admin.errors import HomeError
from admin.home import Home


class FileKeeper:
    """Keeps it in the home.

    Not in the pool: how far a scrub is says nothing about the pool's data, and must not cost a
    commit; without the file a scrub begins anew, and nothing is lost.
    """

    def __init__(self, home: Home) -> None:
        self._path = home.pool_dir / "scrub.json"

    def load(self) -> ScrubRecord | None:
        """Read the file. A damaged one counts as none.

        Raises:
            HomeError: it is there and cannot be read.
        """
        try:
            return decode(ScrubRecord, json.loads(self._path.read_text("utf-8")))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise HomeError(f"cannot read {self._path}: {error.strerror}") from error
        except ValueError:
            return None

    async def save(self, record: ScrubRecord) -> None:
        """Write the file, in a thread. Raises OSError."""
        await trio.to_thread.run_sync(self._write, record)

    def _write(self, record: ScrubRecord) -> None:
        write_durably(self._path, json.dumps(encode(record)) + "\n")
