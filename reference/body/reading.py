"""A request's body, read strictly: its JSON, the names in an object, and single values (LAW.md, section 1).

A boolean is no number, a string is no number, an unknown or repeated key is an error, and every error names the field
and says what is allowed. A key whose value is null is as good as absent, whatever its name and in whichever object.
Which fields there are, and what each may be, is in request.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping
from decimal import Decimal, DecimalException
from difflib import get_close_matches
from typing import Any

from gnomon.reference.body.shown import Beside, Unreadable, key_of, shown
from gnomon.reference.body.strict_json import JsonReader, TooManyValues
from gnomon.reference.errors import InvalidRequest

# ---- JSON, strictly


def parse_json(body: bytes) -> dict[str, Any]:
    """The JSON object of a body. Raises InvalidRequest where it is none.

    Numbers that no field can take (NaN, 1e400, thousands of digits) are left for the fields to refuse by name.
    """
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(None, f"the body is not valid UTF-8: byte {error.start} is wrong") from None
    try:
        value = JsonReader(text, _parse_int, _parse_float, Unreadable).document()
    except json.JSONDecodeError as error:
        raise InvalidRequest(None, f"the body is not valid JSON: {error}") from None
    except RecursionError:
        raise InvalidRequest(None, "the body is nested too deeply") from None
    except TooManyValues as error:
        where = "the body" if error.member is None else key_of(error.member)
        raise InvalidRequest(error.member, f"{where}: {error}") from None
    if not isinstance(value, dict):
        raise InvalidRequest(None, f"the body must be a JSON object, not {shown(value)}")
    return value


def _parse_int(digits: str) -> int | Unreadable:
    return int(digits) if len(digits) <= 40 else Unreadable(digits)


def _parse_float(digits: str) -> float | Unreadable:
    """The nearest float; but a number beside an integer stays beside it, since bounds and special cases are integers:
    0.99999999999999999999 is below 1, and 1e-400 is not 0."""
    if len(digits) > 400 or not math.isfinite(value := float(digits)):
        return Unreadable(digits)
    if value.is_integer():
        try:
            exact = Decimal(digits)
        except DecimalException:  # an exponent of twenty digits
            return Unreadable(digits)
        if exact != value:
            beside = Beside(math.nextafter(value, math.inf if exact > value else -math.inf))
            beside.digits = digits
            return beside
    return value


# ---- reading an object: what of it says something, and whether all of it is known

NAMES_LISTED = 32  # unknown names that a message tells
LONGEST_NAME = 64  # characters; a longer one is near none of ours


def members(sent: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    """What an object says: null is as good as absent. Raises for a key that is there twice or is no Unicode.

    place: of the object in the body, with a point behind it.
    """
    repeated = getattr(sent, "repeated", None)
    if repeated is not None:
        raise InvalidRequest(place + repeated, f"{place}{key_of(repeated)}: this key occurs twice; give it once")
    for key, value in sent.items():
        if value is None and isinstance(key, str) and not _is_unicode(key):
            raise InvalidRequest(place + key, f"{place}{key_of(key)}: a name with a lone surrogate; leave it out")
    return {key: value for key, value in sent.items() if value is not None}


def check_names(given: Mapping[str, Any], known: Collection[str], inner: Mapping[str, Collection[str]]) -> None:
    """Raises for unknown names, with all of them at once and the known one that each is near to, if one is.

    known: the names of this object's members · inner: of those that are objects themselves, the names of theirs.
    """
    unknown = [("", key, known) for key in given if key not in known]
    allowed = [f"the fields are {', '.join(known)}"] if unknown else []
    for name, names in inner.items():
        sent = given.get(name)
        said = members(sent, f"{name}.") if isinstance(sent, dict) else {}
        strange = [(f"{name}.", key, names) for key in said if key not in names]
        unknown += strange
        allowed += [f"{name} has {', '.join(names)}"] if strange else []
    if not unknown:
        return
    listed = unknown[:NAMES_LISTED]  # nothing more is done for each of a million names
    more = len(unknown) - NAMES_LISTED
    first, *others = (place + key_of(key) for place, key, _ in listed)
    message = f"{first}: unknown field"
    if others:
        message += f", and so {'are' if len(others) > 1 else 'is'} {', '.join(others)}"
        message += f" and {more} more" if more > 0 else ""
    near = [
        f"{place}{key_of(key)} is near {ours}"
        for place, key, names in listed
        if (ours := _nearest(str(key), names)) is not None
    ]
    place, key, _ = unknown[0]
    raise InvalidRequest(f"{place}{key}", "; ".join([message, *near, *allowed]))


def _nearest(name: str, known: Collection[str]) -> str | None:
    """Near enough for topP, maxTokens, stops and max_completion_tokens."""
    if len(name) > LONGEST_NAME:
        return None
    found = get_close_matches(name.lower(), [*known], 1, 0.64)
    return found[0] if found else None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# ---- one value: (field's name, JSON value that is not null) → value, or InvalidRequest


def not_allowed(param: str, sent: object, allowed: str) -> InvalidRequest:
    return InvalidRequest(param, f"{param}: {shown(sent)} is not allowed; give {allowed}")


def string(param: str, sent: object, allowed: str = "a string") -> str:
    if not isinstance(sent, str) or isinstance(sent, Unreadable):
        raise not_allowed(param, sent, allowed)
    if not _is_unicode(sent):
        raise not_allowed(param, sent, f"{allowed} without lone surrogates (half of a \\ud83d\\ude00 pair)")
    return sent


def boolean(param: str, sent: object) -> bool:
    if not isinstance(sent, bool):
        raise not_allowed(param, sent, "true or false")
    return sent


LARGEST_FLOAT = 2**53  # of those that count as integers: above it a double may stand for several


def integer(low: int, high: int | None, otherwise: str = "") -> Callable[[str, object], int]:
    """otherwise: what may be given instead, for the message."""
    allowed = f"an integer of at least {low}" if high is None else f"an integer from {low} to {high}"
    allowed += otherwise and f", {otherwise}"

    def read(param: str, sent: object) -> int:
        value = int(sent) if isinstance(sent, float) and sent.is_integer() and abs(sent) <= LARGEST_FLOAT else sent
        if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
            large = isinstance(sent, float) and abs(sent) > LARGEST_FLOAT
            raise not_allowed(param, sent, f"{allowed}; beyond 2^53 without a decimal point" if large else allowed)
        return value

    return read


def number(low: float, high: float) -> Callable[[str, object], float]:
    def read(param: str, sent: object) -> float:
        if isinstance(sent, bool) or not isinstance(sent, int | float) or not low <= sent <= high:
            raise not_allowed(param, sent, f"a number from {low:g} to {high:g}")
        return float(sent)

    return read
