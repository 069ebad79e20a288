"""Checks names, sizes, labels, limits and other notes that users give."""

import re
from collections.abc import Mapping

from storage.catalogue.records import Notes
from storage.errors import InvalidArgumentError
from storage.format.entry import BLOCK_BYTES

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,126}")
"""Safe in a file name, in an NBD URI and next to the `@` of a snapshot."""

LABELS_MAX = 32
LABEL_BYTES_MAX = 256
DESCRIPTION_BYTES_MAX = 1024
"""Room for a sentence and a few keys; the catalogue is kept in memory and in each checkpoint."""

LIMIT_MAX = 1 << 50
"""Requests or bytes per second: far more than any device, far less than floats hold exactly."""

VOLUME_BYTES_MAX = BLOCK_BYTES << 40


def check_name(name: str, what: str) -> str:
    """Return the name; `what` is the kind of thing that it names, for the message.

    Raises:
        InvalidArgumentError: the name is not acceptable; the message says which names are.
    """
    if not NAME.fullmatch(name):
        raise InvalidArgumentError(
            f"bad {what} name {name[:140]!r}: use 1 to 127 letters, digits and . _ + -, "
            "beginning with a letter or a digit"
        )
    return name


def check_size(size_bytes: int) -> int:
    """Return the size of a volume: whole blocks, up to 4 PiB. Raises as `check_name`."""
    if size_bytes <= 0:
        raise InvalidArgumentError(f"a volume cannot have {size_bytes} bytes: name a size above 0")
    if size_bytes > VOLUME_BYTES_MAX:
        raise InvalidArgumentError(
            f"{size_bytes} bytes are too many: a volume has at most {VOLUME_BYTES_MAX} (4 PiB)"
        )
    if size_bytes % BLOCK_BYTES:
        rounded_up = -(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES
        raise InvalidArgumentError(
            f"{size_bytes} bytes are not a multiple of {BLOCK_BYTES}: try {rounded_up}"
        )
    return size_bytes


def check_notes(notes: Mapping[str, object], known: Notes) -> None:
    """Check notes that a user sets on a volume or a snapshot. Raises as `check_name`.

    Args:
        notes: any of `description`, `labels` (an empty value removes a label), `protected`,
            `limits` and `space` (a 0 removes a limit or size).
        known: the notes that the volume or snapshot has.
    """
    description, labels = notes.get("description", ""), notes.get("labels", {})
    if not _is_text(description, DESCRIPTION_BYTES_MAX):
        raise InvalidArgumentError(
            f"bad description: use at most {DESCRIPTION_BYTES_MAX} bytes of printable text"
        )
    if not isinstance(labels, dict) or not isinstance(notes.get("protected", False), bool):
        raise InvalidArgumentError("labels are names with values, protected is true or false")
    check_labels(labels)
    if len({*known.labels, *labels}) > LABELS_MAX:
        raise InvalidArgumentError(f"too many labels: there may be {LABELS_MAX}")
    limits = notes.get("limits", {})
    if not isinstance(limits, dict) or not all(map(_is_limit, limits.items())):
        raise InvalidArgumentError(
            "bad limits: requests_per_s, bytes_per_s and burst_s are numbers from 0, which takes a "
            f"limit away, to {LIMIT_MAX:g}"
        )
    space = notes.get("space", {})
    if not isinstance(space, dict) or not all(map(_is_size, space.items())):
        raise InvalidArgumentError(
            "bad reservation or cap: reserve_bytes and cap_bytes are whole numbers from 0, which "
            f"takes one away, to {VOLUME_BYTES_MAX}"
        )
    if unknown := notes.keys() - {"description", "labels", "protected", "limits", "space"}:
        raise InvalidArgumentError(f"unknown notes: {', '.join(sorted(unknown))}")


def check_labels(labels: Mapping[str, object]) -> None:
    """Check names and values of labels. Raises as `check_name`."""
    for key, value in labels.items():
        if not NAME.fullmatch(str(key)) or not _is_text(value, LABEL_BYTES_MAX):
            raise InvalidArgumentError(
                f"bad label {str(key)[:140]!r}: its name is like that of a volume, its value at "
                f"most {LABEL_BYTES_MAX} bytes of printable text"
            )


def _is_limit(item: tuple[object, object]) -> bool:
    name, value = item
    kinds = (int, float) if name == "burst_s" else (int,)
    return (
        name in ("requests_per_s", "bytes_per_s", "burst_s")
        and isinstance(value, kinds)
        and not isinstance(value, bool)
        and 0 <= value <= LIMIT_MAX
    )


def _is_size(item: tuple[object, object]) -> bool:
    name, value = item
    return (
        name in ("reserve_bytes", "cap_bytes") and type(value) is int
        and 0 <= value <= VOLUME_BYTES_MAX
    )  # fmt: skip


def _is_text(value: object, bytes_max: int) -> bool:
    return isinstance(value, str) and value.isprintable() and len(value.encode()) <= bytes_max
