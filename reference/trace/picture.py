"""One draw as a picture: a token a row, a stage of the law a column, from what the model says to the winner.

    picture   a `Draw` → SVG as text, complete in itself: no script, no style sheet, no font, no id
    show      a `Trace` → an object that notebooks display: the picture, and the same numbers as a table

What a stage does is seen in its own column: the bias and the penalties push to the right or to the left; temperature
moves a bar away from its outline; top_p is a line that the tokens, most probable first, fill up to, and whose turn
comes after it is out; the draw adds a striped piece, or takes one away, and the longest bar wins. Nothing is told by a
colour alone. Text and lines take the colour of the page around them; three colours can be set there, --gnomon-bar,
--gnomon-noise and --gnomon-winner, and those here are seen on white and on black.

Labels come from a model: they are escaped, and what cannot be seen is written out. The same draw is the same text.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

from gnomon.reference.sampler import Trace
from gnomon.reference.tokenizer import Tokenizer
from gnomon.reference.trace.explain import Draw, Row, beside, explain, number, percent

WIDTH, LEFT, RIGHT, GUTTER = 720, 126, 8, 13
TOP_RANKS, MOST_SHIFTED, MOST_LUCKY = 7, 2, 2  # tokens shown: of the highest z, of the largest bias, of the best score
HEAD, ROW, GAP, BAR = 92, 30, 19, 8  # heights
FARTHEST = 14.0  # how far below the best a score is drawn to scale
BLUE, GREEN, AMBER = "var(--gnomon-bar,#5b8bd0)", "var(--gnomon-noise,#2f9e7b)", "var(--gnomon-winner,#d9771a)"
FAINT, SOFT = 0.6, 0.75  # opacities of text that matters less


# ---- pieces of SVG


def _n(x: float) -> str:
    return f"{x:.1f}".removesuffix(".0")


def _text(
    x: float, y: float, text: str, size: float = 10.5, opacity: float = 1, anchor: str = "start", more: str = ""
) -> str:
    faded = "" if opacity == 1 else f' fill-opacity="{opacity}"'
    aligned = "" if anchor == "start" else f' text-anchor="{anchor}"'
    sized = "" if size == 10.5 else f' font-size="{size}"'
    return f'<text x="{_n(x)}" y="{_n(y)}"{sized}{faded}{aligned}{more}>{escape(text, quote=False)}</text>'


def _bar(x: float, y: float, width: float, fill: str = BLUE) -> str:
    return f'<rect x="{_n(x)}" y="{_n(y)}" width="{_n(max(width, 1.5))}" height="{BAR}" fill="{fill}"/>'


def _outline(x: float, y: float, width: float, dashes: str = "") -> str:
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return (
        f'<rect x="{_n(x + 0.5)}" y="{_n(y + 0.5)}" width="{_n(max(width - 1, 0.5))}" height="{BAR - 1}" fill="none" '
        f'stroke="currentColor" stroke-opacity="{FAINT}"{dashed}/>'
    )


def _stripes(x: float, y: float, width: float) -> str:
    """A bar in stripes: a line as thick as the bar, in dashes."""
    middle = _n(y + BAR / 2)
    return (
        f'<line x1="{_n(x)}" y1="{middle}" x2="{_n(x + width)}" y2="{middle}" stroke="{GREEN}" '
        f'stroke-width="{BAR}" stroke-dasharray="2.5 1.5"/>'
    )


def _line(
    x1: float, y1: float, x2: float, y2: float, opacity: float = FAINT, width: float = 1, dashes: str = ""
) -> str:
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return (
        f'<line x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}" stroke="currentColor" '
        f'stroke-opacity="{opacity}" stroke-width="{_n(width)}"{dashed}/>'
    )


# ---- text


def visible(label: str) -> str:
    """A label with nothing unseen in it: spaces, line ends, tabs and all that does not print are written out."""
    shown = "".join(_SEEN.get(char) or (char if char.isprintable() else _escaped(char)) for char in label)
    return "◌" + shown if shown and unicodedata.combining(shown[0]) else shown


_SEEN = {" ": "␣", "\n": "⏎", "\t": "⇥"}


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode()


def _cells(text: str) -> int:
    """How many places of a monospaced font a text takes."""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else not unicodedata.combining(char) for char in text)


def shortened(text: str, most: int) -> str:
    if _cells(text) <= most:
        return text
    while _cells(text) > most - 1:
        text = text[:-1]
    return text + "…"


def _wrapped(text: str, width: float, size: float) -> list[str]:
    """Lines of about that width; a font is not asked, so it is taken to be a wide one."""
    most, lines = max(int(width / (0.58 * size)), 1), [""]
    for word in text.split(" "):
        if lines[-1] and len(lines[-1]) + 1 + len(word) > most:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".lstrip()
    return lines


def _quoted(draw: Draw, v: int) -> str:
    return f"“{shortened(visible(draw.row(v).label), 24)}”"


def _signed(x: float) -> str:
    return ("+" if x > 0 else "") + number(x)


def fixed(x: float) -> str:
    """Two places behind the point, as long as there is room for them."""
    text = f"{x:.2f}" if abs(x) < 100 else f"{x:.0f}" if abs(x) < 1e5 else f"{x:.0e}"
    return text.replace("-", "−")


# ---- columns


class Column(NamedTuple):
    """A stage. cell: what it is for a row, drawn from (x, y) on, `width` wide; the last column takes what is left."""

    title: str
    note: str
    width: float
    cell: Callable[[Row, float, float, float], Iterator[str]]


def _report(rows: Sequence[Row]) -> Column:
    floor = min(min(row.logprob for row in rows), -1.0)

    def cell(row: Row, x: float, y: float, width: float) -> Iterator[str]:
        yield _text(x, y + 10, fixed(row.logprob))
        yield _bar(x, y + 15, width * (1 - row.logprob / floor))

    return Column("log-prob", "what the model says", 64, cell)


def _push(title: str, note: str, rows: Sequence[Row], of: Callable[[Row], float]) -> Column:
    """A stage that adds: to the right of the middle what it gives, to the left what it takes."""
    most = max(abs(of(row)) for row in rows)

    def cell(row: Row, x: float, y: float, width: float) -> Iterator[str]:
        middle, amount = x + width / 2, of(row)
        yield _line(middle, y + 14, middle, y + 24)
        if amount:
            length = abs(amount) / most * width / 2
            yield _text(x + width / 2, y + 10, _signed(amount), anchor="middle")
            yield _bar(middle if amount > 0 else middle - length, y + 15, length)

    if most == 0:
        return Column(title, "not used", 6.6 * len(title), lambda row, x, y, width: iter(()))
    return Column(title, note, 60, cell)


def _temperature(draw: Draw, rows: Sequence[Row]) -> Column:
    t = draw.params.temperature
    most = max(max(row.probability or 0.0, row.at_temperature_1) for row in rows)

    def cell(row: Row, x: float, y: float, width: float) -> Iterator[str]:
        assert row.probability is not None
        yield _text(x, y + 10, percent(row.probability))
        yield _bar(x, y + 15, width * row.probability / most)
        if t != 1:
            yield _outline(x, y + 15, width * row.at_temperature_1 / most)

    does = "below 1: the likely gain" if t < 1 else "above 1: the unlikely gain" if t > 1 else "1 changes nothing"
    title = f"temperature {number(t)}"
    return Column(title, does, max(108, 7 * len(title)), cell)


def _nucleus(draw: Draw) -> Column:
    p = draw.params.top_p

    def cell(row: Row, x: float, y: float, width: float) -> Iterator[str]:
        assert row.probability is not None
        assert row.mass_before is not None
        begin, length = x + width * row.mass_before, width * row.probability
        if row.kept:
            yield _text(x, y + 10, f"up to {beside(min(row.mass_before + row.probability, 1.0), p)}")
            yield _bar(begin, y + 15, length)
        else:
            yield _text(x, y + 10, f"from {beside(row.mass_before, p)}: out", opacity=FAINT)
            yield _outline(begin, y + 15, max(length, 2), "2 2")

    if p == 1:
        return Column("top_p 1", "every token stays", 80, cell)
    if p == 0:
        return Column("top_p 0", "only the first stays", 100, cell)
    return Column(f"top_p {number(p)}", f"fills up to {percent(p)}; the rest is out", 104, cell)


class Scale(NamedTuple):
    """Where a score lies in the last column: from 0 at its left end to 1. What is too far below is at 0."""

    low: float
    high: float

    def at(self, score: float) -> float:
        return min(max((score - self.low) / (self.high - self.low), 0.0), 1.0)


def _scale(draw: Draw, rows: Sequence[Row]) -> Scale:
    ends = [x for row in rows for x in ((row.z,) if draw.is_greedy else (row.scaled, row.score)) if x is not None]
    best = max(ends)
    low = max(min(ends), best - FARTHEST)
    return Scale(low - 0.08 * (best - low) - 0.1, best + 0.05)


def _last(draw: Draw, scale: Scale) -> Column:
    """Where it is decided: by z under greedy decoding, else by what chance makes of the scaled logits."""

    def end(row: Row, x: float, y: float, width: float, at: float) -> Iterator[str]:
        if row.id == draw.winner:
            yield f'<rect x="{_n(x + width * at - 3)}" y="{_n(y + 12)}" width="3" height="14" fill="{AMBER}"/>'
        else:
            yield _line(x + width * at - 1, y + 13, x + width * at - 1, y + 25, 1, 2)

    def greedy(row: Row, x: float, y: float, width: float) -> Iterator[str]:
        at = scale.at(row.z)
        yield _text(x, y + 10, fixed(row.z))
        yield _bar(x, y + 15, width * at)
        yield from end(row, x, y, width, at)

    def drawn(row: Row, x: float, y: float, width: float) -> Iterator[str]:
        if row.score is None or row.scaled is None or row.noise is None:
            yield _text(x, y + 23, "out" if not row.kept else "has no chance", opacity=FAINT)
            return
        before, after = scale.at(row.scaled), scale.at(row.score)
        sign = "+" if row.noise >= 0 else "−"
        yield _text(x, y + 10, f"{fixed(row.scaled)} {sign} {fixed(abs(row.noise))} = {fixed(row.score)}")
        yield _bar(x, y + 15, width * min(before, after))
        if row.noise >= 0:
            yield _stripes(x + width * before, y + 15, width * (after - before))
        else:
            yield _outline(x + width * after, y + 15, width * (before - after), "2 2")
        yield from end(row, x, y, width, after)

    if draw.is_greedy:
        return Column("temperature 0", "nothing random: the largest z wins", 0, greedy)
    return Column("draw", "a random number for each; the largest sum wins", 0, drawn)


def _columns(draw: Draw, rows: Sequence[Row], scale: Scale) -> list[Column]:
    moved = [
        _report(rows),
        _push("bias", "logit_bias adds", rows, lambda row: row.bias),
        _push("penalties", "for tokens that came before", rows, lambda row: row.penalty),
    ]
    if draw.is_greedy:
        return [*moved, _last(draw, scale)]
    return [*moved, _temperature(draw, rows), _nucleus(draw), _last(draw, scale)]


# ---- the picture


def chosen(draw: Draw) -> list[Row]:
    """Of a draw's rows those that tell its story, in their order."""
    ids = {row.id for row in draw.rows if row.rank < TOP_RANKS}
    ids |= {v for v in (draw.winner, draw.runner_up, draw.given) if v is not None}
    biased = sorted((row for row in draw.rows if row.bias), key=lambda row: (-abs(row.bias), row.id))
    lucky = sorted((row for row in draw.rows if row.score is not None), key=lambda row: (-(row.score or 0.0), row.id))
    removed = [row for row in draw.rows if row.kept is False]
    ids |= {row.id for row in (*biased[:MOST_SHIFTED], *lucky[:MOST_LUCKY], *removed[:2])}
    return [row for row in draw.rows if row.id in ids]


