"""The reference against transformers: random tiny Llamas that transformers wrote itself, and the embedded model.

Here transformers is the second opinion: it makes the checkpoint, saves it, loads it and computes. Its float64 is only
float32 in two places: RMSNorm (its input is cast) and the rotary angles (the frequencies, and position · frequency). A
float32 rounds by 6e-8 of its size, so at position 150 an angle is off by up to 1e-5 radians: plain float64 agrees to
1e-5 and no better, and only while attention is not too sharp. With those two places lifted to float64, everything
agrees to 1e-11: nothing else differs. The measured maxima are printed (`pytest -m parity -rP`) and recorded as
properties.

Sequences have 150 random tokens. With weights of ±0.1 logits spread by 0.4 to 0.9, and a wrong head, pairing or
frequency moves them by more than 0.01.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from gnomon.reference.arrays import F64
from gnomon.reference.checkpoint.load import Checkpoint, default_model_path, load_checkpoint
from gnomon.reference.completion import prepare
from gnomon.reference.engine import JobRequest, PromptScored, ReferenceEngine, Token
from gnomon.reference.model import forward, inverse_frequencies
from gnomon.reference.model_config import Family
from gnomon.reference.request import CompletionRequest
from gnomon.reference.sampler import SamplingParams
from gnomon.reference.tokenizer import load_tokenizer
from helpers.extras import extra
from helpers.fake import FAKE_VOCAB, SPECIALS, tokenizer_files

os.environ["HF_HUB_OFFLINE"] = "1"  # everything is a local directory; nothing may be looked up
torch = extra("parity", "torch")
transformers = extra("parity", "transformers")

Record = Callable[[str, object], None]

VOCAB, LENGTH, CONTEXT = 300, 150, 512
FLOAT64, FLOAT32, LIFTED = 1e-5, 1e-4, 1e-11  # tolerances on logits; see above
CLEAR = 1e-4  # a greedy step is decided if the two best logits are this far apart

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,  # 150 tokens are well past it
}
Config = dict[str, Any]
VARIANTS: dict[str, tuple[Config, Config]] = {  # name → (entries of LlamaConfig, how it is saved)
    "full": ({"num_key_value_heads": 4}, {}),
    "grouped": ({"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 2}, {}),
    "multi-query": ({"num_key_value_heads": 1}, {}),
    "tied": ({"tie_word_embeddings": True}, {}),
    "wide-heads": ({"head_dim": 24}, {}),
    "narrow-heads": ({"head_dim": 6}, {}),
    "epsilon-and-theta": ({"rms_norm_eps": 0.1, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, {}),
    "llama3-rope": ({"rope_parameters": LLAMA3}, {}),
    "sharded": ({}, {"max_shard_size": "30KB"}),
    "bfloat16": ({}, {"dtype": torch.bfloat16}),
    "float16-tied": ({"tie_word_embeddings": True}, {"dtype": torch.float16}),
    "old-config": ({"rope_parameters": {"rope_type": "default", "rope_theta": 2e4}}, {"old": True}),
    "old-config-llama3-rope": ({"rope_parameters": LLAMA3, "num_key_value_heads": 4}, {"old": True}),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield
    torch.set_num_threads(before)


class Pair(NamedTuple):
    """One directory, loaded by both."""

    name: str
    directory: Path
    theirs: Any  # LlamaForCausalLM in float64
    ours: Checkpoint
    logits: F64  # ours, of random_tokens()


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    name: str = request.param
    entries, how = VARIANTS[name]
    directory = tmp_path_factory.mktemp(name)
    save_random_llama(directory, seed=list(VARIANTS).index(name), **how, **entries)
    return load_pair(name, directory)


def load_pair(name: str, directory: Path) -> Pair:
    ours = load_checkpoint(directory)
    tokens = random_tokens(vocab_size=ours.config.vocab_size)
    return Pair(name, directory, load_theirs(directory), ours, forward(ours.config, ours.params, tokens))


def save_random_llama(
    directory: Path, seed: int, dtype: Any = None, max_shard_size: str = "1GB", old: bool = False, **entries: Any
) -> None:
    """A random Llama, made and saved by transformers. `old`: config.json as transformers 4 wrote it."""
    config = transformers.LlamaConfig(
        **{
            "vocab_size": VOCAB,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": CONTEXT,
            "rms_norm_eps": 1e-5,
            "bos_token_id": None,
            "eos_token_id": None,
            **entries,
        }
    )
    model = transformers.LlamaForCausalLM(config)
    torch.manual_seed(seed)
    for parameter in model.parameters():
        centre, spread = (1.0, 0.2) if parameter.dim() == 1 else (0.0, 0.1)
        parameter.data.normal_(centre, spread)
    model.to(dtype or torch.float32).save_pretrained(directory, max_shard_size=max_shard_size)
    if old:
        as_before_version_5(directory / "config.json")


def as_before_version_5(file: Path) -> None:
    """Rewrites config.json: rope_theta and rope_scaling for rope_parameters, torch_dtype for dtype, and nothing that
    has a default."""
    entries = json.loads(file.read_text())
    rope = entries.pop("rope_parameters")
    entries["rope_theta"] = rope.pop("rope_theta")
    entries["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    entries["torch_dtype"] = entries.pop("dtype")
    del entries["head_dim"]
    if entries["num_key_value_heads"] == entries["num_attention_heads"]:
        del entries["num_key_value_heads"]
    file.write_text(json.dumps(entries))


def load_theirs(directory: Path, dtype: Any = torch.float64) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()


def their_logits(model: Any, tokens: list[int]) -> F64:
    logits: F64 = model(torch.tensor([tokens])).logits[0].double().numpy()
    return logits


def random_tokens(count: int = LENGTH, vocab_size: int = VOCAB, seed: int = 7) -> list[int]:
    return [int(v) for v in np.random.default_rng(seed).integers(vocab_size, size=count)]


def largest_difference(a: F64, b: F64) -> float:
    assert a.shape == b.shape
    return float(np.abs(a - b).max())


def test_each_variant_is_what_its_name_says(pair: Pair) -> None:
    entries, how = VARIANTS[pair.name]
    names = {path.name for path in pair.directory.iterdir()}
    raw = json.loads((pair.directory / "config.json").read_text())
    assert ("model.safetensors.index.json" in names) == ("max_shard_size" in how)
    assert len([name for name in names if name.endswith(".safetensors")]) >= (3 if "max_shard_size" in how else 1)
    assert ("rope_theta" in raw and "torch_dtype" in raw and "rope_parameters" not in raw) == ("old" in how)
    saved = how.get("dtype", torch.float32)
    assert raw.get("dtype", raw.get("torch_dtype")) == str(saved).removeprefix("torch.")
    for entry in entries.keys() - {"rope_parameters"}:
        assert getattr(pair.ours.config, entry) == entries[entry]
    assert pair.ours.parameter_count == sum(parameter.numel() for parameter in pair.theirs.parameters())


def test_logits_equal_those_of_transformers(pair: Pair, record_property: Record) -> None:
    ours, tokens = pair.logits, random_tokens()
    double = largest_difference(ours, their_logits(pair.theirs, tokens))
    single = largest_difference(ours, their_logits(load_theirs(pair.directory, torch.float32), tokens))
    record_property("max_difference_float64", double)
    record_property("max_difference_float32", single)
    print(f"{pair.name:24} float64 {double:.1e}  float32 {single:.1e}  (logits: std {ours.std():.2f})")
    assert ours.std() > 0.4
    assert double < FLOAT64
    assert single < FLOAT32


def lift(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Computes their norms and angles in float64; the frequencies are ours, which theirs must agree with."""
    inv_freq = inverse_frequencies(pair.ours.config)
    np.testing.assert_allclose(inv_freq, pair.theirs.model.rotary_emb.inv_freq.double().numpy(), rtol=1e-6)

    def norm(self: Any, x: Any) -> Any:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))

    def angles(self: Any, x: Any, position_ids: Any) -> Any:
        half = position_ids[..., None].double() * torch.from_numpy(inv_freq)
        whole = torch.cat((half, half), dim=-1)
        return whole.cos(), whole.sin()

    monkeypatch.setattr(type(pair.theirs.model.norm), "forward", norm)
    monkeypatch.setattr(type(pair.theirs.model.rotary_emb), "forward", angles)


