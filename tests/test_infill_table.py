"""The one table of fill-in-the-middle tokens: each family's own prompt, written out again here from what its makers
published, what ends its middles, and how a file or the command line says otherwise."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from numpy.typing import NDArray
from tokenizers import models, normalizers, processors

from gnomon.http.cli import main
from gnomon.reference.checkpoint import CheckpointError, load_checkpoint
from gnomon.reference.completion import prepare
from gnomon.reference.engine import ReferenceEngine
from gnomon.reference.infill import FAMILIES
from gnomon.reference.request import CompletionRequest
from gnomon.reference.tokenizer import Tokenizer, load_tokenizer
from helpers.fake import MID, PRE, SPECIALS, SUF, FakeEngine, always, fake_tokenizer, tokenizer_files
from helpers.models import tiny_llama

# what stands before and between the two texts, and the tokens that end a middle
PUBLISHED = {
    "CodeGemma": (
        "<|fim_prefix|>{0}<|fim_suffix|>{1}<|fim_middle|>",
        "<|fim_prefix|> <|fim_suffix|> <|fim_middle|> <|file_separator|>",
    ),
    "Qwen2.5-Coder": (
        "<|fim_prefix|>{0}<|fim_suffix|>{1}<|fim_middle|>",
        "<|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|> <|im_end|> <|endoftext|>",
    ),
    "gnomon": (
        "<|fim_prefix|>{0}<|fim_suffix|>{1}<|fim_middle|>",
        "<|fim_prefix|> <|fim_suffix|> <|fim_middle|> <|endoftext|>",
    ),
    "StarCoder2": (
        "<fim_prefix>{0}<fim_suffix>{1}<fim_middle>",
        "<fim_prefix> <fim_suffix> <fim_middle> <fim_pad> <file_sep> <|endoftext|>",
    ),
    "StarCoder": (
        "<fim_prefix>{0}<fim_suffix>{1}<fim_middle>",
        "<fim_prefix> <fim_suffix> <fim_middle> <fim_pad> <|endoftext|>",
    ),
    "SantaCoder": (
        "<fim-prefix>{0}<fim-suffix>{1}<fim-middle>",
        "<fim-prefix> <fim-suffix> <fim-middle> <fim-pad> <|endoftext|>",
    ),
    "Code Llama": ("▁<PRE>{0}▁<SUF>{1}▁<MID>", "▁<PRE> ▁<SUF> ▁<MID> ▁<EOT>"),
    "DeepSeek-Coder": (
        "<｜fim▁begin｜>{0}<｜fim▁hole｜>{1}<｜fim▁end｜>",
        "<｜fim▁begin｜> <｜fim▁hole｜> <｜fim▁end｜> <｜end▁of▁sentence｜>",
    ),
}
PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
FIRST = 266  # the id of the first added token: 256 bytes and ten merges are before it


def byte_level(directory: Path, literals: Sequence[str], special: bool = True, **config: Any) -> Tokenizer:
    """A byte-level tokenizer with these added tokens, and a tokenizer_config.json that says no more than `config`."""
    spec = json.loads((tokenizer_files(directory) / "tokenizer.json").read_text())
    spec["model"]["vocab"] = {token: v for token, v in spec["model"]["vocab"].items() if v < FIRST}
    spec["added_tokens"] = [
        {"id": FIRST + i, "content": literal, "special": special, **PLAIN} for i, literal in enumerate(literals)
    ]
    (directory / "tokenizer.json").write_text(json.dumps(spec))
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return load_tokenizer(directory, FIRST + len(literals))


def seen(tokenizer: Tokenizer, prompt: str, suffix: str) -> list[int]:
    """What the model is given for a prompt with a suffix."""
    first: list[list[int]] = []

    def logits_of(tokens: Sequence[int]) -> NDArray[np.float64]:
        first.append(list(tokens))
        return np.zeros(tokenizer.vocab_size)

    ask(FakeEngine(logits_of, tokenizer.vocab_size, context=256), tokenizer, prompt, suffix, max_tokens=1)
    return first[0]


def ask(engine: FakeEngine, tokenizer: Tokenizer, prompt: str, suffix: str, **fields: object) -> Any:
    request = CompletionRequest.from_fields({"model": "fake", "prompt": prompt, "suffix": suffix, **fields})
    return prepare(request, engine, tokenizer, "fake").whole()


def test_the_table_has_the_published_families_and_no_other() -> None:
    assert [family.name for family in FAMILIES] == list(PUBLISHED)


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("name", list(PUBLISHED))
def test_the_model_sees_the_prompt_its_makers_published(tmp_path: Path, name: str, special: bool) -> None:
    """The published prompt, given as a string whose literals are parsed, has the same ids; added tokens that a file
    leaves ordinary serve too."""
    template, ends = PUBLISHED[name]
    tokenizer = byte_level(tmp_path, ends.split(), special)
    for before, after in (("def f(a):\n    ", "\n    return é"), ("x", " y"), ("", "z")):
        assert seen(tokenizer, before, after) == list(tokenizer.encode(template.format(before, after)).ids)


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_a_middle_ends_at_each_published_token_which_adds_no_text(tmp_path: Path, name: str) -> None:
    ends = PUBLISHED[name][1].split()
    tokenizer = byte_level(tmp_path, [*ends, "<other>"])
    for v in range(FIRST, FIRST + len(ends) + 1):
        engine = FakeEngine(
            always(ord("x"), v, ord("y"), vocab_size=tokenizer.vocab_size, prompt=5), tokenizer.vocab_size
        )
        engine.eos_ids = frozenset()
        choice = ask(engine, tokenizer, "a", "b", temperature=0, max_tokens=3).choices[0]
        is_end = v < FIRST + len(ends)
        assert (choice.text, choice.finish_reason) == (("x", "stop") if is_end else ("xy", "length"))


@pytest.mark.parametrize("family", FAMILIES, ids=[family.name for family in FAMILIES])
def test_a_tokenizer_that_lacks_one_of_a_familys_tokens_is_not_of_it(tmp_path: Path, family: Any) -> None:
    literals = [*family.markers, *family.ends]
    for absent in literals:
        tokenizer = byte_level(tmp_path, [literal for literal in literals if literal != absent])
        if absent in family.markers:
            assert tokenizer.infill is None
            assert tokenizer.infill_ends == frozenset()
        else:
            assert len(tokenizer.infill_ends) < len(literals)


@pytest.mark.parametrize("bos", [True, False])
def test_a_bos_comes_before_the_markers_where_the_tokenizer_puts_one_before_strings(tmp_path: Path, bos: bool) -> None:
    literals = [*PUBLISHED["DeepSeek-Coder"][1].split(), "<｜begin▁of▁sentence｜>"]
    tokenizer = byte_level(tmp_path, literals, bos_token=literals[-1], add_bos_token=bos)
    assert seen(tokenizer, "a", "b") == [FIRST + 4] * bos + [FIRST, ord("a"), FIRST + 1, ord("b"), FIRST + 2]


def code_llama(directory: Path, listed: bool) -> Tokenizer:
    """SentencePiece style, with the four tokens as added ones or, as in some files, as pieces of the vocabulary."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    for piece in ("▁", "a", "b", "▁a", "▁b", "▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"):
        vocab[piece] = len(vocab)
    model = models.BPE(vocab=vocab, merges=[("▁", "a"), ("▁", "b")], byte_fallback=True, unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    if listed:
        tokenizer.add_special_tokens(["▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    return load_tokenizer(directory, len(vocab))


@pytest.mark.parametrize("listed", [True, False])
def test_code_llamas_prefix_has_the_space_of_a_texts_beginning_and_its_suffix_has_not(
    tmp_path: Path, listed: bool
) -> None:
    """As its makers encode them: [BOS, PRE] + encode(prefix) + [SUF] + encode(suffix without that space) + [MID]."""
    tokenizer = code_llama(tmp_path, listed)
    ids = tokenizer.parsing.get_vocab()
    expected = ["<s>", "▁<PRE>", "▁a", "b", "▁<SUF>", "b", "▁a", "▁<MID>"]
    assert seen(tokenizer, "ab", "b a") == [ids[token] for token in expected]
    assert seen(tokenizer, "", " a") == [ids[token] for token in ("<s>", "▁<PRE>", "▁<SUF>", "▁a", "▁<MID>")]
    assert tokenizer.infill_ends == {ids[token] for token in ("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>")}
    assert [tokenizer.token_bytes[v] for v in tokenizer.infill_ends] == [b""] * 4
    assert tokenizer.special.keys() >= tokenizer.infill_ends


@pytest.mark.parametrize(
    "pre_tokenizer",
    [
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
        {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
            ],
        },
    ],
)
def test_a_suffix_gets_no_space_from_a_byte_level_tokenizer_either(tmp_path: Path, pre_tokenizer: object) -> None:
    tokenizer = fake_tokenizer(tmp_path, pre_tokenizer=pre_tokenizer)
    assert b"".join(tokenizer.token_bytes[v] for v in tokenizer.encode_literal("xy").ids) == b" xy"
    assert b"".join(tokenizer.token_bytes[v] for v in tokenizer.encode_following("xy").ids) == b"xy"


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
def test_a_suffix_gets_no_space_from_metaspace_either(tmp_path: Path, scheme: str) -> None:
    code_llama(tmp_path, listed=True)
    spec = json.loads((tmp_path / "tokenizer.json").read_text())
    spec["normalizer"] = None
    spec["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    tokenizer = load_tokenizer(tmp_path, 300)
    ids = tokenizer.parsing.get_vocab()
    assert tokenizer.encode_following("a a").ids == (ids["a"], ids["▁a"])
    assert tokenizer.encode_literal("a a").ids == ((ids["a"] if scheme == "never" else ids["▁a"]), ids["▁a"])


# ---- said otherwise


def test_a_file_may_declare_tokens_that_the_table_does_not_have(tmp_path: Path) -> None:
    names = ("fim_prefix_token", "fim_suffix_token", "fim_middle_token")
    literals = ["<pre>", "<suf>", "<mid>"]
    assert byte_level(tmp_path, literals).infill is None
    tokenizer = byte_level(tmp_path, literals, False, **dict(zip(names, literals, strict=True)))
    assert tokenizer.infill == (FIRST, FIRST + 1, FIRST + 2)
    assert tokenizer.infill_ends == {FIRST, FIRST + 1, FIRST + 2}


def test_what_a_file_declares_goes_before_the_table_and_the_operator_before_both(tmp_path: Path) -> None:
    literals = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|file_separator|>", "<p>", "<s>", "<m>", "<q>"]
    byte_level(tmp_path, literals)
    assert load_tokenizer(tmp_path, 300).infill == (FIRST, FIRST + 1, FIRST + 2)
    declared: dict[str, Any] = {
        "fim_prefix_token": "<p>",
        "fim_suffix_token": "<s>",
        "fim_middle_token": {"content": "<m>"},
    }
    tokenizer = byte_level(tmp_path, literals, **declared)
    assert (tokenizer.infill, len(tokenizer.infill_ends)) == ((FIRST + 4, FIRST + 5, FIRST + 6), 3)
    told = load_tokenizer(tmp_path, 300, ("<q>", "<s>", "<m>"))
    assert told.infill == (FIRST + 7, FIRST + 5, FIRST + 6)
    assert told.fingerprint != tokenizer.fingerprint


def test_tokens_named_by_hand_have_the_ends_of_their_family(tmp_path: Path) -> None:
    literals = PUBLISHED["Qwen2.5-Coder"][1].split()
    byte_level(tmp_path, literals)
    told = load_tokenizer(tmp_path, 300, ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"))
    assert told.infill_ends == frozenset(range(FIRST, FIRST + len(literals)))


@pytest.mark.parametrize(
    ("markers", "message"),
    [
        (("<p>", *SPECIALS[2:]), '--fim-prefix is "<p>", which is no token'),
        ((SPECIALS[1], "", SPECIALS[3]), '--fim-suffix is "", which is no token'),
        ((*SPECIALS[1:3], "a the"), '--fim-middle is "a the", which is no token'),
        ((SPECIALS[1], SPECIALS[2], SPECIALS[2]), "three different tokens"),
    ],
)
def test_a_literal_that_is_not_one_token_is_refused_by_the_options_name(
    tmp_path: Path, markers: tuple[str, str, str], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_tokenizer(tokenizer_files(tmp_path), 300, markers)


# ---- the command line


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny")


Gnomon = Callable[..., tuple[object, str, str]]


@pytest.fixture
def gnomon(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Gnomon:
    """The command in this process → its status, what it wrote, what it complained of."""

    def run(*arguments: object) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["gnomon", *map(str, arguments)])
        monkeypatch.setattr("logging.config.dictConfig", lambda config: None)  # this process logs to pytest
        with pytest.raises(SystemExit) as exit:
            main()
        return exit.value.code or 0, *capsys.readouterr()

    return run


SWAPPED = ("--fim-prefix", SPECIALS[2], "--fim-suffix", SPECIALS[1], "--fim-middle", SPECIALS[3])


def test_the_flags_decide_what_complete_gives_the_model_and_so_do_the_variables(
    gnomon: Gnomon, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = load_checkpoint(model)
    tokenizer = load_tokenizer(model, checkpoint.config.vocab_size, SWAPPED[1::2])
    assert tokenizer.infill == (SUF, PRE, MID)
    fields = {"model": "tiny", "prompt": "a", "suffix": "b", "temperature": 0, "max_tokens": 8, "logprobs": 1}
    request = CompletionRequest.from_fields(fields)
    answer = json.loads(prepare(request, ReferenceEngine(checkpoint), tokenizer, "tiny").whole().to_bytes())
    options = ["--model", model, "--suffix", "b", "--temperature", 0, "--max-tokens", 8, "--logprobs", 1, "--json"]
    told = json.loads(gnomon("complete", "a", *options, *SWAPPED)[1])
    assert told["choices"] == answer["choices"]
    assert json.loads(gnomon("complete", "a", *options)[1])["choices"] != answer["choices"]
    for flag, literal in zip(SWAPPED[::2], SWAPPED[1::2], strict=True):
        monkeypatch.setenv("GNOMON_" + flag[2:].upper().replace("-", "_"), literal)
    assert json.loads(gnomon("complete", "a", *options)[1])["choices"] == answer["choices"]


@pytest.mark.parametrize("given", [SWAPPED[:2], SWAPPED[2:4], SWAPPED[:4], SWAPPED[2:]])
def test_one_or_two_of_the_flags_are_refused_with_those_that_are_missing(
    gnomon: Gnomon, model: Path, given: tuple[str, ...]
) -> None:
    missing = ", ".join(flag for flag in SWAPPED[::2] if flag not in given)
    for command in (("complete", "a", "--model", model), ("serve", model, "--port", 0, "--engine", "reference")):
        status, out, error = gnomon(*command, *given)
        assert (status, out) == (2, "")
        assert error == f"gnomon: --fim-prefix, --fim-suffix and --fim-middle go together; missing: {missing}\n"


def test_a_flag_that_names_no_token_ends_both_commands_with_one_line(gnomon: Gnomon, model: Path) -> None:
    for command in (("complete", "a", "--model", model), ("serve", model, "--port", 0, "--engine", "reference")):
        status, out, error = gnomon(*command, *SWAPPED[:5], "<mid>")
        assert (status, out) == (1, "")
        assert error == f'gnomon: {model}: --fim-middle is "<mid>", which is no token of this tokenizer\n'
