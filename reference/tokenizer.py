"""Text ↔ token ids ↔ bytes: the `tokenizers` library, and what the law needs on top of it (LAW.md, section 6).

    encode        a string → ids and their spans in the string, in code points
    least_tokens  how many there will be at least, known before: a text that cannot fit is not encoded at all
    token_bytes   the bytes that every id stands for; special tokens and ids without an entry have none

The bytes are those that the file's `decoder` makes of a token (decoders.py), which become text
again in utf8.py; an id has a name of its own (labels.py). Tokens that stand outside tokenizer.json
are merged into it first (added_tokens.py). Which tokens fill in the middle is decided in infill.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers

from gnomon.reference.body.shown import shown
from gnomon.reference.checkpoint.entries import switch
from gnomon.reference.checkpoint.errors import CheckpointError, UnsupportedModel
from gnomon.reference.checkpoint.tensors import read_json
from gnomon.reference.text import added_tokens
from gnomon.reference.text.added_tokens import content as _content
from gnomon.reference.text.decoders import TokenDecoder, read_decoder
from gnomon.reference.text.encode_apart import PANIC, encode_apart
from gnomon.reference.text.infill import DECLARED, NO_OPTIONS, Infill, InfillError, InfillFamily, InfillOptions, decide
from gnomon.reference.text.labels import token_labels
from gnomon.reference.text.token_length import TokenLength, token_length
from gnomon.reference.work import Work

KINDS = ("BPE", "Unigram", "WordPiece", "WordLevel")
NAMED = ("bos_token", "eos_token")  # not pad_token: some files name an ordinary "!" there
LONG_TEXT = 512 * 2**10  # characters; half a second's work, and a process costs as much where a vocabulary is large
OTHER_FORMATS = ("tokenizer.model", "vocab.json", "vocab.txt", "tekken.json", "tiktoken.model")


class Encoding(NamedTuple):
    """Token ids, and where each one starts in the text as sent, in code points, non-decreasing."""

    ids: tuple[int, ...]
    starts: tuple[int, ...]


class UnknownText(ValueError):
    """A text that the tokenizer cannot encode: it lacks a token for unknown characters, or words."""


class TokenizerFailed(ValueError):
    """A text that the tokenizer fails on: its library has panicked, as at a pattern that would take it for ever."""


class TooLong(Exception):
    """A text has more tokens than are of any use: `count` of them."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.count = count


class Effort(NamedTuple):
    """How far encoding is to go: `most` tokens are of any use (TooLong), and only while `work` is not stopped
    (Stopped)."""

    most: int | None = None
    work: Work | None = None


TO_ITS_END = Effort()


