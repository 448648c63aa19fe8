"""Tensors beyond those that config.json implies: what repeats is left out, what does not is told, and never dropped on
trust. test_as_transformers.py asks transformers the same."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from gnomon.http.cli.model import ModelOptions, read_model
from gnomon.jax_engine.engine import JaxEngine
from gnomon.jax_engine.runtime.settings import EngineSettings
from gnomon.reference.checkpoint.errors import CheckpointError
from gnomon.reference.checkpoint.load import Checkpoint, load_checkpoint, silently
from gnomon.reference.checkpoint.tensors import ELEMENTS_AT_ONCE, TensorFiles
from gnomon.reference.engine import JobRequest, ReferenceEngine, Token
from gnomon.reference.sampler import SamplingParams
from gnomon.reference.tokenizer import load_tokenizer
from gnomon.reference.trace.replay import Retracer, Task
from gnomon.reference.transformer import forward
from helpers.models import tiny_llama

Tensors = dict[str, NDArray[Any]]
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
IDS = [3, 1, 4, 1, 5, 9]


def changed(directory: Path, change: Callable[[Tensors], Tensors], **config: Any) -> Path:
    """A tiny Llama whose tensors `change` has had."""
    path = tiny_llama(directory, **config)
    save_file(change(load_file(path / "model.safetensors")), path / "model.safetensors")
    return path


def loaded(path: Path) -> tuple[Checkpoint, list[str]]:
    lines: list[str] = []
    return load_checkpoint(path, warn=lines.append), lines


def logits(path: Path) -> NDArray[np.float64]:
    checkpoint = loaded(path)[0]
    return forward(checkpoint.config, checkpoint.params, IDS)


def with_head(tensors: Tensors) -> Tensors:
    rng = np.random.default_rng(7)
    return {**tensors, HEAD: rng.normal(size=tensors[EMBEDDING].shape).astype(np.float32)}


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tied"), tie_word_embeddings=True)


@pytest.fixture(scope="module")
def contradicting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return changed(tmp_path_factory.mktemp("contradicting"), with_head, tie_word_embeddings=True)


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory, contradicting: Path) -> Path:
    """The same weights, and a config that says what they are."""
    tensors = load_file(contradicting / "model.safetensors")
    return changed(tmp_path_factory.mktemp("untied"), lambda _: tensors, tie_word_embeddings=False)


# ---- the head


def test_a_head_that_differs_from_the_embedding_is_served_with_a_line(contradicting: Path, untied: Path) -> None:
    checkpoint, lines = loaded(contradicting)
    assert not checkpoint.config.tie_word_embeddings
    assert lines == [
        "config.json ties lm_head.weight to model.embed_tokens.weight, but the files hold both, with different "
        "values: they are not tied, and the stored head is served"
    ]
    assert (logits(contradicting) == logits(untied)).all()
    assert checkpoint.parameter_count == loaded(untied)[0].parameter_count


@pytest.mark.slow
def test_both_engines_the_trace_and_the_fingerprints_have_the_stored_head(
    tied: Path, contradicting: Path, untied: Path, native_cache: Path
) -> None:
    params = SamplingParams(max_tokens=6, temperature=0)
    answers, prints = {}, {}
    for name, path in (("tied", tied), ("contradicting", contradicting), ("untied", untied)):
        checkpoint = loaded(path)[0]
        settings = EngineSettings(slots=1, page_size=8, chunk=8, native=False, compilation_cache=native_cache)
        jax = JaxEngine(checkpoint, settings)
        for engine in (ReferenceEngine(checkpoint), jax):
            events = engine.submit(JobRequest([IDS], [0], params, 1, 0, False)).events()
            answers[name, type(engine)] = tuple(event.id for event in events if isinstance(event, Token))
            prints[name, type(engine)] = engine.fingerprint
        jax.stop()
        tokens = answers[name, JaxEngine]
        task = Task(name, tuple(IDS), tokens, params, 0, range(1), None)
        retracer = Retracer(ReferenceEngine(checkpoint), load_tokenizer(path, checkpoint.config.vocab_size))
        assert retracer.carry_out(task).recount.first_difference is None
    for kind in (ReferenceEngine, JaxEngine):
        assert answers["contradicting", kind] == answers["untied", kind] != answers["tied", kind]
        assert prints["contradicting", kind] == prints["untied", kind] != prints["tied", kind]


def test_one_differing_value_is_enough_wherever_it_stands(tmp_path: Path) -> None:
    for where in (0, -1):

        def nearly(tensors: Tensors, where: int = where) -> Tensors:
            head = tensors[EMBEDDING].copy()
            head.flat[where] += 1e-3
            return {**tensors, HEAD: head}

        checkpoint, lines = loaded(changed(tmp_path / str(where), nearly, tie_word_embeddings=True))
        assert not checkpoint.config.tie_word_embeddings
        assert len(lines) == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_a_head_of_equal_values_is_left_out_without_a_line_in_any_dtype(tmp_path: Path, dtype: Any) -> None:
    def again(tensors: Tensors) -> Tensors:
        tensors[EMBEDDING] = tensors[EMBEDDING].astype(ml_dtypes.bfloat16).astype(np.float16).astype(np.float32)
        return {**tensors, HEAD: tensors[EMBEDDING].astype(dtype)}

    path = changed(tmp_path / "m", again, tie_word_embeddings=True)
    stored = load_file(path / "model.safetensors")
    is_alike = bool((stored[HEAD].astype(np.float64) == stored[EMBEDDING].astype(np.float64)).all())
    checkpoint, lines = loaded(path)
    assert checkpoint.config.tie_word_embeddings == is_alike
    assert lines == [] if is_alike else len(lines) == 1


def test_a_tied_file_with_only_the_head_has_the_embedding_there(tied: Path, tmp_path: Path) -> None:
    """As safetensors' save_model writes it, which keeps one of two names and puts the other in the metadata."""
    tensors = load_file(tied / "model.safetensors")
    tensors[HEAD] = tensors.pop(EMBEDDING)
    path = tiny_llama(tmp_path / "m", tie_word_embeddings=True)
    for metadata in ({EMBEDDING: HEAD}, None):
        save_file(tensors, path / "model.safetensors", metadata)
        checkpoint, lines = loaded(path)
        assert (checkpoint.params["lm_head"] is checkpoint.params["embed_tokens"], lines) == (True, [])
        assert (logits(path) == logits(tied)).all()


