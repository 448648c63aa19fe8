"""Which of many slow tests of one kind a day's run has: a share of them, another one each day, and always those whose
subject was touched. The others are marked `weekly`.

    TESTS_DAY        a number of the day; 0 without it
    TESTS_TOUCHED    paths from the repository's root, between spaces or line ends

So CI drives it:

    TESTS_DAY=$(( $(date +%s) / 86400 )) TESTS_TOUCHED=$(git diff --name-only HEAD~1) python -m pytest -m slow ...
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from typing import Any

import pytest

DAY = int(os.environ.get("TESTS_DAY", "0"))
TOUCHED = frozenset(os.environ.get("TESTS_TOUCHED", "").split())


def is_touched(*beginnings: str, paths: Collection[str] = TOUCHED) -> bool:
    """Whether a path that begins in one of these ways was touched: `http/` is all of that folder."""
    return any(path.startswith(beginnings) for path in paths)


def is_todays(number: int, days: int, day: int = DAY) -> bool:
    """Whether the test of this number, of a kind that takes so many days, is one of the day's."""
    return number % days == day % days


def share_of_the_day(values: Iterable[Any], days: int, always: Iterable[Any] = (), day: int = DAY) -> list[Any]:
    """A parameter for each value, with the mark `slow` if it is one of today's or of those that are always run, else
    with `weekly`."""
    kept = frozenset(always)
    return [
        pytest.param(value, marks=pytest.mark.slow if value in kept or is_todays(i, days, day) else pytest.mark.weekly)
        for i, value in enumerate(values)
    ]