def test_with_their_float32_lifted_nothing_else_differs(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, record_property: Record
) -> None:
    lift(pair, monkeypatch)
    lifted = largest_difference(pair.logits, their_logits(pair.theirs, random_tokens()))
    record_property("max_difference_lifted", lifted)
    print(f"{pair.name:24} lifted {lifted:.1e}")
    assert lifted < LIFTED


def test_log_probabilities_of_a_whole_sequence_equal_those_of_transformers(pair: Pair) -> None:
    tokens = random_tokens(seed=8)
    logits = pair.theirs(torch.tensor([tokens])).logits[0]
    rows = torch.log_softmax(logits, dim=-1)[:-1]
    theirs = rows[torch.arange(LENGTH - 1), torch.tensor(tokens[1:])].numpy()
    job = ReferenceEngine(pair.ours).submit(
        JobRequest([tokens], [0], SamplingParams(max_tokens=0), candidates=1, top=0, score=True)
    )
    scored = next(event for event in job.events() if isinstance(event, PromptScored))
    assert scored.logprobs[0] is None
    ours = np.array(scored.logprobs[1:], np.float64)
    assert largest_difference(ours, theirs) < FLOAT64


def test_greedy_tokens_equal_those_of_generate(pair: Pair) -> None:
    prompt = random_tokens(20, seed=9)
    ours, margins = greedy(ReferenceEngine(pair.ours), prompt, 24)
    assert min(margins) > CLEAR, f"step {int(np.argmin(margins))} is nearly a tie; give this variant another seed"
    assert ours == their_greedy(pair.theirs, prompt, 24)