class Hidden(NamedTuple):
    """Tokens between two rows that are not shown: how many, and the probability before and after them."""

    tokens: int
    begin: float | None
    end: float | None


def _hidden(draw: Draw, row: Row, below: Row | None) -> Hidden:
    next_rank, end = (draw.vocab_size, 1.0) if below is None else (below.rank, below.mass_before)
    begin = None if row.mass_before is None or row.probability is None else row.mass_before + row.probability
    return Hidden(next_rank - row.rank - 1, begin, end)


def picture(draw: Draw) -> str:
    """The draw as SVG, 720 units wide; it scales."""
    rows = chosen(draw)
    scale = _scale(draw, rows)
    columns = _columns(draw, rows, scale)
    places: list[tuple[float, float]] = []
    x = float(LEFT)
    for column in columns:
        places.append((x, column.width or WIDTH - RIGHT - x))
        x += column.width + GUTTER

    body: list[str] = [_text(8, 20, f"How {_quoted(draw, draw.winner)} was chosen", 14, more=' font-weight="600"')]
    body.append(_text(WIDTH - RIGHT, 20, _where(draw), opacity=SOFT, anchor="end"))
    for i, (column, (x, width)) in enumerate(zip(columns, places, strict=True)):
        body.append(_text(x, 46, column.title, 11.5, more=' font-weight="600"'))
        for j, line in enumerate(_wrapped(column.note, width + GUTTER - 4, 10)[:3]):
            body.append(_text(x, 59 + 11.5 * j, line, 10, SOFT))
        if i:
            body.append(_text(x - GUTTER / 2 - 1, 46, "›", 11.5, FAINT, "middle"))
    y = float(HEAD)
    bars: list[tuple[float, float]] = []  # from where to where the line of top_p is seen: beside the bars
    for i, row in enumerate(rows):
        body.append(_row(draw, row, y, columns, places))
        bars.append((y + 12, y + ROW - 3))
        y += ROW
        hidden = _hidden(draw, row, rows[i + 1] if i + 1 < len(rows) else None)
        if hidden.tokens:
            body += _gap(draw, hidden, y, places)
            bars.append((y + 3, y + GAP - 3))
            y += GAP
    body += _cut(draw, bars, y, places)
    body += _lead(draw, scale, y, *places[-1])
    y += 26
    for line in _wrapped(" ".join(sentences(draw)), WIDTH - 16, 12):
        y += 17
        body.append(_text(8, y, line, 12))
    y += 22
    body += _legend(draw, y)
    return _svg(draw, body, y + 45)


