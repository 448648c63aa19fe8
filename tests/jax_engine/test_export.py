"""Every program of the JAX engine lowers for AMD, NVIDIA and the CPU, with no call into a vendor's library."""

from __future__ import annotations

import re

import jax
import pytest

from gnomon.jax_engine.engine import JaxEngine
from gnomon.jax_engine.runtime.settings import EngineSettings
from gnomon.reference.checkpoint.load import load_checkpoint
from helpers.models import tiny_llama

# custom calls that are no kernels of a library: none at present
EXPLAINED: set[str] = set()


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> JaxEngine:
    checkpoint = load_checkpoint(tiny_llama(tmp_path_factory.mktemp("model")))
    return JaxEngine(checkpoint, EngineSettings(slots=2, page_size=8, chunk=16, pool_tokens=256))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["prefill", "decode", "sample", "score", "begin"])
def test_the_program_lowers_for_every_platform_without_unexplained_custom_calls(engine: JaxEngine, name: str) -> None:
    program = engine.programs()[name]
    exported = jax.export.export(jax.jit(program.function), platforms=["rocm", "cuda", "cpu"])(*program.arguments)
    targets = set(re.findall(r"custom_call @([\w.$]+)", exported.mlir_module()))
    assert targets <= EXPLAINED


@pytest.mark.slow
def test_no_program_is_forgotten(engine: JaxEngine) -> None:
    assert set(engine.programs()) == {"prefill", "decode", "sample", "score", "begin"} == set(engine.device.compiled)
