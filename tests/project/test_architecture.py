"""The shape of the house: which folder may import which, and the traps of its layout."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ARROWS = {  # folder → what it may import of gnomon
    "reference": {"reference"},
    "jax_engine": {"reference", "jax_engine"},
    "http": {"reference", "http"},
}
COMPOSITION_ROOT = ROOT / "http" / "cli"
BESIDE = {  # folders beside a wing's line → who may import them, besides themselves
    "reference/trace": ("reference/__init__.py", "http/trace.py", "http/schema/", "http/cli/"),
    "reference/golden": ("http/verify/", "http/cli/"),
    "jax_engine/tools": ("http/cli/",),
    "jax_engine/training": (),
}
TABLES = {"reference/checkpoint/families.py", "http/settings.py"}  # rows, and little else: as long as they need be
MODELS = ("reference/model.py", "reference/model_config.py", "reference/transformer.py")
MIRRORS = {  # twins: the same names on purpose
    frozenset({*MODELS, "jax_engine/model.py", "jax_engine/kernels/xla.py"}),
    frozenset({"reference/sampler.py", "jax_engine/sampler.py"}),
    frozenset({"reference/prng.py", "jax_engine/sampler.py"}),
    frozenset({"reference/engine.py", "jax_engine/engine.py"}),
}
EVERYWHERE = {"T", "CASES", "log", "logger", "main"}  # names that each file may have for its own


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


@cache
def modules() -> dict[str, Path]:
    """The project's modules, by their names."""
    found = {}
    for top in ARROWS:
        for file in sorted((ROOT / top).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            found[".".join(("gnomon", *parts)).removesuffix(".__init__")] = file
    return found


def imports_of_ours(file: Path) -> Iterator[tuple[str, str | None]]:
    """The modules of ours that a file imports, for type checking too, each with the name that it takes from there."""
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names if alias.name in modules())
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                if f"{node.module}.{alias.name}" in modules():
                    yield f"{node.module}.{alias.name}", None
                elif node.module in modules():
                    yield node.module, alias.name


def imported(file: Path) -> set[str]:
    """Every module that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(parsed(file)):
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


@pytest.mark.slow
def test_no_test_imports_the_source_folders_under_a_second_name() -> None:
    for file in ROOT.glob("tests/**/*.py"):
        firsts = {name.split(".")[0] for name in imported(file)}
        assert not firsts & {"reference", "jax_engine"}, f"{file}: a second copy of the modules"


def test_tests_have_no_init_files() -> None:
    assert not list(ROOT.glob("tests/**/__init__.py"))


# ---- the shape of the house


def lines_of(file: Path) -> int:
    return len(file.read_text(encoding="utf-8").splitlines())


def test_no_source_file_is_longer_than_500_lines_but_tables_of_rows() -> None:
    sizes = {str(file.relative_to(ROOT)): lines_of(file) for file in modules().values()}
    assert {name: size for name, size in sizes.items() if size > 500 and name not in TABLES} == {}
    assert sizes.keys() >= TABLES


def test_no_part_of_the_page_is_longer_than_350_lines() -> None:
    parts = [file for file in (ROOT / "http" / "page").iterdir() if file.suffix in (".html", ".css", ".js")]
    assert parts
    assert {file.name: lines_of(file) for file in parts if lines_of(file) > 350} == {}


def circles(arrows: dict[str, set[str]]) -> list[set[str]]:
    """The modules that come back to themselves, with those on their way."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        ahead = list(arrows[start])
        while ahead:
            if (here := ahead.pop()) not in seen:
                seen.add(here)
                ahead += arrows[here]
        return seen

    beyond = {name: reached(name) for name in arrows}
    found: list[set[str]] = []
    for name in arrows:
        circle = {other for other in beyond[name] if name in beyond[other]}
        if circle and circle not in found:
            found.append(circle)
    return found


def test_no_module_imports_itself_by_way_of_others() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [{"b", "c"}]
    arrows = {name: {to for to, _ in imports_of_ours(file) if to != name} for name, file in modules().items()}
    assert circles(arrows) == []


def verify_and_the_server(file: Path) -> set[str]:
    """What a file imports from the other side: `gnomon verify` knows no server, and no server knows it."""
    judge = ROOT / "http" / "verify"
    ours = {to for to, _ in imports_of_ours(file) if to.startswith("gnomon.http.")}
    if file.is_relative_to(judge):
        return {to for to in ours if not to.startswith("gnomon.http.verify")}
    return {to for to in ours if to.startswith("gnomon.http.verify")}


def test_verify_and_the_server_import_nothing_of_each_other() -> None:
    files = [file for file in (ROOT / "http").rglob("*.py") if not file.is_relative_to(COMPOSITION_ROOT)]
    crossed = {str(file.relative_to(ROOT)): verify_and_the_server(file) for file in files}
    assert {name: across for name, across in crossed.items() if across} == {}


def test_nothing_but_the_command_line_imports_the_command_line() -> None:
    for file in modules().values():
        if not file.is_relative_to(COMPOSITION_ROOT):
            assert not {to for to, _ in imports_of_ours(file) if to.startswith("gnomon.http.cli")}, file


@pytest.mark.parametrize("folder", BESIDE)
def test_no_file_of_the_line_imports_what_is_beside_it(folder: str) -> None:
    prefix = "gnomon." + folder.replace("/", ".")
    users = {
        str(file.relative_to(ROOT))
        for file in modules().values()
        for to, _ in imports_of_ours(file)
        if to == prefix or to.startswith(f"{prefix}.")
    }
    assert {user for user in users if not user.startswith((f"{folder}/", *BESIDE[folder]))} == set()


def public_names(file: Path) -> Iterator[tuple[str, bool]]:
    """The names that a file binds at its top, each with whether it is a constant."""
    for node in parsed(file).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names, constant = [node.name], False
        elif isinstance(node, ast.Assign):
            bound = [name for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)]
            names = [name.id for name in bound]
            constant = all(name.isupper() for name in names)  # else a type alias
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names, constant = [node.target.id], node.target.id.isupper()
        else:
            continue
        yield from ((name, constant) for name in names if not name.startswith("_") and name not in EVERYWHERE)


def test_a_public_name_is_there_once_but_in_the_twins_that_mirror_each_other() -> None:
    """A constant counts where another source file imports it."""
    taken = {(to, name) for file in modules().values() for to, name in imports_of_ours(file)}
    where: dict[str, set[str]] = defaultdict(set)
    for module, file in modules().items():
        for name, constant in public_names(file):
            if not constant or (module, name) in taken:
                where[name].add(str(file.relative_to(ROOT)))
    twice = {name: files for name, files in where.items() if len(files) > 1}
    assert {name: files for name, files in twice.items() if not any(files <= mirror for mirror in MIRRORS)} == {}
