"""What a red golden vector says: which vector, which field, both values, and the unit tests that know why it is so."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

MOST_SHOWN = 6
TESTS = Path(__file__).resolve().parents[1]


class Why(NamedTuple):
    """The unit tests that know why a field has its value: its file, and a pattern for its place in there."""

    file: str
    field: str
    tests: tuple[str, ...]


WHY: tuple[Why, ...] = (
    Why("threefry.json", r"gumbel", ("test_sampler.py", "test_goldens.py")),
    Why("threefry.json", r"", ("test_prng.py", "test_goldens.py")),
    Why("sampler.json", r"\.noise\b", ("test_prng.py", "test_sampler.py", "test_goldens.py")),
    Why("sampler.json", r"^large\[\d+\]\.logits", ("test_default_model.py", "test_parity_transformers.py")),
    Why("sampler.json", r"", ("test_sampler.py", "test_goldens.py")),
    Why("tokens.json", r"^texts\b", ("test_tokenizer.py", "test_tokenizer_files.py")),
    Why("tokens.json", r"", ("test_tokenizer.py",)),
    Why("requests.json", r"\.(status|error)\b", ("test_request.py", "test_service.py")),
    Why("requests.json", r"\.(text_offset|starts)\b", ("test_echo.py", "test_completion.py")),
    Why("requests.json", r"\.(token_logprobs|top_logprobs|mean_logprob)\b", ("test_logprobs.py", "test_echo.py")),
    Why("requests.json", r"\.(prompt_ids|tokens)\b", ("test_prompt.py", "test_tokenizer.py")),
    Why("requests.json", r"\.usage\b", ("test_completion.py", "test_best_of.py")),
    Why("requests.json", r"\.finish_reason\b", ("test_stop.py", "test_completion.py")),
    Why("requests.json", r"\.(candidates|text)\b", ("test_goldens.py", "test_default_model.py", "test_stop.py")),
    Why("requests.json", r"", ("test_completion.py", "test_default_model.py")),
)
"""In the order in which they are looked at: the first that fits a field is its."""


class Change(NamedTuple):
    """A value that is another one. vector: the name of the vector it stands in · field: its place in the file."""

    vector: str
    field: str
    stored: Any
    made: Any

    def __str__(self) -> str:
        named = f" of “{self.vector}”" if self.vector else ""
        return f"{self.field}{named}: stored {_short(self.stored)}, now {_short(self.made)}"


def changes(stored: Any, made: Any, digits: float, field: str = "", vector: str = "") -> Iterator[Change]:
    """Where two documents differ: in floats by more than `digits` of their size, in anything else at all. Lists are
    told by the first of their places that differs."""
    if isinstance(stored, float) and isinstance(made, float):
        if not math.isclose(stored, made, rel_tol=digits, abs_tol=digits):
            yield Change(vector, field, stored, made)
    elif type(stored) is not type(made):
        yield Change(vector, field, stored, made)
    elif isinstance(stored, dict):
        vector = stored.get("name", vector) if isinstance(stored.get("name"), str) else vector
        if list(stored) != list(made):
            yield Change(vector, f"{field} (names of members)", list(stored), list(made))
        for name in (name for name in stored if name in made):
            yield from changes(stored[name], made[name], digits, f"{field}.{name}".lstrip("."), vector)
    elif isinstance(stored, list):
        if len(stored) != len(made):
            yield Change(vector, f"{field} (number of entries)", len(stored), len(made))
        for place, (one, other) in enumerate(zip(stored, made, strict=False)):
            yield from changes(one, other, digits, f"{field}[{place}]", vector)
    elif stored != made:
        yield Change(vector, field, stored, made)


def knowing_tests(file: str, field: str) -> tuple[str, ...]:
    """Their paths below tests/."""
    names = next(why.tests for why in WHY if why.file == file and re.search(why.field, field))
    return tuple(map(_place, names))


@cache
def _place(name: str) -> str:
    return str(next(TESTS.rglob(name)).relative_to(TESTS))


def report(file: str, found: Sequence[Change]) -> str:
    """What a reader of a red test needs: the first changes in words, and what to run before anything else."""
    vectors = list(dict.fromkeys(change.vector for change in found))
    shown = {change.vector: change for change in reversed(found)}  # of each vector the first
    tests = dict.fromkeys(test for change in found for test in knowing_tests(file, change.field))
    lines = [f"{file}: {len(found)} values differ, in {len(vectors)} vectors; the first of each:"]
    lines += [f"  {shown[vector]}" for vector in vectors[:MOST_SHOWN]]
    lines += [f"  … and {len(vectors) - MOST_SHOWN} vectors more"] if len(vectors) > MOST_SHOWN else []
    lines += [
        "These tests know why it is as stored. Run them first; what they say is the cause:",
        f"  python -m pytest {' '.join(f'tests/{test}' for test in tests)}",
        "If they are green, the law, the model or the tokenizer has changed on purpose, or should not have:",
        "reference/golden/README.md, “When a golden vector is red”.",
    ]
    return "\n".join(lines)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else text[:119] + "…"
