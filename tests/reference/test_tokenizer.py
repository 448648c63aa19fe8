"""Section 6 of the law below the level of requests: bytes of tokens, labels, decoding; and the reading of files."""

from __future__ import annotations

import itertools
import json
import re
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from gnomon.reference.checkpoint.errors import CheckpointError
from gnomon.reference.text.infill import Infill
from gnomon.reference.text.utf8 import Decoder, decode_utf8, pending
from gnomon.reference.tokenizer import Tokenizer, load_tokenizer
from helpers.data import real_tokenizer
from helpers.fake import EOT, FAKE_VOCAB, MERGES, MID, PRE, SPECIALS, SUF, fake_tokenizer, tokenizer_files

bounded = settings(max_examples=60, deadline=None, derandomize=True)


# ---- bytes, byte-level


def test_the_first_256_tokens_of_the_fake_tokenizer_are_the_bytes(tokenizer: Tokenizer) -> None:
    assert [tokenizer.token_bytes[v] for v in range(256)] == [bytes([v]) for v in range(256)]


def test_the_byte_alphabet_is_the_one_the_tokenizers_library_writes(tmp_path: Path) -> None:
    """Exact: characters whose UTF-8 covers every byte that UTF-8 has go through the library's own byte-level step, and
    the vocabulary entry it writes must stand for those bytes. The 13 bytes that UTF-8 never has are their own
    Latin-1 characters."""
    pre = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    points = [*range(0x20, 0x800), *range(0x800, 0x110000, 0x3F)]
    texts = {chr(point) for point in points if not 0xD800 <= point < 0xE000} | {chr(point) for point in range(0x20)}
    covered: set[int] = set()
    written = sorted(texts)
    vocab = {pre.pre_tokenize_str(text)[0][0]: v for v, text in enumerate(written)}
    spec = {"type": "BPE", "vocab": vocab, "merges": []}
    tokenizer = fake_tokenizer(tmp_path, len(vocab), model=spec, added_tokens=[])
    for v, text in enumerate(written):
        assert tokenizer.token_bytes[v] == text.encode(), text
        covered.update(text.encode())
    never = {0xC0, 0xC1, *range(0xF5, 0x100)}
    assert covered == set(range(256)) - never
    tokenizer = load(tmp_path, {chr(byte): byte for byte in never}, set())
    assert all(tokenizer.token_bytes[byte] == bytes([byte]) for byte in never)


def test_a_merged_tokens_bytes_are_those_of_its_parts(tokenizer: Tokenizer) -> None:
    merged = [tokenizer.token_bytes[256 + i] for i in range(len(MERGES))]
    assert merged == [b" t", b"he", b" the", b" a", b"in", b"er", b" s", b"on", b"ou", b"ll"]


def test_special_tokens_have_no_bytes_in_a_completion(tokenizer: Tokenizer) -> None:
    assert [tokenizer.token_bytes[v] for v in (EOT, PRE, SUF, MID)] == [b"", b"", b"", b""]


def test_special_tokens_have_their_literals_bytes_in_a_prompt_of_ids(tokenizer: Tokenizer) -> None:
    assert [tokenizer.prompt_bytes(v).decode() for v in (EOT, PRE, SUF, MID)] == list(SPECIALS)
    assert tokenizer.prompt_bytes(0xE9) == b"\xe9"


def test_ids_without_an_entry_have_no_bytes_and_are_named_by_number(tmp_path: Path) -> None:
    tokenizer = fake_tokenizer(tmp_path, vocab_size=FAKE_VOCAB + 3)
    for v in range(FAKE_VOCAB, FAKE_VOCAB + 3):
        assert tokenizer.token_bytes[v] == b""
        assert tokenizer.prompt_bytes(v) == b""
        assert tokenizer.labels[v] == f"token_id:{v}"
    assert len(tokenizer.token_bytes) == len(tokenizer.labels) == FAKE_VOCAB + 3