@dataclass(frozen=True)
class Tokenizer:
    """A model's tokenizer. `vocab_size` is the model's V, which may be larger than the tokenizer's own."""

    literal: tokenizers.Tokenizer  # parses no special tokens
    parsing: tokenizers.Tokenizer  # parses the literals of special tokens as those tokens, unless its files say not to
    following: tokenizers.Tokenizer  # as `literal`, for a text that follows another: no space is put before it
    vocab_size: int
    token_bytes: tuple[bytes, ...]  # [V]: what id v adds to a completion's text; b"" for special tokens and gaps
    special: Mapping[int, str]  # id → literal
    beyond: Mapping[int, str]  # added tokens that the model has no row for, id → literal: never sampled, no prompt's
    labels: tuple[str, ...]  # [V], injective
    decoder: TokenDecoder
    added: frozenset[int]  # ids of the tokens that stand beside the vocabulary
    bos_id: int | None  # what the tokenizer puts before a string by itself
    eos_id: int | None  # the token it names as the end of a text
    end_of_text_id: int | None
    infill: Infill | None
    infill_note: str  # which tokens, in which order and why; or why there are none
    infill_ends: frozenset[int]  # they end a middle as end-of-sequence ids do; the markers are among them
    fingerprint: str  # of its files and of the library: part of what decides an answer's bytes
    token_length: TokenLength | None  # None: one token may stand for a text of any length
    source: str  # the tokenizer.json of `literal` and `parsing`, and that of `following`
    following_source: str

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """Label → id: the way back, since no two labels are equal."""
        return {label: v for v, label in enumerate(self.labels)}

    def least_tokens(self, text: str) -> int:
        """How many tokens a text has at least, as far as is known without encoding it."""
        return 0 if self.token_length is None else self.token_length.least_tokens(text)

    def encode(self, text: str, effort: Effort = TO_ITS_END) -> Encoding:
        """A prompt: special tokens' literals are parsed; a BOS the tokenizer adds is there, with an empty span.

        What a tokenizer would append (an end-of-sequence token) is left out: a prompt is there to be continued.
        """
        try:
            encoding = _encode(self.parsing, self.source, text, effort)
        except TooLong as error:
            raise TooLong(error.count + (self.bos_id is not None)) from None
        if self.bos_id is None:
            return encoding
        return Encoding((self.bos_id, *encoding.ids), (0, *encoding.starts))

    def encode_literal(self, text: str, effort: Effort = TO_ITS_END) -> Encoding:
        """A text in which nothing is special and to which nothing is added."""
        return _encode(self.literal, self.source, text, effort)

    def encode_following(self, text: str, effort: Effort = TO_ITS_END) -> Encoding:
        """The same for a text that follows another one, as a suffix does: SentencePiece puts a space before texts,
        which here would stand between the two."""
        return _encode(self.following, self.following_source, text, effort)

    def prompt_bytes(self, v: int) -> bytes:
        """The bytes of id v in a prompt of ids: there a special token shows its literal."""
        if v not in self.special:
            return self.token_bytes[v]
        return self.decoder.gap(self.special[v]) + self.special[v].encode()

    def prompt_pieces(self, ids: Sequence[int]) -> Iterator[bytes]:
        """The bytes of every id of a prompt of ids, the first of which begins a text: a decoder that puts a space
        before words puts, or leaves, none there."""
        return self.decoder.without_beginning(self._pieces(ids))

    def _pieces(self, ids: Sequence[int]) -> Iterator[bytes]:
        is_first = True
        for v in ids:
            token = self.parsing.id_to_token(v) if is_first else None
            if token is None:
                yield self.prompt_bytes(v)
            elif v in self.special:
                yield token.encode()
            else:
                yield self.decoder.opening(token, is_added=v in self.added)
            is_first = is_first and token is None


def _encode(tokenizer: tokenizers.Tokenizer, source: str, text: str, effort: Effort) -> Encoding:
    if effort.work is not None:
        effort.work.check()
        if len(text) > LONG_TEXT:
            return _encode_apart(tokenizer, source, text, effort, effort.work)
    # a batch of one: unlike `encode` it lets other threads run while it works on a long text
    try:
        encoded = tokenizer.encode_batch([text], add_special_tokens=False)[0]
    except Exception as error:  # the library raises a bare Exception
        raise UnknownText(str(error)) from None
    except BaseException as error:
        if type(error).__module__ != PANIC:
            raise
        raise TokenizerFailed(str(error)) from None
    if effort.most is not None and len(encoded) > effort.most:  # before lists of them are made
        raise TooLong(len(encoded))
    return Encoding(tuple(encoded.ids), _non_decreasing(_starts(encoded)))


def _encode_apart(tokenizer: tokenizers.Tokenizer, source: str, text: str, effort: Effort, work: Work) -> Encoding:
    apart = encode_apart(source, tokenizer.encode_special_tokens, text, effort.most, work)
    if apart.refusal is not None:
        raise UnknownText(apart.refusal)
    if apart.panic is not None:
        raise TokenizerFailed(apart.panic)
    if effort.most is not None and apart.tokens > effort.most:
        raise TooLong(apart.tokens)
    return Encoding(apart.ids, _non_decreasing(apart.starts))


