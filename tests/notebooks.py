"""Executes the notebooks of the course and holds what they print and draw against what is stored in them.

    python tests/notebooks.py [NAMES]           execute, compare; status 1 if something differs
    python tests/notebooks.py --write [NAMES]   execute and store, in the one canonical form

NAMES are paths or parts of file names (`04`); none means all. The kernel is this very interpreter, whatever kernels are
installed; it starts in the notebook's folder, on one thread, on the CPU.

Text must be equal but for numbers with a fraction or an exponent, which may differ by one in a million (BLAS libraries
sum in different orders); whole numbers are exact. Figures are bitmaps, because JupyterLab shows no SVG of a notebook
that one has not run oneself; they are stored in 128 colours, a third of the bytes, and compared pixel by pixel, with a
slack for those colours. matplotlib brings its letters, so that one version of it draws the same everywhere. A cell with
the tag `volatile` (it measures time) must run and give outputs of the same kinds. Whatever goes to stderr, a warning
say, is a difference.

An exercise is a cell with `with exercise(n):`. Executed as it is stored it must say "not yet"; then what stands above
that line is replaced by the Python of the `<details>` in the next cell, and it must say "solved".
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
RELATIVE, ABSOLUTE, PIXEL = 1e-6, 1e-9, 24  # a pixel's channels have 256 levels
COLOURS = 128
NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+\.\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+)(?![\w.]*\w)")
PNG, SVG, HTML = "image/png", "image/svg+xml", "text/html"
EXERCISE = re.compile(r"^with exercise\((\d+)\):", re.MULTILINE)
ANSWER = re.compile(r"<details>.*?```python\n(.*?)```.*?</details>", re.DOTALL)
SECONDS = 300  # for one cell
CLIP = 400  # characters of an output that a difference shows

Notebook = dict[str, Any]  # as nbformat 4 writes it


class Difference(NamedTuple):
    cell: int  # its number in the notebook, from 1
    stored: str
    now: str

    def __str__(self) -> str:
        return f"  cell {self.cell}\n    stored: {_clipped(self.stored)}\n    now:    {_clipped(self.now)}"


class Exercise(NamedTuple):
    number: int
    cell: int  # index of the code cell
    attempt: str  # what the learner is to replace
    check: str  # from `with exercise(…):` on
    answer: str | None  # the Python in the <details> of the next cell


class DidNotRun(Exception):
    """A cell raised, took too long, or took the kernel with it; the message shows the cell and the traceback."""


class Executed(NamedTuple):
    notebook: Notebook  # canonical
    problems: tuple[Difference, ...]  # exercises that are no challenge, answers that are none


def paths(names: list[str]) -> list[Path]:
    elsewhere = [Path(name).resolve() for name in names if Path(name).is_file()]
    ours = sorted(FOLDER.glob("*.ipynb"))
    return elsewhere + [path for path in ours if not names or any(name in path.name for name in names)]


def read(path: Path) -> Notebook:
    notebook: Notebook = json.loads(path.read_text(encoding="utf-8"))
    return notebook


def source(cell: dict[str, Any]) -> str:
    return _text(cell["source"])


def exercises(notebook: Notebook) -> list[Exercise]:
    cells = notebook["cells"]
    found = []
    for i, cell in enumerate(cells):
        begins = EXERCISE.search(source(cell)) if cell["cell_type"] == "code" else None
        if begins is None:
            continue
        after = source(cells[i + 1]) if i + 1 < len(cells) else ""
        answer = ANSWER.search(after)
        attempt, check = source(cell)[: begins.start()], source(cell)[begins.start() :]
        found.append(Exercise(int(begins[1]), i, attempt, check, answer[1] if answer else None))
    return found


# ---- executing


def execute(path: Path) -> Executed:
    """Runs a notebook from top to bottom, each exercise once as it is stored and once with its answer.

    Raises DidNotRun.
    """
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from jupyter_client.manager import KernelManager
    from nbclient import NotebookClient
    from nbclient.exceptions import CellControlSignal, DeadKernelError

    argv = [sys.executable, "-m", "ipykernel_launcher", "--HistoryManager.enabled=False", "-f", "{connection_file}"]

    class ThisInterpreter(KernelSpecManager):
        def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
            return KernelSpec(argv=argv, display_name=kernel_name, language="python")

    nbformat: Any = import_module("nbformat")  # partly typed
    notebook = nbformat.read(path, as_version=4)
    practice = {each.cell: each for each in exercises(notebook)}
    problems: list[Difference] = []
    with tempfile.TemporaryDirectory() as scratch:
        env = {**os.environ, "IPYTHONDIR": scratch, "JAX_PLATFORMS": "cpu"}
        env |= {f"{library}_NUM_THREADS": "1" for library in ("OPENBLAS", "OMP", "MKL")}
        env.pop("MPLBACKEND", None)  # the kernel chooses it
        manager = KernelManager(
            kernel_name="python3", kernel_spec_manager=ThisInterpreter(), transport="ipc", ip=f"{scratch}/kernel"
        )
        place = {"metadata": {"path": str(path.parent)}}
        client = NotebookClient(notebook, km=manager, timeout=SECONDS, resources=place, coalesce_streams=True)
        try:
            with client.setup_kernel(env=env):
                for i, cell in enumerate(notebook.cells):
                    if cell.cell_type == "code":
                        client.execute_cell(cell, i)
                    if i in practice:
                        problems += _practise(client, cell, practice[i])
        except (CellControlSignal, DeadKernelError) as error:
            raise DidNotRun(re.sub(r"\x1b\[[\d;]*m", "", str(error))) from error  # without its colours
        finally:
            manager.shutdown_kernel(now=True)
    return Executed(canonical(json.loads(nbformat.writes(notebook))), tuple(problems))


def _practise(client: Any, cell: Any, exercise: Exercise) -> Iterator[Difference]:
    """Holds an exercise to its promise, in the kernel that has just executed its cell; leaves it as that cell did."""
    new_code_cell = import_module("nbformat.v4").new_code_cell
    if not _printed(cell).startswith(f"Exercise {exercise.number}: not yet."):
        yield Difference(exercise.cell + 1, "an exercise that is not solved yet", _printed(cell))
    solved = new_code_cell(f"{exercise.answer or ''}\n{exercise.check}")
    client.execute_cell(solved, exercise.cell)
    if _printed(solved).splitlines()[-1:] != [f"Exercise {exercise.number}: solved."]:
        yield Difference(exercise.cell + 1, "an answer that solves the exercise", _printed(solved))
    client.execute_cell(new_code_cell(cell.source), exercise.cell)


def _printed(cell: Any) -> str:
    return "".join(_text(output["text"]) for output in cell["outputs"] if output["output_type"] == "stream")


# ---- the one form in which notebooks are stored


def canonical(notebook: Notebook) -> Notebook:
    """The same notebook without what changes from run to run or from machine to machine."""
    cells, count = [], 0
    for number, cell in enumerate(notebook["cells"], 1):
        tags = cell["metadata"].get("tags")
        kept = {
            "cell_type": cell["cell_type"],
            "id": f"cell-{number:02}",
            "metadata": {"tags": tags} if tags else {},
            "source": source(cell).splitlines(keepends=True),
        }
        if cell["cell_type"] == "code":
            count += 1
            kept |= {"execution_count": count, "outputs": [_output(output, count) for output in cell["outputs"]]}
        cells.append(kept)
    metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def _output(output: dict[str, Any], count: int) -> dict[str, Any]:
    kept = {name: value for name, value in output.items() if name not in ("metadata", "transient")}
    if output["output_type"] in ("display_data", "execute_result"):
        kept["metadata"] = {}
    if output["output_type"] == "execute_result":
        kept["execution_count"] = count
    data = dict(output.get("data", ()))
    if PNG in data:
        data[PNG], width, height = _in_few_colours(_text(data[PNG]))
        kept["metadata"] = {PNG: {"height": height // 2, "width": width // 2}}  # a point of the page is two pixels
    if SVG in data:
        data.pop(HTML, None)  # JupyterLab strips that of its picture, and would then show its words in a heap
    if data:
        kept["data"] = data
    return kept


def _in_few_colours(bitmap: str) -> tuple[str, int, int]:
    """The same PNG with a palette; its width and height."""
    png = base64.b64decode(bitmap)
    width, height = int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")
    if png[25] != 3:  # the kind of colours; 3 is a palette
        from PIL import Image

        held = io.BytesIO()
        opaque = Image.open(io.BytesIO(png)).convert("RGB")
        opaque.quantize(COLOURS, dither=Image.Dither.NONE).save(held, "PNG", optimize=True)
        png = held.getvalue()
    return base64.b64encode(png).decode("ascii"), width, height


def _text(value: Any) -> str:
    """nbformat stores a text as a string or as a list of lines."""
    return value if isinstance(value, str) else "".join(map(str, value))


def dumps(notebook: Notebook) -> str:
    return json.dumps(notebook, ensure_ascii=False, indent=1, sort_keys=True) + "\n"


# ---- comparing


def compare(stored: Notebook, now: Notebook) -> Iterator[Difference]:
    """Where two canonical notebooks differ."""
    if len(stored["cells"]) != len(now["cells"]):
        yield Difference(0, f"{len(stored['cells'])} cells", f"{len(now['cells'])} cells")
    for number, (was, is_) in enumerate(zip(stored["cells"], now["cells"], strict=False), 1):
        without = [{name: value for name, value in cell.items() if name != "outputs"} for cell in (was, is_)]
        if without[0] != without[1]:
            yield Difference(number, json.dumps(without[0]), json.dumps(without[1]))
        before, after = dict(_parts(was)), dict(_parts(is_))
        if any("stderr" in kind for kind in after):
            yield Difference(number, "nothing on stderr", next(after[kind] for kind in after if "stderr" in kind))
        if before.keys() != after.keys():
            yield Difference(number, ", ".join(before) or "no output", ", ".join(after) or "no output")
        elif "volatile" not in was["metadata"].get("tags", []):
            for kind in before:
                where = unlike(kind, before[kind], after[kind])
                if where is not None:
                    yield Difference(number, f"[{kind}] {where[0]}", f"[{kind}] {where[1]}")


def _parts(cell: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Every representation of every output of a cell, with a name."""
    for i, output in enumerate(cell.get("outputs", ()), 1):
        if output["output_type"] == "stream":
            yield f"{i} {output['name']}", _text(output["text"])
        elif output["output_type"] == "error":
            yield f"{i} error", f"{output['ename']}: {output['evalue']}"
        else:
            for kind, value in output["data"].items():
                yield f"{i} {kind}", _text(value)


