"""What every decoder of the tokenizers library makes of tokens, with the library's own `decode` as the judge."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from gnomon.reference.checkpoint.errors import UnsupportedModel
from gnomon.reference.completion import prepare
from gnomon.reference.errors import InvalidRequest
from gnomon.reference.request import CompletionRequest
from gnomon.reference.text.utf8 import decode_utf8
from gnomon.reference.tokenizer import Tokenizer, load_tokenizer
from helpers.fake import FakeEngine, always

WORDS = (
    "x", "hello", "▁he", "▁▁b", "_c", "c_d", "##ing", "##", "a##b", ".", ",", "?", "!", "'", "n't", "'s", "'m", "do",
    "do not", "é", "界", "Ġx", "Ã©", "Ã", "©", " ", "  y", "z  ", "aab", "bb", "a", "<unk>", "<0x4>", "<0xZZ>",
)  # fmt: skip
BYTES = ("<0x41>", "<0x20>", "<0xE7>", "<0x95>", "<0x8C>", "<0xc3>", "<0xA9>", "<0xFF>", "<0x+a>")
PLAIN, SPECIAL = ("<plain>", "##d", "▁e"), ("<s>", "<|end|>")
GAPS = 2  # ids of the model that the tokenizer does not have

InOrder = decoders.Sequence
BARS = decoders.Replace("▁", " ")
DECODERS: dict[str, Any] = {
    "none": None,
    "ByteLevel": decoders.ByteLevel(),
    "Replace": BARS,
    "Replace by nothing": decoders.Replace("a", ""),
    "Replace of an expression": decoders.Replace(tokenizers.Regex("a+|^b"), "<>"),
    "WordPiece": decoders.WordPiece(),
    "WordPiece without cleanup": decoders.WordPiece(cleanup=False),
    "WordPiece of another prefix": decoders.WordPiece(prefix="_"),
    "ByteFallback": decoders.ByteFallback(),
    "Fuse": decoders.Fuse(),
    "Strip": decoders.Strip(" ", 1, 0),
    "Strip of more": decoders.Strip("a", 3, 0),
    "Metaspace": decoders.Metaspace(),
    "Metaspace first": decoders.Metaspace(prepend_scheme="first"),
    "Metaspace never": decoders.Metaspace(prepend_scheme="never"),
    "Metaspace of another mark": decoders.Metaspace(replacement="_"),
    "BPEDecoder without its suffix": decoders.BPEDecoder(),
    "an empty Sequence": InOrder([]),
    "Llama 2": InOrder([BARS, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]),
    "Gemma": InOrder([BARS, decoders.ByteFallback(), decoders.Fuse()]),
    "Metaspace, then bytes": InOrder([decoders.Metaspace(), decoders.ByteFallback(), decoders.Fuse()]),
    "WordPiece, then others": InOrder([decoders.WordPiece(), decoders.Replace("l", "L"), decoders.Strip(" ", 1, 0)]),
    "Strip of a whole text": InOrder([BARS, decoders.Fuse(), decoders.Strip(" ", 2, 0)]),
    "Strip of bytes' text": InOrder([decoders.ByteLevel(), decoders.Strip("x", 2, 0)]),
    "nested": InOrder([InOrder([BARS]), InOrder([decoders.ByteFallback(), decoders.Fuse(), decoders.Fuse()])]),
}  # fmt: skip
SUFFIXED = ("lo</w>",)
REFUSED: dict[str, tuple[Any, str]] = {
    "BPEDecoder": (decoders.BPEDecoder(), "step BPEDecoder is not supported: the space it makes of </w>"),
    "BPEDecoder of nothing": (decoders.BPEDecoder(suffix=""), "step BPEDecoder is not supported"),
    "BPEDecoder after another": (InOrder([BARS, decoders.BPEDecoder("</x>")]), "step BPEDecoder is not supported"),
    "CTC": (decoders.CTC(), "step CTC is not supported: it leaves out a token that repeats"),
    "Strip of ends": (decoders.Strip(" ", 0, 1), "step Strip is not supported: it cuts the end"),
    "bytes first": (InOrder([decoders.ByteFallback(), BARS]), "step Replace after ByteFallback is not supported"),
    "bytes twice": (
        InOrder([decoders.ByteFallback(), decoders.Fuse(), decoders.ByteLevel()]),
        "step ByteLevel after ByteFallback, Fuse is not supported",
    ),
    "fused first": (InOrder([decoders.Fuse(), decoders.WordPiece()]), "step WordPiece after Fuse is not supported"),
    "Metaspace late": (
        InOrder([decoders.ByteLevel(), decoders.Metaspace()]),
        "step Metaspace after ByteLevel is not supported",
    ),
    "Strip of parts": (
        InOrder([decoders.ByteFallback(), decoders.Strip(" ", 1, 0)]),
        "step Strip after ByteFallback is not supported",
    ),
    "Strip of a letter in bytes": (
        InOrder([decoders.ByteFallback(), decoders.Fuse(), decoders.Strip("é", 1, 0)]),
        "step Strip after ByteFallback, Fuse is not supported",
    ),
}
KINDS = {name for name in dir(decoders) if isinstance(getattr(decoders, name), type)} - {"Decoder", "DecodeStream"}


def library(decoder: Any, words: Sequence[str] = WORDS + BYTES) -> tokenizers.Tokenizer:
    """A tokenizer with these words in its vocabulary, and tokens beside it."""
    made = tokenizers.Tokenizer(models.BPE(vocab={word: v for v, word in enumerate(words)}, merges=[]))
    if decoder is not None:
        made.decoder = decoder
    made.add_tokens([tokenizers.AddedToken(token, normalized=False) for token in PLAIN])
    made.add_special_tokens(list(SPECIAL))
    return made


def id_of(theirs: tokenizers.Tokenizer, token: str) -> int:
    v = theirs.token_to_id(token)
    assert v is not None, token
    return v


def ours(theirs: tokenizers.Tokenizer, directory: Path) -> Tokenizer:
    theirs.save(str(directory / "tokenizer.json"))
    return load_tokenizer(directory, theirs.get_vocab_size() + GAPS)


def has_text(theirs: tokenizers.Tokenizer, ids: Sequence[int]) -> bool:
    """Whether every run of <0xNN> tokens is text, where these stand for bytes."""
    tokens = [theirs.id_to_token(v) or "" for v in ids if theirs.id_to_token(v) not in SPECIAL]
    runs = re.findall(r"(?:<0x[0-9A-Fa-f+][0-9A-Fa-f]> )+", "".join(token + " " for token in tokens if token))
    data = [bytes(int(byte, 16) for byte in re.findall(r"0x(..)", run)) for run in runs]
    return all(piece == piece.decode(errors="ignore").encode() for piece in data)


def sequences(theirs: tokenizers.Tokenizer, bytes_are_text: bool) -> list[list[int]]:
    """Ids at random, of runs of bytes only such as are text if `bytes_are_text`. Fifty ids in some 2400 places: one
    that is wrong wherever it stands is missed with odds of e^-48; of two neighbours, every second pair occurs."""
    rng = random.Random(7)
    found: list[list[int]] = []
    character = [id_of(theirs, token) for token in ("<0xE7>", "<0x95>", "<0x8C>")]
    while len(found) < 600:
        ids = [rng.randrange(theirs.get_vocab_size() + GAPS) for _ in range(rng.randrange(1, 8))]
        if rng.random() < 0.1:
            ids[rng.randrange(len(ids)) : 0] = character
        if not bytes_are_text or has_text(theirs, ids):
            found.append(ids)
    return found


def joined(pieces: Sequence[bytes]) -> str:
    return b"".join(pieces).decode(errors="replace")


def known(theirs: tokenizers.Tokenizer, ids: Sequence[int]) -> list[int]:
    """Without the ids that only the model has, on which the library's `decode` fails or which it leaves out."""
    return [v for v in ids if theirs.id_to_token(v) is not None]


