"""What the tests of the engine share: a small model, and settings whose programs are compiled once a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gnomon.jax_engine.runtime.settings import EngineSettings
from gnomon.reference.checkpoint.load import Checkpoint, load_checkpoint
from gnomon.reference.tokenizer import Tokenizer, load_tokenizer
from helpers.models import tiny_llama

SMALL_CONTEXT = 256


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Tokenizer]:
    path = tiny_llama(tmp_path_factory.mktemp("models") / "small", max_position_embeddings=SMALL_CONTEXT)
    checkpoint = load_checkpoint(path)
    return checkpoint, load_tokenizer(path, checkpoint.config.vocab_size)


@pytest.fixture(scope="session")
def by_xla(engine_cache: Path) -> Callable[..., EngineSettings]:
    """Settings of an engine without native operations: to compile its programs takes 5 s of a core, to find them
    compiled a fifth of that."""

    def settings(**changes: Any) -> EngineSettings:
        shapes = {"page_size": 8, "chunk": 32, "pool_tokens": 2 * SMALL_CONTEXT}
        return EngineSettings(**{**shapes, **changes}, native=False, compilation_cache=engine_cache)

    return settings
