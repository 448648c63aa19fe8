"""A value as the user sent it, for messages: in JSON, short, and printable in any terminal or header.

Two kinds of numbers are not what JSON makes of them, and keep their digits: those that no field can take, and those
beside an integer that the nearest double is equal to.
"""

from __future__ import annotations

import json
from typing import Any


class Unreadable(str):
    """A number of the body that is no number of ours (NaN, 1e400, a thousand digits): wrong wherever it stands."""


class Beside(float):
    """A number that no double is, where the nearest one is an integer: the double next to that, and its digits."""

    digits = ""


def shown(value: object) -> str:
    """A value as the user sent it, in JSON, short and printable in any terminal or header."""
    if isinstance(value, Unreadable):
        text = str(value)
    elif isinstance(value, Beside):
        text = value.digits
    elif isinstance(value, list | dict):
        return _shown_in_part(value)
    else:
        try:
            text = json.dumps(value)
        except (TypeError, ValueError, RecursionError):
            text = type(value).__name__
    return _abridged(text)


def _abridged(text: str) -> str:
    return text if len(text) <= 80 else text[:60] + f"… ({len(text)} characters)"


def _shown_in_part(value: list[Any] | dict[str, Any]) -> str:
    """No more is written of it than is shown: it may have millions of elements."""
    text = ""
    try:
        for piece in json.JSONEncoder().iterencode(value):
            text += piece
            if len(text) > 80:
                return text[:60] + f"… ({len(value)} {'elements' if isinstance(value, list) else 'members'})"
    except (TypeError, ValueError, RecursionError):
        return type(value).__name__
    return text


def key_of(key: str) -> str:
    """A key of an object as the user sent it, short and printable."""
    return _abridged(json.dumps(key)[1:-1])