def _svg(draw: Draw, body: Sequence[str], height: float) -> str:
    title = escape(f"How the token {_quoted(draw, draw.winner)} was chosen")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {_n(height)}" width="100%" role="img" '
        f'aria-label="{title}" fill="currentColor" font-family="system-ui,sans-serif" font-size="10.5">'
        f"<title>{title}</title><desc>{escape(described(draw))}</desc>{''.join(body)}</svg>"
    )


def _where(draw: Draw) -> str:
    random = "" if draw.seed is None else f" · seed {str(draw.seed).replace('-', '−')}"
    return f"token {draw.step + 1} · candidate {draw.candidate}{random}"


def _row(draw: Draw, row: Row, y: float, columns: Sequence[Column], places: Sequence[tuple[float, float]]) -> str:
    out = row.kept is False
    parts = [f"<g><title>{escape(f'{visible(row.label)}: {row.why}')}</title>"]
    if row.id == draw.winner:
        parts.append(
            f'<rect x="2" y="{_n(y - 1)}" width="{WIDTH - 4}" height="{ROW - 1}" rx="4" fill="{AMBER}" '
            f'fill-opacity="0.13"/><text x="6" y="{_n(y + 18)}" font-size="13" fill="{AMBER}">★</text>'
        )
    elif row.id == draw.given:
        parts.append(_text(7, y + 18, "◆", 10))
    label = shortened(visible(row.label), 13)
    mono = ' font-family="ui-monospace,monospace"'
    parts.append(_text(20, y + 18, label, 12, FAINT if out else 1, more=mono))
    if out:
        parts.append(_line(18, y + 14, 22 + 7.3 * _cells(label), y + 14, 0.8))
    for column, (x, width) in zip(columns, places, strict=True):
        parts += column.cell(row, x, y, width)
    return "".join(parts) + "</g>"