def test_a_token_of_generation_config_ends_a_completion_where_it_ends_generate(tmp_path: Path) -> None:
    save_random_llama(tmp_path, seed=0)
    prompt = random_tokens(20, seed=9)
    whole, _ = greedy(ReferenceEngine(load_checkpoint(tmp_path)), prompt, 24)
    end, never = whole[10], min(set(range(VOCAB)) - set(whole))
    file = tmp_path / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": [never, end], "pad_token_id": 0}))
    ours, _ = greedy(ReferenceEngine(load_checkpoint(tmp_path)), prompt, 24)
    assert ours == whole[: whole.index(end) + 1]
    assert ours == their_greedy(load_theirs(tmp_path), prompt, 24)


def test_llama3_rope_has_kept_mixed_and_slowed_frequencies_and_matters(tmp_path: Path) -> None:
    save_random_llama(tmp_path, seed=0, rope_parameters=LLAMA3)
    checkpoint = load_checkpoint(tmp_path)
    config = checkpoint.config
    plain = replace(config, family=Family.llama(config.num_hidden_layers, config.head_dim))
    ratio = inverse_frequencies(checkpoint.config) / inverse_frequencies(plain)
    assert {"kept" if r == 1 else "slowed" if r == 1 / 8 else "mixed" for r in ratio} == {"kept", "mixed", "slowed"}
    tokens = random_tokens()
    scaled = forward(checkpoint.config, checkpoint.params, tokens)
    assert largest_difference(scaled, forward(plain, checkpoint.params, tokens)) > 0.1


def greedy(engine: ReferenceEngine, prompt: list[int], count: int) -> tuple[list[int], list[float]]:
    """Our greedy tokens, and by how much each was ahead of the second."""
    params = SamplingParams(max_tokens=count, temperature=0, end_ids=engine.eos_ids)
    job = engine.submit(JobRequest([prompt], [0], params, candidates=1, top=2, score=False))
    tokens = [event for event in job.events() if isinstance(event, Token)]
    return [token.id for token in tokens], [token.top[0][1] - token.top[1][1] for token in tokens]


def their_greedy(model: Any, prompt: list[int], count: int) -> list[int]:
    given = torch.tensor([prompt])
    made = model.generate(given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=count)
    return [int(v) for v in made[0, len(prompt) :]]


# ---- tokenizers, and the embedded model