def test_an_added_token_that_is_not_special_is_plain_text(tmp_path: Path) -> None:
    """Ġ would be a space in the vocabulary of a byte-level model; in an added token it is the letter."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    added = [{"id": FAKE_VOCAB, "content": "<Ġé>", **plain}]
    spec = json.loads((tokenizer_files(tmp_path) / "tokenizer.json").read_text())
    spec["model"]["vocab"]["<Ġé>"] = FAKE_VOCAB
    tokenizer = fake_tokenizer(tmp_path, FAKE_VOCAB + 1, model=spec["model"], added_tokens=spec["added_tokens"] + added)
    assert tokenizer.token_bytes[FAKE_VOCAB] == "<Ġé>".encode()
    assert tokenizer.encode("<Ġé>").ids == (FAKE_VOCAB,)


TEXT = st.text(st.sampled_from("a the\ninéüßĞ界😀\u0301\u200d\x00�") | st.characters(codec="utf-8"), max_size=20)


@bounded
@given(text=TEXT)
def test_bytes_of_a_texts_tokens_join_to_the_text(tokenizer: Tokenizer, text: str) -> None:
    """Exact: no example may fail. With wrong bytes for any one of the 17 most drawn characters a run of 60 texts of
    about 8 characters would pass with odds below 1e-5."""
    encoding = tokenizer.encode_literal(text)
    assert b"".join(tokenizer.token_bytes[v] for v in encoding.ids) == text.encode()
    assert list(encoding.starts) == sorted(encoding.starts)
    assert all(0 <= start < len(text) for start in encoding.starts)


@bounded
@given(text=TEXT)
def test_a_span_starts_at_the_character_whose_bytes_the_token_begins_in(tokenizer: Tokenizer, text: str) -> None:
    """Exact: for a byte-level vocabulary the start of a token is the number of characters that begin at or before its
    first byte, minus one."""
    encoding = tokenizer.encode_literal(text)
    owner = [i for i, char in enumerate(text) for _ in char.encode()]
    place = 0
    for v, start in zip(encoding.ids, encoding.starts, strict=True):
        assert start == owner[place]
        place += len(tokenizer.token_bytes[v])


# ---- bytes, SentencePiece style


def sentencepiece(directory: Path, extra: Mapping[str, int] | None = None, bos: bool = True) -> Tokenizer:
    """A small BPE with byte fallback in the manner of Llama 2: <unk> <s> </s>, 256 bytes, some letters and merges."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    for piece in ("▁", "a", "b", "h", "e", "é", "▁a", "▁h", "▁he", "ab", "A", "\n"):
        vocab[piece] = len(vocab)
    vocab |= extra or {}
    merges = [("▁", "a"), ("▁", "h"), ("▁h", "e"), ("a", "b")]
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    strip = decoders.Strip(content=" ", left=1, right=0)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    directory.mkdir(exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    return load_tokenizer(directory, max(vocab.values()) + 1)


def test_sentencepiece_tokens_have_spaces_for_bars_and_one_byte_for_a_fallback(tmp_path: Path) -> None:
    tokenizer = sentencepiece(tmp_path)
    ids = tokenizer.parsing.get_vocab()
    assert [tokenizer.token_bytes[3 + byte] for byte in range(256)] == [bytes([byte]) for byte in range(256)]
    assert tokenizer.token_bytes[ids["▁he"]] == b" he"
    assert tokenizer.token_bytes[ids["▁"]] == b" "
    assert tokenizer.token_bytes[ids["é"]] == "é".encode()
    assert [tokenizer.token_bytes[v] for v in range(3)] == [b"", b"", b""]


@pytest.mark.parametrize("text", ["he ab", "é界😀 \n", " a", "\x00ÿ", "▁"])
def test_bytes_of_sentencepiece_tokens_join_to_the_text_after_one_space(tmp_path: Path, text: str) -> None:
    """The prepended ▁ is a space that the text does not have; a ▁ of the text itself is taken for a space, always."""
    tokenizer = sentencepiece(tmp_path)
    ids = tokenizer.encode_literal(text).ids
    assert b"".join(tokenizer.token_bytes[v] for v in ids) == (" " + text).replace("▁", " ").encode()


def test_a_character_split_by_byte_fallback_has_one_span_for_its_pieces(tmp_path: Path) -> None:
    """Text "a界b": ▁a at 0, the three bytes of 界 at 1, b at 2."""
    tokenizer = sentencepiece(tmp_path, bos=False)
    encoding = tokenizer.encode("a界b")
    assert [tokenizer.token_bytes[v] for v in encoding.ids] == [b" a", b"\xe7", b"\x95", b"\x8c", b"b"]
    assert encoding.starts == (0, 1, 1, 1, 2)


# ---- labels


def label_claims(contents: list[bytes], special: Mapping[int, str], fallback: set[int]) -> list[str]:
    """The law's labels, written again from its text."""
    labels = [""] * len(contents)
    ordinary = set(range(len(contents))) - set(special) - fallback
    for group in (sorted(special), sorted(ordinary), sorted(fallback)):
        for v in group:
            escaped = "bytes:" + "".join("\\x" + bytes([byte]).hex() for byte in contents[v])
            if v in special:
                base = special[v]
            elif not contents[v]:
                base = f"token_id:{v}"
            else:
                try:
                    base = contents[v].decode("utf-8", "strict")
                except UnicodeDecodeError:
                    base = escaped
                if re.match("bytes:|token_id:", base):
                    base = escaped
            labels[v] = f"token_id:{v}" if base in labels else base
    return labels


PIECE = st.text(st.sampled_from("aĠ éÃ©ÿ:\\x3"), min_size=1, max_size=4)
TRICKY = st.sampled_from(
    ["bytes:", "bytes:\\xc3", "bytes:\\xff", "token_id:", "token_id:1", "token_id:7", "bytes", "<s>", "▁a", "Ġa", " a"]
)


def load(directory: Path, vocab: Mapping[str, int], special: set[str], gap: int = 0) -> Tokenizer:
    """A byte-level tokenizer with this vocabulary, an `a` behind it if it has none, and `gap` ids without an entry."""
    vocab = vocab if "a" in vocab else {**vocab, "a": max(vocab.values()) + 1}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": vocab[token], "content": token, **flags} for token in sorted(special, key=lambda t: vocab[t])]
    model = {"type": "BPE", "vocab": dict(vocab), "merges": []}
    return fake_tokenizer(directory, max(vocab.values()) + 1 + gap, model=model, added_tokens=added)


@bounded
@given(
    tokens=st.lists(PIECE | TRICKY, min_size=1, max_size=14, unique=True),
    gaps=st.lists(st.integers(0, 3), min_size=14, max_size=14),
    special_flags=st.lists(st.booleans(), min_size=14, max_size=14),
)
def test_labels_of_any_byte_level_vocabulary_are_injective_and_the_laws(
    tmp_path_factory: pytest.TempPathFactory, tokens: list[str], gaps: list[int], special_flags: list[bool]
) -> None:
    """Exact: two tokens with one label, or a label that the law would not give, is a failure in any example. Half of
    the drawn vocabularies hold two tokens of equal bytes or a reserved beginning, so that a pass of 60 by
    chance has odds below 1e-15."""
    vocab, v = {}, 0
    for token, gap in zip(tokens, gaps, strict=False):
        vocab[token] = v = v + gap
        v += 1
    special = {token for token, flag in zip(tokens, special_flags, strict=False) if flag}
    tokenizer = load(tmp_path_factory.mktemp("labels"), vocab, special, gap=2)
    assert len(set(tokenizer.labels)) == len(tokenizer.labels) == tokenizer.vocab_size
    if not any(token.startswith(("bytes:", "token_id:")) for token in special):  # there the law contradicts itself
        literals = {vocab[token]: token for token in special}
        assert list(tokenizer.labels) == label_claims(list(tokenizer.token_bytes), literals, set())


@bounded
@given(tokens=st.lists(PIECE | TRICKY | st.sampled_from(["ÿ", "A", "\n", " "]), max_size=12, unique=True))
def test_labels_of_any_byte_fallback_vocabulary_are_injective_and_the_laws(
    tmp_path_factory: pytest.TempPathFactory, tokens: list[str]
) -> None:
    """Exact, as above. Here the duplicates are the byte tokens of a, A, é's bytes, the newline and the space."""
    known = {"<unk>", "<s>", "</s>", "▁", "a", "b", "h", "e", "é", "▁a", "▁h", "▁he", "ab", "A", "\n"}
    extra = {token: 271 + i for i, token in enumerate(token for token in tokens if token not in known)}
    tokenizer = sentencepiece(tmp_path_factory.mktemp("labels"), extra)
    assert len(set(tokenizer.labels)) == len(tokenizer.labels)
    special = {0: "<unk>", 1: "<s>", 2: "</s>"}
    assert list(tokenizer.labels) == label_claims(list(tokenizer.token_bytes), special, set(range(3, 259)))


def test_labels_are_literals_texts_and_escaped_bytes(tokenizer: Tokenizer) -> None:
    assert tokenizer.labels[EOT] == "<|endoftext|>"
    assert tokenizer.labels[ord("a")] == "a"
    assert tokenizer.labels[258] == " the"
    assert tokenizer.labels[0xC3] == "bytes:\\xc3"
    assert tokenizer.labels[0] == "\x00"


def test_a_text_that_looks_like_a_reserved_label_is_escaped(tmp_path: Path) -> None:
    vocab = {"bytes:": 0, "token_id:1": 1, "bytes:\\xff": 2, "ÿ": 3, "xbytes:": 4}
    tokenizer = load(tmp_path, vocab, set())
    assert tokenizer.labels == (
        "bytes:\\x62\\x79\\x74\\x65\\x73\\x3a",
        "bytes:\\x74\\x6f\\x6b\\x65\\x6e\\x5f\\x69\\x64\\x3a\\x31",
        "bytes:\\x62\\x79\\x74\\x65\\x73\\x3a\\x5c\\x78\\x66\\x66",
        "bytes:\\xff",
        "xbytes:",
        "a",
    )


def test_a_special_token_claims_its_literal_before_an_ordinary_one_of_lower_id(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, {"Ġa": 0, " a": 1}, {" a"})
    assert tokenizer.token_bytes == (b" a", b"", b"a")
    assert tokenizer.labels == ("token_id:0", " a", "a")


def test_an_ordinary_token_claims_its_text_before_a_byte_fallback_one_of_lower_id(tmp_path: Path) -> None:
    tokenizer = sentencepiece(tmp_path)
    ids = tokenizer.parsing.get_vocab()
    assert tokenizer.labels[ids["A"]] == "A"
    assert tokenizer.labels[ids["<0x41>"]] == f"token_id:{ids['<0x41>']}"
    assert tokenizer.labels[ids["<0x43>"]] == "C"
    assert tokenizer.labels[ids["<0xC3>"]] == "bytes:\\xc3"


def test_of_two_ordinary_tokens_of_one_text_the_lower_id_has_the_label(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, {" a": 5, "Ġa": 2, "b": 0}, set())
    assert tokenizer.token_bytes[2] == tokenizer.token_bytes[5] == b" a"
    assert (tokenizer.labels[2], tokenizer.labels[5]) == (" a", "token_id:5")


# ---- decoding, against Unicode's table 3-7 written as expressions

WELL_FORMED = re.compile(
    rb"[\x00-\x7f]|[\xc2-\xdf][\x80-\xbf]|\xe0[\xa0-\xbf][\x80-\xbf]|[\xe1-\xec][\x80-\xbf]{2}|\xed[\x80-\x9f][\x80-\xbf]"
    rb"|[\xee\xef][\x80-\xbf]{2}|\xf0[\x90-\xbf][\x80-\xbf]{2}|[\xf1-\xf3][\x80-\xbf]{3}|\xf4[\x80-\x8f][\x80-\xbf]{2}",
    re.DOTALL,
)
PROPER_PREFIX = re.compile(
    rb"[\xc2-\xdf]|\xe0[\xa0-\xbf]?|[\xe1-\xec][\x80-\xbf]?|\xed[\x80-\x9f]?|[\xee\xef][\x80-\xbf]?"
    rb"|\xf0(?:[\x90-\xbf][\x80-\xbf]?)?|[\xf1-\xf3](?:[\x80-\xbf][\x80-\xbf]?)?|\xf4(?:[\x80-\x8f][\x80-\xbf]?)?",
    re.DOTALL,
)


def by_table(data: bytes) -> str:
    """All of the bytes as text; every maximal beginning of a character, and every other stray byte, is a U+FFFD."""
    text, place = "", 0
    while place < len(data):
        match = WELL_FORMED.match(data, place)
        if match:
            text += match[0].decode()
        else:
            match = PROPER_PREFIX.match(data, place)
            text += "\ufffd"
        place += len(match[0]) if match else 1
    return text


def pending_by_table(data: bytes) -> bytes:
    return next((data[i:] for i in range(len(data)) if PROPER_PREFIX.fullmatch(data[i:])), b"")


INTERESTING = bytes.fromhex("41 7f 80 8f 90 9f a0 bf c1 c2 df e0 e1 ed ef f0 f3 f4 f5 ff")
FEWER = bytes.fromhex("41 80 8f 90 bf e1 f0 f1 f4")
SEQUENCES = [
    *(bytes(s) for size in range(4) for s in itertools.product(INTERESTING, repeat=size)),
    *(bytes(s) for s in itertools.product(FEWER, repeat=4)),
]


def test_pending_bytes_are_the_longest_proper_prefix_of_a_character_at_the_end() -> None:
    """Exhaustive over all sequences of up to three of twenty bytes and of four of nine: every row and every
    boundary of the table."""
    for data in SEQUENCES:
        assert pending(data) == pending_by_table(data), data.hex(" ")


def test_pending_bytes_can_be_completed_and_no_other_end_can() -> None:
    """Exhaustive, with Python's strict decoder as the judge: a pending end of two or three bytes has a completion, and
    of an end of one byte that is not pending there is none."""
    proper = {
        chr(point).encode()[:size]
        for point in range(0x80, 0x110000, 0x40)
        if not 0xD800 <= point < 0xE000
        for size in range(1, len(chr(point).encode()))
    }
    for size in (1, 2, 3):
        for data in SEQUENCES:
            if len(data) == size:
                assert (pending(data) == data) == (data in proper), data.hex(" ")


def test_decoded_text_is_that_of_all_bytes_but_the_pending_ones() -> None:
    """Exhaustive over the same sequences."""
    for data in SEQUENCES:
        settled = data[: len(data) - len(pending_by_table(data))]
        assert decode_utf8(data) == by_table(settled), data.hex(" ")


def test_pieces_of_a_byte_each_join_to_the_one_shot_decoding() -> None:
    """Exhaustive over the same sequences; after every byte what was shown is the decoding of what is settled."""
    for data in SEQUENCES:
        decoder, text = Decoder(), ""
        for i in range(len(data)):
            text += decoder.push(data[i : i + 1])
            assert len(text) <= i + 1
        assert text == decode_utf8(data), data.hex(" ")
        assert text + decoder.flush() == by_table(data) == data.decode(errors="replace"), data.hex(" ")


@bounded
@given(st.lists(st.binary(max_size=5) | st.text("aé界😀", max_size=2).map(str.encode), max_size=8), st.data())
def test_pieces_of_any_size_join_to_the_one_shot_decoding(pieces: list[bytes], data: st.DataObject) -> None:
    """Exact: decoding does not depend on how the bytes were cut, and shows no character before it is whole."""
    joined = b"".join(pieces)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(joined)), max_size=6)))
    decoder, text = Decoder(), ""
    for start, end in itertools.pairwise([0, *cuts, len(joined)]):
        text += decoder.push(joined[start:end])
        assert text == by_table(joined[: end - len(pending_by_table(joined[:end]))])
    assert text + decoder.flush() == by_table(joined)


