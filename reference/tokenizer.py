"""Text ↔ token ids ↔ bytes: the `tokenizers` library, and what the law needs on top of it (LAW.md, section 6).

    encode        a string → ids and their spans in the string, in code points
    token_bytes   the bytes that every id stands for; special tokens and ids without an entry have none
    labels        a name for every id, no two alike, by construction
    Decoder       bytes → text piece by piece, never showing a character before all of its bytes are there

The bytes come from the vocabulary itself, not from the library's `decode`, which answers for whole texts and hides
what a single token is. Two kinds are known: byte-level BPE (GPT-2 and most since), and SentencePiece's BPE or Unigram
with byte fallback. Which tokens fill in the middle is one table, FAMILIES.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers

from gnomon.reference.checkpoint import CheckpointError, UnsupportedModel, read_json
from gnomon.reference.request import shown

KINDS = ("BPE", "Unigram")
RESERVED = ("bytes:", "token_id:")
NAMED = ("bos_token", "eos_token")  # not pad_token: some files name an ordinary "!" there
MARKERS = ("fim_prefix_token", "fim_suffix_token", "fim_middle_token")
OTHER_FORMATS = ("tokenizer.model", "vocab.json", "vocab.txt", "tekken.json", "tiktoken.model")


class Encoding(NamedTuple):
    """Token ids, and where each one starts in the text as sent, in code points, non-decreasing."""

    ids: tuple[int, ...]
    starts: tuple[int, ...]


class Infill(NamedTuple):
    """The fill-in-the-middle tokens of a model trained as `prefix PRE`, `SUF`, `MID` (Bavarian et al. 2022, PSM
    order)."""

    prefix: int
    suffix: int
    middle: int


class Family(NamedTuple):
    """How the models of a family were taught to fill in the middle: the literals of their tokens."""

    name: str
    prefix: str
    suffix: str
    middle: str
    ends: tuple[str, ...] = ()  # what they write after a middle, besides the three and the end-of-sequence ids

    @property
    def markers(self) -> tuple[str, str, str]:
        return self.prefix, self.suffix, self.middle


# All of these are prompted in the order PRE prompt SUF suffix MID, with no spaces between (Code Llama knows another
# order too); a BOS comes first where the tokenizer puts one before strings anyway. A tokenizer belongs to the first row
# of which it has every token, so that of rows with the same markers the one with more ends stands first.
FAMILIES = (
    Family("CodeGemma", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", ("<|file_separator|>",)),
    Family(
        "Qwen2.5-Coder",
        "<|fim_prefix|>",
        "<|fim_suffix|>",
        "<|fim_middle|>",
        ("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|im_end|>", "<|endoftext|>"),
    ),
    Family("gnomon", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", ("<|endoftext|>",)),
    Family("StarCoder2", "<fim_prefix>", "<fim_suffix>", "<fim_middle>", ("<fim_pad>", "<file_sep>", "<|endoftext|>")),
    Family("StarCoder", "<fim_prefix>", "<fim_suffix>", "<fim_middle>", ("<fim_pad>", "<|endoftext|>")),
    Family("SantaCoder", "<fim-prefix>", "<fim-suffix>", "<fim-middle>", ("<fim-pad>", "<|endoftext|>")),
    Family("Code Llama", "▁<PRE>", "▁<SUF>", "▁<MID>", ("▁<EOT>",)),
    Family("DeepSeek-Coder", "<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>", ("<｜end▁of▁sentence｜>",)),
)


@dataclass(frozen=True)
class Tokenizer:
    """A model's tokenizer. `vocab_size` is the model's V, which may be larger than the tokenizer's own."""

    literal: tokenizers.Tokenizer  # parses no special tokens
    parsing: tokenizers.Tokenizer  # parses the literals of special tokens as those tokens
    following: tokenizers.Tokenizer  # as `literal`, for a text that follows another: no space is put before it
    vocab_size: int
    token_bytes: tuple[bytes, ...]  # [V]: what id v adds to a completion's text; b"" for special tokens and gaps
    special: Mapping[int, str]  # id → literal
    beyond: Mapping[int, str]  # added tokens that the model has no row for, id → literal: never sampled, no prompt's
    labels: tuple[str, ...]  # [V], injective
    bos_id: int | None  # what the tokenizer puts before a string by itself
    end_of_text_id: int | None
    infill: Infill | None
    infill_ends: frozenset[int]  # they end a middle as end-of-sequence ids do; the markers are among them
    no_infill: str  # what to say where `infill` is None
    fingerprint: str  # of its files and of the library: part of what decides an answer's bytes

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """Label → id: the way back, since no two labels are equal."""
        return {label: v for v, label in enumerate(self.labels)}

    def encode(self, text: str) -> Encoding:
        """A prompt: special tokens' literals are parsed; a BOS the tokenizer adds is there, with an empty span.

        What a tokenizer would append (an end-of-sequence token) is left out: a prompt is there to be continued.
        """
        encoding = _encode(self.parsing, text)
        if self.bos_id is None:
            return encoding
        return Encoding((self.bos_id, *encoding.ids), (0, *encoding.starts))

    def encode_literal(self, text: str) -> Encoding:
        """A text in which nothing is special and to which nothing is added."""
        return _encode(self.literal, text)

    def encode_following(self, text: str) -> Encoding:
        """The same for a text that follows another one, as a suffix does: SentencePiece puts a space before texts,
        which here would stand between the two."""
        return _encode(self.following, text)

    def prompt_bytes(self, v: int) -> bytes:
        """The bytes of id v in a prompt of ids: there a special token shows its literal."""
        return self.special[v].encode() if v in self.special else self.token_bytes[v]