def test_without_tying_the_embedding_and_the_head_must_both_be_there(tmp_path: Path) -> None:
    for missing in (EMBEDDING, HEAD):

        def without(tensors: Tensors, missing: str = missing) -> Tensors:
            return {name: tensor for name, tensor in tensors.items() if name != missing}

        path = changed(tmp_path / missing, without, tie_word_embeddings=False)
        with pytest.raises(CheckpointError, match=f"{missing} is missing"):
            loaded(path)


def test_a_tied_head_of_another_shape_or_dtype_is_refused_by_name(tmp_path: Path) -> None:
    heads: list[NDArray[Any]] = [np.zeros((3, 32), np.float32), np.zeros((270, 32), np.int8)]
    for number, head in enumerate(heads):

        def add(tensors: Tensors, head: NDArray[Any] = head) -> Tensors:
            return {**tensors, HEAD: head}

        path = changed(tmp_path / str(number), add, tie_word_embeddings=True)
        with pytest.raises(CheckpointError, match=r"lm_head\.weight has (shape \[3, 32\]|dtype I8)"):
            loaded(path)


def test_a_differing_head_that_is_not_finite_is_refused_by_name(tmp_path: Path) -> None:
    def add(tensors: Tensors) -> Tensors:
        return {**tensors, HEAD: np.full_like(tensors[EMBEDDING], np.nan)}

    checkpoint, _ = loaded(changed(tmp_path / "m", add, tie_word_embeddings=True))
    with pytest.raises(CheckpointError, match=r"lm_head\.weight has weights that are NaN"):
        _ = checkpoint.params


