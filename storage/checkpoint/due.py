"""Decides when a checkpoint is due: by cost of replay, by age, or by changes that wait for it.

The cost counts records and commits after the last checkpoint; a cost of 1 makes one due.
"""

from collections.abc import Callable

import trio

from storage.checkpoint.checkpointer import Checkpointer
from storage.map.blockmap import BlockMap
from storage.members.roster import Roster
from storage.settings import PoolSettings


class Due:
    """Decides when the next checkpoint is written.

    Args:
        commits: how many commits were logged since the pool was opened.
        replayed: how many commits opening replayed, after the newest checkpoint.
    """

    def __init__(
        self, settings: PoolSettings, blockmap: BlockMap, checkpointer: Checkpointer,
        roster: Roster, commits: Callable[[], int], replayed: int,
    ):  # fmt: skip
        self._settings = settings
        self._map = blockmap
        self._checkpointer = checkpointer
        self._roster = roster
        self._commits = commits
        self._commits_then = -replayed
        self._written_at = trio.current_time()
        self._copies_added = False

    def copies_added(self) -> None:
        """Note that segments got copies that no checkpoint records yet."""
        self._copies_added = True

    def begun(self) -> int:
        """Note that a checkpoint begins; returns the commits so far, for `written`."""
        self._copies_added = False
        return self._commits()

    def written(self, commits: int) -> None:
        """Note that the checkpoint that began after so many commits is written."""
        self._commits_then = commits
        self._written_at = trio.current_time()

    def replay_cost(self) -> float:
        """The cost of a replay if the daemon died now; 1 makes a checkpoint due."""
        records = self._map.records_pending / self._settings.checkpoint_records
        return records + self._commits_since() / self._settings.checkpoint_commits

    def is_due(self) -> bool:
        """Whether a checkpoint is to be written now."""
        age = trio.current_time() - self._written_at
        is_old = age >= self._settings.checkpoint_interval_s
        return (
            self.replay_cost() >= 1
            or self._checkpointer.layers_left
            or (is_old and (self._commits_since() > 0 or bool(self._checkpointer.cooling)))
            or bool(self._roster.superblock.jumps)
            or self._copies_added
        )

    def _commits_since(self) -> int:
        return self._commits() - self._commits_then
