"""Entries of a model's JSON files, read one by one: of the right type and in a sane range, or an error naming them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gnomon.reference.request import shown

Entries = Mapping[str, Any]

LARGEST = 2**24  # of any size in a config: beyond every model


class CheckpointError(ValueError):
    """A model directory that cannot be loaded, with the reason."""


class UnsupportedModel(CheckpointError):
    """A sound checkpoint of a model this version does not run."""


def read_json(path: Path, missing: dict[str, Any] | None = None) -> dict[str, Any]:
    """The JSON object in a file; `missing`, if given, where there is no such file. Raises CheckpointError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if missing is not None:
            return missing
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return value


def size(raw: Entries, name: str, default: int | None = None, most: int = LARGEST) -> int:
    value = raw.get(name)
    if value is None:
        if default is None:
            raise CheckpointError(f"the entry {name} is missing")
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise CheckpointError(f"{name} is {shown(value)}, not an integer from 1 to {most}")
    return value


def positive(raw: Entries, name: str, default: float | None = None) -> float:
    value = raw.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
        raise CheckpointError(f"{name} is {shown(value)}, not a positive number")
    return float(value)


def positive_or_none(raw: Entries, name: str) -> float | None:
    return None if raw.get(name) is None else positive(raw, name)


def positives(raw: Entries, name: str, count: int) -> list[float]:
    values = raw.get(name)
    if not isinstance(values, list) or len(values) != count:
        raise CheckpointError(f"{name} is {shown(values)}, not a list of {count} numbers")
    return [positive({name: value}, name) for value in values]


def word(raw: Entries, name: str, default: str) -> str:
    value = raw.get(name, default)
    if not isinstance(value, str):
        raise CheckpointError(f"{name} is {shown(value)}, not a string")
    return value


def flag(raw: Entries, name: str, default: bool) -> bool:
    value = raw.get(name, default)
    if not isinstance(value, bool):
        raise CheckpointError(f"{name} is {shown(value)}, not true or false")
    return value


def token_id(name: str, value: Any, vocab_size: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < vocab_size:
        raise CheckpointError(f"{name} is {shown(value)}, not a token id below the vocabulary's size, {vocab_size}")
    return value


def mapping(raw: Entries, name: str) -> Entries:
    value = raw.get(name)
    if value is not None and not isinstance(value, dict):
        raise CheckpointError(f"{name} is {shown(value)}, not an object")
    return value or {}
