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

from gnomon.http.cli.main import main
from gnomon.reference.checkpoint.errors import CheckpointError
from gnomon.reference.checkpoint.load import load_checkpoint
from gnomon.reference.completion import prepare
from gnomon.reference.engine import ReferenceEngine
from gnomon.reference.errors import InvalidRequest
from gnomon.reference.prompt import InfillEncoder
from gnomon.reference.request import CompletionRequest
from gnomon.reference.text.infill import FAMILIES, Infill, InfillFamily, InfillOptions, Order, decide
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
    "Granite 4.0": (
        "<|fim_prefix|>{0}<|fim_suffix|>{1}<|fim_middle|>",
        "<|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|end_of_text|>",
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
    "Granite Code": (
        "<fim_prefix>{0}<fim_suffix>{1}<fim_middle>",
        "<fim_prefix> <fim_middle> <fim_suffix> <fim_pad> <|end_of_text|>",
    ),
    "Mellum": (
        "<fim_suffix>{1}<fim_prefix>{0}<fim_middle>",
        "<fim_prefix> <fim_suffix> <fim_middle> <fim_pad> <filename> <|im_end|> <|endoftext|>",
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
    "Codestral": ("[SUFFIX]{1}[PREFIX]{0}", "[PREFIX] [SUFFIX]"),
    "Seed-Coder": (
        "<[fim-suffix]>{1}<[fim-prefix]>{0}<[fim-middle]>",
        "<[fim-suffix]> <[fim-prefix]> <[fim-middle]>",
    ),
    "aiXcoder": (
        "▁<AIX-SPAN-PRE>▁<AIX-SPAN-POST>{1}▁<AIX-SPAN-MIDDLE>{0}",
        "▁<AIX-SPAN-PRE> ▁<AIX-SPAN-POST> ▁<AIX-SPAN-MIDDLE>",
    ),
}
NAMED = {"Mellum": "JetBrains/Mellum-4b-base"}  # whose tokens are another family's too
PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
FIRST = 266  # the id of the first added token: 256 bytes and ten merges are before it


def byte_level(
    directory: Path, literals: Sequence[str], special: bool = True, model: str | None = None, **config: Any
) -> Tokenizer:
    """A byte-level tokenizer with these added tokens, a tokenizer_config.json that says no more than `config`, and a
    config.json that names the model."""
    spec = json.loads((tokenizer_files(directory) / "tokenizer.json").read_text())
    spec["model"]["vocab"] = {token: v for token, v in spec["model"]["vocab"].items() if v < FIRST}
    spec["added_tokens"] = [
        {"id": FIRST + i, "content": literal, "special": special, **PLAIN} for i, literal in enumerate(literals)
    ]
    (directory / "tokenizer.json").write_text(json.dumps(spec))
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    (directory / "config.json").write_text(json.dumps({"_name_or_path": model}))
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
    tokenizer = byte_level(tmp_path, ends.split(), special, NAMED.get(name))
    for before, after in (("def f(a):\n    ", "\n    return é"), ("x", " y"), ("", "z")):
        assert seen(tokenizer, before, after) == list(tokenizer.encode(template.format(before, after)).ids)


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_a_middle_ends_at_each_published_token_which_adds_no_text(tmp_path: Path, name: str) -> None:
    ends = PUBLISHED[name][1].split()
    tokenizer = byte_level(tmp_path, [*ends, "<other>"], model=NAMED.get(name))
    length = len(seen(tokenizer, "a", "b"))
    for v in range(FIRST, FIRST + len(ends) + 1):
        engine = FakeEngine(
            always(ord("x"), v, ord("y"), vocab_size=tokenizer.vocab_size, prompt=length), tokenizer.vocab_size
        )
        engine.eos_ids = frozenset()
        choice = ask(engine, tokenizer, "a", "b", temperature=0, max_tokens=3).choices[0]
        is_end = v < FIRST + len(ends)
        assert (choice.text, choice.finish_reason) == (("x", "stop") if is_end else ("xy", "length"))


@pytest.mark.parametrize("family", FAMILIES, ids=[family.name for family in FAMILIES])
def test_a_familys_markers_are_needed_and_its_other_ends_are_not(tmp_path: Path, family: InfillFamily) -> None:
    """A pad of another name, or an end-of-text token of another (Granite), leaves the markers what they are."""
    literals = [*family.markers, *family.ends]
    for absent in literals:
        there = [literal for literal in literals if literal != absent]
        tokenizer = byte_level(tmp_path, there, model=NAMED.get(family.name))
        if absent in family.markers:
            assert (tokenizer.infill, tokenizer.infill_ends) == (None, frozenset())
        else:
            assert tokenizer.infill is not None
            assert tokenizer.infill.order == family.order
            assert {tokenizer.labels[v] for v in tokenizer.infill_ends} <= set(there)
            assert [tokenizer.labels[v] for v in tokenizer.infill[:2]] == [family.prefix, family.suffix]


def test_of_families_with_the_same_markers_each_tokenizer_has_its_own(tmp_path: Path) -> None:
    for name, (_, ends) in PUBLISHED.items():
        tokenizer = byte_level(tmp_path, ends.split(), model=NAMED.get(name))
        evidence = next(family.evidence for family in FAMILIES if family.name == name)
        assert f"as {evidence} says" in tokenizer.infill_note, name


def test_every_row_says_where_its_order_is_documented() -> None:
    assert all(family.name and family.evidence for family in FAMILIES)


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
def test_code_llamas_prefix_has_the_space_of_a_beginning_and_its_suffix_has_not(tmp_path: Path, listed: bool) -> None:
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
    assert tokenizer.infill == Infill(FIRST, FIRST + 1, FIRST + 2)
    assert tokenizer.infill_ends == {FIRST, FIRST + 1, FIRST + 2}


def test_what_a_file_declares_goes_before_the_table_and_the_operator_before_both(tmp_path: Path) -> None:
    literals = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|file_separator|>", "<p>", "<s>", "<m>", "<q>"]
    byte_level(tmp_path, literals)
    assert load_tokenizer(tmp_path, 300).infill == Infill(FIRST, FIRST + 1, FIRST + 2)
    declared: dict[str, Any] = {
        "fim_prefix_token": "<p>",
        "fim_suffix_token": "<s>",
        "fim_middle_token": {"content": "<m>"},
    }
    tokenizer = byte_level(tmp_path, literals, **declared)
    assert (tokenizer.infill, len(tokenizer.infill_ends)) == (Infill(FIRST + 4, FIRST + 5, FIRST + 6), 3)
    told = load_tokenizer(tmp_path, 300, InfillOptions("<q>", "<s>", "<m>"))
    assert told.infill == Infill(FIRST + 7, FIRST + 5, FIRST + 6)
    assert told.fingerprint != tokenizer.fingerprint


def test_tokens_named_by_hand_have_the_ends_of_their_family(tmp_path: Path) -> None:
    literals = PUBLISHED["Qwen2.5-Coder"][1].split()
    byte_level(tmp_path, literals)
    told = load_tokenizer(tmp_path, 300, InfillOptions("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"))
    assert told.infill_ends == frozenset(range(FIRST, FIRST + len(literals)))


@pytest.mark.parametrize(
    ("order", "sent"),
    [
        (Order.psm, ["<fim_prefix>", "p", "<fim_suffix>", "s", "<fim_middle>"]),
        (Order.spm, ["<fim_suffix>", "s", "<fim_prefix>", "p", "<fim_middle>"]),
        (Order.spm_joined, ["<fim_prefix>", "<fim_suffix>", "s", "<fim_middle>", "p"]),
    ],
)
@pytest.mark.parametrize("bos", [True, False])
def test_each_order_sends_what_it_says(tmp_path: Path, order: Order, sent: list[str], bos: bool) -> None:
    literals = [*PUBLISHED["StarCoder"][1].split(), "<s>"]
    byte_level(tmp_path, literals, bos_token="<s>", add_bos_token=bos)
    tokenizer = load_tokenizer(tmp_path, 300, InfillOptions(order=order))
    assert [tokenizer.labels[v] for v in seen(tokenizer, "p", "s")] == ["<s>"] * bos + sent
    at = sent.index("p")
    assert [tokenizer.labels[v] for v in seen(tokenizer, "", "s")] == ["<s>"] * bos + sent[:at] + sent[at + 1 :]


@pytest.mark.parametrize("order", Order)
def test_in_every_order_offsets_count_from_the_prompts_text(tmp_path: Path, order: Order) -> None:
    """Nothing else has a span: an entry of the middle begins after the prompt's two code points. usage has all."""
    byte_level(tmp_path, PUBLISHED["StarCoder"][1].split())
    tokenizer = load_tokenizer(tmp_path, 300, InfillOptions(order=order))
    request = CompletionRequest.from_fields({"model": "fake", "prompt": "aé", "suffix": "bcd", "logprobs": 0})
    script = always(ord("x"), ord("y"), FIRST + 3, vocab_size=300, prompt=9)
    run = prepare(request, FakeEngine(script, 300, eos_ids=frozenset()), tokenizer, "fake")
    prompt = InfillEncoder(request, tokenizer).infill("aé")
    assert prompt.text == "aé"
    assert list(prompt.starts) == sorted(prompt.starts)
    assert [start for v, start in zip(prompt.ids, prompt.starts, strict=True) if v in (ord("a"), 0xC3)] == [0, 1]
    answer = run.whole()
    assert answer.usage is not None
    assert answer.choices[0].logprobs is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (9, 3)
    assert (answer.choices[0].text, answer.choices[0].logprobs.text_offset) == ("xy", (2, 3, 4))


STAR = PUBLISHED["StarCoder"][1].split()


@pytest.mark.parametrize("named", ["_name_or_path", "model_type", "name_or_path"])
def test_a_suffix_first_family_with_starcoders_tokens_is_known_by_its_files(tmp_path: Path, named: str) -> None:
    literals = PUBLISHED["Mellum"][1].split()
    byte_level(tmp_path, literals)
    assert load_tokenizer(tmp_path, 300).infill == Infill(FIRST, FIRST + 1, FIRST + 2, Order.psm)
    file = "tokenizer_config.json" if named == "name_or_path" else "config.json"
    (tmp_path / file).write_text(json.dumps({named: "JetBrains/Mellum-4b-base" if "path" in named else "mellum"}))
    tokenizer = load_tokenizer(tmp_path, 300)
    assert tokenizer.infill == Infill(FIRST, FIRST + 1, FIRST + 2, Order.spm)
    assert f"since {file}'s {named} names it" in tokenizer.infill_note


def test_a_folder_that_bears_the_name_is_no_evidence(tmp_path: Path) -> None:
    (tmp_path / "mellum").mkdir()
    assert byte_level(tmp_path / "mellum", STAR, model="/home/mellum/star").infill == Infill(
        FIRST, FIRST + 1, FIRST + 2
    )


def test_the_note_says_order_tokens_and_reason_and_how_to_change_it(tmp_path: Path) -> None:
    def noted(literals: list[str], told: InfillOptions = InfillOptions(), model: str | None = None) -> str:  # noqa: B008
        byte_level(tmp_path, literals, model=model)
        return load_tokenizer(tmp_path, 300, told).infill_note

    prefix_first = "<fim_prefix> prompt <fim_suffix> suffix <fim_middle> (order psm: "
    suffix_first = "<fim_suffix> suffix <fim_prefix> prompt <fim_middle> (order spm: "
    assert noted(STAR) == (
        f"{prefix_first}as StarCoder's model card says of these tokens, but their names alone do not tell: "
        "--fim-order spm if it is Mellum)"
    )
    assert noted(STAR, model="x/Mellum-4b") == (
        f"{suffix_first}as Mellum's model card says, since config.json's _name_or_path names it; "
        "--fim-order changes it)"
    )
    assert noted(STAR, InfillOptions(order=Order.spm)) == f"{suffix_first}by --fim-order)"
    assert noted(["[PREFIX]", "[SUFFIX]", "[MIDDLE]"]) == (
        "[SUFFIX] suffix [PREFIX] prompt (order spm: as mistral-common's encode_fim says of these tokens; "
        "--fim-order changes it)"
    )
    unknown = "(order psm: by default, since no family in the table has these tokens; --fim-order changes it)"
    assert noted(["<p>", "<s>", "<m>"], InfillOptions("<p>", "<s>", "<m>")) == f"<p> prompt <s> suffix <m> {unknown}"
    assert noted(["<p>"]) == (
        "this model has no fill-in-the-middle tokens that are known here "
        "(whoever serves it can name them: --fim-prefix, --fim-suffix, --fim-middle, --fim-order)"
    )


def test_a_model_without_known_tokens_refuses_a_suffix_and_names_the_flags(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path, ["<p>", "<s>"])
    with pytest.raises(InvalidRequest, match="--fim-prefix, --fim-suffix, --fim-middle, --fim-order") as error:
        seen(tokenizer, "a", "b")
    assert error.value.param == "suffix"
    with pytest.raises(CheckpointError, match="--fim-order is spm, but this model has no fill-in-the-middle tokens"):
        load_tokenizer(tmp_path, 300, InfillOptions(order=Order.spm))


def test_a_family_without_a_middle_token_has_one_order_unless_one_is_named(tmp_path: Path) -> None:
    literals = ["[PREFIX]", "[SUFFIX]", "[MIDDLE]"]
    byte_level(tmp_path, literals)
    assert load_tokenizer(tmp_path, 300).infill == Infill(FIRST, FIRST + 1, None, Order.spm)
    assert load_tokenizer(tmp_path, 300, InfillOptions("[PREFIX]", "[SUFFIX]")).infill == Infill(
        FIRST, FIRST + 1, None, Order.spm
    )
    with pytest.raises(CheckpointError, match="the order psm needs a middle token: give --fim-prefix, "):
        load_tokenizer(tmp_path, 300, InfillOptions(order=Order.psm))
    told = load_tokenizer(tmp_path, 300, InfillOptions("[PREFIX]", "[SUFFIX]", "[MIDDLE]", Order.psm))
    assert told.infill == Infill(FIRST, FIRST + 1, FIRST + 2)


def test_a_marker_beyond_the_models_vocabulary_leaves_it_without_any() -> None:
    ids = {"<fim_prefix>": 5, "<fim_suffix>": 6, "<fim_middle>": 7}
    decided = decide(ids, 7, {}, {})
    assert decided.family is None
    assert decided.note == (
        'this model has no fill-in-the-middle tokens: "<fim_middle>" has id 7, and the model\'s ids are below 7'
    )
    assert decide(ids, 8, {}, {}).family is not None


@pytest.mark.parametrize(
    ("markers", "message"),
    [
        (("<p>", *SPECIALS[2:]), '--fim-prefix is "<p>", which is no token'),
        ((SPECIALS[1], "", SPECIALS[3]), '--fim-suffix is "", which is no token'),
        ((*SPECIALS[1:3], "a the"), '--fim-middle is "a the", which is no token'),
        ((SPECIALS[1], SPECIALS[2], SPECIALS[2]), "different tokens are needed"),
    ],
)
def test_a_literal_that_is_not_one_token_is_refused_by_the_options_name(
    tmp_path: Path, markers: tuple[str, str, str], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_tokenizer(tokenizer_files(tmp_path), 300, InfillOptions(*markers))


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
    tokenizer = load_tokenizer(model, checkpoint.config.vocab_size, InfillOptions(*SWAPPED[1::2]))
    assert tokenizer.infill == Infill(SUF, PRE, MID)
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


ALL_THREE = "--fim-prefix, --fim-suffix, --fim-middle"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (SWAPPED[:2], "--fim-prefix, --fim-suffix go together; missing: --fim-suffix"),
        (SWAPPED[2:4], "--fim-prefix, --fim-suffix go together; missing: --fim-prefix"),
        (SWAPPED[2:], f"{ALL_THREE} go together; missing: --fim-prefix"),
        (SWAPPED[4:], f"{ALL_THREE} go together; missing: --fim-prefix, --fim-suffix"),
        ((*SWAPPED[:4], "--fim-order", "psm"), f"{ALL_THREE} go together; missing: --fim-middle"),
        ((*SWAPPED[:4], "--fim-order", "spm-joined"), f"{ALL_THREE} go together; missing: --fim-middle"),
    ],
)
def test_flags_without_those_that_they_need_are_refused_with_their_names(
    gnomon: Gnomon, model: Path, given: tuple[str, ...], message: str
) -> None:
    for command in (("complete", "a", "--model", model), ("serve", model, "--port", 0, "--engine", "reference")):
        assert gnomon(*command, *given) == (2, "", f"gnomon: {message}\n")


