"""Text from outside, made fit for a line that people read. Needs the standard library alone."""

from __future__ import annotations

import re

UNDECODED = re.compile("[\udc80-\udcff]+")


def as_utf8(text: str) -> str:
    """A text from the command line, a variable or a file's name, read as UTF-8 where the locale could not read it.

    Python keeps each byte that the locale's encoding does not have as a lone surrogate: under LC_ALL=C with
    PYTHONUTF8=0 that is every byte of `é`. Bytes that are no UTF-8 stay as they are. A file is opened by the text as it
    came, since that alone gives its name's bytes back.
    """
    return UNDECODED.sub(_decoded, text)


def _decoded(found: re.Match[str]) -> str:
    return found[0].encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")


def printable_line(text: str) -> str:
    """One line that a terminal shows as it is."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
