"""`HOME/pool/scrub.json`: the progress and the findings of the pool's scrubs."""

import json

import trio

from admin.api.scrub_status import ScrubRecord
from admin.api.wire import decode, encode
from admin.daemon.pool_record import write_durably
from admin.errors import HomeError
from admin.home import Home


class FileKeeper:
    """Keeps the record of scrubs in the home.

    Not in the pool, where each save would cost a commit. If the file is lost, the scrub begins
    anew; no data depends on it.
    """

    def __init__(self, home: Home) -> None:
        self._path = home.pool_dir / "scrub.json"

    def load(self) -> ScrubRecord | None:
        """Read the record; None when the file is absent or damaged.

        Raises:
            HomeError: the file exists and cannot be read.
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
        """Replace the file, in a thread. Raises OSError."""
        await trio.to_thread.run_sync(self._write, record)

    def _write(self, record: ScrubRecord) -> None:
        write_durably(self._path, json.dumps(encode(record)) + "\n")
