"""`gnomon serve DIRECTORY` for every family, on both engines, over real HTTP: they answer, and they answer the same."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from helpers.extras import extra
from helpers.fake import EOT, tokenizer_files
from helpers.families import VARIANTS, save_random

extra("parity", "torch", "transformers")

pytestmark = pytest.mark.weekly

FAMILIES = [name for name in VARIANTS if "," not in name]  # one of each; the variants are in test_families.py
COMMAND = (sys.executable, "-c", "from gnomon.http.cli.main import main; main()", "serve")


@contextmanager
def served(directory: Path, engine: str, cache: Path) -> Iterator[str]:
    options = ["--slots", "2"] if engine == "jax" else []
    command = [*COMMAND, str(directory), "--engine", engine, "--port", "0", "--max-model-len", "128", *options]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={"XDG_CACHE_HOME": str(cache)}
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.search(r" is served at (http://\S+)/v1 ", line)
            assert found, line or process.communicate(timeout=60)[1]
            yield found[1]
        finally:
            process.terminate()
            process.communicate(timeout=30)
    assert process.returncode == 0


def answer(base: str, **fields: Any) -> dict[str, Any]:
    model = httpx.get(f"{base}/v1/models").json()["data"][0]
    assert model["max_model_len"] == 128
    body = {"model": model["id"], "max_tokens": 24, "logit_bias": {str(EOT): -100}, "logprobs": 2, **fields}
    response = httpx.post(f"{base}/v1/completions", json=body, timeout=60)
    assert response.status_code == 200, response.text
    choice: dict[str, Any] = response.json()["choices"][0]
    return choice


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_served_by_both_engines_and_they_agree(name: str, tmp_path: Path) -> None:
    directory = save_random(tmp_path / "model", VARIANTS[name], seed=list(VARIANTS).index(name))
    tokenizer_files(directory)
    requests = ({"prompt": "the other house", "temperature": 0}, {"prompt": [5] * 90, "seed": 3, "echo": True})
    answers = []
    for engine in ("reference", "jax"):
        with served(directory, engine, tmp_path / "cache") as base:
            answers.append([answer(base, **request) for request in requests])
    for ours, theirs in zip(*answers, strict=True):
        assert ours["text"] == theirs["text"]
        assert ours["logprobs"]["tokens"] == theirs["logprobs"]["tokens"]
        pairs = zip(ours["logprobs"]["token_logprobs"], theirs["logprobs"]["token_logprobs"], strict=True)
        assert all(a is b is None or abs(a - b) < 1e-4 for a, b in pairs)