def _encode(tokenizer: tokenizers.Tokenizer, text: str) -> Encoding:
    # a batch of one: unlike `encode` it lets other threads run while it works on a long text
    encoded = tokenizer.encode_batch([text], add_special_tokens=False)[0]
    starts: list[int] = []
    for start, _ in encoded.offsets:
        starts.append(max(start, starts[-1] if starts else 0))
    return Encoding(tuple(encoded.ids), tuple(starts))


# ---- loading


def load_tokenizer(path: str | Path, vocab_size: int, markers: Sequence[str] | None = None) -> Tokenizer:
    """Reads tokenizer.json (and tokenizer_config.json, if there) of a directory. Raises CheckpointError.

    vocab_size: the model's V. Added tokens may lie beyond it, as in published models: a prompt with one is refused. A
    tokenizer whose vocabulary itself has such ids, or that puts such a token before every string, is not the model's.
    markers: the literals of the fill-in-the-middle tokens (prefix, suffix, middle) instead of those the files tell.
    """
    directory = Path(path)
    file = directory / "tokenizer.json"
    spec, config = _read(file), read_json(directory / "tokenizer_config.json", missing={})
    try:
        ids = _ids(spec)
        family = _family(config, ids, markers)
        _complete(spec, config, ids, family)
        _keep_spaces(spec.get("post_processor"))
        text = json.dumps(spec)
        parsing, literal = tokenizers.Tokenizer.from_str(text), tokenizers.Tokenizer.from_str(text)
        joined = _without_prefix_space(spec)
        following = literal if joined == spec else tokenizers.Tokenizer.from_str(json.dumps(joined))
    except CheckpointError as error:
        raise CheckpointError(f"{directory}: {error}") from None
    except Exception as error:  # the library raises a bare Exception for a malformed file
        raise CheckpointError(f"{file}: {error}") from None
    for tokenizer in (parsing, literal, following):
        tokenizer.no_truncation()
        tokenizer.no_padding()
    literal.encode_special_tokens = following.encode_special_tokens = True

    read = parsing.get_vocab(with_added_tokens=True)
    moved = [f"{shown(token)} from {v} to {read.get(token)}" for token, v in ids.items() if read.get(token) != v]
    if moved:  # the library numbers added tokens itself, whatever the file says
        raise CheckpointError(f"{file}: ids of added tokens that are not the next free ones: {', '.join(moved[:3])}")
    added: dict[int, tokenizers.AddedToken] = dict(parsing.get_added_tokens_decoder())
    beyond = {v: token.content for v, token in added.items() if v >= vocab_size}
    bos_id = _bos_id(config, ids, parsing)
    vocabulary = {v: token for token, v in ids.items() if v not in beyond}
    for v in (max(vocabulary, default=0), bos_id or 0):
        if v >= vocab_size:
            token = shown(beyond.get(v, vocabulary.get(v)))
            raise CheckpointError(f"{file} has id {v}, {token}, but the model's vocabulary has {vocab_size} ids")
    special = {v: token.content for v, token in added.items() if token.special and v < vocab_size}
    byte_level = _is_byte_level(spec)
    token_bytes = [b""] * vocab_size
    fallback = set()
    for v, token in vocabulary.items():
        if v in special:
            continue
        if byte_level:
            token_bytes[v] = token.encode() if v in added else _byte_level(token)
        else:  # an added token too is written with ▁ for its spaces
            token_bytes[v] = _sentencepiece(token)
            if v not in added and _FALLBACK.fullmatch(token):
                fallback.add(v)
    infill = None if family is None else Infill(*(ids[literal] for literal in family.markers))
    no_infill = "this model has no fill-in-the-middle tokens"
    if family is not None and infill is not None and not beyond.keys().isdisjoint(infill):
        named = ", ".join(map(shown, family.markers))
        no_infill = f"of the fill-in-the-middle tokens {named} some lie beyond this model's {vocab_size} ids"
        if markers is not None:
            raise CheckpointError(f"{file}: {no_infill}")
        infill = family = None
    ends = () if family is None else (*family.markers, *family.ends)
    named_ends = (_content(config.get("eos_token")), _content(config.get("bos_token")))
    return Tokenizer(
        literal,
        parsing,
        following,
        vocab_size,
        tuple(token_bytes),
        special,
        beyond,
        _labels(token_bytes, special, fallback),
        bos_id=bos_id,
        end_of_text_id=next((ids[name] for name in named_ends if ids.get(name, vocab_size) < vocab_size), None),
        infill=infill,
        infill_ends=frozenset(ids[literal] for literal in ends) - beyond.keys(),
        no_infill=no_infill,
        fingerprint=hashlib.sha256(f"{tokenizers.__version__} {config} {text} {family}".encode()).hexdigest()[:8],
    )


