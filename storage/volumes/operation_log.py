"""Operations of the catalogue on their way through the log.

The catalogue is kept twice: `live` is what clients see, `durable` what the newest durable commit
says. An operation changes the first at once and the second when its commit is durable, so a
checkpoint always finds the catalogue of exactly one commit (R8).
"""

from collections.abc import Callable, Iterable

from blockdev.errors import DeviceError, NoSpaceError
from storage.catalogue import operations
from storage.catalogue.catalogue import Catalogue
from storage.catalogue.operations import Operation
from storage.errors import DamagedError
from storage.format.values import decode, encode
from storage.log.intake import Intake
from storage.map.blockmap import BlockMap
from storage.map.follow import follow, make_layers
from storage.volumes.registry import Registry


class OperationLog:
    """Logs operations, and applies them to both catalogues.

    Args:
        fail: ends the pool with an error; nothing is logged after it.
    """

    def __init__(
        self, live: Catalogue, durable: Catalogue, blockmap: BlockMap, registry: Registry,
        intake: Intake, fail: Callable[[DeviceError], None],
    ):  # fmt: skip
        self._live = live
        self._durable = durable
        self._map = blockmap
        self._registry = registry
        self._intake = intake
        self._fail = fail

    async def carry_out(self, operation: Operation) -> None:
        """Apply an operation to the live catalogue, log it, and wait until it is durable.

        A cancelled call may or may not take effect.

        Raises:
            NoSpaceError: the log has no room; the operation is carried out as soon as it has.
            DamagedError: the operation does not fit the catalogue, which ends the pool.
            DeviceError: the pool failed.
        """
        # From here to the wait nothing suspends: the operation is one point in the log.
        self._intake.refuse_operations()
        try:
            made = operations.apply(self._live, operation).made
        except DamagedError as error:  # a mistake of ours must not get into the log
            self._fail(error)
            raise
        buffer = self._intake.put_operation(encode(operation))
        make_layers(made, self._live, self._map)
        self._registry.applied(operation)
        try:
            await self._intake.wait(buffer)
        except NoSpaceError as error:
            raise NoSpaceError(
                f"no room to log it yet, it is carried out as soon as there is: {error}"
            ) from error

    def became_durable(self, packed: Iterable[bytes]) -> None:
        """Apply operations of a durable commit to the durable catalogue and to the map."""
        for operation in packed:
            follow(operations.apply(self._durable, decode(operation)), self._map)