def test_the_two_are_compared_across_shards(tmp_path: Path, contradicting: Path) -> None:
    tensors = load_file(contradicting / "model.safetensors")
    path = tiny_llama(tmp_path / "m", tie_word_embeddings=True)
    (path / "model.safetensors").unlink()
    save_file({HEAD: tensors.pop(HEAD)}, path / "b.safetensors")
    save_file(tensors, path / "a.safetensors")
    weight_map = dict.fromkeys(tensors, "a.safetensors") | {HEAD: "b.safetensors"}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert (logits(path) == logits(contradicting)).all()


def test_comparing_takes_the_memory_of_pieces_and_not_of_tensors(tmp_path: Path) -> None:
    """Two tensors of 64 MiB each, equal but for the last value, in two dtypes."""
    one = np.ones(16 * ELEMENTS_AT_ONCE, np.float32)
    other = one.astype(np.float16)
    other[-1] = 2
    save_file({"one": one, "other": other}, tmp_path / "model.safetensors")
    files = TensorFiles.open(tmp_path)
    tracemalloc.start()
    try:
        assert files.differ("one", "other")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 32 * ELEMENTS_AT_ONCE  # both pieces, in float64 too


COMMAND = (sys.executable, "-c", "from gnomon.http.cli.main import main; main()")
TOLD = "config.json ties lm_head.weight to model.embed_tokens.weight"


def test_complete_prints_the_line_once_as_a_warning(contradicting: Path) -> None:
    arguments = ["complete", "the", "--model", str(contradicting), "--engine", "reference", "--max-tokens", "2"]
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    [line] = done.stderr.splitlines()
    assert line.startswith(f"gnomon: warning: {TOLD}")
    assert TOLD not in done.stdout


def test_what_doctor_and_verify_read_prints_the_line_too(
    contradicting: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    read_model(str(contradicting), ModelOptions(), silently)
    assert capsys.readouterr().err.startswith(f"gnomon: warning: {TOLD}")


@pytest.mark.slow
def test_serve_logs_the_line_once_as_a_warning(contradicting: Path) -> None:
    arguments = ["serve", str(contradicting), "--engine", "reference", "--port", "0", "--log-format", "json"]
    with subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as server:
        assert server.stdout is not None
        lines = []
        for line in server.stdout:
            lines.append(line)
            if "started in" in line:
                server.terminate()
    [told] = [json.loads(line) for line in lines if TOLD in line]
    assert told["level"].lower() == "warning"


def test_a_library_that_is_not_asked_warns_in_pythons_own_way(contradicting: Path) -> None:
    with pytest.warns(UserWarning, match=TOLD):
        load_checkpoint(contradicting)


# ---- what repeats config.json


def rotary(theta: float, dtype: Any = np.float32) -> Tensors:
    table = theta ** -(np.arange(4) / 4)
    return {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": table.astype(dtype) for i in range(2)}


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_a_rotary_table_that_is_configs_is_left_out_without_a_line(tmp_path: Path, dtype: Any) -> None:
    plain = tiny_llama(tmp_path / "plain", rope_theta=5e5)
    path = changed(tmp_path / "m", lambda tensors: {**tensors, **rotary(5e5, dtype)}, rope_theta=5e5)
    assert loaded(path)[1] == []
    assert (logits(path) == logits(plain)).all()


def test_a_rotary_table_that_is_not_configs_is_left_out_with_a_line(tmp_path: Path) -> None:
    path = changed(tmp_path / "m", lambda tensors: {**tensors, **rotary(1e4)}, rope_theta=5e5)
    assert loaded(path)[1] == [
        "model.layers.0.self_attn.rotary_emb.inv_freq and 1 more like it in the files is not the table of rotary "
        "angles that config.json implies: left out, config.json holds"
    ]
    assert (logits(path) == logits(tiny_llama(tmp_path / "plain", rope_theta=5e5))).all()


GPT2 = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4,
        "n_positions": 64, "hidden_act": None}  # fmt: skip


@pytest.mark.parametrize(("dtype", "length"), [(np.uint8, 64), (np.bool_, 1500), (np.float32, 1100), (np.float16, 1)])
def test_causal_masks_of_old_files_are_left_out_without_a_line(tmp_path: Path, dtype: Any, length: int) -> None:
    """Also where a piece of the file ends within a row."""
    mask = np.tri(length, dtype=bool)[None, None].astype(dtype)

    def add(tensors: Tensors) -> Tensors:
        return {**tensors, "h.0.attn.bias": mask, "transformer.h.1.attn.masked_bias": np.array(-1e4, np.float32)}

    assert loaded(changed(tmp_path / "m", add, **GPT2))[1] == []


@pytest.mark.parametrize(
    ("name", "buffer", "what"),
    [
        ("h.0.attn.bias", np.ones((1, 1, 8, 8), np.float32), "a causal mask"),
        ("h.0.attn.bias", np.tri(8, k=1, dtype=np.uint8)[None, None], "a causal mask"),
        ("h.0.attn.bias", np.tri(8, 4, dtype=np.uint8), "a causal mask"),
        (
            "h.0.attn.bias",
            np.tri(1500, k=-1, dtype=np.uint8) + np.eye(1500, dtype=np.uint8) * (np.arange(1500) < 1499),
            "a causal mask",
        ),
        ("h.1.attn.masked_bias", np.zeros((), np.float32), "a mask's value"),
    ],
)
def test_a_mask_that_is_not_causal_is_left_out_with_a_line(
    tmp_path: Path, name: str, buffer: NDArray[Any], what: str
) -> None:
    path = changed(tmp_path / "m", lambda tensors: {**tensors, name: buffer}, **GPT2)
    assert loaded(path)[1] == [f"{name} in the files is not {what}: left out, config.json holds"]


# ---- layers, and names


def test_layers_beyond_configs_are_left_out_with_a_line(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "m", num_hidden_layers=4)
    raw = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**raw, "num_hidden_layers": 2}))
    line = "the files hold 18 tensors of layers 2 to 3, but config.json has num_hidden_layers 2: left out"
    assert loaded(path)[1] == [line]
    kept = {name: array for name, array in load_file(path / "model.safetensors").items() if ".layers.2." not in name}
    save_file({name: array for name, array in kept.items() if ".layers.3." not in name}, path / "model.safetensors")
    expected = logits(path)
    assert (logits(changed(tmp_path / "whole", lambda tensors: {**tensors, **kept})) == expected).all()


