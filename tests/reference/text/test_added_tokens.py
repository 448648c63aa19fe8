"""Tokens that stand outside tokenizer.json: what becomes of them, with transformers as the judge."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models

from gnomon.reference.checkpoint.errors import CheckpointError
from gnomon.reference.completion import prepare
from gnomon.reference.request import CompletionRequest
from gnomon.reference.tokenizer import Tokenizer, load_tokenizer
from helpers.fake import FakeEngine, always

os.environ["HF_HUB_OFFLINE"] = "1"

LETTERS = tuple("abcdefghijklmnopqrstuvwxyz<>|_! ")
ORDINARY = ("<unk>", "<mask>")  # in the vocabulary, and not said to be more
S, PLAIN, STRIP = 34, 35, 36  # ids of the added tokens of tokenizer.json
VOCAB = 60
CONFIG, SPECIAL_TOKENS, ADDED_TOKENS = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"

TEXTS = (
    "a<s>b <plain> c", "a <|im_end|> b<|im_start|>", "x <strip> y", "<unk>!<mask>", "aim_end <other> <|tool|> <image>",
    "a<|end|>b <pad>", "word awordb word",
)  # fmt: skip


def flags(content: str, **changed: bool) -> dict[str, Any]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"content": content, **plain, **changed}


def typed(content: str, **changed: bool) -> dict[str, Any]:
    return {"__type": "AddedToken", **flags(content, **changed)}


def directory_of(path: Path, files: Mapping[str, Any]) -> Path:
    """A tokenizer.json with three added tokens, and these files beside it."""
    vocab = {token: v for v, token in enumerate((*LETTERS, *ORDINARY))}
    made = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    made.decoder = decoders.Fuse()
    made.add_special_tokens(["<s>"])
    made.add_tokens([AddedToken("<plain>", normalized=False), AddedToken("<strip>", lstrip=True, normalized=False)])
    made.save(str(path / "tokenizer.json"))
    for name, content in files.items():
        (path / name).write_text(json.dumps(content))
    return path


def load(path: Path, **files: Any) -> Tokenizer:
    names = {"config": CONFIG, "map": SPECIAL_TOKENS, "added": ADDED_TOKENS}
    return load_tokenizer(directory_of(path, {names[name]: content for name, content in files.items()}), VOCAB)


BY_ID: tuple[dict[str, Any], ...] = (
    {},
    {"added_tokens_decoder": {}},
    {"added_tokens_decoder": {str(S): flags("<s>"), str(PLAIN): flags("<plain>", special=False)}},
    {"added_tokens_decoder": {"37": flags("<|im_end|>"), "38": flags("<|im_start|>", special=False, rstrip=True)}},
    {"added_tokens_decoder": {str(S): flags("<s>", rstrip=True), str(PLAIN): flags("<plain>", normalized=True)}},
    {"added_tokens_decoder": {"38": flags("word", special=False, single_word=True), "37": {"content": "<|end|>"}}},
    {"added_tokens_decoder": {"33": flags("<mask>")}},
)
NAMES: tuple[dict[str, Any], ...] = (
    {},
    {"eos_token": "<|im_end|>", "bos_token": "<s>", "unk_token": "<unk>", "pad_token": None},
    {"eos_token": typed("<|im_end|>", lstrip=True), "mask_token": "<mask>", "image_token": "<image>"},
    {"eos_token": "<s>", "pad_token": "<pad>", "sep_token": typed("<other>", special=False, normalized=True)},
)
LISTS: tuple[dict[str, Any], ...] = (
    {},
    {"additional_special_tokens": ["<|im_start|>", "<|tool|>"]},
    {"extra_special_tokens": [typed("<|tool|>", rstrip=True), "<s>"]},
    {"extra_special_tokens": {"tool_token": "<|tool|>", "other": "<other>"}},
    {"extra_special_tokens": [], "additional_special_tokens": ["<|tool|>"]},
)
OLDER: tuple[dict[str, Any], ...] = (
    {},
    {
        SPECIAL_TOKENS: {
            "eos_token": "<|end|>",
            "extra_special_tokens": ["<|tool|>", {"content": "<other>", "lstrip": True}],
        }
    },
    {SPECIAL_TOKENS: {"eos_token": flags("<|im_end|>", rstrip=True), "additional_special_tokens": ["<|im_start|>"]}},
    {ADDED_TOKENS: {"<|im_end|>": 37, "word": 38, "<s>": S}},
    {ADDED_TOKENS: {"<|tool|>": 38, "<|im_end|>": 37}, SPECIAL_TOKENS: {"eos_token": "<|im_end|>"}},
)


def all_flags(added: Mapping[int, AddedToken]) -> dict[int, str]:
    return {v: repr(token) for v, token in added.items()}


@pytest.fixture(scope="module")
def theirs() -> Any:
    """transformers' reader of a directory with a tokenizer.json."""
    needs = "the extra `parity` is not installed: pip install 'gnomon[parity]'"
    return pytest.importorskip("transformers", reason=needs).PreTrainedTokenizerFast.from_pretrained