def test_flushing_resets_the_decoder() -> None:
    decoder = Decoder()
    assert decoder.push(b"a\xe7\x95") == "a"
    assert decoder.flush() == "\ufffd"
    assert decoder.flush() == ""
    assert decoder.push(b"\x8c") == "\ufffd"  # 界's last byte: without the reset it would complete the character


@pytest.mark.parametrize("data", [b"\xed\xa0", b"\xf4\x90", b"\xe0\x80", b"\xf0\x8f", b"\xc1", b"\xf5"])
def test_what_can_become_no_character_is_shown_at_once(data: bytes) -> None:
    """Halves of surrogates, points above U+10FFFF, overlong forms: each byte is a U+FFFD as soon as it is there."""
    assert pending(data) == b""
    assert decode_utf8(data) == "\ufffd" * len(data)


# ---- reading files


def with_bos(v: int = EOT, literal: str = SPECIALS[0], after: bool = False) -> dict[str, Any]:
    special = {"SpecialToken": {"id": literal, "type_id": 0}}
    first, second = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}
    return {
        "type": "TemplateProcessing",
        "single": [special, first, *([special] if after else [])],
        "pair": [special, first, second],
        "special_tokens": {literal: {"id": literal, "ids": [v], "tokens": [literal]}},
    }


def test_a_bos_of_the_post_processor_is_put_first_with_an_empty_span(tmp_path: Path) -> None:
    tokenizer = fake_tokenizer(tmp_path, post_processor=with_bos())
    assert tokenizer.bos_id == EOT
    assert tokenizer.encode("né") == ((EOT, ord("n"), 0xC3, 0xA9), (0, 0, 1, 1))
    assert tokenizer.encode_literal("né") == ((ord("n"), 0xC3, 0xA9), (0, 1, 1))


