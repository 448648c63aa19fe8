"""What is known of a text's number of tokens before it is encoded: never more than there are."""

from __future__ import annotations

import json
import subprocess
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, models, normalizers, pre_tokenizers

from gnomon.reference import tokenizer as tokenizer_module
from gnomon.reference.text.encode_apart import encode_apart
from gnomon.reference.text.token_length import NFC_SHRINKS, TokenLength, token_length
from gnomon.reference.tokenizer import Effort, Encoding, Tokenizer, TooLong, UnknownText
from gnomon.reference.work import Stopped, Work
from helpers.fake import FAKE_VOCAB, SPECIALS, fake_tokenizer, tokenizer_files

LETTERS = {letter: v for v, letter in enumerate(("<unk>", *"abc ", "ab", "abc"))}
BYTES = {f"<0x{byte:02X}>": len(LETTERS) + byte for byte in range(256)}
MERGES = [("a", "b"), ("ab", "c")]
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


def made(model: Any, normalizer: Any = None, pre_tokenizer: Any = None, *added: AddedToken) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(model)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.add_special_tokens(list(added))
    return tokenizer


def bpe(fallback: bool = True, **more: Any) -> Any:
    return models.BPE(vocab=LETTERS | (BYTES if fallback else {}), merges=MERGES, byte_fallback=fallback, **more)


def words(kind: Any) -> Any:
    return kind(vocab={"<unk>": 0, "a": 1}, unk_token="<unk>")


def length_of(tokenizer: tokenizers.Tokenizer) -> TokenLength | None:
    return token_length(json.loads(tokenizer.to_str()), tokenizer)


SPLIT = pre_tokenizers.Split(" ", "isolated")
BOUNDED: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "byte fallback": lambda: made(bpe()),
    "one unknown token for each character": lambda: made(bpe(False, unk_token="<unk>", fuse_unk=False)),
    "NFC": lambda: made(bpe(), normalizers.NFC()),
    "NFC of unknown characters": lambda: made(bpe(False, unk_token="<unk>", fuse_unk=False), normalizers.NFC()),
    "spaces that grow": lambda: made(bpe(), normalizers.Replace(" ", "▁")),
    "a space put first": lambda: made(bpe(), normalizers.Sequence([normalizers.Prepend("▁")])),
    "a split": lambda: made(bpe(), None, SPLIT),
    "an added token longer than all": lambda: made(bpe(), None, None, AddedToken("<|a long literal|>")),
    "one that strips": lambda: made(bpe(), None, None, AddedToken("<|s|>", lstrip=True, rstrip=True)),
    "one that strips, with NFC": lambda: made(bpe(), normalizers.NFC(), SPLIT, AddedToken("<|s|>", rstrip=True)),
    "one of the normalized text": lambda: made(bpe(), normalizers.Replace("a", "bcbc"), None, AddedToken("a a")),
}
UNBOUNDED: dict[str, tuple[Callable[[], tokenizers.Tokenizer], str]] = {
    "unknown characters are dropped": (lambda: made(bpe(False)), "é"),
    "unknown characters fused": (lambda: made(bpe(False, unk_token="<unk>", fuse_unk=True)), "é"),
    "a byte is missing": (lambda: made(models.BPE(vocab=LETTERS | dict([*BYTES.items()][:-1]), merges=MERGES)), "é"),
    "Unigram without bytes": (lambda: made(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0)), "é"),
    "WordPiece": (lambda: made(words(models.WordPiece)), "b"),
    "WordLevel": (lambda: made(words(models.WordLevel)), "b"),
    "a normalizer that strips": (lambda: made(bpe(), normalizers.Strip()), " "),
    "one that drops accents": (lambda: made(bpe(), normalizers.StripAccents()), "\u0301"),
    "BERT's normalizer": (lambda: made(bpe(), normalizers.BertNormalizer()), "\x01"),
    "one that lowers letters": (lambda: made(bpe(), normalizers.Lowercase()), "K"),
    "one that shortens": (lambda: made(bpe(), normalizers.Replace("  ", "")), "  "),
    "one with a pattern": (lambda: made(bpe(), normalizers.Replace(tokenizers.Regex(" +"), " ")), "   "),
    "words without their spaces": (lambda: made(bpe(), None, pre_tokenizers.Whitespace()), " "),
    "a split that removes": (lambda: made(bpe(), None, pre_tokenizers.Split(" ", "removed")), " "),
    "characters under other names": (lambda: made(models.BPE(LETTERS, [], continuing_subword_prefix="##")), "é"),
}  # fmt: skip