@pytest.mark.parametrize("older", OLDER, ids=range(len(OLDER)))
@pytest.mark.parametrize("by_id", BY_ID, ids=range(len(BY_ID)))
def test_tokens_are_merged_as_transformers_merges_them(
    tmp_path: Path, theirs: Any, by_id: dict[str, Any], older: dict[str, Any]
) -> None:
    """Every combination of these files: ids, flags, and the cut of texts. Where ids are stated that transformers does
    not give, we refuse."""
    refused = compared = 0
    for names, lists in itertools.product(NAMES, LISTS):
        files = {CONFIG: {**by_id, **names, **lists}, **older}
        judge = theirs(directory_of(tmp_path, files))
        given = {token.content: v for v, token in judge.added_tokens_decoder.items()}
        stated = {token["content"]: int(v) for v, token in by_id.get("added_tokens_decoder", {}).items()}
        if "added_tokens_decoder" not in by_id:
            stated = older.get(ADDED_TOKENS, {})
            objects = [value for value in files[CONFIG].values() if isinstance(value, dict)]
            objects += [one for value in files[CONFIG].values() if isinstance(value, list) for one in value]
            if any(f"'{token}'" in str([one for one in objects if isinstance(one, dict)]) for token in stated):
                continue  # named by an object: the next test but one
        if any(given[token] != v for token, v in stated.items()):
            with pytest.raises(CheckpointError, match="says that"):
                load_tokenizer(tmp_path, VOCAB)
            refused += 1
            continue
        tokenizer = load_tokenizer(tmp_path, VOCAB)
        compared += 1
        assert all_flags(tokenizer.parsing.get_added_tokens_decoder()) == all_flags(judge.added_tokens_decoder), files
        assert tokenizer.eos_id == judge.eos_token_id, files
        for text in TEXTS:
            ids = judge(text).input_ids
            assert list(tokenizer.encode(text).ids) == ids, (text, files)
            shown = b"".join(tokenizer.token_bytes[v] for v in ids).decode()
            assert shown == judge.decode(ids, skip_special_tokens=True), (text, files)
    assert compared >= 4
    assert refused + compared >= 8
    for file in (SPECIAL_TOKENS, ADDED_TOKENS):
        (tmp_path / file).unlink(missing_ok=True)


# ---- what differs from transformers, and is said


def test_a_pad_token_that_the_vocabulary_has_as_an_ordinary_one_stays_one(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, config={"pad_token": "!", "added_tokens_decoder": {}})
    assert tokenizer.token_bytes[LETTERS.index("!")] == b"!"
    assert load(tmp_path, config={"pad_token": "<pad>"}).special[37] == "<pad>"


@pytest.mark.parametrize(
    "named",
    [
        {"map": {"additional_special_tokens": ["<|tool|>"]}},
        {"map": {"additional_special_tokens": [flags("<|tool|>")]}},
        {"config": {"extra_special_tokens": [typed("<|tool|>")]}},
        {"config": {"sep_token": typed("<|tool|>")}},
    ],
)
def test_a_token_of_added_tokens_json_is_special_if_it_is_named_so_anywhere(
    tmp_path: Path, named: dict[str, Any]
) -> None:
    """transformers 5 overlooks the older name of the list in special_tokens_map.json, and names that are objects: it
    shows the token in texts, or finds it only after the text is normalised."""
    tokenizer = load(tmp_path, **named, added={"<|tool|>": 37})
    assert tokenizer.special[37] == "<|tool|>"
    assert tokenizer.encode("a<|tool|>").ids == (0, 37)


