"""The course: every notebook is what it promises, and (`-m slow`) what it shows is what its code gives."""

from __future__ import annotations

import ast
import base64
import io
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from helpers.today import TOUCHED, share_of_the_day
from notebooks import FOLDER, canonical, compare, dumps, exercises, paths, read, source, unlike

NOTEBOOKS = paths([])
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
LARGEST = 500_000  # bytes
needs = "the extra `notebooks` is not installed: pip install 'gnomon[notebooks]'"


def markdown(notebook: dict[str, Any]) -> list[str]:
    return [source(cell) for cell in notebook["cells"] if cell["cell_type"] == "markdown"]


def code(*sources: str, **outputs: Any) -> dict[str, Any]:
    """A canonical notebook of code cells, of which the first has the outputs given."""
    cells = [{"cell_type": "code", "metadata": {}, "source": text, "outputs": []} for text in sources]
    cells[0] |= outputs
    return canonical({"cells": cells})


def printed(text: str, name: str = "stdout") -> list[dict[str, Any]]:
    return [{"output_type": "stream", "name": name, "text": text}]


def drawn(grey: int, level: int = 6, width: int = 9) -> str:
    """A bitmap of one shade."""
    held = io.BytesIO()
    pytest.importorskip("PIL.Image", reason=needs).new("L", (width, 9), grey).save(held, "PNG", compress_level=level)
    return base64.b64encode(held.getvalue()).decode()


def figure(bitmap: str) -> list[dict[str, Any]]:
    return [{"output_type": "display_data", "metadata": {}, "data": {"image/png": bitmap}}]


# ---- what stands in the files


@every_notebook
def test_a_notebook_is_stored_in_the_canonical_form_and_is_valid(path: Path) -> None:
    nbformat: Any = pytest.importorskip("nbformat", reason=needs)
    nbformat.validate(nbformat.reads(path.read_text(encoding="utf-8"), as_version=4))
    stored = read(path)
    assert dumps(canonical(stored)) == path.read_text(encoding="utf-8"), (
        f"python tests/notebooks.py --write {path.stem}"
    )
    assert path.stat().st_size < LARGEST


@every_notebook
def test_a_notebook_has_run_without_an_error_or_a_warning(path: Path) -> None:
    cells = [cell for cell in read(path)["cells"] if cell["cell_type"] == "code"]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert outputs
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]


@every_notebook
def test_a_figure_of_a_notebook_is_seen_before_the_notebook_has_been_run(path: Path) -> None:
    """JupyterLab shows the SVG and the HTML of a notebook that it does not trust as their text, or strips them."""
    outputs = [output for cell in read(path)["cells"] for output in cell.get("outputs", ())]
    shown = [output["data"] for output in outputs if "data" in output]
    assert [data for data in shown if "image/png" in data or len("".join(data["text/plain"])) > 60] == shown


@every_notebook
def test_a_notebook_opens_with_what_one_will_be_able_to_do_and_ends_with_what_to_read_next(path: Path) -> None:
    cells = read(path)["cells"]
    first, last = source(cells[0]), source(cells[-1])
    assert first.startswith(f"# {int(path.stem[:2])} · ")
    assert "After this you can" in first
    assert last.startswith("## Read next")


@every_notebook
def test_a_notebook_has_three_exercises_or_more_each_with_asserts_and_an_answer_folded_away(path: Path) -> None:
    found = exercises(read(path))
    assert [exercise.number for exercise in found] == list(range(1, len(found) + 1))
    assert len(found) >= 3
    for exercise in found:
        assert any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(exercise.check))), exercise.number
        assert exercise.answer, exercise.number
        ast.parse(exercise.answer)


