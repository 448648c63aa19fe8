"""What the tests of the process share."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.models import tiny_llama


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Serves under the name `tiny`; a context of 4,096."""
    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny", max_position_embeddings=4096)