def test_a_token_the_tokenizer_would_append_is_not(tmp_path: Path) -> None:
    tokenizer = fake_tokenizer(tmp_path, post_processor=with_bos(after=True))
    assert tokenizer.encode("n").ids == (EOT, ord("n"))


def test_without_a_post_processor_nothing_is_added(tokenizer: Tokenizer) -> None:
    assert tokenizer.bos_id is None
    assert tokenizer.encode("n").ids == (ord("n"),)


def test_special_literals_are_parsed_by_encode_and_not_by_encode_literal(tokenizer: Tokenizer) -> None:
    text = "a<|endoftext|>b"
    assert tokenizer.encode(text) == ((ord("a"), EOT, ord("b")), (0, 1, 14))
    literal = tokenizer.encode_literal(text)
    assert EOT not in literal.ids
    assert b"".join(tokenizer.token_bytes[v] for v in literal.ids).decode() == text


def test_truncation_and_padding_of_the_file_do_not_touch_prompts(tmp_path: Path) -> None:
    truncation = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    padding = {
        "strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": EOT,
        "pad_type_id": 0, "pad_token": SPECIALS[0],
    }  # fmt: skip
    tokenizer = fake_tokenizer(tmp_path, truncation=truncation, padding=padding)
    for encode in (tokenizer.encode, tokenizer.encode_literal):
        assert bytes(encode("abcd").ids) == b"abcd"