@every_notebook
def test_a_notebook_names_no_path_of_the_machine_it_ran_on(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for private in (str(FOLDER.parent), str(Path.home()), sys.prefix, tempfile.gettempdir()):
        assert private == "/" or private not in text, private
    assert not re.search(r"(?<![\w/.])/(?:home|root|Users|tmp|var|opt)/", text)


@every_notebook
def test_links_of_a_notebook_lead_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", "\n".join(markdown(read(path)))):
        assert (FOLDER / link).exists(), link


def test_the_course_lists_every_notebook_in_its_order() -> None:
    listed = re.findall(r"\]\((\d\d-[\w-]+\.ipynb)\)", (FOLDER / "README.md").read_text(encoding="utf-8"))
    assert listed == [path.name for path in NOTEBOOKS]


# ---- the harness itself


def test_a_number_may_differ_in_its_last_digits_and_nothing_else_may() -> None:
    def same(stored: str, now: str) -> bool:
        return unlike("1 stdout", stored, now) is None

    assert same("a 1.00000000 b", "a 1.00000001 b")
    assert not same("a 1.0000 b", "a 1.0001 b")
    assert not same("token 1000000", "token 1000001")
    assert not same("a 1.5", "b 1.5")
    assert not same("one\ntwo", "one")
    assert same("1e-17", "-3e-17")  # both are 0


def test_a_figure_is_compared_by_its_pixels_and_a_tenth_of_the_range_is_allowed() -> None:
    pytest.importorskip("PIL", reason=needs)
    assert drawn(100, level=0) != drawn(100, level=9)
    stored = code("1", outputs=figure(drawn(100)))
    for same in (drawn(100, level=0), drawn(124)):
        assert list(compare(stored, code("1", outputs=figure(same)))) == []
    [found] = compare(stored, code("1", outputs=figure(drawn(125))))
    assert found.now == "[1 image/png] 81 pixels differ, the first at row 0, column 0"
    [found] = compare(stored, code("1", outputs=figure(drawn(100, width=8))))
    assert found.now == "[1 image/png] 8 × 9 pixels"


def test_a_figure_is_stored_in_few_colours_and_shown_at_half_its_size_and_stays_as_it_is() -> None:
    image = pytest.importorskip("PIL.Image", reason=needs)
    notebook = code("1", outputs=figure(drawn(100)))
    [output] = notebook["cells"][0]["outputs"]
    assert image.open(io.BytesIO(base64.b64decode(output["data"]["image/png"]))).mode == "P"
    assert output["metadata"] == {"image/png": {"height": 4, "width": 4}}
    assert canonical(notebook) == notebook


def test_of_a_picture_with_words_the_svg_is_stored_and_not_the_page_around_it() -> None:
    data = {"image/svg+xml": "<svg/>", "text/html": "<div><svg/></div>", "text/plain": "words"}
    for kept in (data, {"text/html": "<p>", "text/plain": "words"}):
        [output] = code("1", outputs=[{"output_type": "display_data", "data": kept}])["cells"][0]["outputs"]
        assert ("text/html" in output["data"]) == ("image/svg+xml" not in output["data"])
        assert output["data"]["text/plain"] == "words"


def test_a_difference_names_the_cell_and_both_outputs() -> None:
    stored = code("1", "2", outputs=printed("0.25\n"))
    assert list(compare(stored, stored)) == []
    [found] = compare(stored, code("1", "2", outputs=printed("0.26\n")))
    assert (found.cell, found.stored, found.now) == (1, "[1 stdout] 0.25", "[1 stdout] 0.26")
    [gone] = compare(stored, code("1", "2", outputs=[]))
    assert (gone.stored, gone.now) == ("1 stdout", "no output")
    assert [found.cell for found in compare(stored, code("1", "3", outputs=printed("0.25\n")))] == [2]
    assert [found.cell for found in compare(stored, code("1", outputs=printed("0.25\n")))] == [0]


def test_a_warning_is_a_difference_even_where_it_is_stored() -> None:
    warned = code("1", outputs=printed("old", "stderr"))
    assert [found.stored for found in compare(warned, warned)] == ["nothing on stderr"]


def test_a_volatile_cell_may_print_something_else_of_the_same_kind() -> None:
    tagged = {"metadata": {"tags": ["volatile"]}}
    fast, slow = (code("1", outputs=printed(text), **tagged) for text in ("3 ms", "5 ms"))
    assert list(compare(fast, slow)) == []
    assert [found.now for found in compare(fast, code("1", outputs=[], **tagged))] == ["no output"]


def test_the_canonical_form_keeps_nothing_of_a_run_but_its_outputs() -> None:
    cell = {
        "cell_type": "code",
        "id": "5f3a",
        "metadata": {"execution": {"iopub.status.busy": "now"}, "tags": ["volatile"], "scrolled": True},
        "execution_count": 7,
        "source": "1\n2",
        "outputs": [
            {"output_type": "execute_result", "execution_count": 7, "metadata": {"x": 1}, "data": {"text/plain": "2"}}
        ],
    }
    found = canonical({"cells": [cell], "metadata": {"language_info": {"version": "3.11.2"}}})
    assert found["cells"] == [
        {
            "cell_type": "code",
            "id": "cell-01",
            "metadata": {"tags": ["volatile"]},
            "execution_count": 1,
            "source": ["1\n", "2"],
            "outputs": [
                {"output_type": "execute_result", "execution_count": 1, "metadata": {}, "data": {"text/plain": "2"}}
            ],
        }
    ]
    assert found["metadata"]["language_info"] == {"name": "python"}
    assert canonical(found) == found


# ---- executing, which takes a kernel

EXERCISE = (
    "from course import exercise\ndef double(x):\n    return {}\n\nwith exercise(1):\n    assert double(3) == 6\n"
)
ANSWER = "<details><summary>Answer</summary>\n\n```python\ndef double(x):\n    return {}\n```\n</details>"


def written(path: Path, attempt: str, answer: str, after: str = "print(double(3))") -> Path:
    cells = [
        {"cell_type": "code", "metadata": {}, "source": EXERCISE.format(attempt), "outputs": []},
        {"cell_type": "markdown", "metadata": {}, "source": ANSWER.format(answer)},
        {"cell_type": "code", "metadata": {}, "source": after, "outputs": []},
    ]
    path.write_text(dumps(canonical({"cells": cells})), encoding="utf-8")
    (path.parent / "course.py").write_text((FOLDER / "course.py").read_text(encoding="utf-8"), encoding="utf-8")
    return path


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """tests/notebooks.py as a command: its event loop and sockets are no business of the test run."""
    pytest.importorskip("jupyterlab", reason=needs)
    command = [sys.executable, str(FOLDER.parent / "tests" / "notebooks.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_an_exercise_is_unsolved_as_stored_and_solved_by_its_answer_on_which_nothing_leans(tmp_path: Path) -> None:
    path = written(tmp_path / "01.ipynb", "x + 2", "2 * x")
    done = run("--write", path)
    assert done.returncode == 0, done.stdout + done.stderr
    first, _, last = read(path)["cells"]
    assert "not yet. This does not hold:\n    assert double(3) == 6\n" in "".join(first["outputs"][0]["text"])
    assert last["outputs"][0]["text"] == ["5\n"]
    assert run(path).returncode == 0


@pytest.mark.slow
def test_a_solved_exercise_and_a_wrong_answer_are_problems(tmp_path: Path) -> None:
    done = run("--write", written(tmp_path / "01.ipynb", "2 * x", "x + 2"))
    assert done.returncode == 1
    assert re.findall(r"stored: (.*)", done.stdout) == [
        "an exercise that is not solved yet",
        "an answer that solves the exercise",
    ]


@pytest.mark.slow
def test_an_output_that_changed_is_shown_and_fails(tmp_path: Path) -> None:
    path = written(tmp_path / "01.ipynb", "x + 2", "2 * x")
    assert run("--write", path).returncode == 0
    path.write_text(path.read_text(encoding="utf-8").replace('"5\\n"', '"7\\n"'), encoding="utf-8")
    done = run(path)
    assert done.returncode == 1
    assert "cell 3\n    stored: [1 stdout] 7\n    now:    [1 stdout] 5\n" in done.stdout


@pytest.mark.slow
def test_a_cell_that_raises_is_shown_and_fails_and_nothing_is_stored(tmp_path: Path) -> None:
    path = written(tmp_path / "01.ipynb", "x + 2", "2 * x", after="print(twice(3))")
    before = path.read_bytes()
    done = run("--write", path)
    assert done.returncode == 1
    assert "print(twice(3))" in done.stdout
    assert "NameError: name 'twice' is not defined" in done.stdout
    assert "\x1b" not in done.stdout
    assert path.read_bytes() == before


TRAINS = "12"  # for a minute and a half
QUICK = [path.name for path in NOTEBOOKS if not path.name.startswith(TRAINS)]
COMMON = {"notebooks/course.py", "tests/notebooks.py"}


def files_used(name: str) -> set[str]:
    """The notebook itself, what all of them use, and the modules of ours that its code imports, from the root."""
    modules: set[str] = set()
    for cell in read(FOLDER / name)["cells"]:
        for node in ast.walk(ast.parse(source(cell))) if cell["cell_type"] == "code" else ():
            if isinstance(node, ast.ImportFrom) and node.module:
                modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Import):
                modules |= {alias.name for alias in node.names}
    ours = {module.removeprefix("gnomon.").replace(".", "/") for module in modules if module.startswith("gnomon.")}
    return {f"notebooks/{name}", *COMMON, *(f"{path}.py" for path in ours), *(f"{path}/__init__.py" for path in ours)}


CHANGED = [name for name in QUICK if files_used(name) & TOUCHED]


def test_a_notebook_is_run_whenever_it_or_what_it_imports_was_touched() -> None:
    used = files_used("10-numpy-to-jax.ipynb")
    assert {"notebooks/10-numpy-to-jax.ipynb", "notebooks/course.py", "jax_engine/sampler.py"} <= used
    assert "http/app.py" not in used


def shows_what_its_code_gives(name: str) -> None:
    done = run(name)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", share_of_the_day(QUICK, days=3, always=CHANGED))
def test_a_notebook_shows_what_its_code_gives_and_its_exercises_are_solved_by_their_answers(name: str) -> None:
    shows_what_its_code_gives(name)


@pytest.mark.weekly
def test_the_notebook_that_trains_shows_what_its_code_gives() -> None:
    [name] = [path.name for path in NOTEBOOKS if path.name.startswith(TRAINS)]
    shows_what_its_code_gives(name)
