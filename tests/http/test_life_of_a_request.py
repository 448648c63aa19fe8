"""http/README.md, “The life of a request”: a request is traced through every thread, file by file."""

from __future__ import annotations

import re
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
import pytest

import gnomon.http.app
from gnomon.http.app import create_app
from gnomon.http.settings import Settings
from gnomon.jax_engine.engine import JaxEngine
from gnomon.jax_engine.runtime.settings import EngineSettings
from gnomon.reference import default_model_path, load_checkpoint, load_tokenizer
from helpers.live import serving

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = str(Path(gnomon.http.app.__file__).parents[1])
ASKED: dict[str, Any] = {
    "model": "gnomon-stories", "prompt": "Once upon", "max_tokens": 6, "n": 2, "logprobs": 2, "stop": ["fox"],
}  # fmt: skip


class Traced:
    """Which files of ours have a function that was called, in any thread that began since."""

    def __init__(self) -> None:
        self.files: set[str] = set()

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(PACKAGES) and frame.f_code.co_name != "<module>":
            self.files.add(str(Path(file).relative_to(PACKAGES)))


@pytest.mark.slow
def test_the_files_that_work_for_a_request_are_those_that_its_life_tells_of(engine_cache: Path) -> None:
    text = (ROOT / "http" / "README.md").read_text(encoding="utf-8")
    told = set(re.findall(r"`([\w/]+\.py)`", text.split("## The life of a request\n")[1].split("\n## ")[0]))
    checkpoint = load_checkpoint(default_model_path())
    tokenizer = load_tokenizer(default_model_path(), checkpoint.config.vocab_size)
    start, requests = Traced(), Traced()
    threading.setprofile(start)
    sys.setprofile(start)
    with ExitStack() as stack:
        stack.callback(threading.setprofile, None)
        stack.callback(sys.setprofile, None)
        engine = JaxEngine(checkpoint, EngineSettings(slots=2, native=False, compilation_cache=engine_cache))
        stack.callback(engine.stop)
        app = create_app(engine, tokenizer, Settings())
        threading.setprofile(requests)
        url = stack.enter_context(serving(app))
        httpx.get(f"{url}/livez")
        requests.files.clear()  # the start of the server is no part of a request
        for stream in (False, True):
            answer = httpx.post(f"{url}/v1/completions", json={**ASKED, "stream": stream}, timeout=60)
            assert answer.status_code == 200, answer.text
        httpx.get(f"{url}/livez")  # the end of the one before is told by then
        worked = set(requests.files)
    assert len(told) > 30
    assert worked - told == set(), "these work for a request, and its life does not tell of them"
    assert told - worked - start.files == set(), "of these its life tells, and they do nothing for it"
