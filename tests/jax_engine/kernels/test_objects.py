"""Objects of the native operations: which are compiled again after a change, and that damaged ones are not linked."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from gnomon.jax_engine.kernels import native
from helpers.damage import DAMAGES, Damage

pytestmark = pytest.mark.skipif(
    not any(shutil.which(name) for name in native.COMPILERS), reason="there is no C++ compiler"
)

# small sources that include each other, for what is compiled again
SMALL = {
    "deep.h": "static int deep() { return 1; }\n",
    "near.h": '#include "deep.h"\n',
    "one.cc": '#include "near.h"\nint one() { return deep(); }\n',
    "two.cc": '#  include\t"deep.h"\nint two() { return deep(); }\n',
    "three.cc": "#include <cstddef>\nint three() { return 3; }\n",
}


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Path, set[str], list[str]]]:
    """Builds SMALL into a cache; returns the library, which sources were compiled for it, and what was announced."""
    (tmp_path / "small").mkdir()
    for name, text in SMALL.items():
        (tmp_path / "small" / name).write_text(text)
    monkeypatch.setattr(native, "SOURCES", tmp_path / "small")
    run, commands = native._run, list[list[str]]()

    def noted(command: list[str]) -> str:
        commands.append(command)
        return run(command)

    monkeypatch.setattr(native, "_run", noted)

    def build(cache: str = "kept", tools: str = "of today") -> tuple[Path, set[str], list[str]]:
        commands.clear()
        said: list[str] = []
        (tmp_path / cache).mkdir(0o700, exist_ok=True)
        library = native._build(native._compiler(), tmp_path / cache, "small", tools, said.append)
        return library, {Path(command[-1]).name for command in commands if "-c" in command}, said

    return build


@pytest.mark.parametrize(
    ("changed", "again"),
    [("deep.h", {"one.cc", "two.cc"}), ("near.h", {"one.cc"}), ("three.cc", {"three.cc"}), ("no.h", set())],
)
def test_after_a_change_what_may_differ_is_compiled_again_and_nothing_else(
    tmp_path: Path, small: Callable[..., tuple[Path, set[str], list[str]]], changed: str, again: set[str]
) -> None:
    _, compiled, _ = small()
    assert compiled == {"one.cc", "two.cc", "three.cc"}
    with (tmp_path / "small" / changed).open("a") as file:
        file.write("static int more() { return 2; }\nint (*used_by_" + changed.partition(".")[0] + ")() = more;\n")
    if changed == "deep.h":
        (tmp_path / "small" / changed).write_text("static int deep() { return 2; }\n")
    library, compiled, said = small()
    assert compiled == again
    assert said == []
    assert library.name == small("empty")[0].name  # the bytes of one that was compiled whole


def test_objects_of_other_tools_are_not_linked(small: Callable[..., tuple[Path, set[str], list[str]]]) -> None:
    small()
    assert small(tools="of tomorrow")[1] == {"one.cc", "two.cc", "three.cc"}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
def test_a_damaged_object_is_compiled_again_with_one_line(
    tmp_path: Path, small: Callable[..., tuple[Path, set[str], list[str]]], damage: Damage
) -> None:
    library, _, _ = small()
    [damaged] = (tmp_path / "kept").glob("gnomon_two_*.o")
    damage.do(damaged)
    again, compiled, [line] = small()
    assert (again, compiled) == (library, {"two.cc"})
    assert damage.wrong in line
