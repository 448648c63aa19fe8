"""Every family and variant against transformers, a twelfth of them on the JAX engine; with `-m weekly` all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_table import BEGIN, END, FILE, against_jax, against_transformers, text

from gnomon.jax_engine.engine import JaxEngine
from gnomon.jax_engine.runtime.settings import EngineSettings
from gnomon.reference.checkpoint.config import read_config
from gnomon.reference.checkpoint.errors import CheckpointError
from gnomon.reference.checkpoint.families import ARCHITECTURES
from gnomon.reference.checkpoint.load import load_checkpoint, silently
from gnomon.reference.checkpoint.tensor_table import stored_tensors
from gnomon.reference.engine import JobRequest
from gnomon.reference.model_config import Family
from gnomon.reference.sampler import SamplingParams
from gnomon.reference.transformer import forward
from helpers.extras import extra
from helpers.families import CONTEXT, VARIANTS, architecture_in, save_random
from helpers.today import share_of_the_day

torch = extra("parity", "torch", "transformers")


UNLIKE = ("Gemma 2", "GPT-2")  # one another: always on the JAX engine
LONG_ROPE = ("Phi-3, long", "Phi-4-mini, partly rotated")  # which change their factors with the context
TOLERANCE = 2e-5  # of logits of scale 0.3 to 0.9; what transformers computes in float32 is off by up to 7e-6
JAX_TOLERANCE = 1e-4


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every variant's checkpoint."""
    return {
        name: save_random(tmp_path_factory.mktemp("variant"), variant, seed)
        for seed, (name, variant) in enumerate(VARIANTS.items())
    }


def seed_of(name: str) -> int:
    return list(VARIANTS).index(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_the_references_logits_are_transformers(directories: dict[str, Path], name: str) -> None:
    difference, scale = against_transformers(directories[name], text(seed_of(name)))
    assert scale > 0.2  # a model that says nothing would agree with any other
    assert difference < TOLERANCE


@pytest.mark.parametrize("name", share_of_the_day(VARIANTS, days=12, always=UNLIKE))
def test_the_jax_engine_computes_what_the_reference_does(directories: dict[str, Path], name: str) -> None:
    worst, tokens_equal = against_jax(directories[name], text(seed_of(name)))
    assert worst < JAX_TOLERANCE
    assert tokens_equal


@pytest.mark.weekly
@pytest.mark.parametrize("name", VARIANTS)
def test_the_native_operations_compute_what_the_reference_does(
    directories: dict[str, Path], native_cache: Path, name: str
) -> None:
    worst, tokens_equal = against_jax(directories[name], text(seed_of(name)), native=native_cache)
    assert worst < JAX_TOLERANCE
    assert tokens_equal


UNLIKE_LLAMA = ("Mixtral", "Qwen3-MoE", "Gemma 3", "Phi-3, long", "OLMo 2", "GPT-2")  # in what a row might share


@pytest.mark.weekly
@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("name", UNLIKE_LLAMA)
def test_neighbours_change_no_byte(directories: dict[str, Path], native_cache: Path, name: str, native: bool) -> None:
    settings = EngineSettings(slots=4, page_size=16, chunk=32, native=native, compilation_cache=native_cache)
    engine = JaxEngine(load_checkpoint(directories[name]), settings)
    params, stop = SamplingParams(max_tokens=25, temperature=0.9), threading.Event()

    def answer(seed: int, length: int) -> list[str]:
        ids = text(seed)[:length]
        return sorted(
            map(repr, engine.submit(JobRequest([ids], [seed], params, candidates=2, top=3, score=True)).events())
        )

    def disturb(number: int) -> None:
        while not stop.is_set():
            answer(number, 20 + number * 17 % 100)

    with ThreadPoolExecutor() as pool:
        alone = answer(5, 60)
        noise = [pool.submit(disturb, number) for number in range(6)]
        try:
            assert [answer(5, 60) == alone for _ in range(6)] == [True] * 6
        finally:
            stop.set()
        assert all(task.result(60) is None for task in noise)
    engine.stop()


@pytest.mark.weekly
def test_a_family_that_is_cut_over_two_devices_computes_the_same(directories: dict[str, Path]) -> None:
    """In a process of its own, which is told before it begins that it has two."""
    names = ("Llama, biases", *UNLIKE_LLAMA, "GPT-NeoX", "Phi-2", "StarCoder2")
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    command = [sys.executable, str(Path(__file__).parents[1] / "family_table.py"), "--tensor-parallel"]
    arguments = [f"{seed_of(name)}={directories[name]}" for name in names]
    done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("cut ")]
    assert len(rows) == len(names)
    assert all(float(worst) < JAX_TOLERANCE and equal == "True" for _, worst, equal in rows), done.stdout


@pytest.mark.slow
def test_every_architecture_of_the_table_has_a_variant(directories: dict[str, Path]) -> None:
    assert {architecture_in(path) for path in directories.values()} == set(ARCHITECTURES)


