"""Opens volumes and snapshots as block devices."""

from storage.log.intake import Intake
from storage.map.extents import Extents
from storage.map.reader import Reader
from storage.volumes.contexts import Contexts
from storage.volumes.quota import Quotas
from storage.volumes.registry import Registry
from storage.volumes.volume import Volume, VolumeState


class Exports:
    """The block devices of one pool, by name."""

    def __init__(
        self, registry: Registry, intake: Intake, reader: Reader, extents: Extents,
        contexts: Contexts, quotas: Quotas,
    ):  # fmt: skip
        self._registry = registry
        self._intake = intake
        self._reader = reader
        self._extents = extents
        self._contexts = contexts
        self._quotas = quotas

    def open(self, name: str) -> Volume:
        """A handle of a volume `NAME`, or of a snapshot `NAME@SNAP`, read-only.

        Raises:
            NotFoundError: there is none of that name.
        """
        state, read_only = self._registry.open(name)
        return self._handle(state, read_only=read_only)

    def open_arrival(self, name: str) -> Volume:
        """A handle of a volume that a snapshot is being received into. Raises as `open`."""
        state, _ = self._registry.open(name, arriving=True)
        return self._handle(state, read_only=False)

    def _handle(self, state: VolumeState, *, read_only: bool) -> Volume:
        return Volume(
            state, self._intake, self._reader, self._extents, self._contexts, self._quotas,
            read_only=read_only, on_close=lambda: self._registry.closed(state),
        )  # fmt: skip