def configured(directory: Path, **config: object) -> Tokenizer:
    tokenizer_files(directory)
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return load_tokenizer(directory, FAKE_VOCAB)


def test_the_end_of_text_token_is_eos_or_else_bos_as_string_or_object(tmp_path: Path) -> None:
    assert configured(tmp_path, eos_token=SPECIALS[1], bos_token=SPECIALS[2]).end_of_text_id == PRE
    assert configured(tmp_path, eos_token={"content": SPECIALS[3], "lstrip": False}).end_of_text_id == MID
    assert configured(tmp_path, eos_token=None, bos_token=SPECIALS[2]).end_of_text_id == SUF
    assert configured(tmp_path).end_of_text_id is None


def test_fill_in_the_middle_needs_all_three_tokens(tmp_path: Path) -> None:
    names = ("fim_prefix_token", "fim_suffix_token", "fim_middle_token")
    all_three: dict[str, object] = dict(zip(names, SPECIALS[1:], strict=True))
    assert configured(tmp_path, **all_three).infill == Infill(PRE, SUF, MID)
    for name in names:
        for wrong, told in ((None, "is missing beside"), ("<|unheard of|>", "is .*no token of this tokenizer")):
            with pytest.raises(CheckpointError, match=f"{name} {told}"):
                configured(tmp_path, **{**all_three, name: wrong})
    with pytest.raises(CheckpointError, match="different tokens are needed"):
        configured(tmp_path, **{**all_three, names[0]: SPECIALS[2]})