def _read(file: Path) -> dict[str, Any]:
    """tokenizer.json, if it is of a kind that is known here; another format is refused with what to do."""
    others = [name for name in OTHER_FORMATS if (file.parent / name).exists()]
    if others and not file.exists():
        raise UnsupportedModel(
            f"{file}: no such file; {others[0]} alone is not read here. Write a tokenizer.json beside it, with "
            f"transformers: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
        )
    spec = read_json(file)
    model = spec.get("model")
    kind = model.get("type", "BPE") if isinstance(model, dict) else None
    if kind not in KINDS:
        raise UnsupportedModel(
            f"{file}: a vocabulary of type {shown(kind)} is not supported; supported: {', '.join(KINDS)}"
        )
    return spec


def _ids(spec: Mapping[str, Any]) -> dict[str, int]:
    """Token → id, of the file as it is."""
    vocab = spec["model"]["vocab"]
    pieces = vocab.items() if isinstance(vocab, dict) else ((piece, v) for v, (piece, _) in enumerate(vocab))
    return {**dict(pieces), **{token["content"]: token["id"] for token in spec.get("added_tokens") or []}}


def _complete(spec: dict[str, Any], config: Mapping[str, Any], ids: Mapping[str, int], family: Family | None) -> None:
    """Some files leave their named tokens ordinary, or do not list them among the added ones: such a token would be
    cut into pieces in a prompt, or show in a completion's text."""
    tokens = spec["added_tokens"] = list(spec.get("added_tokens") or [])
    wanted = {_content(config.get(name)) for name in NAMED} - {""}
    if family is not None:
        wanted |= {*family.markers, *family.ends}
    for token in tokens:
        token["special"] = token["special"] or token["content"] in wanted
    missing = (wanted & ids.keys()) - {token["content"] for token in tokens}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokens += [{"id": ids[content], "content": content, **plain} for content in missing]
    tokens.sort(key=lambda token: int(token["id"]))