PIECES = ("a", "abc", " ", "   ", "\n", "é", "e\u0301", "\u1fbe\u0308\u0301", "\u1100\u1161\u11a8", "\u212a", "😀",
          "\u3000", "\x1c", "<|a long literal|>", "<|s|>", "a a", "界" * 7, "<0x41>")  # fmt: skip
TEXT = st.lists(st.sampled_from(PIECES) | st.characters(codec="utf-8"), max_size=40).map("".join)


@pytest.mark.slow
@pytest.mark.parametrize("name", BOUNDED)
@given(text=TEXT, times=st.integers(1, 200))
@example(text="\u1fbe\u0308\u0301", times=100)  # what NFC shortens most
def test_no_text_has_fewer_tokens_than_are_known_before(name: str, text: str, times: int) -> None:
    """Exact: no example may fail."""
    tokenizer = made_once(name)
    length = length_of(tokenizer)
    assert length is not None
    for special in (False, True):
        tokenizer.encode_special_tokens = special
        assert length.least_tokens(text * times) <= len(tokenizer.encode(text * times, add_special_tokens=False))


_made: dict[str, tokenizers.Tokenizer] = {}


def made_once(name: str) -> tokenizers.Tokenizer:
    if name not in _made:
        _made[name] = BOUNDED[name]()
    return _made[name]


@pytest.mark.parametrize("name", BOUNDED)
def test_a_long_text_is_known_to_have_many_tokens(name: str) -> None:
    length = length_of(BOUNDED[name]())
    assert length is not None
    assert length.least_tokens("abc" * 10_000) >= 30_000 / (len("<|a long literal|>") * NFC_SHRINKS)


@pytest.mark.parametrize("name", UNBOUNDED)
def test_where_one_token_may_be_a_whole_text_nothing_is_known(name: str) -> None:
    """And for most of these a text of any length is hardly a token indeed, or the library drops it."""
    make, char = UNBOUNDED[name]
    tokenizer = make()
    assert length_of(tokenizer) is None
    if name not in ("one that lowers letters", "characters under other names"):
        assert len(tokenizer.encode(char * 5000, add_special_tokens=False)) <= 2


def test_a_token_that_strips_takes_any_white_space_and_only_that_is_not_counted() -> None:
    tokenizer = BOUNDED["one that strips"]()
    length = length_of(tokenizer)
    assert length is not None
    spaces = "".join(c for c in map(chr, range(0x3001)) if c.isspace()) * 100
    text = f"{spaces}<|s|>{spaces}"
    assert len(tokenizer.encode(" \n\u3000" * 500 + "<|s|>" + " \n\u3000" * 500)) == 1
    assert length.least_tokens(text) == 1
    assert length.least_tokens(spaces) == 0


def test_nfc_leaves_a_quarter_of_any_text_and_more() -> None:
    """Over all characters: the longest spelling of each against what NFC makes of it. Unassigned ones, surrogates and
    those for private use are normal as they are, by definition."""
    spellings: dict[str, int] = {}
    characters = [c for c in map(chr, range(0x110000)) if unicodedata.category(c) not in ("Cn", "Cs", "Co")]
    for c in characters:
        whole = unicodedata.normalize("NFD", c)
        if len(whole) == 1:
            spellings[whole] = max(spellings.get(whole, 0), len(c.encode()))
    worst = 0.0
    for c in characters:
        longest = sum(spellings.get(part, len(part.encode())) for part in unicodedata.normalize("NFD", c))
        composed = len(unicodedata.normalize("NFC", c).encode())
        worst = max(worst, max(longest, len(c.encode())) / composed)
    assert worst == 3.5
    assert worst < NFC_SHRINKS


