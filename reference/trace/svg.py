"""Pieces of SVG for picture.py, as text. Nothing here knows what is drawn."""

from __future__ import annotations

import unicodedata
from html import escape

BAR = 8  # height
BLUE, GREEN, AMBER = "var(--gnomon-bar,#5b8bd0)", "var(--gnomon-noise,#2f9e7b)", "var(--gnomon-winner,#d9771a)"
FAINT, SOFT = 0.6, 0.75  # opacities of text that matters less


def n(x: float) -> str:
    return f"{x:.1f}".removesuffix(".0")


def text(
    x: float, y: float, text: str, size: float = 10.5, opacity: float = 1, anchor: str = "start", more: str = ""
) -> str:
    faded = "" if opacity == 1 else f' fill-opacity="{opacity}"'
    aligned = "" if anchor == "start" else f' text-anchor="{anchor}"'
    sized = "" if size == 10.5 else f' font-size="{size}"'
    return f'<text x="{n(x)}" y="{n(y)}"{sized}{faded}{aligned}{more}>{escape(text, quote=False)}</text>'


def bar(x: float, y: float, width: float, fill: str = BLUE) -> str:
    return f'<rect x="{n(x)}" y="{n(y)}" width="{n(max(width, 1.5))}" height="{BAR}" fill="{fill}"/>'


def outline(x: float, y: float, width: float, dashes: str = "") -> str:
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return (
        f'<rect x="{n(x + 0.5)}" y="{n(y + 0.5)}" width="{n(max(width - 1, 0.5))}" height="{BAR - 1}" fill="none" '
        f'stroke="currentColor" stroke-opacity="{FAINT}"{dashed}/>'
    )


def stripes(x: float, y: float, width: float) -> str:
    """A bar in stripes: a line as thick as the bar, in dashes."""
    middle = n(y + BAR / 2)
    return (
        f'<line x1="{n(x)}" y1="{middle}" x2="{n(x + width)}" y2="{middle}" stroke="{GREEN}" '
        f'stroke-width="{BAR}" stroke-dasharray="2.5 1.5"/>'
    )


def stroke(
    x1: float, y1: float, x2: float, y2: float, opacity: float = FAINT, width: float = 1, dashes: str = ""
) -> str:
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return (
        f'<line x1="{n(x1)}" y1="{n(y1)}" x2="{n(x2)}" y2="{n(y2)}" stroke="currentColor" '
        f'stroke-opacity="{opacity}" stroke-width="{n(width)}"{dashed}/>'
    )


# ---- text


def printable(label: str) -> str:
    """A label with nothing unseen in it: spaces, line ends, tabs and all that does not print are written out."""
    shown = "".join(_SEEN.get(char) or (char if char.isprintable() else _escaped(char)) for char in label)
    return "◌" + shown if shown and unicodedata.combining(shown[0]) else shown


_SEEN = {" ": "␣", "\n": "⏎", "\t": "⇥"}


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode()


def cells(text: str) -> int:
    """How many places of a monospaced font a text takes."""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else not unicodedata.combining(char) for char in text)


def shortened(text: str, most: int) -> str:
    if cells(text) <= most:
        return text
    while cells(text) > most - 1:
        text = text[:-1]
    return text + "…"


def wrapped(text: str, width: float, size: float) -> list[str]:
    """Lines of about that width; a font is not asked, so it is taken to be a wide one."""
    most, lines = max(int(width / (0.58 * size)), 1), [""]
    for word in text.split(" "):
        if lines[-1] and len(lines[-1]) + 1 + len(word) > most:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".lstrip()
    return lines
