"""Bytes → text piece by piece: a character is shown when all of its bytes are there (LAW.md, section 6)."""

from __future__ import annotations

from dataclasses import dataclass, field

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
    if data.isascii():
        return b""
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


def decode_utf8(data: bytes) -> str:
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
        return data[: len(data) - len(self.waiting)].decode(errors="replace")

    def flush(self) -> str:
        """What the waiting bytes are worth when no more will come: a U+FFFD, or nothing."""
        text, self.waiting = self.waiting.decode(errors="replace"), b""
        return text