def _gap(draw: Draw, hidden: Hidden, y: float, places: Sequence[tuple[float, float]]) -> Iterator[str]:
    text = f"⋮ {hidden.tokens:,} more"
    if hidden.begin is not None and hidden.end is not None:
        x, width = places[-2]
        mass = max(hidden.end - hidden.begin, 0.0)
        text += f", {percent(mass)}"
        yield _line(
            x + width * hidden.begin, y + 9, x + max(width * hidden.end, width * hidden.begin + 1), y + 9, 0.6, 2
        )
    yield _text(20, y + 12, text, 10, SOFT)


def _cut(
    draw: Draw, bars: Sequence[tuple[float, float]], y: float, places: Sequence[tuple[float, float]]
) -> Iterator[str]:
    """The line of top_p through all rows."""
    if not draw.is_greedy and 0 < draw.params.top_p < 1:
        x, width = places[-2]
        x += width * draw.params.top_p
        pieces = "".join(f"M{_n(x)} {_n(top)}V{_n(bottom)}" for top, bottom in bars)
        yield f'<path d="{pieces}" stroke="currentColor" stroke-width="1.6"/>'
        yield _text(x, y + 12, percent(draw.params.top_p), 10, anchor="middle", more=' font-weight="600"')


def _lead(draw: Draw, scale: Scale, y: float, x: float, width: float) -> Iterator[str]:
    """The margin, between the scores of the winner and the runner-up."""
    if draw.runner_up is None or draw.margin is None:
        yield _text(x, y + 14, "no other was left", 10)
        return
    ends = [draw.row(v) for v in (draw.runner_up, draw.winner)]
    second, first = (x + width * scale.at((row.z if draw.is_greedy else row.score) or 0.0) - 1 for row in ends)
    yield _line(second, y + 1, second, y + 9, 1)
    yield _line(first, y + 1, first, y + 9, 1)
    yield _line(second, y + 5, first, y + 5, 1)
    yield _text(x + width, y + 19, f"margin {number(draw.margin)}", 10.5, anchor="end", more=' font-weight="600"')