LLAMAS = ("Llama", "Llama, dynamic", "Llama, llama3")  # what model.py computes
BY_NAMES = ("Llama, biases", "Mistral, no window", "Qwen2", "Phi-3")  # differ in their tensors alone, or not at all
DECLARED = ("norm", "activation", "score_cap", "logit_cap", "embedding_scale", "residual_scale", "logit_scale",
            "score_scale", "layers", "query_key_norm")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_what_a_variant_declares_matters(directories: dict[str, Path], name: str) -> None:
    """Each declaration, dropped, changes the logits by far more than the tolerance: it would be found."""
    checkpoint = load_checkpoint(directories[name])
    config, ids = checkpoint.config, text(seed_of(name))
    rope = config.family.layers[0].rope if name in LLAMAS else None
    plain = Family.llama(config.num_hidden_layers, config.head_dim, rope)
    expected = forward(config, checkpoint.params, ids)
    declared = [field for field in DECLARED if getattr(config.family, field) != getattr(plain, field)]
    assert bool(declared) != (name in LLAMAS + BY_NAMES)
    for field in declared:
        if field == "layers" and config.family.experts is not None:
            continue  # without experts there would be no feed-forward
        other = replace(config, family=replace(config.family, **{field: getattr(plain, field)}))
        assert abs(forward(other, checkpoint.params, ids) - expected).max() > 100 * TOLERANCE, field


@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in LONG_ROPE])
def test_a_shorter_context_loads_and_computes_the_same(directories: dict[str, Path], name: str) -> None:
    whole, short = load_checkpoint(directories[name]), load_checkpoint(directories[name], max_model_len=24)
    assert (short.config.max_position_embeddings, whole.config.max_position_embeddings) == (24, CONTEXT)
    ids = text(1)[:24]
    assert (forward(short.config, short.params, ids) == forward(whole.config, whole.params, ids)).all()


def test_long_rope_takes_the_factors_of_the_context_that_is_served(directories: dict[str, Path]) -> None:
    """Which are transformers' for a text that is as long, and stay when a text grows."""
    path = directories["Phi-3, long"]
    long, short = read_config(path), read_config(path, 64)
    assert (long.max_position_embeddings, short.max_position_embeddings) == (CONTEXT, 64)
    assert long.family.layers[0].rope != short.family.layers[0].rope
    checkpoint = load_checkpoint(path)
    ids = text(1)[:60]
    expected = theirs_of(path, ids)
    assert abs(forward(short, checkpoint.params, ids) - expected).max() < TOLERANCE
    assert abs(forward(long, checkpoint.params, ids) - expected).max() > 0.01


def theirs_of(path: Path, ids: list[int]) -> np.ndarray[Any, np.dtype[np.float64]]:
    from family_table import theirs

    return theirs(path, ids)


JUNK: tuple[Any, ...] = ("x", [], [[]], [None], {}, {"a": []}, -1, 0, 1.5, True, None, float("nan"), 10**30)


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_junk_in_any_entry_is_a_checkpoint_error_or_makes_no_difference(
    directories: dict[str, Path], name: str, tmp_path: Path
) -> None:
    raw = json.loads((directories[name] / "config.json").read_text())
    for entry in raw:
        for junk in JUNK:
            (tmp_path / "config.json").write_text(json.dumps({**raw, entry: junk}))
            try:
                stored_tensors(read_config(tmp_path, warn=silently))
            except CheckpointError:
                continue


def test_the_table_of_families_has_a_row_for_every_variant() -> None:
    written = FILE.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0]
    rows = [line.split(" | ") for line in written.splitlines() if line.startswith("| ") and "`" in line]
    assert [row[0].removeprefix("| ") for row in rows] == list(VARIANTS), "run: python tests/family_table.py"
    assert all(row[-1].startswith("yes") for row in rows)
    assert all(float(row[3]) < TOLERANCE and float(row[4]) < JAX_TOLERANCE for row in rows)


@pytest.mark.weekly
@pytest.mark.parametrize("name", UNLIKE_LLAMA)
def test_natively_slots_change_no_byte(directories: dict[str, Path], native_cache: Path, name: str) -> None:
    """Nor are they in the fingerprint. What XLA computes between the native operations is every family's own."""
    params, seen = SamplingParams(max_tokens=40, temperature=0.9, top_p=0.9), set()
    for slots in (1, 3, 8, 40):
        settings = EngineSettings(slots=slots, page_size=16, chunk=32, native=True, compilation_cache=native_cache)
        engine = JaxEngine(load_checkpoint(directories[name]), settings)
        try:
            if engine.device.kernels.description == "XLA":
                pytest.skip("no C++ compiler here")
            asked = JobRequest([text(5)[:60], text(6)[:9]], [5, 6], params, candidates=2, top=3, score=True)
            seen.add((engine.fingerprint, *sorted(map(repr, engine.submit(asked).events()))))
        finally:
            engine.stop()
    assert len(seen) == 1
