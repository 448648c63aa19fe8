"""SECURITY.md's table says every bound of the server: with its true default, its answer and a test that exists."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from gnomon.http.settings import LIMITS, TIMES, AuthSettings, Settings
from gnomon.reference.system.options import Option, options

ROOT = Path(__file__).resolve().parents[2]
NONE = {"max_running": "what the engine makes use of"}
"""What is said of a default that is none."""

BOUNDS: tuple[Option, ...] = (
    *(row for row in options(Settings) if row.group in (LIMITS, TIMES)),
    *(row for row in options(AuthSettings, "auth_") if row.type in (int, float)),
)


class Bound(NamedTuple):
    """A row of the table."""

    name: str
    default: str
    answer: str
    tests: str


def table() -> list[Bound]:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    part = text.split("\n## Every bound\n")[1].split("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    assert lines[0] == "| bound | default | its answer | test |"
    return [Bound(*(cell.strip() for cell in line.strip("|").split(" | "))) for line in lines[2:]]


def written(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def bounds_by_first_word() -> dict[str, Bound]:
    rows = {re.match(r"`?([^`:]+)`?", row.name)[1]: row for row in table()}  # type: ignore[index]
    assert len(rows) == len(table()), "a bound stands twice"
    return rows


@pytest.mark.parametrize("row", BOUNDS, ids=lambda row: row.flag)
def test_every_option_that_bounds_something_has_a_row_with_its_default(row: Option) -> None:
    rows = bounds_by_first_word()
    assert row.flag in rows, f"SECURITY.md's table of every bound has no row for {row.flag}: {row.help}"
    default = NONE[row.name] if row.default is None else written(row.default)
    assert rows[row.flag].default == default, row.flag


def test_the_table_names_no_option_that_there_is_not() -> None:
    named = {name for name in bounds_by_first_word() if name.startswith("--")}
    assert named == {row.flag for row in BOUNDS}


def test_what_is_fixed_in_the_code_stands_there_with_its_value() -> None:
    fixed = 0
    for row in table():
        found = re.match(r"`([A-Z_]+)` in `([a-z_/]+)\.py`", row.name)
        if found is None:
            continue
        module = importlib.import_module("gnomon." + found[2].replace("/", "."))
        assert written(getattr(module, found[1])) == row.default, row.name
        fixed += 1
    assert fixed >= 12


@pytest.mark.parametrize("row", table(), ids=lambda row: row.name[:40])
def test_every_bound_has_an_answer_and_a_test_of_its_own(row: Bound) -> None:
    assert row.answer
    named = re.findall(r"`([\w/]*test_\w+\.py)::(\w+)`", row.tests)
    assert named, row.name
    for file, function in named:
        tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
        functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert function in functions, f"{row.name}: {file} has no {function}"