def _keep_spaces(post_processor: Any) -> None:
    """Spans are to cover the spaces their tokens stand for: the option to trim them is switched off."""
    if isinstance(post_processor, dict):
        if "trim_offsets" in post_processor:
            post_processor["trim_offsets"] = False
        for part in post_processor.get("processors") or []:
            _keep_spaces(part)


def _content(token: Any) -> str:
    """A token of tokenizer_config.json, which writes it as a string or as an object."""
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")


def _family(config: Mapping[str, Any], ids: Mapping[str, int], markers: Sequence[str] | None) -> Family | None:
    """The model's fill-in-the-middle tokens: as the operator says, else as tokenizer_config.json says, else by the
    table."""
    declared = {name: _content(config.get(name)) for name in MARKERS}
    if markers is not None:
        where = dict(zip(("--fim-prefix", "--fim-suffix", "--fim-middle"), markers, strict=True))
    elif any(declared.values()):
        where = declared
    else:
        return next((family for family in FAMILIES if ids.keys() >= {*family.markers, *family.ends}), None)
    for name, literal in where.items():
        if literal not in ids:
            raise CheckpointError(f"{name} is {shown(literal)}, which is no token of this tokenizer")
    if len(set(where.values())) < len(where):
        raise CheckpointError(
            f"{', '.join(where)} are {shown(list(where.values()))}; three different tokens are needed"
        )
    prefix, suffix, middle = where.values()
    chosen = Family("declared", prefix, suffix, middle)
    alike = (row for row in FAMILIES if row.markers == chosen.markers and ids.keys() >= set(row.ends))
    return next(alike, chosen)


def _bos_id(config: Mapping[str, Any], ids: Mapping[str, int], tokenizer: tokenizers.Tokenizer) -> int | None:
    """The BOS that is put before every string. tokenizer_config.json decides if it says add_bos_token: in the files of
    DeepSeek, for one, tokenizer.json puts nothing first. Else the post-processor of tokenizer.json does."""
    match config.get("add_bos_token"):
        case True:
            return ids.get(_content(config.get("bos_token")))
        case False:
            return None
        case _:
            return _added_before(tokenizer)


def _added_before(tokenizer: tokenizers.Tokenizer) -> int | None:
    """The BOS that the tokenizer's post-processor puts before every string, if it does."""
    encoded = tokenizer.encode("a", add_special_tokens=True)
    is_added = encoded.special_tokens_mask
    before = encoded.ids[: is_added.index(0)] if 0 in is_added else []
    if len(before) > 1:
        raise UnsupportedModel(f"a tokenizer that puts {len(before)} tokens before a string is not supported")
    return before[0] if before else None


