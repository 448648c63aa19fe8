"""The second gate for AMD without the hardware: every program of the JAX engine becomes machine code of an MI300X.

tests/rocm_aot.py says what that proves, and what it does not.

    pytest -m weekly        (downloads 150 MB; a minute or two)
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import rocm_aot
from rocm_aot import TOOLS, code_bytes, machine

from gnomon.jax_engine.engine import JaxEngine
from gnomon.jax_engine.runtime.settings import EngineSettings
from gnomon.reference.checkpoint.load import load_checkpoint
from helpers.models import tiny_llama

pytestmark = pytest.mark.weekly

TARGET = "gfx942"
MODELS = {("embedded", "float32"), ("llama-135m", "bfloat16")}


class Row(NamedTuple):
    """The table of tests/rocm_aot.py, as printed."""

    program: str
    model: str
    dtype: str
    machine: str
    code_bytes: str
    temporary_bytes: str
    seconds: str
    custom_calls: str
    verdict: str


class Outcome(NamedTuple):
    status: int
    rows: Sequence[Row]
    printed: str


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"not on this machine: {', '.join(missing)} (packages gcc and binutils)")
    command = [sys.executable, str(Path(rocm_aot.__file__)), "--target", TARGET]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(done.stdout)
    cells = [[cell.strip() for cell in line.split("|")[1:]] for line in done.stdout.splitlines() if line[:2] == "| "]
    return Outcome(done.returncode, [Row(*row) for row in cells[1:]], done.stdout)


def test_every_program_of_the_engine_compiles(outcome: Outcome, tmp_path: Path) -> None:
    settings = EngineSettings(slots=2, page_size=8, chunk=16, pool_tokens=256)
    engine = JaxEngine(load_checkpoint(tiny_llama(tmp_path / "model")), settings)
    engine.stop()
    wanted = sorted((program, *model) for program in engine.programs() for model in MODELS)
    assert sorted(row[:3] for row in outcome.rows) == wanted, outcome.printed
    assert {row.verdict for row in outcome.rows} == {"ok"}, outcome.printed
    assert outcome.status == 0


def test_all_code_is_for_the_target(outcome: Outcome) -> None:
    assert {row.machine for row in outcome.rows} == {TARGET}, outcome.printed
    assert all(int(row.code_bytes.replace(",", "")) > 0 for row in outcome.rows)


def test_no_program_calls_a_library(outcome: Outcome) -> None:
    assert {row.custom_calls for row in outcome.rows} == {"none"}, outcome.printed


def test_code_for_another_machine_is_told_apart() -> None:
    python = Path(sys.executable).read_bytes()
    assert machine(python).startswith("ELF machine ")
    assert 0 < code_bytes(python) < len(python)
    assert machine(b"\x7fELF" + bytes(60)) == "ELF machine 0"
