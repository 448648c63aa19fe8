"""From what a server calls its tokens to ids of our tokenizer: by the law's labels, and as other servers write them.

    places_of   the lists of a choice, or a chat's `content` where a server answers with that, place by place
    Names       label → ids, in each style: the law's, decoded text, pieces of the vocabulary, text without its space
    trace_ids   the ids of a whole choice; where labels leave several, the choice's text decides

A label that stays ambiguous is None, and whoever asks leaves it out and counts it. Many servers decode while they go: a
byte of an unfinished character is called "" or U+FFFD, and the byte that finishes it by the whole character.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

from gnomon.http.verify.ask.answer import Lists
from gnomon.reference.tokenizer import Tokenizer

UNKNOWN = "\ufffd"
MOST_PATHS = 256


class Style(StrEnum):
    law = "the law's labels"
    text = "decoded text"
    piece = "pieces of the vocabulary"
    stripped = "decoded text without a space before it"


class Listed(NamedTuple):
    """A token as a server lists it. id, data: where the server says them beside the label."""

    label: str
    value: float | None
    id: int | None = None
    data: bytes | None = None


class LabelledPlace(NamedTuple):
    token: Listed
    top: tuple[Listed, ...]


def places_of(choice: Mapping[str, Any]) -> list[LabelledPlace] | None:
    """None where there are no log-probabilities that can be read."""
    value = choice.get("logprobs")
    lists = Lists.read(value)
    if lists is not None:
        if not len(lists.tokens) == len(lists.token_logprobs) == len(lists.top_logprobs):
            return None
        return [
            LabelledPlace(Listed(str(label), _number(lp)), _entries(top))
            for label, lp, top in zip(lists.tokens, lists.token_logprobs, lists.top_logprobs, strict=True)
        ]
    content = value.get("content") if isinstance(value, dict) else None
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        return None
    return [
        LabelledPlace(
            _listed(entry), tuple(_listed(one) for one in entry.get("top_logprobs") or [] if isinstance(one, dict))
        )
        for entry in content
    ]


def _entries(top: Any) -> tuple[Listed, ...]:
    return tuple(Listed(str(label), _number(lp)) for label, lp in top.items()) if isinstance(top, dict) else ()


def _listed(entry: Mapping[str, Any]) -> Listed:
    v, data = entry.get("id"), entry.get("bytes")
    are_bytes = isinstance(data, list) and all(isinstance(byte, int) and 0 <= byte < 256 for byte in data)
    return Listed(
        str(entry.get("token", "")),
        _number(entry.get("logprob")),
        v if isinstance(v, int) and not isinstance(v, bool) else None,
        bytes(data) if are_bytes and data is not None else None,
    )


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


class TokenNames:
    """Label → ids, for every style."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._law = {label: v for v, label in enumerate(tokenizer.labels)}
        self._pieces: dict[str, list[int]] = {}
        self._texts: dict[str, list[int]] = {}
        self._stripped: dict[str, list[int]] = {}
        self._bytes: dict[bytes, list[int]] = {}
        for v, data in enumerate(tokenizer.token_bytes):
            piece = tokenizer.parsing.id_to_token(v)
            if piece is None:
                continue
            self._pieces.setdefault(piece, []).append(v)
            shown = tokenizer.prompt_bytes(v)
            if data:
                self._bytes.setdefault(data, []).append(v)
            if decodes(shown):
                text = shown.decode()
                self._texts.setdefault(text, []).append(v)
                for bare in {text, text.removeprefix(" ")} - {""}:
                    self._stripped.setdefault(bare, []).append(v)
        for ids in (*self._texts.values(), *self._bytes.values()):  # <0x41> is not what anybody means by "A"
            ordinary = [v for v in ids if not _is_fallback(str(tokenizer.parsing.id_to_token(v)))]
            if ordinary and len(ordinary) < len(ids):
                ids[:] = ordinary

    def ids(self, listed: Listed, style: Style) -> tuple[int, ...]:
        """The ids that the token may be, by what is said of it alone."""
        if listed.id is not None:
            return (listed.id,) if 0 <= listed.id < self.tokenizer.vocab_size else ()
        label = listed.label
        if style is Style.law:
            return (self._law[label],) if label in self._law else ()
        if label.startswith("token_id:") and label[9:].isdecimal():
            v = int(label[9:])
            return (v,) if v < self.tokenizer.vocab_size else ()
        if listed.data:
            found = self._bytes.get(listed.data, [])
            return tuple(found or self._texts.get(label, []))
        table = {Style.text: self._texts, Style.piece: self._pieces, Style.stripped: self._stripped}[style]
        return tuple(table.get(label, ()))

    def one(self, listed: Listed, style: Style) -> int | None:
        found = self.ids(listed, style)
        return found[0] if len(found) == 1 else None

    def is_fragment(self, v: int) -> bool:
        """Whether the id stands for bytes that are no text by themselves."""
        return not decodes(self.tokenizer.prompt_bytes(v))

    def fragments(self, data: bytes, at: int) -> Iterator[int]:
        """Ids whose bytes come next in `data` and are no text by themselves."""
        for size in range(1, min(len(data) - at, 16) + 1):
            piece = data[at : at + size]
            if not decodes(piece):
                yield from self._bytes.get(piece, ())

    def style(self, answers: Sequence[tuple[list[LabelledPlace], str]]) -> Style:
        """The style in which most choices spell their text, then most labels are known; the earlier one on a tie. Only
        a server that calls a token as none but the law does is taken to keep to it where texts are ambiguous."""
        labels = [one for places, _ in answers for place in places for one in (place.token, *place.top)]
        law = {one.label for one in labels if one.label.startswith(("bytes:", "token_id:"))}
        by_law = bool(law) and law <= self._law.keys()

        def score(style: Style) -> tuple[int, int]:
            spelled = sum(None not in trace_ids(self, places, text, style, frozenset()) for places, text in answers)
            return spelled, sum(self.one(listed, style) is not None for listed in labels)

        return max([style for style in Style if by_law or style is not Style.law], key=score)