def _without_prefix_space(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The same tokenizer, but one that puts no space before a text."""
    return {name: _unprefixed(part) if name in ("normalizer", "pre_tokenizer") else part for name, part in spec.items()}


def _unprefixed(part: Any) -> Any:
    if isinstance(part, list):
        return [step for step in map(_unprefixed, part) if step is not None]
    if not isinstance(part, dict):
        return part
    if part.get("type") == "Prepend":
        return None
    without = {"prepend_scheme": "never", "add_prefix_space": False}
    return {
        name: _unprefixed(value) if isinstance(value, list) else without.get(name, value)
        for name, value in part.items()
    }


def _is_byte_level(spec: Mapping[str, Any]) -> bool:
    parts = [spec.get("decoder"), spec.get("pre_tokenizer")]
    return any('"ByteLevel"' in json.dumps(part) for part in parts)


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's alphabet (Radford et al. 2019): a printable character for every byte, so that vocabularies are plain
    text.

    The printable Latin-1 bytes stand for themselves; the 68 others are the characters from U+0100 on, in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_ALPHABET = _byte_alphabet()
_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")


def _byte_level(token: str) -> bytes:
    """A token of a byte-level vocabulary; one with characters beyond the alphabet was put in by hand and is plain
    text."""
    if all(char in _ALPHABET for char in token):
        return bytes(_ALPHABET[char] for char in token)
    return token.encode()


def _sentencepiece(token: str) -> bytes:
    """A token of a SentencePiece vocabulary: ▁ is a space, <0xNN> a byte."""
    match = _FALLBACK.fullmatch(token)
    return bytes([int(match[1], 16)]) if match else token.replace("\N{LOWER ONE EIGHTH BLOCK}", " ").encode()


# ---- labels


def _labels(token_bytes: Iterable[bytes], special: Mapping[int, str], fallback: set[int]) -> tuple[str, ...]:
    """A label for every id. Special tokens choose first, then ordinary ones, then byte-fallback ones, each by id;
    who finds the wanted label taken is `token_id:<v>`. No other label can begin with `token_id:`, so no two are equal.
    """
    contents = list(token_bytes)
    order = sorted(range(len(contents)), key=lambda v: (v not in special, v in fallback, v))
    labels = [f"token_id:{v}" for v in range(len(contents))]
    taken: set[str] = set()
    for v in order:
        wanted = _wanted_label(special[v].encode() if v in special else contents[v])
        if wanted is not None and wanted not in taken:
            taken.add(wanted)
            labels[v] = wanted
    return tuple(labels)


def _wanted_label(content: bytes) -> str | None:
    """The text itself; `bytes:\\xNN…` if it is none or looks like a label of another kind; None if there is nothing."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = RESERVED[0]
    if text.startswith(RESERVED):
        return RESERVED[0] + "".join(f"\\x{byte:02x}" for byte in content)
    return text or None


# ---- decoding

# Unicode 15, table 3-7: lead byte → the range its second byte must lie in, and how many bytes the character has.
_WELL_FORMED = (
    (0xC2, 0xDF, 0x80, 0xBF, 2),
    (0xE0, 0xE0, 0xA0, 0xBF, 3),
    (0xE1, 0xEC, 0x80, 0xBF, 3),
    (0xED, 0xED, 0x80, 0x9F, 3),
    (0xEE, 0xEF, 0x80, 0xBF, 3),
    (0xF0, 0xF0, 0x90, 0xBF, 4),
    (0xF1, 0xF3, 0x80, 0xBF, 4),
    (0xF4, 0xF4, 0x80, 0x8F, 4),
)


def pending(data: bytes) -> bytes:
    """The longest suffix that is a proper prefix of a well-formed UTF-8 character: bytes that still wait for others."""
    for size in (3, 2, 1):
        suffix = data[-size:]
        if len(suffix) == size and _is_proper_prefix(suffix):
            return suffix
    return b""


def _is_proper_prefix(suffix: bytes) -> bool:
    for low, high, second_low, second_high, length in _WELL_FORMED:
        if low <= suffix[0] <= high and len(suffix) < length:
            second_fits = len(suffix) < 2 or second_low <= suffix[1] <= second_high
            return second_fits and all(0x80 <= byte <= 0xBF for byte in suffix[2:])
    return False


def decoded(data: bytes) -> str:
    """The text of all bytes but the pending ones; what is invalid becomes U+FFFD (one for each maximal subpart)."""
    return data[: len(data) - len(pending(data))].decode(errors="replace")


@dataclass(slots=True)
class Decoder:
    """Bytes in, text out. The pieces, with `flush` at the end, join to the one-shot decoding of all bytes."""

    waiting: bytes = field(default=b"")

    def push(self, data: bytes) -> str:
        """The characters that these bytes complete."""
        data = self.waiting + data
        self.waiting = pending(data)
        return decoded(data)

    def flush(self) -> str:
        """What the waiting bytes are worth when no more will come: a U+FFFD, or nothing."""
        text, self.waiting = self.waiting.decode(errors="replace"), b""
        return text