TEXTS = (
    "Once upon a time, there was a little fox who lived by the river.",
    " the the  the   the\n\n\tThe end.\r\n",
    "\"Don't!\" she said. 'I can't, I won't, they'll see it's 3,141.59 or 2²?'",
    "Ünïcödé ñandú ÄÖÜ ß; Ελληνικά, русский, 日本語のテキスト, 한국어, العربية, עברית, हिन्दी",
    "emoji 🦊🏽‍♀️👩‍👩‍👧‍👦 and e\u0301 and \u00a0\u2003\u200b\ufeff spaces\u2028lines",
    "def f(x):\n    return [x ** 2 for _ in range(10)]  # comment\n",
    "x" * 200 + " " * 50 + "1234567890" * 5,
    "\x00\x01\x7f\ufffd\U0010ffff",
    "<|endoftext|>Once<|endoftext|> upon <|endoftext|>a time <|endof text|>",
    " ",
    "a",
)


def test_the_test_tokenizer_gives_the_ids_of_auto_tokenizer(tmp_path: Path) -> None:
    tokenizer_files(tmp_path)
    named = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**named, "tokenizer_class": "PreTrainedTokenizerFast"}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = load_tokenizer(tmp_path, FAKE_VOCAB)
    for text in (*TEXTS, *SPECIALS, "mid<|fim_middle|>dle"):
        assert list(ours.encode(text).ids) == theirs(text).input_ids, text


@pytest.fixture(scope="module")
def embedded() -> Pair:
    directory = default_model_path()
    return load_pair("embedded", directory)


def test_the_embedded_tokenizer_gives_the_ids_of_auto_tokenizer(embedded: Pair) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(embedded.directory)
    ours = load_tokenizer(embedded.directory, embedded.ours.config.vocab_size)
    for text in (*TEXTS, *ours.special.values(), *(f"a {literal} b" for literal in ours.special.values())):
        assert list(ours.encode(text).ids) == theirs(text).input_ids, text
        assert theirs.decode(ours.encode(text).ids) == b"".join(map(ours.prompt_bytes, ours.encode(text).ids)).decode()


def test_the_embedded_model_gives_the_logits_of_transformers(
    embedded: Pair, monkeypatch: pytest.MonkeyPatch, record_property: Record
) -> None:
    """Trained attention is sharper than that of small random weights, and magnifies float32 more: hence FLOAT32."""
    theirs = transformers.AutoTokenizer.from_pretrained(embedded.directory)
    story = theirs(TEXTS[0] + " One day, she found a big red ball near the old tree.").input_ids
    random = random_tokens(vocab_size=embedded.ours.config.vocab_size)
    pairs = (
        ("story", story, forward(embedded.ours.config, embedded.ours.params, story)),
        ("random", random, embedded.logits),
    )
    for place, tolerance in (("as they are", FLOAT32), ("lifted", LIFTED)):
        for name, tokens, ours in pairs:
            difference = largest_difference(ours, their_logits(embedded.theirs, tokens))
            record_property(f"max_difference_{name}_{place}", difference)
            print(f"embedded {name} {place:12} {difference:.1e}  (logits: std {ours.std():.2f})")
            assert difference < tolerance
        lift(embedded, monkeypatch)


def test_the_embedded_model_tells_the_greedy_story_of_transformers(embedded: Pair) -> None:
    tokenizer = load_tokenizer(embedded.directory, embedded.ours.config.vocab_size)
    engine = ReferenceEngine(embedded.ours)
    prompt = "Once upon a time, there was a little girl named"
    fields = {"model": "m", "prompt": prompt, "max_tokens": 24, "temperature": 0, "logprobs": 2}
    answer = prepare(CompletionRequest.from_fields(fields), engine, tokenizer, "m").whole().choices[0]
    assert answer.logprobs is not None
    for top in answer.logprobs.top_logprobs:
        first, second = list((top or {}).values())[:2]
        assert first - second > CLEAR, "nearly a tie; use another prompt"
    theirs = transformers.AutoTokenizer.from_pretrained(embedded.directory)
    made = their_greedy(embedded.theirs, theirs(prompt).input_ids, 24)
    assert len(made) == len(answer.logprobs.tokens)
    assert theirs.decode(made, skip_special_tokens=True) == answer.text
