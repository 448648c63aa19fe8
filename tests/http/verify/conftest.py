"""The small model that the tests of `gnomon verify` judge, made once a run."""

from __future__ import annotations

import pytest

from helpers.faults import Model, small_model


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return small_model(tmp_path_factory.mktemp("tokenizer"))