def test_any_other_tensor_that_is_not_the_models_is_an_error(tmp_path: Path) -> None:
    one = np.ones(1, np.float32)
    strange = ("model.layers.1.mlp.gate_proj.bias", "v_head.summary.weight", "model.layers.x.norm", "layers.2", "score")

    def add(tensors: Tensors) -> Tensors:
        return {**tensors, **dict.fromkeys(strange, one)}

    with pytest.raises(CheckpointError) as caught:
        loaded(changed(tmp_path / "m", add))
    assert all(f"{name} is not part of this architecture" in str(caught.value) for name in strange)


def test_names_without_the_models_prefix_load_one_by_one(tmp_path: Path, untied: Path) -> None:
    """As a class without a head stores them, and some files in part."""
    for number, is_short in enumerate((lambda i: True, lambda i: i % 2 == 0)):

        def shorten(_: Tensors, is_short: Callable[[int], bool] = is_short) -> Tensors:
            return {
                name.removeprefix("model.") if is_short(i) else name: tensor
                for i, (name, tensor) in enumerate(load_file(untied / "model.safetensors").items())
            }

        path = changed(tmp_path / str(number), shorten)
        assert loaded(path)[1] == []
        assert (logits(path) == logits(untied)).all()


def test_a_tensor_under_its_long_and_its_short_name_is_refused(tmp_path: Path) -> None:
    def twice(tensors: Tensors) -> Tensors:
        return {**tensors, "norm.weight": tensors["model.norm.weight"] + 1}

    with pytest.raises(
        CheckpointError, match=r"model\.norm\.weight is in model\.safetensors and in model\.safetensors"
    ):
        loaded(changed(tmp_path / "m", twice))
