"""JSON as a request has it, read a little at a time and no further than a request can go.

`json.loads` reads a whole body in one call, which no other thread and no signal interrupts: 8 MiB of empty lists, or
of an object's members, take it seconds, most of them in the garbage collector. Here a call reads one value, or some
thousand integers, and there is an end to how many values a body may have:

    integers in a list      any number: ids of prompts
    any other value         counts one, a list or an object eight; more than MOST_VALUES of them are refused

So a list may have a quarter of a million strings, and an object as many members: far more than a request's. What is
not JSON is refused as `json.loads` refuses it, at the same place.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from json import JSONDecodeError
from json.decoder import scanstring  # type: ignore[attr-defined]  # typeshed leaves it out
from typing import Any

MOST_VALUES = 2**18
CONTAINER = 8  # values that a list or an object counts
MOST_DEPTH = 900
SLICE = 2**15  # characters that one call looks at

SPACE = re.compile(r"[ \t\n\r]*")
NUMBER = re.compile(r"(-?(?:0|[1-9][0-9]*))(\.[0-9]+)?([eE][-+]?[0-9]+)?")
INTEGERS = re.compile(r"(?:-?(?:0|[1-9][0-9]{0,17})[ \t\n\r]*,[ \t\n\r]*)+")  # each with its comma
LITERALS: tuple[tuple[str, Any], ...] = (("null", None), ("true", True), ("false", False))
CONSTANTS = ("NaN", "Infinity", "-Infinity")
OPENED = object()


class TooManyValues(ValueError):
    """The body has more values than any request. `member`: of the outermost object, that was being read."""

    def __init__(self, member: str | None) -> None:
        super().__init__(f"more than {MOST_VALUES} values that are not integers in a list; a list counts {CONTAINER}")
        self.member = member


class Object(dict[str, Any]):
    """A JSON object that remembers a key it was given twice."""

    repeated: str | None = None


class JsonReader:
    """One text. integer, number, constant: what becomes of the digits of a number, and of NaN and the infinities."""

    def __init__(
        self,
        text: str,
        integer: Callable[[str], Any],
        number: Callable[[str], Any],
        constant: Callable[[str], Any],
    ) -> None:
        self.text = text
        self._integer, self._number, self._constant = integer, number, constant
        self._left = MOST_VALUES
        self._open: list[list[Any] | Object] = []  # what is being read, from the outside in
        self._keys: list[str] = []  # of the values that are being read in objects

    def document(self) -> Any:
        """The text's one value. Raises JSONDecodeError, RecursionError or TooManyValues."""
        text, open_ones, i = self.text, self._open, self._space(0)
        if text.startswith("\ufeff"):
            raise JSONDecodeError("Unexpected UTF-8 BOM (decode using utf-8-sig)", text, 0)
        while True:
            value, i = self._begun(i)
            if value is OPENED:
                continue
            while open_ones:  # where the value belongs, and what comes after it
                within = open_ones[-1]
                closing = "]" if isinstance(within, list) else "}"
                self._put(within, value)
                i = self._space(i)
                if not text.startswith(closing, i):
                    if not text.startswith(",", i):
                        raise JSONDecodeError("Expecting ',' delimiter", text, i)
                    i = self._member_at(within, self._space(i + 1))
                    break
                value, i = open_ones.pop(), i + 1
            else:
                i = self._space(i)
                if i != len(text):
                    raise JSONDecodeError("Extra data", text, i)
                return value

    def _begun(self, i: int) -> tuple[Any, int]:
        """The value at i and the place after it; or OPENED, and the place of the first value of a list or object."""
        text = self.text
        empty: list[Any] | Object
        if text.startswith("{", i):
            empty, closing = Object(), "}"
        elif text.startswith("[", i):
            empty, closing = [], "]"
        else:
            return self._scalar(i)
        self._count(CONTAINER)
        if len(self._open) >= MOST_DEPTH:
            raise RecursionError
        i = self._space(i + 1)
        if text.startswith(closing, i):
            return empty, i + 1
        self._open.append(empty)
        return OPENED, self._member_at(empty, i)

    def _member_at(self, within: list[Any] | Object, i: int) -> int:
        """The place of the next value, after a key or after integers, which are read here."""
        text = self.text
        if isinstance(within, list):
            integers = INTEGERS.match(text, i, i + SLICE)
            if integers is None:
                return i
            within += map(int, integers[0].split(",")[:-1])
            return self._space(integers.end())
        if not text.startswith('"', i):
            raise JSONDecodeError("Expecting property name enclosed in double quotes", text, i)
        key, i = scanstring(text, i + 1, True)
        i = self._space(i)
        if not text.startswith(":", i):
            raise JSONDecodeError("Expecting ':' delimiter", text, i)
        self._keys.append(key)
        return self._space(i + 1)

    def _put(self, within: list[Any] | Object, value: Any) -> None:
        if isinstance(within, list):
            within.append(value)
            return
        key = self._keys.pop()
        if key in within and within.repeated is None:
            within.repeated = key
        within[key] = value

    def _space(self, i: int) -> int:
        """The next place that is not white space."""
        while True:
            end = SPACE.match(self.text, i, i + SLICE).end()  # type: ignore[union-attr]  # it matches nothing, too
            if end < i + SLICE:
                return end
            i = end

    def _count(self, values: int) -> None:
        self._left -= values
        if self._left < 0:
            raise TooManyValues(self._keys[0] if self._keys else None)

    def _scalar(self, i: int) -> tuple[Any, int]:
        text = self.text
        self._count(1)
        if text.startswith('"', i):
            return scanstring(text, i + 1, True)
        number = NUMBER.match(text, i)
        if number is not None:
            _, fraction, exponent = number.groups()
            return (self._integer if fraction is None and exponent is None else self._number)(number[0]), number.end()
        for name, value in LITERALS:
            if text.startswith(name, i):
                return value, i + len(name)
        for name in CONSTANTS:
            if text.startswith(name, i):
                return self._constant(name), i + len(name)
        raise JSONDecodeError("Expecting value", text, i)