def test_every_kind_of_decoder_that_the_library_has_is_tried_here() -> None:
    tried = "".join(str(decoder) for decoder in (*DECODERS.values(), *(decoder for decoder, _ in REFUSED.values())))
    assert [kind for kind in KINDS if f"{kind}(" not in tried] == []
    assert len(KINDS) >= 10


@pytest.mark.parametrize("name", DECODERS)
def test_a_texts_tokens_have_the_text_that_the_librarys_decoder_gives_them(tmp_path: Path, name: str) -> None:
    """Of tokens that follow another, as a completion's do. In a run of <0xNN> that is no UTF-8 the library makes a
    U+FFFD of every byte, the law one of every maximal beginning of a character: such runs are the next test's."""
    theirs = library(DECODERS[name])
    tokenizer = ours(theirs, tmp_path)
    before = id_of(theirs, "hello")
    shown = theirs.decode([before])
    for ids in sequences(theirs, tokenizer.decoder.to_bytes == "ByteFallback"):
        text = theirs.decode([before, *known(theirs, ids)], skip_special_tokens=True)
        assert shown + joined([tokenizer.token_bytes[v] for v in ids]) == text, [theirs.id_to_token(v) for v in ids]


@pytest.mark.parametrize("name", DECODERS)
def test_a_prompt_of_ids_has_the_text_that_the_librarys_decoder_gives_it(tmp_path: Path, name: str) -> None:
    """From its first token on, special tokens shown."""
    theirs = library(DECODERS[name])
    tokenizer = ours(theirs, tmp_path)
    for ids in sequences(theirs, tokenizer.decoder.to_bytes == "ByteFallback"):
        text = theirs.decode(known(theirs, ids), skip_special_tokens=False)
        pieces = list(tokenizer.prompt_pieces(ids))
        assert len(pieces) == len(ids)
        assert joined(pieces) == text, [theirs.id_to_token(v) for v in ids]