def test_an_end_or_beginning_is_special_whatever_its_flag_says(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, config={"eos_token": "<plain>"})
    assert tokenizer.token_bytes[PLAIN] == b""


def test_fill_in_the_middle_tokens_that_are_none_are_refused_and_not_made(tmp_path: Path) -> None:
    names = {"fim_prefix_token": "<a>", "fim_suffix_token": "<b>", "fim_middle_token": "<c>"}
    with pytest.raises(CheckpointError, match=r"<a>.*no token of this tokenizer"):
        load(tmp_path, config=names)


# ---- contradictions


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config": {"added_tokens_decoder": {"40": flags("<s>")}}},
         'tokenizer_config.json: added_tokens_decoder says that "<s>" is id 40; in tokenizer.json it is 34'),
        ({"config": {"added_tokens_decoder": {"34": flags("<|end|>")}}},
         '"<|end|>" is id 34; in tokenizer.json 34 is "<s>"'),
        ({"config": {"added_tokens_decoder": {"3": flags("<|end|>")}}},
         '"<|end|>" is id 3; in tokenizer.json 3 is "d"'),
        ({"config": {"added_tokens_decoder": {"50": flags("<|end|>")}}},
         '"<|end|>" is id 50; in tokenizer.json it has none, and the next free one is 37'),
        ({"config": {"added_tokens_decoder": {"37": flags("<|end|>"), "38": flags("<|end|>")}}},
         '"<|end|>" is id 38'),
        ({"added": {"<|end|>": 34}}, 'added_tokens.json says that "<|end|>" is id 34; in tokenizer.json 34 is "<s>"'),
        ({"added": {"<|end|>": "x"}}, 'added_tokens.json: "x" is no id'),
        ({"config": {"added_tokens_decoder": {"x": flags("<|end|>")}}}, "tokenizer_config.json: invalid literal"),
        ({"config": {"added_tokens_decoder": ["<s>"]}}, "tokenizer_config.json: added_tokens_decoder is"),
        ({"config": {"added_tokens_decoder": {"37": flags("<a>", lstrip="no")}}}, "tokenizer_config.json: "),  # type: ignore[arg-type]
        ({"config": {"extra_special_tokens": 3}}, "extra_special_tokens is 3; a list of tokens, or an object"),
    ],
)  # fmt: skip
def test_files_that_contradict_each_other_are_refused_by_name(
    tmp_path: Path, files: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path, **files)
    assert message in str(caught.value)


def test_an_added_tokens_json_beside_an_added_tokens_decoder_is_not_read(tmp_path: Path) -> None:
    """As in transformers: the newer list has them all."""
    tokenizer = load(tmp_path, config={"added_tokens_decoder": {}}, added={"<|end|>": 1}, map={"eos_token": "<|end|>"})
    assert (tokenizer.eos_id, len(tokenizer.added)) == (None, 3)


# ---- the end of a text


@pytest.mark.parametrize(
    "files",
    [
        {"config": {"eos_token": "<|im_end|>"}},
        {"config": {"eos_token": "<|im_end|>", "added_tokens_decoder": {"37": flags("<|im_end|>")}}},
        {"map": {"eos_token": flags("<|im_end|>")}, "added": {"<|im_end|>": 37}},
    ],
)
def test_the_token_that_a_tokenizer_names_as_its_end_ends_a_completion(tmp_path: Path, files: dict[str, Any]) -> None:
    """Beside those of the model's configuration, which here names another."""
    tokenizer = load(tmp_path, **files)
    assert tokenizer.encode("a<|im_end|>").ids == (0, 37)
    for script, text in (((1, 37, 2, 2), "b"), ((1, 2, S, 2), "bc")):
        engine = FakeEngine(always(*script, vocab_size=VOCAB), VOCAB, eos_ids=frozenset({S}))
        body = {"model": "m", "prompt": "a", "max_tokens": 4, "temperature": 0}
        answer = prepare(CompletionRequest.from_fields(body), engine, tokenizer, "m").whole()
        assert (answer.choices[0].text, answer.choices[0].finish_reason) == (text, "stop")
        assert answer.usage is not None
        assert answer.usage.completion_tokens == len(text) + 1
