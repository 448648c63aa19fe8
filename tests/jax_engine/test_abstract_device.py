"""Programs of a model's shape alone are those of an engine with its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import jax
import numpy as np
import pytest

from gnomon.jax_engine.device import Device
from gnomon.jax_engine.engine import JaxEngine
from gnomon.jax_engine.runtime.pins import pinned
from gnomon.jax_engine.runtime.settings import EngineSettings
from gnomon.reference.checkpoint.load import load_checkpoint
from helpers.abstract_device import abstract_device, llama_config, on_gpus, zeros
from helpers.models import tiny_llama

SETTINGS = EngineSettings(slots=2, page_size=8, chunk=16, pool_tokens=256, native=False)


def like(tree: Any) -> Any:
    """Shape and dtype of every array, and where it lives if it is on a device."""
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, getattr(leaf, "sharding", None)), tree)


def test_the_programs_are_an_engines(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(tiny_llama(tmp_path / "model"))
    with patch.object(Device, "_compile", return_value={}), patch.object(Device, "_fingerprint", return_value=""):
        engine = JaxEngine(checkpoint, SETTINGS)  # with its weights; to compile them would take a while
    engine.stop()
    device = abstract_device(checkpoint.config, SETTINGS, jax.devices()[:1])
    expected, programs = engine.programs(), device.programs()
    assert list(programs) == list(expected)
    for name, program in programs.items():
        assert like(program.arguments) == like(expected[name].arguments), name
        assert program.donated == expected[name].donated, name
        assert program.results == expected[name].results, name
        assert device.lowered(program).as_text() == engine_lowered(engine, expected[name]), name


def engine_lowered(engine: JaxEngine, program: Any) -> str:
    """For GPUs: the draw is another one there."""
    with pinned(), on_gpus(list(engine.device.layout.mesh.devices.flat)):
        text: str = program.jitted(engine.device.layout.whole).lower(*program.arguments).as_text()
    return text


@pytest.mark.parametrize("tied", [False, True])
def test_a_head_that_is_the_embedding_is_there_once(tied: bool) -> None:
    params = abstract_device(llama_config(tie_word_embeddings=tied), SETTINGS, jax.devices()[:1]).params
    assert (params["lm_head"] is params["embed_tokens"]) == tied


def test_the_weights_take_no_more_memory_than_the_largest_of_them() -> None:
    leaves = jax.tree.leaves(zeros(llama_config(), np.dtype(np.float32)))
    first = min(leaf.__array_interface__["data"][0] for leaf in leaves)
    last = max(leaf.__array_interface__["data"][0] + leaf.nbytes for leaf in leaves)
    assert last - first == max(leaf.nbytes for leaf in leaves)
