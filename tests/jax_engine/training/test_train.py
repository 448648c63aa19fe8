"""The training code on a text of its own, and the committed model against its card."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("flax", reason="training needs the extra `train`")
pytest.importorskip("optax", reason="training needs the extra `train`")

import jax
from flax import nnx
from safetensors.numpy import load_file
from tokenizers import Tokenizer, pre_tokenizers

from gnomon.jax_engine.training import data as d
from gnomon.jax_engine.training.__main__ import main
from gnomon.jax_engine.training.config import ModelShape, TrainConfig
from gnomon.jax_engine.training.export import export, load_export
from gnomon.jax_engine.training.judges import held_out_loss, join_check, make_scorer, make_writer
from gnomon.jax_engine.training.llama import FlaxParams, new_params
from gnomon.jax_engine.training.loop import _forget_after, train
from gnomon.jax_engine.training.optimizer import rate_scale
from gnomon.jax_engine.training.state import TrainState, fresh_state, load_state, save_state

pytestmark = pytest.mark.weekly

MODEL = Path(__file__).resolve().parents[3] / "reference" / "default_model"
STORIES = [
    f"{name} had a {colour} {thing}. {name} took the {thing} to the {place}. It was a good day."
    for name in ("Ann", "Bo", "Cy", "Dee")
    for colour, thing in (("red", "kite"), ("blue", "boat"), ("green", "hat"))
    for place in ("park", "lake")
]
TINY = TrainConfig(
    model=ModelShape(
        vocab_size=300,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=24,
        max_position_embeddings=64,
    ),
    tokens=12_288,
    batch_tokens=128,
    ramp_tokens=256,
    short_context=32,
    context=64,
    warmup_steps=2,
    held_out_every=4096,
    held_out_stories=2,
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return d.train_tokenizer(STORIES, 300)


@pytest.fixture(scope="module")
def trained(tokenizer: Tokenizer) -> TrainState:
    """A whole run, without interruption or folder."""
    return train(TINY, STORIES, STORIES, tokenizer, progress=False)


@pytest.fixture(scope="module")
def card() -> dict[str, Any]:
    """The numbers of the model card: its one fenced block of JSON."""
    found = re.search(r"```json\n(.*?)```", (MODEL / "MODEL_CARD.md").read_text(encoding="utf-8"), re.DOTALL)
    assert found
    numbers: dict[str, Any] = json.loads(found[1])
    return numbers


# Tokenizer and data


def test_the_tokenizer_has_the_promised_form(tokenizer: Tokenizer) -> None:
    for candidate in (tokenizer, Tokenizer.from_file(str(MODEL / "tokenizer.json"))):
        content = json.loads(candidate.to_str())
        expected = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        assert content["pre_tokenizer"] == expected
        assert content["normalizer"] is None
        assert content["post_processor"] is None
        assert [(a["id"], a["content"]) for a in content["added_tokens"]] == list(enumerate(d.MARKER_TOKENS))
        vocabulary = candidate.get_vocab()
        assert all(byte in vocabulary for byte in pre_tokenizers.ByteLevel.alphabet())
        assert sorted(vocabulary.values()) == list(range(len(vocabulary)))
        text = "Any text, même ça, 日本 🦊\n\n  and blanks "
        assert candidate.decode(candidate.encode(text).ids) == text


def test_a_vocabulary_without_room_for_the_bytes_is_refused() -> None:
    with pytest.raises(d.DataError, match="below 260"):
        d.train_tokenizer(STORIES, 200)


def test_a_missing_corpus_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(d.DataError, match=r"no some\.txt in .* GNOMON_DATA"):
        d.find_corpus(tmp_path, "some.txt")


def test_stories_are_stripped_and_empty_ones_dropped(tmp_path: Path) -> None:
    file = tmp_path / "stories.txt"
    file.write_text("One.\n<|endoftext|>\n\n<|endoftext|>\nTwo. \n", encoding="utf-8")
    assert d.read_stories(file) == ["One.", "Two."]


def test_a_cut_is_a_story_in_three_parts() -> None:
    rng = np.random.default_rng(0)
    for round_ in range(300):
        story = STORIES[round_ % len(STORIES)]
        cut = d.cut_story(story, rng)
        assert story.startswith(cut.prefix + cut.middle + cut.suffix)


def test_without_jitter_cuts_lie_at_word_borders() -> None:
    rng = np.random.default_rng(0)
    for story in STORIES * 5:
        cut = d.cut_story(story, rng, jitter=0.0)
        assert cut.middle
        assert all(not part or part == story[: len(part)] or part[0] == " " for part in (cut.middle, cut.suffix))


def test_documents_are_laid_out_as_a_server_presents_them() -> None:
    story = d.story_document([7, 8])
    assert (story.inputs.tolist(), story.targets.tolist()) == ([0, 7, 8], [7, 8, 0])
    bare = d.story_document([7, 8], opened=False)
    assert (bare.inputs.tolist(), bare.targets.tolist()) == ([7, 8], [8, 0])
    fim = d.fim_document(prefix=[5], suffix=[6, 7], middle=[8, 9], context=64)
    assert fim.inputs.tolist() == [1, 5, 2, 6, 7, 3, 8, 9]
    assert fim.targets.tolist() == [5, 2, 6, 7, 3, 8, 9, 0]
    assert fim.targets[fim.middle :].tolist() == [8, 9, 0]
    assert story.middle == len(story.inputs)


def test_a_long_fim_document_gives_up_suffix_then_prefix_never_the_middle() -> None:
    prefix, suffix, middle = list(range(100, 150)), list(range(200, 250)), [8, 9]
    ids = d.fim_document(prefix, suffix, middle, context=60).inputs.tolist()
    assert ids == [1, *prefix[-23:], 2, *suffix[:32], 3, *middle]


def test_rows_are_full_and_every_document_is_seen() -> None:
    lengths = [9, 3, 40, 7, 16, 2, 5, 11, 16, 1]
    rows = d.pack(lengths, 16)
    assert all(sum(end - begin for _, begin, end in row) == 16 for row in rows)
    seen = {(doc, position) for row in rows for doc, begin, end in row for position in range(begin, end)}
    everything = {(doc, position) for doc, length in enumerate(lengths) for position in range(length)}
    assert seen <= everything
    assert len(everything - seen) < 16  # the last row, were it not full, is left out


def test_an_epoch_is_a_function_of_its_seed_and_number(tokenizer: Tokenizer) -> None:
    first, again, other = (d.Epoch(STORIES, tokenizer, 32, seed=1, epoch=e) for e in (0, 0, 1))
    assert np.array_equal(first.inputs, again.inputs)
    assert np.array_equal(first.segments, again.segments)
    assert not np.array_equal(first.inputs[: len(other)], other.inputs[: len(first)])


# Training


def test_the_rate_warms_up_stays_and_decays_to_zero() -> None:
    config = dataclasses.replace(TINY, tokens=1000, decay=0.25, warmup_steps=4)
    assert rate_scale(config, 0, 0) == 0.25
    assert rate_scale(config, 9, 750) == 1.0
    assert rate_scale(config, 9, 875) == 0.5
    assert rate_scale(config, 9, 1000) == 0.0


def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(
    tmp_path: Path, tokenizer: Tokenizer, trained: TrainState
) -> None:
    """Weights and moments bit for bit; the run passes the ends of epochs, the ramp and the change of context."""
    part = train(TINY, STORIES, STORIES, tokenizer, stop_after=37, progress=False)
    save_state(tmp_path, TINY, part)
    config, state = load_state(tmp_path)
    assert config == TINY
    (tmp_path / "log.jsonl").write_text('{"tokens": 1}\n{"tokens": 9999}\n', encoding="utf-8")
    resumed = train(config, STORIES, STORIES, tokenizer, tmp_path, state, progress=False)
    assert trained.position == resumed.position
    assert trained.position.epoch > part.position.epoch > 1
    assert trained.position.context == TINY.context > part.position.context
    for one, other in zip(jax.tree.leaves(trained[:2]), jax.tree.leaves(resumed[:2]), strict=True):
        assert np.array_equal(one, other)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["tokens"] for line in lines] == [1, 8192, 12_288]
    assert load_state(tmp_path)[1].position == trained.position


def test_training_learns_a_small_text(tokenizer: Tokenizer, trained: TrainState) -> None:
    score = make_scorer(TINY.model)
    before, after = (
        held_out_loss(score, params, tokenizer, STORIES, 64) for params in (fresh_state(TINY).params, trained.params)
    )
    assert after < 0.5 * before


def test_a_foreign_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(d.DataError, match="is no checkpoint of this program"):
        load_state(tmp_path)


def test_a_checkpoint_with_one_bit_changed_is_refused(tmp_path: Path) -> None:
    save_state(tmp_path, TINY, fresh_state(TINY))
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.safetensors"]
    content = bytearray((tmp_path / "checkpoint.safetensors").read_bytes())
    content[-100] ^= 1
    (tmp_path / "checkpoint.safetensors").write_bytes(content)
    with pytest.raises(d.DataError, match="is damaged: its arrays are not those that were written"):
        load_state(tmp_path)


def test_a_log_whose_last_line_was_cut_is_gone_on_with(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"tokens": 1}\n{"tokens": 9}\n{"tok')
    _forget_after(log, 5)
    assert log.read_text() == '{"tokens": 1}\n'


def test_a_log_that_is_damaged_elsewhere_is_named_with_the_line(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"tokens": 1}\n{"tok\n{"tokens": 2}\n')
    with pytest.raises(d.DataError, match=r"log\.jsonl, line 2: not a line of this log"):
        _forget_after(log, 5)
    assert log.read_text().startswith('{"tokens": 1}\n{"tok\n')


def test_bad_input_is_one_line_on_the_command_line(tmp_path: Path) -> None:
    for command, complaint in (
        (["evaluate", str(tmp_path)], r"error: no config\.json in"),
        (["export", str(tmp_path), str(tmp_path / "out")], r"error: no checkpoint\.safetensors in"),
        (["run", "--data", str(tmp_path), "--out", str(tmp_path)], "error: no tinystories"),
    ):
        with pytest.raises(SystemExit, match=complaint):
            main(command)


def test_segments_hide_the_other_documents_of_a_row() -> None:
    graph, params = new_params(TINY.model, 0)
    model = nnx.merge(graph, nnx.State(params))
    tokens = np.arange(4, 20, dtype=np.int32)[None]
    told = np.repeat([[0, 1]], 8, axis=1).astype(np.int32)
    alone = model(tokens[:, 8:], np.zeros((1, 8), np.int32))
    behind = model(tokens, told)[8:]
    np.testing.assert_allclose(behind, alone, atol=1e-5)  # rotary attention sees distances only


# Judges


def test_a_uniform_model_scores_log_v_times_tokens_by_bytes(tokenizer: Tokenizer) -> None:
    """Also where a story is longer than the context: every token counts once."""

    def uniform(params: FlaxParams, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
        return np.full(inputs.shape, -math.log(300.0), np.float32)

    stories = [*STORIES[:9], " ".join(STORIES), "é"]
    tokens = sum(len(tokenizer.encode(story).ids) for story in stories)
    size = sum(len(story.encode()) for story in stories)
    loss = held_out_loss(uniform, None, tokenizer, stories, 64)
    assert loss == pytest.approx(math.log(300) * tokens / size, rel=1e-6)


def test_the_held_out_loss_follows_its_definition(tokenizer: Tokenizer) -> None:
    """One story, by hand: the first token is predicted after the end token, and the end is not scored."""
    graph, params = new_params(TINY.model, 3)
    ids = tokenizer.encode(STORIES[0]).ids
    model = nnx.merge(graph, nnx.State(params))
    inputs = np.array([[0, *ids[:-1]]], np.int32)
    logits = np.asarray(model(inputs, np.zeros_like(inputs)), np.float64)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    by_hand = -log_p[np.arange(len(ids)), ids].sum() / len(STORIES[0].encode())
    loss = held_out_loss(make_scorer(TINY.model), params, tokenizer, STORIES[:1], 64)
    assert loss == pytest.approx(by_hand, rel=1e-5)


def test_the_writer_ends_or_keeps_to_its_limit() -> None:
    _, params = new_params(TINY.model, 0)
    writer = make_writer(TINY.model, context=32, steps=8)
    written = writer(params, [[5, 6, 7], [9]], [8, 3], False)
    assert [len(ids) for ids in written] == [8, 3]
    assert all(0 not in ids for ids in written)
    assert writer(params, [[5, 6, 7]], [1], False)[0] == written[0][:1]


# Export


def expected_shapes(config: ModelShape) -> dict[str, tuple[int, ...]]:
    """What LlamaForCausalLM with tied embeddings stores."""
    width, queries, keys, inner = (
        config.hidden_size,
        config.num_attention_heads * config.head_dim,
        config.num_key_value_heads * config.head_dim,
        config.intermediate_size,
    )
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config.vocab_size, width),
        "model.norm.weight": (width,),
    }
    for layer in range(config.num_hidden_layers):
        at = f"model.layers.{layer}."
        shapes |= {
            at + "input_layernorm.weight": (width,),
            at + "self_attn.q_proj.weight": (queries, width),
            at + "self_attn.k_proj.weight": (keys, width),
            at + "self_attn.v_proj.weight": (keys, width),
            at + "self_attn.o_proj.weight": (width, queries),
            at + "post_attention_layernorm.weight": (width,),
            at + "mlp.gate_proj.weight": (inner, width),
            at + "mlp.up_proj.weight": (inner, width),
            at + "mlp.down_proj.weight": (width, inner),
        }
    return shapes


def test_the_export_has_the_names_and_shapes_of_a_llama(tmp_path: Path, tokenizer: Tokenizer) -> None:
    deep = dataclasses.replace(TINY.model, num_hidden_layers=12)
    _, params = new_params(deep, 0)
    export(deep, params, tokenizer, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert {name: array.shape for name, array in stored.items()} == expected_shapes(deep)
    config, again, vocabulary = load_export(tmp_path)
    assert config == deep
    assert vocabulary.get_vocab() == tokenizer.get_vocab()
    for one, other in zip(jax.tree.leaves(params), jax.tree.leaves(again), strict=True):
        assert np.array_equal(one, other)


def test_weights_of_another_shape_are_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    _, params = new_params(TINY.model, 0)
    export(dataclasses.replace(TINY.model, intermediate_size=32), params, tokenizer, tmp_path)
    with pytest.raises(d.DataError, match=r"do not fit config\.json: model\.layers\.0\.mlp\.down_proj\.weight"):
        load_export(tmp_path)


def test_transformers_computes_the_same_logits() -> None:
    torch = pytest.importorskip("torch", reason="the extra `parity`")
    transformers = pytest.importorskip("transformers", reason="the extra `parity`")
    config, params, _ = load_export(MODEL)
    graph, _ = new_params(config, 0)
    model = nnx.merge(graph, nnx.State(params))
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (1, 512)).astype(np.int32)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(MODEL)
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens, dtype=torch.long)).logits[0].numpy()
    np.testing.assert_allclose(model(tokens, np.zeros_like(tokens)), expected, atol=2e-4)


# The committed model


def test_the_committed_model_is_as_small_as_the_card_says(card: dict[str, Any]) -> None:
    stored = load_file(MODEL / "model.safetensors")
    config, _, tokenizer = load_export(MODEL)
    assert {name: array.shape for name, array in stored.items()} == expected_shapes(config)
    assert sum(array.size for array in stored.values()) == card["parameters"] <= 2_200_000
    assert (MODEL / "model.safetensors").stat().st_size <= 8.9e6
    assert tokenizer.get_vocab_size() == config.vocab_size
    assert config.max_position_embeddings == 512


def held_out_stories() -> list[str]:
    try:
        return d.read_stories(d.find_corpus(None, d.HELD_OUT_FILE))
    except d.DataError as missing:
        pytest.skip(str(missing))


def test_the_held_out_loss_is_the_cards(card: dict[str, Any]) -> None:
    config, params, tokenizer = load_export(MODEL)
    loss = held_out_loss(make_scorer(config), params, tokenizer, held_out_stories(), 512)
    assert loss == pytest.approx(card["held_out_nats_per_byte"], abs=5e-4)


def test_the_middle_it_writes_joins_the_suffix_better_than_a_blind_continuation() -> None:
    config, params, tokenizer = load_export(MODEL)
    check = join_check(config, params, tokenizer, held_out_stories(), most=16)
    assert check.cuts == 16
    assert check.fim > check.blind
    assert check.ended >= 8


def test_the_card_shows_three_samples(card: dict[str, Any]) -> None:
    config, params, tokenizer = load_export(MODEL)
    assert len(card["samples"]) == 3
    writer = make_writer(config, context=128, steps=80)
    prompts = [tokenizer.encode(sample["prompt"]).ids for sample in card["samples"]]
    limits = [sample["max_tokens"] for sample in card["samples"]]
    written = writer(params, prompts, limits, True)
    assert [tokenizer.decode(ids) for ids in written] == [sample["text"] for sample in card["samples"]]
