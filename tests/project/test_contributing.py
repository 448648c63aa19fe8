"""CONTRIBUTING.md: which test file belongs to which source file."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
PACKAGES = ("reference", "jax_engine", "http")


def rows() -> dict[str, list[str]]:
    """The tests of every source file that has a row, by its path without the ending."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    found: dict[str, list[str]] = {}
    for package, table in re.findall(r"^\| in `(\w+)/` \|.*\n\|---.*\n((?:\|.*\n)+)", text, re.MULTILINE):
        for row in table.splitlines():
            sources, tests = (re.findall(r"`([^`]+)`", cell) for cell in row.strip("|").split("|"))
            for source in sources:
                assert f"{package}/{source}" not in found, f"{package}/{source} has two rows"
                found[f"{package}/{source}"] = tests
    return found


def sources() -> set[str]:
    files = (file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
    files = (file for file in files if len(file.read_text(encoding="utf-8").splitlines()) > 1)  # more than a docstring
    return {str(file.relative_to(ROOT).with_suffix("")) for file in files}


@cache
def imported(file: Path) -> frozenset[str]:
    """The modules that a file imports, and the names it takes from them as if they were modules; those too that the
    code of a process imports which it starts."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names |= set(re.findall(r"^(?:import|from) (gnomon[\w.]+)", node.value, re.MULTILINE))
    return frozenset(names)


def file_of(module: str) -> Path | None:
    top, *rest = module.split(".")
    if top not in ("gnomon", "helpers") or not rest:
        return None
    path = ROOT.joinpath(*rest) if top == "gnomon" else TESTS.joinpath("helpers", *rest)
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def file_of_test(test: str) -> Path:
    return next(TESTS.rglob(f"test_{test}.py"))


def uses(test: str, source: str) -> bool:
    """Whether a test file imports a source file: itself, or in three steps by files of ours. A package is imported with
    any of its modules."""
    module = "gnomon." + source.removesuffix("/__init__").replace("/", ".")
    known = set(imported(file_of_test(test)))
    for _ in range(3):
        known |= {name for file in map(file_of, known) if file is not None for name in imported(file)}
    return module in known or (source.endswith("__init__") and any(name.startswith(f"{module}.") for name in known))


def test_every_source_file_has_a_row_and_every_row_a_source_file() -> None:
    without, gone = sources() - rows().keys(), rows().keys() - sources()
    assert not without, f"CONTRIBUTING.md, “Which test belongs to which file”, has no row for {sorted(without)}"
    assert not gone, f"CONTRIBUTING.md has rows for files that are not there: {sorted(gone)}"


@pytest.mark.parametrize("source", sorted(sources()))
def test_the_tests_of_a_row_exist_and_use_the_file(source: str) -> None:
    tests = rows().get(source, [])
    missing = [test for test in tests if len(list(TESTS.rglob(f"test_{test}.py"))) != 1]
    assert not missing, f"there is no {missing}, or more than one"
    strangers = [test for test in tests if not uses(test, source)]
    assert not strangers, f"{strangers} do not import {source}"
    assert tests


def test_a_test_that_does_not_import_a_file_is_not_taken_for_its_own() -> None:
    assert not uses("goldens", "jax_engine/scheduler")
    assert uses("goldens", "reference/sampler")


def test_the_rows_are_short() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.split("## Which test belongs to which file")[1].split("\n## A notebook")[0]
    assert max(map(len, section.splitlines())) <= 100
