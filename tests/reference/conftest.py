"""What several files of tests of the reference share."""

from __future__ import annotations

import pytest

from gnomon.reference.checkpoint.load import Checkpoint, load_checkpoint
from helpers.models import tiny_llama


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A random Llama of a few thousand weights. Never changed."""
    return load_checkpoint(tiny_llama(tmp_path_factory.mktemp("tiny")))
