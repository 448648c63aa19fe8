"""Cases that once went wrong, or nearly: each found by somebody who tried to break the reference."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gnomon.reference.checkpoint.config import read_config
from gnomon.reference.checkpoint.errors import CheckpointError
from gnomon.reference.checkpoint.load import load_checkpoint
from gnomon.reference.completion import prepare
from gnomon.reference.errors import InvalidRequest
from gnomon.reference.model_config import Rope
from gnomon.reference.request import CompletionRequest
from gnomon.reference.sampler import report
from gnomon.reference.tokenizer import Tokenizer
from helpers.fake import FakeEngine, always, fake_tokenizer, hashed_logits
from helpers.models import TINY, tiny_llama


def body(**fields: object) -> CompletionRequest:
    return CompletionRequest.from_fields({"model": "m", "prompt": "a", **fields})


def parsed(text: str) -> CompletionRequest:
    return CompletionRequest.from_json(('{"model": "m", "prompt": "a", ' + text + "}").encode())


def test_a_long_stop_string_is_prepared_once_and_not_for_every_candidate(tokenizer: Tokenizer) -> None:
    request = body(stop="a" * 1000, n=128, max_tokens=1)
    run = prepare(request, FakeEngine(hashed_logits), tokenizer, "m")
    run.whole()
    tables = {id(candidate._matcher._fallbacks) for candidate in run._candidates.values()}
    assert len(run._candidates) == 128
    assert len(tables) == 1


def test_encoding_a_long_prompt_lets_other_threads_run(tokenizer: Tokenizer) -> None:
    """A thread that counts goes on counting. If `encode` held the interpreter's lock it would stand still."""
    pauses, done = [0.0], threading.Event()

    def count() -> None:
        last = time.perf_counter()
        while not done.is_set():
            time.sleep(0.001)
            now = time.perf_counter()
            pauses.append(now - last)
            last = now

    counter = threading.Thread(target=count)
    counter.start()
    started = time.perf_counter()
    tokenizer.encode("ab " * 150_000)
    took = time.perf_counter() - started
    done.set()
    counter.join()
    assert len(pauses) > 5, f"the other thread stood still while {took:.1f} s went by"


def test_a_run_is_read_once(tokenizer: Tokenizer) -> None:
    run = prepare(body(max_tokens=2), FakeEngine(always(*b"ab")), tokenizer, "m")
    run.whole()
    with pytest.raises(RuntimeError, match="once"):
        run.whole()


def test_the_fingerprint_changes_with_the_tokenizer(tmp_path: Path) -> None:
    prints = set()
    for normalizer in (None, {"type": "Lowercase"}):
        changed = fake_tokenizer(tmp_path, normalizer=normalizer)
        run = prepare(body(max_tokens=0), FakeEngine(hashed_logits), changed, "m")
        prints.add(run.whole().system_fingerprint)
    assert len(prints) == 2


@pytest.mark.parametrize(
    ("entries", "theta"),
    [
        ({"rope_theta": 5e5}, 5e5),
        ({"rope_theta": 5e5, "rope_parameters": {"rope_type": "default"}}, 5e5),
        ({"rope_theta": 5e5, "rope_parameters": {}}, 5e5),
        ({"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 3e4}}, 3e4),
    ],
)
def test_rope_theta_is_found_wherever_a_config_keeps_it(
    tmp_path: Path, entries: dict[str, object], theta: float
) -> None:
    kept = {name: value for name, value in {**TINY, **entries}.items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(kept))
    assert read_config(tmp_path).family.layers[0].rope == Rope.plain(theta, TINY["head_dim"])


def test_a_tensor_in_two_files_is_refused_by_name(tmp_path: Path) -> None:
    tensors = load_file(tiny_llama(tmp_path) / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    save_file(tensors, tmp_path / "a.safetensors")
    save_file({"lm_head.weight": np.zeros_like(tensors["lm_head.weight"])}, tmp_path / "b.safetensors")
    weight_map = dict.fromkeys(tensors, "a.safetensors") | {"model.norm.weight": "b.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is in a\.safetensors and in b\.safetensors"):
        load_checkpoint(tmp_path)


def test_spans_cover_the_spaces_their_tokens_stand_for(tmp_path: Path) -> None:
    trimming = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = fake_tokenizer(tmp_path, post_processor={"type": "Sequence", "processors": [trimming]})
    text = "a the a"
    ids, starts = tokenizer.encode(text)
    ends = [*starts[1:], len(text)]
    assert [text[a:b] for a, b in zip(starts, ends, strict=True)] == [tokenizer.labels[v] for v in ids]


def test_a_number_beside_an_integer_stays_beside_it() -> None:
    assert parsed('"top_p": 0.99999999999999999999999').top_p < 1
    assert parsed('"temperature": 1e-400').temperature > 0
    for text in ('"temperature": 2.00000000000000000001', '"temperature": -1e-400', '"seed": 9007199254740993.0'):
        with pytest.raises(InvalidRequest):
            parsed(text)


def test_deep_values_of_unknown_names_are_refused_without_recursion() -> None:
    deep: object = 1
    for _ in range(5000):
        deep = [deep]
    for fields in ({"x": deep}, {"stream": True, "stream_options": {"x": deep}}):
        with pytest.raises(InvalidRequest, match="x: unknown field"):
            body(**fields)


def test_bias_keys_that_are_no_strings_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="digits"):
        body(logit_bias={5: 1})


def test_an_error_about_half_a_surrogate_pair_is_json_for_every_parser() -> None:
    with pytest.raises(InvalidRequest) as error:
        parsed('"\\ud800": 1')
    assert "\\\\ud800" in json.dumps(error.value.to_json())


def test_log_probabilities_of_large_logits_are_exact() -> None:
    assert np.array_equal(report(np.full(2, 1e17)), np.full(2, -np.log(2)))
    assert report(np.array([1e308, -1e308]))[1] == -np.inf