def test_a_directory_without_tokenizer_config_json_loads(tmp_path: Path) -> None:
    tokenizer_files(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    tokenizer = load_tokenizer(tmp_path, FAKE_VOCAB)
    assert (tokenizer.end_of_text_id, tokenizer.bos_id) == (None, None)


def test_a_vocabulary_without_the_letter_a_loads(tmp_path: Path) -> None:
    """What the tokenizer puts before a string must not be found out with a string that may have no tokens."""
    tokenizer = fake_tokenizer(tmp_path, 1, model={"type": "BPE", "vocab": {"b": 0}, "merges": []}, added_tokens=[])
    assert tokenizer.bos_id is None
    assert tokenizer.encode("b").ids == (0,)


def test_missing_malformed_and_oversized_tokenizers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        load_tokenizer(tmp_path, FAKE_VOCAB)
    tokenizer_files(tmp_path)
    with pytest.raises(CheckpointError, match=f'id {EOT - 1}, "ll", but the model\'s vocabulary has {EOT - 1} ids'):
        load_tokenizer(tmp_path, EOT - 1)  # a piece of the vocabulary itself: that is another model's tokenizer
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=re.escape("tokenizer.json")):
        load_tokenizer(tmp_path, FAKE_VOCAB)


# ---- real tokenizers, where there are some at hand