def _legend(draw: Draw, y: float) -> Iterator[str]:
    entries: list[tuple[str, str]] = [("★", "the winner")]
    if any(" " in row.label for row in chosen(draw)):
        entries.append(("␣", "a space"))
    if draw.given is not None and draw.given != draw.winner:
        entries.append(("◆", "the token given"))
    z = "z: the model’s raw number (logit) + bias + penalties."
    last = f"draw: how far z is below the largest, ÷ temperature, + a random number. {z}"
    yield _text(8, y + 18, z if draw.is_greedy else last, 10.5, SOFT)
    bars = "z" if draw.is_greedy else "the draw"
    yield _text(8, y + 33, f"Bars of log-prob and of {bars} do not begin at 0: there, longer is more.", 10.5, SOFT)
    x = 8.0
    for mark, words in entries:
        fill = f' fill="{AMBER}"' if mark == "★" else ""
        yield f'<text x="{_n(x)}" y="{_n(y)}" font-size="12"{fill}>{mark}</text>'
        yield _text(x + 15, y, words, 10.5, SOFT)
        x += 26 + 5.6 * len(words)
    if draw.is_greedy:
        return
    if draw.params.temperature != 1:
        yield _outline(x, y - 8, 18)
        yield _text(x + 23, y, "before the temperature", 10.5, SOFT)
        x += 34 + 5.6 * 22
    yield _stripes(x, y - 8, 18)
    yield _text(x + 23, y, "random number added", 10.5, SOFT)
    x += 34 + 5.6 * 19
    yield _outline(x, y - 8, 18, "2 2")
    yield _text(x + 23, y, "taken away, or out", 10.5, SOFT)


