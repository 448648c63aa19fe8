"""Which slow tests a day's run has: a share of them, another one each day, and always those whose subject was touched.

Of many of one kind, which are the cases of one test, the others are marked `weekly` (`share_of_the_day`). Of those in
SUBJECTS the others are left out of a run that was told the day; without TESTS_DAY all are run.

    TESTS_DAY        a number of the day; 0 without it
    TESTS_TOUCHED    paths from the repository's root, between spaces or line ends

So CI drives it:

    TESTS_DAY=$(( $(date +%s) / 86400 )) TESTS_TOUCHED=$(git diff --name-only HEAD~1) python -m pytest -m slow ...
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Collection, Iterable
from typing import Any

import pytest

IS_TOLD = "TESTS_DAY" in os.environ
DAY = int(os.environ.get("TESTS_DAY", "0"))
TOUCHED = frozenset(os.environ.get("TESTS_TOUCHED", "").split())

SUBJECTS: dict[str, tuple[str, ...]] = {
    "tests/http/cli/": ("http/cli/", "reference/system/", "jax_engine/runtime/"),
    "tests/http/page/": ("http/page/", "http/schema/", "reference/request.py", "reference/trace/"),
    "tests/http/process/": ("http/process/", "http/wire.py", "http/run.py"),
    "tests/http/test_interpreter.py": (
        "http/answer.py",
        "http/body.py",
        "http/sse.py",
        "http/trace.py",
        "reference/body/",
    ),
    "tests/http/test_lm_eval.py": ("reference/text/", "reference/completion.py", "reference/response.py"),
    "tests/http/test_nginx.py": ("http/wire.py", "http/framing.py", "http/life.py", "http/run.py"),
    "tests/jax_engine/kernels/test_native.py": ("jax_engine/kernels/", "jax_engine/runtime/"),
    "tests/jax_engine/kernels/test_sanitizers.py": ("jax_engine/kernels/cpu/",),
    "tests/jax_engine/test_sharding.py": ("jax_engine/sharding.py", "jax_engine/model.py", "jax_engine/device.py"),
    "tests/jax_engine/tools/": ("jax_engine/tools/", "jax_engine/engine.py", "jax_engine/device.py"),
    "tests/project/test_mutations.py": ("tests/mutate.py", "tests/mutations/"),
    "tests/reference/body/": ("reference/body/", "reference/request.py", "reference/completion.py"),
    "tests/reference/checkpoint/test_hub.py": ("reference/checkpoint/",),
}
"""How the paths of slow tests begin, and of what they speak besides themselves. What touches anything else still runs a
third of them at once, and the rest in the two days after."""
DAYS = 3


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


def is_for_another_day(test: str, day: int = DAY, touched: Collection[str] = TOUCHED) -> bool:
    """Whether a slow test, by its node's id, is of SUBJECTS, and neither today's nor of a subject that was touched."""
    subjects = [(begins, of) for begins, of in SUBJECTS.items() if test.startswith(begins)]
    return any(not is_touched(begins, *of, paths=touched) for begins, of in subjects) and not is_todays(
        zlib.crc32(test.encode()), DAYS, day
    )
