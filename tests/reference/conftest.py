"""What several files of tests of the reference share. Nothing here is ever changed by a test."""

from __future__ import annotations

from pathlib import Path

import pytest

from gnomon.reference.checkpoint.load import Checkpoint, load_checkpoint
from gnomon.reference.engine import ReferenceEngine
from gnomon.reference.tokenizer import Tokenizer
from helpers.fake import PRE, FakeEngine, fake_tokenizer, hashed_logits, puts_first
from helpers.models import tiny_llama


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The bytes, ten merges and four special tokens; it puts nothing first."""
    return fake_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def bos_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The same, putting PRE before every string."""
    return fake_tokenizer(tmp_path_factory.mktemp("bos"), post_processor=puts_first(PRE))


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def tiny(model_directory: Path) -> Checkpoint:
    """A random Llama of a few thousand weights."""
    return load_checkpoint(model_directory)


@pytest.fixture(scope="session")
def tiny_engine(tiny: Checkpoint) -> ReferenceEngine:
    return ReferenceEngine(tiny)


@pytest.fixture(scope="module", params=["fake", "reference"])
def engine(request: pytest.FixtureRequest, tiny_engine: ReferenceEngine) -> ReferenceEngine:
    """Twice: logits that one can predict by hand, and a model's."""
    return FakeEngine(hashed_logits) if request.param == "fake" else tiny_engine