def test_a_flag_that_names_no_token_ends_both_commands_with_one_line(gnomon: Gnomon, model: Path) -> None:
    for command in (("complete", "a", "--model", model), ("serve", model, "--port", 0, "--engine", "reference")):
        status, out, error = gnomon(*command, *SWAPPED[:5], "<mid>")
        assert (status, out) == (1, "")
        assert error == f'gnomon: {model}: --fim-middle is "<mid>", which is no token of this tokenizer\n'


def test_two_markers_serve_with_the_one_order_that_needs_no_third(gnomon: Gnomon, model: Path) -> None:
    status, out, error = gnomon("complete", "a", "--model", model, *SWAPPED[:4])
    assert (status, out) == (1, "")
    assert error == (
        f"gnomon: {model}: --fim-middle is missing beside --fim-prefix, --fim-suffix; "
        "only --fim-order spm goes without it\n"
    )
    options = ("--model", model, "--suffix", "b", "--max-tokens", 1, "--json")
    status, out, _ = gnomon("complete", "a", *options, *SWAPPED[:4], "--fim-order", "spm")
    assert (status, json.loads(out)["usage"]["prompt_tokens"]) == (0, 4)


def test_the_order_alone_may_be_given_and_its_variable_counts(
    gnomon: Gnomon, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = load_checkpoint(model)
    options = ["--model", model, "--suffix", "b", "--temperature", 0, "--max-tokens", 8, "--logprobs", 1, "--json"]
    fields = {"model": "tiny", "prompt": "a", "suffix": "b", "temperature": 0, "max_tokens": 8, "logprobs": 1}
    request, answers = CompletionRequest.from_fields(fields), []
    for order in Order:
        tokenizer = load_tokenizer(model, checkpoint.config.vocab_size, InfillOptions(order=order))
        assert tokenizer.infill == Infill(PRE, SUF, MID, order)
        answer = json.loads(prepare(request, ReferenceEngine(checkpoint), tokenizer, "tiny").whole().to_bytes())
        assert json.loads(gnomon("complete", "a", *options, "--fim-order", order)[1])["choices"] == answer["choices"]
        answers.append(answer["choices"][0]["logprobs"]["token_logprobs"])
    assert len({tuple(answer) for answer in answers}) == len(Order)
    monkeypatch.setenv("GNOMON_FIM_ORDER", "spm")
    assert json.loads(gnomon("complete", "a", *options)[1])["choices"][0]["logprobs"]["token_logprobs"] == answers[1]


def test_an_order_that_is_none_is_refused_with_those_there_are(gnomon: Gnomon, model: Path) -> None:
    status, _, error = gnomon("serve", model, "--fim-order", "mps")
    assert status == 2
    assert "--fim-order" in error
    assert all(f"'{order}'" in error for order in Order)
