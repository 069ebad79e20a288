"""What `cenote scrub` returns."""

from dataclasses import dataclass
from typing import Any

from admin.api.scrub_status import ScrubInfo
from admin.api.wire import encode
from admin.reports.base import Report


@dataclass(frozen=True, slots=True)
class ScrubReport(Report):
    """The scrub that runs or ran last."""

    scrub: ScrubInfo

    @property
    def exit_code(self) -> int:
        """1 when it found damage that it could not repair."""
        current = self.scrub.current
        result = None if current is None else current.result
        return int(result is not None and result.lost + result.unrepaired > 0)

    def json_value(self) -> Any:
        """The fields."""
        return encode(self.scrub)
