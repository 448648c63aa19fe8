"""What tests of the server share."""

from __future__ import annotations

import pytest

from gnomon.reference.tokenizer import Tokenizer
from helpers.fake import fake_tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Of helpers.fake's vocabulary, as FakeEngine has it."""
    return fake_tokenizer(tmp_path_factory.mktemp("tokenizer"))
