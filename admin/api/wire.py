"""Dataclasses to JSON values and back, for the control API and `--json`."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

T = TypeVar("T")


def encode(value: object) -> Any:
    """`value` in a form for `json.dumps`: dataclasses by field, enums by value, ids as text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    if isinstance(value, UUID | Path):
        return str(value)
    return value


def decode(kind: type[T], value: Any) -> T:
    """Build a `kind` from the JSON value that `encode` makes of one. Unknown keys are ignored, so
    that a newer daemon may send more.

    Raises:
        ValueError: the value does not have the shape of `kind`.
    """
    try:
        return typing.cast(T, _decode(kind, value))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a {kind.__name__}: {error!r}") from error


def _decode(kind: Any, value: Any) -> Any:
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return kind(
            **{
                field.name: _decode(hints[field.name], value[field.name])
                for field in dataclasses.fields(kind)
                if field.name in value or not _has_default(field)
            }
        )
    origin = typing.get_origin(kind)
    if origin is list:
        (item_kind,) = typing.get_args(kind)
        return [_decode(item_kind, item) for item in value]
    if origin is dict:
        _, item_kind = typing.get_args(kind)
        return {str(key): _decode(item_kind, item) for key, item in value.items()}
    if origin in (types.UnionType, typing.Union):
        options = [option for option in typing.get_args(kind) if option is not type(None)]
        return None if value is None else _decode(options[0], value)
    if kind is UUID or (isinstance(kind, type) and issubclass(kind, Enum)):
        return kind(value)
    if not isinstance(value, kind):
        raise TypeError(f"expected {kind.__name__}, got {value!r}")
    return value


def _has_default(field: "dataclasses.Field[Any]") -> bool:
    missing = dataclasses.MISSING
    return field.default is not missing or field.default_factory is not missing