# ---- in a process of its own


@pytest.mark.parametrize("text", ["the end<|endoftext|> 界😀é\x00\r\n", ""])
def test_a_process_of_its_own_makes_the_same_of_a_text(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    ways: tuple[Callable[..., Encoding], ...] = tokenizer.encode, tokenizer.encode_literal, tokenizer.encode_following
    here = [encode(text) for encode in ways]
    calls: list[str] = []

    def counted(*of: Any) -> Any:
        calls.append(of[2])
        return encode_apart(*of)

    monkeypatch.setattr(tokenizer_module, "LONG_TEXT", -1)
    monkeypatch.setattr(tokenizer_module, "encode_apart", counted)
    assert [encode(text, Effort(1000, Work())) for encode in ways] == here
    assert calls == [text] * 3


def test_both_ways_say_how_many_tokens_are_too_many(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    for most in (511, 512):
        for long in (10_000, 0):
            monkeypatch.setattr(tokenizer_module, "LONG_TEXT", long)
            if most == 512:
                assert len(tokenizer.encode("a" * 512, Effort(most, Work())).ids) == 512
                continue
            with pytest.raises(TooLong) as error:
                tokenizer.encode("a" * 512, Effort(most, Work()))
            assert error.value.count == 512


def test_a_text_that_the_library_refuses_is_refused_both_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = json.loads((tokenizer_files(tmp_path) / "tokenizer.json").read_text())
    model = {**spec["model"], "type": "WordLevel", "unk_token": "[UNK]"}
    tokenizer = fake_tokenizer(tmp_path, model=model)
    messages = set()
    for long in (1000, -1):
        monkeypatch.setattr(tokenizer_module, "LONG_TEXT", long)
        with pytest.raises(UnknownText) as error:
            tokenizer.encode("never", Effort(10, Work()))
        messages.add(str(error.value))
    assert len(messages) == 1


def test_stopping_the_work_ends_the_process(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is stopped in the moment in which it has begun: a text of this length takes seconds."""
    processes: list[subprocess.Popen[bytes]] = []
    work, real = Work(), subprocess.Popen.communicate

    def communicate(process: subprocess.Popen[bytes], *of: Any) -> Any:
        processes.append(process)
        work.stop()
        return real(process, *of)

    monkeypatch.setattr(subprocess.Popen, "communicate", communicate)
    with pytest.raises(Stopped):
        tokenizer.encode("a b " * 10**6, Effort(1000, work))
    assert [process.returncode for process in processes] == [-9]


def test_work_that_is_stopped_before_it_begins_does_nothing(tokenizer: Tokenizer) -> None:
    work = Work()
    work.stop()
    for text in ("a", "a" * 10**6):
        with pytest.raises(Stopped):
            tokenizer.encode(text, Effort(None, work))


def test_a_process_that_dies_is_an_error_of_ours(tokenizer: Tokenizer) -> None:
    with pytest.raises(OSError, match="ended with status 1"):
        encode_apart("no tokenizer", False, "a", 10, Work())


def test_the_vocabularies_special_tokens_count_as_tokens_too(tmp_path: Path) -> None:
    literal = "<" + "x" * 500 + ">"
    long = {"id": FAKE_VOCAB, "content": literal, **FLAGS}
    spec = json.loads((tokenizer_files(tmp_path) / "tokenizer.json").read_text())
    assert len(SPECIALS) == len(spec["added_tokens"])
    tokenizer = fake_tokenizer(tmp_path, FAKE_VOCAB + 1, added_tokens=[*spec["added_tokens"], long])
    assert tokenizer.token_length == TokenLength(502, True)
    assert tokenizer.least_tokens(literal * 3) == 3 == len(tokenizer.encode(literal * 3).ids)
