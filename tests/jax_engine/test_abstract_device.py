"""Programs of a model's shape alone are those of an engine with its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from gnomon.jax_engine.engine import JaxEngine
from gnomon.jax_engine.runtime.pins import pinned
from gnomon.jax_engine.runtime.settings import EngineSettings
from gnomon.reference.checkpoint.load import load_checkpoint
from helpers.abstract_device import abstract_device, zeros
from helpers.models import tiny_llama

SETTINGS = EngineSettings(slots=2, page_size=8, chunk=16, pool_tokens=256, native=False)


def like(tree: Any) -> Any:
    """Shape and dtype of every array, and where it lives if it is on a device."""
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, getattr(leaf, "sharding", None)), tree)


@pytest.mark.parametrize("tied", [False, True])
def test_the_programs_are_an_engines(tmp_path: Path, tied: bool) -> None:
    checkpoint = load_checkpoint(tiny_llama(tmp_path / "model", tie_word_embeddings=tied))
    engine = JaxEngine(checkpoint, SETTINGS)
    engine.stop()
    device = abstract_device(checkpoint.config, SETTINGS, jax.devices()[:1])
    expected, programs = engine.programs(), device.programs()
    assert list(programs) == list(expected)
    for name, program in programs.items():
        assert like(program.arguments) == like(expected[name].arguments), name
        assert program.donated == expected[name].donated, name
        assert program.results == expected[name].results, name
        assert device.lowered(program).as_text() == engine_lowered(engine, expected[name]), name
    assert (device.params["lm_head"] is device.params["embed_tokens"]) == tied


def engine_lowered(engine: JaxEngine, program: Any) -> str:
    with pinned():
        text: str = program.jitted(engine.device.layout.whole).lower(*program.arguments).as_text()
    return text


def test_the_weights_take_no_more_memory_than_the_largest_of_them(tmp_path: Path) -> None:
    config = load_checkpoint(tiny_llama(tmp_path / "model")).config
    leaves = jax.tree.leaves(zeros(config, np.dtype(np.float32)))
    first = min(leaf.__array_interface__["data"][0] for leaf in leaves)
    last = max(leaf.__array_interface__["data"][0] + leaf.nbytes for leaf in leaves)
    assert last - first == max(leaf.nbytes for leaf in leaves)