def _starts(encoded: tokenizers.Encoding) -> Iterator[int]:
    """Not by `offsets`: a million pairs are made, and freed, by one call that stops every thread."""
    for i in range(len(encoded)):
        span = encoded.token_to_chars(i)
        assert span is not None  # it is None beyond the last token only
        yield span[0]


def _non_decreasing(starts: Iterable[int]) -> tuple[int, ...]:
    return tuple(accumulate(starts, max))


# ---- loading


def load_tokenizer(path: str | Path, vocab_size: int, options: InfillOptions = NO_OPTIONS) -> Tokenizer:
    """Reads tokenizer.json of a directory, and the files beside it that name tokens. Raises CheckpointError.

    vocab_size: the model's V. Added tokens may lie beyond it, as in published models: a prompt with one is refused. A
    tokenizer whose vocabulary itself has such ids, or that puts such a token before every string, is not the model's.
    options: the fill-in-the-middle tokens and their order, instead of those the files tell.
    """
    directory = Path(path)
    file = directory / "tokenizer.json"
    spec, config = _read(file), added_tokens.read_tokenizer_config(directory)
    try:
        _reset(spec)
        _prefix_space(spec, config)
        is_split = bool(config.get("split_special_tokens") and switch(config, "split_special_tokens", False))
        ids = added_tokens.merge(spec, _ids(spec), config)
        declared = {name: _content(config.get(name)) for name in DECLARED}
        family, note = decide(ids, vocab_size, declared, _names(directory, config), options)
        _complete(spec, config, ids, family)
        _keep_spaces(spec.get("post_processor"))
        text, joined = json.dumps(spec), json.dumps(_without_prefix_space(spec))
        parsing, literal = tokenizers.Tokenizer.from_str(text), tokenizers.Tokenizer.from_str(text)
        following = literal if joined == text else tokenizers.Tokenizer.from_str(joined)
        decoder = read_decoder(spec, ids)
        length = token_length(spec, parsing)
    except InfillError as error:
        raise CheckpointError(f"{directory}: {error}") from None
    except CheckpointError as error:
        raise type(error)(f"{directory}: {error}") from None
    except Exception as error:  # the library raises a bare Exception for a malformed file, and for one too new for it
        raise CheckpointError(f"{file}: {error} (read by tokenizers {tokenizers.__version__})") from None
    literal.encode_special_tokens = following.encode_special_tokens = True
    parsing.encode_special_tokens = is_split

    read = parsing.get_vocab(with_added_tokens=True)
    moved = [f"{shown(token)} from {v} to {read.get(token)}" for token, v in ids.items() if read.get(token) != v]
    if moved:  # the library numbers added tokens itself, whatever the file says
        raise CheckpointError(f"{file}: ids of added tokens that are not the next free ones: {', '.join(moved[:3])}")
    added: dict[int, tokenizers.AddedToken] = dict(parsing.get_added_tokens_decoder())
    beyond = {v: token.content for v, token in added.items() if v >= vocab_size}
    bos_id = _bos_id(config, ids, spec.get("post_processor"))
    vocabulary = {v: token for token, v in ids.items() if v not in beyond}
    for v in (max(vocabulary, default=0), bos_id or 0):
        if v >= vocab_size:
            token = shown(beyond.get(v, vocabulary.get(v)))
            raise CheckpointError(f"{file} has id {v}, {token}, but the model's vocabulary has {vocab_size} ids")
    special = {v: token.content for v, token in added.items() if token.special and v < vocab_size}
    token_bytes = [b""] * vocab_size
    fallback = set()
    for v, token in vocabulary.items():
        if v not in special:
            token_bytes[v] = decoder.following(token, v in added)
            if v not in added and decoder.is_byte(token):
                fallback.add(v)
    infill, ends = _infill(family, ids, vocab_size)
    reachable = {token: v for token, v in ids.items() if v < vocab_size}
    eos_id = reachable.get(_content(config.get("eos_token")))
    return Tokenizer(
        literal,
        parsing,
        following,
        vocab_size,
        tuple(token_bytes),
        special,
        beyond,
        token_labels(token_bytes, special, fallback),
        decoder,
        frozenset(added),
        bos_id=bos_id,
        eos_id=eos_id,
        end_of_text_id=reachable.get(_content(config.get("bos_token"))) if eos_id is None else eos_id,
        infill=infill,
        infill_note=note,
        infill_ends=ends,
        fingerprint=_digest(tokenizers.__version__, config, text, infill, sorted(ends)),
        token_length=length,
        source=text,
        following_source=text if joined == text else joined,
    )


