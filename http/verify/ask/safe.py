"""What a server said, made fit to be shown: without the key, without what a terminal would obey, and not without end.

Secret    hides the user's key, whole or in pieces, as it stands or escaped
visible   text whose control characters, reorderings and lone surrogates are written as escapes
plain     any value as a bounded JSON value
"""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Mapping, Sequence, Set
from typing import Any
from urllib.parse import quote

KEY_PLACEHOLDER = "[key]"
KEY_PIECE = 8
"""So many characters of a key in a row are hidden wherever they stand: a message may have been cut within the key."""

MOST_TEXT = 2000
MOST_ITEMS = 100
DEEPEST = 8


class Secret:
    """The key, which no output may have. One of fewer than `PIECE` characters is hidden where it stands as a word of
    its own: `none` or `x` is no secret, and is in too many words."""

    def __init__(self, key: str | None) -> None:
        forms = (
            {key, json.dumps(key)[1:-1], key.replace("/", "\\/"), quote(key, safe=""), html.escape(key)} if key else {}
        )
        self._pieces = () if not key else tuple(key[at : at + KEY_PIECE] for at in range(len(key) - KEY_PIECE + 1))
        words = [re.escape(form) if self._pieces else rf"(?<!\w){re.escape(form)}(?!\w)" for form in forms if form]
        self._whole = re.compile("|".join(sorted(words, key=len, reverse=True))) if words else None

    def out_of(self, text: str) -> str:
        """The text without the key."""
        if self._whole is None:
            return text
        text = self._whole.sub(KEY_PLACEHOLDER, text)
        spans: list[tuple[int, int]] = []
        for piece in self._pieces:
            at = text.find(piece)
            while at >= 0:
                spans.append((at, at + KEY_PIECE))
                at = text.find(piece, at + 1)
        return _masked(text, spans)

    def out_of_bytes(self, content: bytes) -> bytes:
        """The bytes without the whole key."""
        if self._whole is None:
            return content
        return self._whole.sub(KEY_PLACEHOLDER, content.decode("latin-1")).encode("latin-1")


def _masked(text: str, spans: list[tuple[int, int]]) -> str:
    parts, end = [], 0
    for start, stop in sorted(spans):
        if start >= end:
            parts += [text[end:start], KEY_PLACEHOLDER]
        end = max(end, stop)
    return "".join(parts) + text[end:]


def escaped(text: str, keep: str = "") -> str:
    """The text with an escape for each character that is no visible one or a space; those of `keep` stay."""
    return "".join(char if char.isprintable() or char in keep else _escape(char) for char in text)


def _escape(char: str) -> str:
    code = ord(char)
    known = {9: "\\t", 10: "\\n", 13: "\\r"}
    if code in known:
        return known[code]
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def line(text: str, secret: Secret, most: int = 600) -> str:
    """One visible line of at most so many characters, without the key."""
    text = escaped(secret.out_of(" ".join(text.split())))
    return text if len(text) <= most else text[: most - 1] + "…"


def plain(value: Any, secret: Secret, depth: int = 0) -> Any:
    """A JSON value that shows this one: strings without the key, long ones and deep ones cut, no NaN."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if abs(value) < 2**63 else str(value)[:40]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, str):
        text = secret.out_of(value)
        return text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]}… ({len(text)} characters)"
    if depth >= DEEPEST:
        return "…"
    if isinstance(value, Mapping):
        items = list(value.items())
        shown = {secret.out_of(str(name))[:200]: plain(item, secret, depth + 1) for name, item in items[:MOST_ITEMS]}
        return shown if len(items) <= MOST_ITEMS else {**shown, "…": f"{len(items) - MOST_ITEMS} more"}
    if isinstance(value, Sequence | Set) and not isinstance(value, bytes | bytearray):
        some = list(value)
        shown_items = [plain(item, secret, depth + 1) for item in some[:MOST_ITEMS]]
        return shown_items if len(some) <= MOST_ITEMS else [*shown_items, f"… {len(some) - MOST_ITEMS} more"]
    return plain(repr(value), secret, depth)