def trace_ids(
    names: TokenNames, places: Sequence[LabelledPlace], text: str, style: Style, ends: frozenset[int]
) -> tuple[int | None, ...]:
    """The ids of a choice's tokens: those that its labels and its text admit; None where these admit several.

    ends: ids that may end it, of which some servers say nothing but "".
    """
    if UNKNOWN not in text:
        for data in (text.encode(), *([b" " + text.encode()] if style is Style.stripped else [])):
            found = _spelled(names, places, data, style, ends)
            if found:
                return tuple(column[0] if len(set(column)) == 1 else None for column in zip(*found, strict=True))
    return tuple(names.one(place.token, style) for place in places)


def _spelled(
    names: TokenNames, places: Sequence[LabelledPlace], data: bytes, style: Style, ends: frozenset[int]
) -> list[tuple[int, ...]]:
    """Every way in which the tokens make up the text."""
    tokenizer = names.tokenizer
    paths: list[tuple[int, tuple[int, ...]]] = [(0, ())]
    for number, place in enumerate(places):
        longer: list[tuple[int, tuple[int, ...]]] = []
        for at, ids in paths:
            options = [
                (at + len(piece), v)
                for v in names.ids(place.token, style)
                for piece in {tokenizer.token_bytes[v], tokenizer.prompt_bytes(v)}
                if data.startswith(piece, at) and (piece or v in tokenizer.special or not tokenizer.token_bytes[v])
            ]
            if not options:
                options = [(at + len(tokenizer.token_bytes[v]), v) for v in names.fragments(data, at)]
            if not options and number == len(places) - 1 and not place.token.label and len(ends) == 1:
                options = [(at, v) for v in ends]
            longer += [(end, (*ids, v)) for end, v in options]
        if not longer or len(longer) > MOST_PATHS:
            return []
        paths = longer
    return [ids for at, ids in paths if at == len(data)]


def decodes(data: bytes) -> bool:
    try:
        return bool(data.decode())
    except UnicodeDecodeError:
        return False


def _is_fallback(piece: str) -> bool:
    return len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")
