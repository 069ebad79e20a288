"""The exit statuses of `cenote`, collected from the error classes so that they cannot drift."""

import inspect
from types import ModuleType

import admin.errors
import blockdev.errors
import storage.errors

_PLAIN = {
    0: ("", "All is well."),
    1: ("", "Damage: `check` found some, `scrub` could not repair all, or a copy differs."),
}


def exit_codes() -> dict[int, tuple[str, str]]:
    """Every exit status in order, with the name of its error class and its meaning."""
    codes = dict(_PLAIN)
    for module in (admin.errors, blockdev.errors, storage.errors):
        for kind in _errors(module):
            code = kind.__dict__.get("exit_code")
            if isinstance(code, int) and code not in codes:
                codes[code] = (kind.__name__, (inspect.getdoc(kind) or "").splitlines()[0])
    codes[admin.errors.UsageError.exit_code] = (
        admin.errors.UsageError.__name__,
        inspect.getdoc(admin.errors.UsageError) or "",
    )
    return dict(sorted(codes.items()))


def _errors(module: ModuleType) -> list[type]:
    return [
        kind
        for kind in vars(module).values()
        if inspect.isclass(kind)
        and issubclass(kind, Exception)
        and kind.__module__ == module.__name__
    ]
