"""The second gate for GPUs without the hardware: every program of the JAX engine becomes code for an MI300X and for an
H200, and costs there no more than it may.

tests/gpu_aot.py says what that proves, and what it does not.

    pytest -m weekly        (downloads 350 MB; ten minutes)
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import gpu_aot
import jax
import pytest
import spoiled_programs
from spoiled_programs import SPOILS

from gnomon.jax_engine.runtime.settings import EngineSettings
from helpers.abstract_device import abstract_device, llama_config
from helpers.described_gpu import TOOLS, code_bytes, machine
from helpers.program_bounds import kind_of

pytestmark = pytest.mark.weekly

TARGETS = ("gfx942", "sm_90")
MODELS = {"embedded", "llama-135m", "llama-8b", "llama-8b x8"}


class Outcome(NamedTuple):
    status: int
    rows: list[Mapping[str, str]]  # of the table, as printed: column → cell
    printed: str


def outcome_of(script: str | None, target: str, workdir: Path) -> Outcome:
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"not on this machine: {', '.join(missing)} (packages gcc and binutils)")
    command = [sys.executable, str(script), "--target", target, "--workdir", str(workdir)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(done.stdout)
    cells = [[cell.strip() for cell in line.split("|")[1:]] for line in done.stdout.splitlines() if line[:2] == "| "]
    return Outcome(done.returncode, [dict(zip(cells[0], row, strict=True)) for row in cells[1:]], done.stdout)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("gpu")
    yield directory
    shutil.rmtree(directory)  # half a gigabyte


@pytest.fixture(scope="module", params=TARGETS)
def target(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def outcome(target: str, workdir: Path) -> Outcome:
    return outcome_of(gpu_aot.__file__, target, workdir)


def test_every_program_of_the_engine_compiles_and_costs_no_more_than_it_may(outcome: Outcome) -> None:
    settings = EngineSettings(slots=2, page_size=8, chunk=16, pool_tokens=256, native=False)
    kinds = {kind_of(name) for name in abstract_device(llama_config(), settings, jax.devices()[:1]).programs()}
    compiled = {(kind_of(row["program"]), row["model"]) for row in outcome.rows}
    assert compiled == {(kind, model) for kind in kinds for model in MODELS}, outcome.printed
    assert {row["verdict"] for row in outcome.rows} == {"ok"}, outcome.printed
    assert outcome.status == 0


def test_all_code_is_for_the_target(outcome: Outcome, target: str) -> None:
    is_shown = target != "sm_90"  # NVIDIA's code XLA keeps to itself
    assert {row["machine"] for row in outcome.rows} == {target if is_shown else ""}, outcome.printed
    assert all((int(row["code bytes"].replace(",", "")) > 0) == is_shown for row in outcome.rows)


def test_no_program_calls_a_library(outcome: Outcome) -> None:
    assert {row["custom calls"] for row in outcome.rows} == {"0"}, outcome.printed


def test_a_program_that_makes_the_gpu_wait_is_named_with_the_bound(target: str, workdir: Path) -> None:
    outcome = outcome_of(spoiled_programs.__file__, target, workdir)
    verdicts = {row["program"]: row["verdict"] for row in outcome.rows}
    assert verdicts.pop("unspoiled") == "ok"
    assert verdicts == {column.replace(" ", "-"): f"FAILED: {column} 1 > 0" for column in SPOILS}, outcome.printed
    assert outcome.status == 1


def test_code_for_another_machine_is_told_apart() -> None:
    python = Path(sys.executable).read_bytes()
    assert machine(python).startswith("ELF machine ")
    assert 0 < code_bytes(python) < len(python)
    assert machine(b"\x7fELF" + bytes(60)) == "ELF machine 0"