@pytest.mark.parametrize("name", ["ByteFallback", "Llama 2", "Gemma", "Metaspace, then bytes", "nested"])
def test_a_run_of_bytes_that_is_no_text_is_decoded_by_the_law(tmp_path: Path, name: str) -> None:
    theirs = library(DECODERS[name])
    tokenizer = ours(theirs, tmp_path)
    ids = [id_of(theirs, token) for token in ("x", "<0x41>", "<0xE7>", "<0x95>", "x", "<0xFF>")]
    assert joined([tokenizer.token_bytes[v] for v in ids]) == "xA\ufffdx\ufffd"
    assert theirs.decode(ids) == "x\ufffd\ufffd\ufffdx\ufffd"


def test_an_added_token_of_a_byte_level_vocabulary_is_plain_text(tmp_path: Path) -> None:
    """The library reads it in the alphabet of bytes, though encoding does not write it so: é is lost."""
    theirs = library(decoders.ByteLevel())
    theirs.add_tokens([tokenizers.AddedToken("café", normalized=False)])
    v = id_of(theirs, "café")
    assert ours(theirs, tmp_path).token_bytes[v] == "café".encode()
    assert theirs.encode("café").ids == [v]
    assert theirs.decode([v]) == "caf\ufffd"


def test_a_special_token_shows_its_literal_even_where_a_decoder_would_change_it(tmp_path: Path) -> None:
    theirs = library(BARS)
    theirs.add_special_tokens(["▁<PRE>"])
    ids = [id_of(theirs, token) for token in ("x", "▁<PRE>", "▁he")]
    assert joined(list(ours(theirs, tmp_path).prompt_pieces(ids))) == "x▁<PRE> he"


@pytest.mark.parametrize("name", REFUSED)
def test_a_decoder_that_needs_more_than_a_token_and_its_place_is_refused(tmp_path: Path, name: str) -> None:
    decoder, message = REFUSED[name]
    with pytest.raises(UnsupportedModel, match=f"{re.escape(message)}.*; supported: no decoder, or in this order"):
        ours(library(decoder, (*WORDS, *BYTES, *SUFFIXED)), tmp_path)


@pytest.mark.parametrize(("decoder", "said"), [(None, "no decoder"), (BARS, "the decoder Replace")])
def test_a_byte_level_vocabulary_without_its_decoder_is_refused(tmp_path: Path, decoder: Any, said: str) -> None:
    theirs = library(decoder)
    theirs.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel()])
    with pytest.raises(UnsupportedModel, match=f'{said} for a byte-level.*supported: "decoder": .*ByteLevel'):
        ours(theirs, tmp_path)


# ---- vocabularies of words


def words(kind: str, directory: Path) -> tuple[tokenizers.Tokenizer, Tokenizer]:
    vocab = {word: v for v, word in enumerate(("[UNK]", "hello", "wor", "##ld", "world", "##s", ".", "the"))}
    model = models.WordPiece(vocab, unk_token="[UNK]") if kind == "WordPiece" else models.WordLevel(vocab, "[UNK]")
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    if kind == "WordPiece":
        made.decoder = decoders.WordPiece()
    made.add_special_tokens(["[UNK]", "[END]"])
    return made, ours(made, directory)


@pytest.mark.parametrize("kind", ["WordPiece", "WordLevel"])
def test_words_are_encoded_and_shown_as_the_library_does(tmp_path: Path, kind: str) -> None:
    theirs, tokenizer = words(kind, tmp_path)
    for text in ("hello worlds .", "the [END]hello nobody worlds", "", "  world"):
        encoding = tokenizer.encode(text)
        assert list(encoding.ids) == theirs.encode(text).ids
        assert joined(list(tokenizer.prompt_pieces(encoding.ids))) == theirs.decode(list(encoding.ids), False)
        assert not any(text[start].isspace() for start in encoding.starts)


