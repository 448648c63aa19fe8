"""The shape of the house: which folder may import which, and the traps of its layout."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ARROWS = {  # folder → what it may import of gnomon
    "reference": {"reference"},
    "jax_engine": {"reference", "jax_engine"},
    "http": {"reference", "http"},
}
COMPOSITION_ROOT = ROOT / "http" / "cli"


def imported(file: Path) -> set[str]:
    """Every module that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("folder", ARROWS)
def test_imports_follow_the_arrows(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    for file in files:
        allowed = ARROWS[folder] | ({"jax_engine"} if file.parent == COMPOSITION_ROOT else set())
        parts = {name.split(".")[1] for name in imported(file) if name.startswith("gnomon.")}
        assert parts <= allowed, f"{file} imports {parts - allowed}"


OF_A_NAMED_TUPLE = {"_asdict", "_fields", "_make", "_replace"}
OF_OTHER_PROJECTS = {  # private names of Python's and jax's that there is no public way around
    "os._exit",
    "thread._started",
    "compilation_cache._cache",
    "files._path",
}


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_names_of_others(tree: ast.Module) -> set[str]:
    """Private names that a file takes from somewhere else: those it imports, and those of objects that are no `self`,
    unless the file itself has a class or a function with such a name."""
    attributes = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and private(n.attr)]
    of_self = [n for n in attributes if isinstance(n.value, ast.Name) and n.value.id in ("self", "cls")]
    own = {n.attr for n in of_self}
    own |= {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    taken = {ast.unparse(n) for n in attributes if n not in of_self and n.attr not in own | OF_A_NAMED_TUPLE}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            taken |= {f"{node.module}.{alias.name}" for alias in node.names if private(alias.name)}
    return taken - OF_OTHER_PROJECTS


@pytest.mark.parametrize("folder", ARROWS)
def test_no_file_takes_a_private_name_of_another(folder: str) -> None:
    for file in sorted((ROOT / folder).rglob("*.py")):
        taken = private_names_of_others(ast.parse(file.read_text(encoding="utf-8")))
        assert not taken, f"{file.relative_to(ROOT)}: {sorted(taken)}"


def test_a_private_name_of_another_is_found() -> None:
    for line in ("from a import _b", "engine._device.clear()", "job.run._lock = 1"):
        assert private_names_of_others(ast.parse(line))
    own = "class A:\n    def merged(self, other):\n        return self._items + other._items"
    assert not private_names_of_others(ast.parse(own))


def test_the_reference_needs_no_jax_torch_or_server() -> None:
    heavy = {"jax", "jaxlib", "flax", "optax", "torch", "transformers", "starlette", "uvicorn", "typer"}
    for file in (ROOT / "reference").rglob("*.py"):
        assert not {name.split(".")[0] for name in imported(file)} & heavy, file


def test_the_reference_imports_where_jax_is_not_installed() -> None:
    code = "import sys; sys.modules['jax'] = None; sys.modules['jaxlib'] = None; import gnomon.reference"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).anchor)


def test_the_standard_librarys_http_wins_in_the_repository() -> None:
    assert not (ROOT / "http" / "__init__.py").exists()
    code = "import http.client, sys; print(http.client.__file__)"
    seen = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True)
    assert not seen.stdout.startswith(str(ROOT))


def test_the_packages_list_is_the_folders_on_disk() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {file.parent for top in ARROWS for file in (ROOT / top).rglob("*.*") if "__pycache__" not in file.parts}
    on_disk = {"gnomon." + ".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(setuptools["packages"]) == on_disk


def test_no_test_imports_the_source_folders_under_a_second_name() -> None:
    for file in ROOT.glob("tests/**/*.py"):
        firsts = {name.split(".")[0] for name in imported(file)}
        assert not firsts & {"reference", "jax_engine"}, f"{file}: a second copy of the modules"


def test_tests_have_no_init_files() -> None:
    assert not list(ROOT.glob("tests/**/__init__.py"))