REAL_VOCAB = {"gpt2": 50257, "phi2": 51200, "phi3": 32064, "deepseek-r1": 129280}
BY_NAME = [pytest.param(name, marks=pytest.mark.slow if size > 100_000 else ()) for name, size in REAL_VOCAB.items()]
REAL: dict[str, Tokenizer] = {}


def real(name: str) -> Tokenizer:
    if name not in REAL:
        REAL[name] = load_tokenizer(real_tokenizer(name), REAL_VOCAB[name])
    return REAL[name]


def vectors(file: str) -> list[tuple[str, list[int]]]:
    """(text, ids) of a file of published vectors; the large ones carry their texts as what the ids decode to."""
    directory = real_tokenizer("vectors")
    entries = json.loads((directory / file).read_text(encoding="utf-8"))["entries"]
    if isinstance(entries, list):
        return [(entry["decoded_skip_special"], entry["input_ids"]) for entry in entries]
    inputs = json.loads((directory / "inputs.json").read_text(encoding="utf-8"))["inputs"]
    return [(item["text"], entries[item["id"]]["input_ids"]) for item in inputs]


@pytest.mark.slow
@pytest.mark.parametrize("name", list(REAL_VOCAB))
def test_bytes_of_real_tokens_join_to_multilingual_text(name: str) -> None:
    """Phi-3 prepends ▁ to every piece of text, which is a space that the text does not have."""
    tokenizer = real(name)
    texts = [text for text, _ in vectors("openai-community__gpt2.json") + vectors("gpt2_multilingual.json")]
    assert len(texts) == 113
    space = " " if name == "phi3" else ""
    for text in [*texts, "".join(map(chr, range(32, 0x250))), "界" * 3 + "\u200d😀 \t\n\x00"]:
        ids = tokenizer.encode_literal(text).ids
        joined = b"".join(tokenizer.token_bytes[v] for v in ids)
        assert joined == ((space + text) if text else "").replace("▁" if space else "\0\0", " ").encode(), text


@pytest.mark.slow
@pytest.mark.parametrize("name", list(REAL_VOCAB))
def test_labels_of_real_tokenizers_are_injective(name: str) -> None:
    labels = real(name).labels
    assert len(set(labels)) == len(labels) == REAL_VOCAB[name]


@pytest.mark.parametrize("name", BY_NAME)
def test_real_tokens_spans_are_non_decreasing_and_within_the_text(name: str) -> None:
    for text, _ in vectors("openai-community__gpt2.json"):
        starts = real(name).encode(text).starts
        assert list(starts) == sorted(starts)
        assert all(0 <= start <= len(text) for start in starts)


@pytest.mark.parametrize("name", ["gpt2", "phi2"])
@pytest.mark.parametrize("file", ["openai-community__gpt2.json", "gpt2_multilingual.json"])
def test_gpt2_ids_are_the_published_ones(name: str, file: str) -> None:
    """Phi-2's vocabulary is GPT-2's with runs of spaces and tabs added: texts without those have the same ids."""
    compared = 0
    for text, ids in vectors(file):
        if name == "phi2" and re.search("  |\t\t", text):
            continue
        assert list(real(name).encode(text).ids) == ids, text
        compared += 1
    assert compared >= 25


@pytest.mark.parametrize("file", ["TinyLlama-1.1B-Chat.json", "tinyllama_multilingual.json"])
def test_phi3_ids_are_the_published_ones_of_its_vocabulary(file: str) -> None:
    """The vectors are of the Llama-2 vocabulary, Phi-3's first 32,000 ids, BOS included. Texts with literals of special
    tokens are left out: what surrounds a special token is the chat model's own."""
    compared = 0
    for text, ids in vectors(file):
        if not text or re.search(r"<\|?[a-z/_]+\|?>", text):
            continue
        assert list(real("phi3").encode(text).ids) == ids, text
        compared += 1
    assert compared >= 25


@pytest.mark.parametrize("name", BY_NAME)
def test_every_printable_ascii_character_has_a_token_in_every_real_tokenizer(name: str) -> None:
    assert {char.encode() for char in string.printable} <= set(real(name).token_bytes)