def _digest(*parts: object) -> str:
    return hashlib.sha256(" ".join(map(str, parts)).encode()).hexdigest()[:8]


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


def _reset(spec: dict[str, Any]) -> None:
    """Undoes what a tokenizer was saved with after training or batching: cuts, padding, and merges left out at random.
    Nothing else that the library writes makes an encoding random or shorter; the rest is the tokenizer's meaning."""
    for part, name in ((spec, "truncation"), (spec, "padding"), (spec["model"], "dropout")):
        if name in part:
            part[name] = None


def _prefix_space(spec: dict[str, Any], config: Mapping[str, Any]) -> None:
    """Whether a byte-level tokenizer puts a space before a text: tokenizer_config.json decides if it says so, as with
    transformers, whose GPT-2 and its kin are made anew from there."""
    first = spec.get("pre_tokenizer")
    if config.get("add_prefix_space") is not None and isinstance(first, dict) and first.get("type") == "ByteLevel":
        first["add_prefix_space"] = switch(config, "add_prefix_space", False)


def _ids(spec: Mapping[str, Any]) -> dict[str, int]:
    """Token → id, of the file as it is."""
    vocab = spec["model"]["vocab"]
    pieces = vocab.items() if isinstance(vocab, dict) else ((piece, v) for v, (piece, _) in enumerate(vocab))
    return {**dict(pieces), **{token["content"]: token["id"] for token in spec.get("added_tokens") or []}}


def _complete(
    spec: dict[str, Any], config: Mapping[str, Any], ids: Mapping[str, int], family: InfillFamily | None
) -> None:
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


def _names(directory: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """What the files call the model, by the place where they do."""
    model = read_json(directory / "config.json", missing={})
    places = {
        "config.json's model_type": model.get("model_type"),
        "config.json's _name_or_path": model.get("_name_or_path"),
        "tokenizer_config.json's name_or_path": config.get("name_or_path"),
    }
    return {place: name for place, name in places.items() if isinstance(name, str)}


def _infill(
    family: InfillFamily | None, ids: Mapping[str, int], vocab_size: int
) -> tuple[Infill | None, frozenset[int]]:
    """The markers' ids in their order, and the ids that end a middle: of the family's, those that are here."""
    if family is None:
        return None, frozenset()
    middle = None if family.middle is None else ids[family.middle]
    literals = (*family.markers, *(end for end in family.ends if end in ids))
    ends = frozenset(ids[literal] for literal in literals if ids[literal] < vocab_size)
    return Infill(ids[family.prefix], ids[family.suffix], middle, family.order), ends


def _bos_id(config: Mapping[str, Any], ids: Mapping[str, int], post_processor: Any) -> int | None:
    """The BOS that is put before every string. tokenizer_config.json decides if it says add_bos_token: in the files of
    DeepSeek, for one, tokenizer.json puts nothing first. Else the post-processor of tokenizer.json does."""
    match config.get("add_bos_token"):
        case True:
            return ids.get(_content(config.get("bos_token")))
        case False:
            return None
        case _:
            return _added_before(post_processor)


def _added_before(post_processor: Any) -> int | None:
    """The BOS that a post-processor puts before every string, if it does: found out with a vocabulary of one word, as
    the model's own may have no token for a word of ours."""
    word = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
    spec = {"version": "1.0", "post_processor": post_processor, "model": word}
    encoded = tokenizers.Tokenizer.from_str(json.dumps(spec)).encode("a", add_special_tokens=True)
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
