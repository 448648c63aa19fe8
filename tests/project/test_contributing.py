"""CONTRIBUTING.md: the tests of a source file stand in the same folder below tests/."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
WINGS = ("reference", "jax_engine", "http")
STEPS = 3  # from a test to the file by files of ours: a command is two behind its entry


def sources() -> list[str]:
    """Every file of the wings with more than a docstring, without its ending."""
    files = (file for wing in WINGS for file in (ROOT / wing).rglob("*.py"))
    return sorted(
        str(file.relative_to(ROOT).with_suffix(""))
        for file in files
        if len(ast.parse(file.read_text(encoding="utf-8")).body) > 1
    )


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


@cache
def reached(test: Path) -> frozenset[str]:
    """What a test file imports: itself, or in `STEPS` steps by files of ours."""
    known = imported(test)
    for _ in range(STEPS):
        known |= {name for file in map(file_of, known) if file is not None for name in imported(file)}
    return known


def uses(test: Path, source: str) -> bool:
    """Whether a test file imports a source file. A package is imported with any of its modules."""
    module, known = "gnomon." + source.removesuffix("/__init__").replace("/", "."), reached(test)
    return module in known or (source.endswith("__init__") and any(name.startswith(f"{module}.") for name in known))


@pytest.mark.parametrize("source", sources())
def test_a_source_file_is_used_by_a_test_in_the_folder_that_mirrors_its_own(source: str) -> None:
    folder = TESTS / Path(source).parent
    if source.startswith("http/verify/"):
        folder = TESTS / "http" / "verify"  # its cases are judged together
    tests = sorted(folder.glob("test_*.py"))
    assert tests, f"there is no test in {folder.relative_to(ROOT)}"
    assert any(uses(test, source) for test in tests), f"no test in {folder.relative_to(ROOT)} uses {source}.py"


def test_a_test_that_does_not_import_a_file_is_not_taken_for_its_own() -> None:
    assert not uses(TESTS / "reference" / "test_goldens.py", "jax_engine/scheduler")
    assert uses(TESTS / "reference" / "test_goldens.py", "reference/sampler")
