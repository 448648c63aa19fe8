"""What lies beside the project and is never committed."""

import os
from pathlib import Path

import pytest


def real_tokenizer(name: str) -> Path:
    """The folder of that published tokenizer, or of the `vectors`; where there is none the test is skipped."""
    beside = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    directory = Path(os.environ.get("GNOMON_DATA", beside)) / "tokenizers" / name
    if not directory.is_dir():
        pytest.skip(f"no real tokenizers at hand: set GNOMON_DATA to a folder with tokenizers/{name}")
    return directory
