"""Entries of a model's JSON files, read one by one: of the right type and in a sane range, or an error naming them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gnomon.reference.body.shown import shown
from gnomon.reference.checkpoint.errors import CheckpointError

Entries = Mapping[str, Any]

LARGEST = 2**24  # of any size in a config: beyond every model


def size(raw: Entries, name: str, default: int | None = None, most: int = LARGEST, least: int = 1) -> int:
    value = raw.get(name)
    if value is None:
        if default is None:
            raise CheckpointError(f"the entry {name} is missing")
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise CheckpointError(f"{name} is {shown(value)}, not an integer from {least} to {most}")
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


def switch(raw: Entries, name: str, default: bool) -> bool:
    value = raw.get(name, default)
    if not isinstance(value, bool):
        raise CheckpointError(f"{name} is {shown(value)}, not true or false")
    return value


def reachable_ids(name: str, value: Any, vocab_size: int, file: str, warn: Callable[[str], None]) -> frozenset[int]:
    """The token ids of an entry: an integer, a list of them, or null. One outside the vocabulary (a class's default
    beside a small one, or −1 for none) can never be sampled: it is left out, and told to `warn`."""
    ids = [] if value is None else value if isinstance(value, list) else [value]
    for v in ids:
        if isinstance(v, bool) or not isinstance(v, int):
            raise CheckpointError(f"{name} is {shown(v)}, not a token id or a list of them")
    out = [v for v in ids if not 0 <= v < vocab_size]
    if out:
        what = shown(out[0] if len(out) == 1 else out)
        warn(f"{file} has {name} {what}, but the vocabulary has {vocab_size} ids: ignored")
    return frozenset(v for v in ids if 0 <= v < vocab_size)


def mapping(raw: Entries, name: str) -> Entries:
    value = raw.get(name)
    if value is not None and not isinstance(value, dict):
        raise CheckpointError(f"{name} is {shown(value)}, not an object")
    return value or {}