# ---- in words


def sentences(draw: Draw) -> list[str]:
    """What happened, for those who cannot see it, and for those who do."""
    winner, p = _quoted(draw, draw.winner), draw.params.top_p
    said = []
    if not draw.is_greedy and p < 1:
        kept = sum(row.kept is True for row in draw.rows) + (draw.others.kept or 0)
        rule = (
            f"takes the likeliest tokens until together they have {percent(p)}"
            if p
            else "takes the likeliest token alone"
        )
        said.append(f"top_p {number(p)} {rule}: {kept:,} of {draw.vocab_size:,}; {draw.vocab_size - kept:,} are out.")
    if draw.runner_up is None:
        said.append(f"{winner} was the only one left.")
    else:
        second, margin = _quoted(draw, draw.runner_up), number(draw.margin or 0.0)
        why = "has the largest z" if draw.is_greedy else "has the largest sum"
        said.append(f"{winner} {why}, {margin} ahead of {second}.")
    if not draw.is_greedy and draw.runner_up is not None:
        first = draw.rows[0]
        if first.id != draw.winner:
            most = shortened(visible(first.label), 24)
            said.append(f"The most probable token was “{most}”: the random numbers decided otherwise.")
    if draw.given is not None and draw.given != draw.winner:
        said.append(f"The token given was {_quoted(draw, draw.given)}.")
    return said


def described(draw: Draw) -> str:
    """The picture in words, row by row."""
    rows = (f"{visible(row.label)}, log-probability {number(row.logprob)}: {row.why}." for row in chosen(draw))
    return " ".join([*sentences(draw), *rows])


# ---- in a notebook

HEADINGS = ("token", "log-probability", "bias", "penalty", "after temperature", "kept", "chance", "random number",
            "sum", "why")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Picture:
    """A draw that notebooks display."""

    draw: Draw

    def _repr_svg_(self) -> str:
        return picture(self.draw)

    def _repr_html_(self) -> str:
        numbers = f"<details><summary>The same as a table</summary>{table(self.draw)}</details>"
        return f"<div>{picture(self.draw)}{numbers}</div>"

    def __repr__(self) -> str:
        return " ".join(sentences(self.draw))


def table(draw: Draw) -> str:
    """Every row of the draw as an HTML table."""
    head = "".join(f'<th scope="col">{heading}</th>' for heading in HEADINGS)
    lines = []
    for row in draw.rows:
        kept = "" if row.kept is None else "yes" if row.kept else "no"
        probability = "" if row.probability is None else percent(row.probability)
        chance = "" if row.chance is None else percent(row.chance)
        values = (
            number(row.logprob), _signed(row.bias), _signed(row.penalty), probability, kept, chance,
            _maybe(row.noise), _maybe(row.score), row.why,
        )  # fmt: skip
        cells = "".join(f"<td>{escape(value)}</td>" for value in values)
        lines.append(f'<tr><th scope="row"><code>{escape(visible(row.label))}</code></th>{cells}</tr>')
    caption = escape(" ".join(sentences(draw)))
    return f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _maybe(x: float | None) -> str:
    return "" if x is None else number(x)


def show(trace: Trace, tokenizer: Tokenizer | None = None, given: int | None = None) -> Picture:
    """A draw to look at. tokenizer: names the tokens; without it they are called by their ids · given: a token to show
    whatever became of it."""
    return Picture(explain(trace, None if tokenizer is None else tokenizer.labels, given))