def completed(tokenizer: Tokenizer, prompt: Any, script: Sequence[int], **fields: Any) -> Any:
    engine = FakeEngine(always(*script, vocab_size=tokenizer.vocab_size, prompt=1), tokenizer.vocab_size)
    body = {"model": "m", "prompt": prompt, "max_tokens": len(script), "temperature": 0, **fields}
    return prepare(CompletionRequest.from_fields(body), engine, tokenizer, "m").whole().choices[0]


@pytest.mark.parametrize("kind", ["WordPiece", "WordLevel"])
def test_a_completions_words_follow_the_prompts_with_a_space_between(tmp_path: Path, kind: str) -> None:
    theirs, tokenizer = words(kind, tmp_path)
    script = [id_of(theirs, word) for word in ("world", "the", ".")]
    point = "." if kind == "WordPiece" else " ."  # the decoder of WordPiece puts no space there
    assert completed(tokenizer, "hello", script).text == " world the" + point
    assert completed(tokenizer, "hello", script, echo=True).text == "hello world the" + point
    hello = id_of(theirs, "hello")
    assert completed(tokenizer, [hello], script, echo=True).text == theirs.decode([hello, *script])
    stopped = completed(tokenizer, "hello", script, stop=" the", logprobs=0)
    assert (stopped.text, stopped.finish_reason) == (" world", "stop")
    assert list(stopped.logprobs.tokens) == [" world", " the"]
    assert list(stopped.logprobs.text_offset) == [5, 11]


def test_a_prompt_that_the_tokenizer_has_no_token_for_is_a_400_and_not_a_500(tmp_path: Path) -> None:
    made = tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = ours(made, tmp_path)
    assert completed(tokenizer, "a", [0, 0]).text == " a a"
    with pytest.raises(InvalidRequest, match=r'prompt: "a b" has characters .*Missing \[UNK\] token') as caught:
        completed(tokenizer, "a b", [0])
    assert caught.value.param == "prompt"


def test_a_beginning_is_found_though_the_vocabulary_has_no_letter_a(tmp_path: Path) -> None:
    made = tokenizers.Tokenizer(models.BPE({"b": 0, "<s>": 1}, []))
    made.add_special_tokens(["<s>"])
    made.post_processor = tokenizers.processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = ours(made, tmp_path)
    assert tokenizer.bos_id == 1
    assert tokenizer.encode("b").ids == (1, 0)


# ---- what training leaves behind


def test_merges_are_not_left_out_at_random_and_the_fingerprint_is_the_same(tmp_path: Path) -> None:
    """With a dropout of 0.9 a text of 40 merges has its shortest encoding with odds below 1e-30."""
    made = tokenizers.Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    plain = ours(made, tmp_path)
    made.model.dropout = 0.9
    assert json.loads(made.to_str())["model"]["dropout"] == 0.9
    dropped = ours(made, tmp_path)
    for encode in (dropped.encode, dropped.encode_literal, dropped.encode_following):
        assert encode("ab" * 40).ids == (2,) * 40
    assert dropped.fingerprint == plain.fingerprint
    made.enable_truncation(3)
    made.enable_padding(length=9, pad_id=1, pad_token="b")
    assert ours(made, tmp_path).encode("ab" * 5).ids == (2,) * 5
    assert ours(made, tmp_path).fingerprint == plain.fingerprint


def test_a_unigram_vocabulary_is_cut_the_same_way_every_time(tmp_path: Path) -> None:
    """Its sampling is set in a program, and no file has it: the library neither writes nor reads it."""
    made = tokenizers.Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0), ("aa", -1.1)], 0, alpha=0.1, nbest_size=9))
    assert len({tuple(made.encode("a" * 20).ids) for _ in range(20)}) > 1
    spec = json.loads(made.to_str())
    spec["model"] |= {"alpha": 0.1, "nbest_size": 9}
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    tokenizer = load_tokenizer(tmp_path, 3)
    assert {tokenizer.encode("a" * 20).ids for _ in range(20)} == {(2,) * 10}


def test_text_that_is_decoded_as_it_comes_is_that_of_all_bytes(tmp_path: Path) -> None:
    """The pieces of a character that bytes make are held back until it is whole, whatever steps come before."""
    theirs = library(DECODERS["Metaspace, then bytes"])
    tokenizer = ours(theirs, tmp_path)
    ids = [id_of(theirs, token) for token in ("▁he", "<0xE7>", "<0x95>", "<0x8C>", "▁▁b")]
    data = [tokenizer.token_bytes[v] for v in ids]
    assert [decode_utf8(b"".join(data[:i])) for i in range(1, 6)] == [" he", " he", " he", " he界", " he界  b"]