def unlike(kind: str, stored: str, now: str) -> tuple[str, str] | None:
    """The first lines in which two outputs of a kind differ by more than is allowed, or None."""
    if kind.endswith(PNG):
        return None if stored == now else _other_pixels(stored, now)
    lines = stored.splitlines(), now.splitlines()
    for was, is_ in zip(*lines, strict=False):
        if not _same_line(was, is_):
            return was, is_
    if len(lines[0]) != len(lines[1]):
        return f"{len(lines[0])} lines", f"{len(lines[1])} lines"
    return None


def _same_line(stored: str, now: str) -> bool:
    if NUMBER.sub("#", stored) != NUMBER.sub("#", now):
        return False
    pairs = zip(map(float, NUMBER.findall(stored)), map(float, NUMBER.findall(now)), strict=True)
    return all(abs(a - b) <= ABSOLUTE + RELATIVE * max(abs(a), abs(b)) for a, b in pairs)


def _other_pixels(stored: str, now: str) -> tuple[str, str] | None:
    import numpy as np
    from PIL import Image

    a, b = (np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"), np.int16) for png in (stored, now))
    if a.shape != b.shape:
        return f"{a.shape[1]} × {a.shape[0]} pixels", f"{b.shape[1]} × {b.shape[0]} pixels"
    far = np.abs(a - b).max(axis=-1) > PIXEL
    if not far.any():
        return None
    row, column = np.argwhere(far)[0]
    return "a figure", f"{far.sum()} pixels differ, the first at row {row}, column {column}"


def _clipped(text: str) -> str:
    return text if len(text) <= CLIP else text[:CLIP] + " …"


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("names", nargs="*", help="paths or parts of file names; none means all")
    parser.add_argument("--write", action="store_true", help="store the outputs instead of comparing them")
    arguments = parser.parse_args()
    chosen = paths(arguments.names)
    if not chosen:
        parser.error(f"no notebook is called {' or '.join(arguments.names)}")
    failed = False
    for path in chosen:
        began = time.perf_counter()
        try:
            now, problems = execute(path)
        except DidNotRun as error:
            print(f"{path.name}: {error}")
            failed = True
            continue
        if arguments.write:
            path.write_text(dumps(now), encoding="utf-8")
            differences = list(problems) + list(compare(now, now))
        else:
            differences = list(problems) + list(compare(read(path), now))
        failed = failed or bool(differences)
        verdict = f"{len(differences)} differences" if differences else "stored" if arguments.write else "the same"
        print(f"{path.name}: {verdict} ({time.perf_counter() - began:.1f} s)")
        print("".join(f"{difference}\n" for difference in differences), end="")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
