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

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

from gnomon.reference.sampler import Trace
from gnomon.reference.tokenizer import Tokenizer
from gnomon.reference.trace import svg
from gnomon.reference.trace.explain import Draw, Row, beside, explain, percent, three_digits
from gnomon.reference.trace.words import described, fixed, quoted, rows_to_show, sentences, signed

WIDTH, LEFT, RIGHT, GUTTER = 720, 126, 8, 13
HEAD, ROW, GAP = 92, 30, 19  # heights
FARTHEST = 14.0  # how far below the best a score is drawn to scale


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
        yield svg.text(x, y + 10, fixed(row.logprob))
        yield svg.bar(x, y + 15, width * (1 - row.logprob / floor))

    return Column("log-prob", "what the model says", 64, cell)


def _push(title: str, note: str, rows: Sequence[Row], of: Callable[[Row], float]) -> Column:
    """A stage that adds: to the right of the middle what it gives, to the left what it takes."""
    most = max(abs(of(row)) for row in rows)

    def cell(row: Row, x: float, y: float, width: float) -> Iterator[str]:
        middle, amount = x + width / 2, of(row)
        yield svg.stroke(middle, y + 14, middle, y + 24)
        if amount:
            length = abs(amount) / most * width / 2
            yield svg.text(x + width / 2, y + 10, signed(amount), anchor="middle")
            yield svg.bar(middle if amount > 0 else middle - length, y + 15, length)

    if most == 0:
        return Column(title, "not used", 6.6 * len(title), lambda row, x, y, width: iter(()))
    return Column(title, note, 60, cell)


def _temperature(draw: Draw, rows: Sequence[Row]) -> Column:
    t = draw.params.temperature
    most = max(max(row.probability or 0.0, row.at_temperature_1) for row in rows)

    def cell(row: Row, x: float, y: float, width: float) -> Iterator[str]:
        assert row.probability is not None
        yield svg.text(x, y + 10, percent(row.probability))
        yield svg.bar(x, y + 15, width * row.probability / most)
        if t != 1:
            yield svg.outline(x, y + 15, width * row.at_temperature_1 / most)

    does = "below 1: the likely gain" if t < 1 else "above 1: the unlikely gain" if t > 1 else "1 changes nothing"
    title = f"temperature {three_digits(t)}"
    return Column(title, does, max(108, 7 * len(title)), cell)


def _nucleus(draw: Draw) -> Column:
    p = draw.params.top_p

    def cell(row: Row, x: float, y: float, width: float) -> Iterator[str]:
        assert row.probability is not None
        assert row.mass_before is not None
        begin, length = x + width * row.mass_before, width * row.probability
        if row.kept:
            yield svg.text(x, y + 10, f"up to {beside(min(row.mass_before + row.probability, 1.0), p)}")
            yield svg.bar(begin, y + 15, length)
        else:
            yield svg.text(x, y + 10, f"from {beside(row.mass_before, p)}: out", opacity=svg.FAINT)
            yield svg.outline(begin, y + 15, max(length, 2), "2 2")

    if p == 1:
        return Column("top_p 1", "every token stays", 80, cell)
    if p == 0:
        return Column("top_p 0", "only the first stays", 100, cell)
    return Column(f"top_p {three_digits(p)}", f"fills up to {percent(p)}; the rest is out", 104, cell)


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
            left, top = svg.n(x + width * at - 3), svg.n(y + 12)
            yield f'<rect x="{left}" y="{top}" width="3" height="14" fill="{svg.AMBER}"/>'
        else:
            yield svg.stroke(x + width * at - 1, y + 13, x + width * at - 1, y + 25, 1, 2)

    def greedy(row: Row, x: float, y: float, width: float) -> Iterator[str]:
        at = scale.at(row.z)
        yield svg.text(x, y + 10, fixed(row.z))
        yield svg.bar(x, y + 15, width * at)
        yield from end(row, x, y, width, at)

    def drawn(row: Row, x: float, y: float, width: float) -> Iterator[str]:
        if row.score is None or row.scaled is None or row.noise is None:
            yield svg.text(x, y + 23, "out" if not row.kept else "has no chance", opacity=svg.FAINT)
            return
        before, after = scale.at(row.scaled), scale.at(row.score)
        sign = "+" if row.noise >= 0 else "−"
        yield svg.text(x, y + 10, f"{fixed(row.scaled)} {sign} {fixed(abs(row.noise))} = {fixed(row.score)}")
        yield svg.bar(x, y + 15, width * min(before, after))
        if row.noise >= 0:
            yield svg.stripes(x + width * before, y + 15, width * (after - before))
        else:
            yield svg.outline(x + width * after, y + 15, width * (before - after), "2 2")
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
    rows = rows_to_show(draw)
    scale = _scale(draw, rows)
    columns = _columns(draw, rows, scale)
    places: list[tuple[float, float]] = []
    x = float(LEFT)
    for column in columns:
        places.append((x, column.width or WIDTH - RIGHT - x))
        x += column.width + GUTTER

    body: list[str] = [svg.text(8, 20, f"How {quoted(draw, draw.winner)} was chosen", 14, more=' font-weight="600"')]
    body.append(svg.text(WIDTH - RIGHT, 20, _where(draw), opacity=svg.SOFT, anchor="end"))
    for i, (column, (x, width)) in enumerate(zip(columns, places, strict=True)):
        body.append(svg.text(x, 46, column.title, 11.5, more=' font-weight="600"'))
        for j, line in enumerate(svg.wrapped(column.note, width + GUTTER - 4, 10)[:3]):
            body.append(svg.text(x, 59 + 11.5 * j, line, 10, svg.SOFT))
        if i:
            body.append(svg.text(x - GUTTER / 2 - 1, 46, "›", 11.5, svg.FAINT, "middle"))
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
    for line in svg.wrapped(" ".join(sentences(draw)), WIDTH - 16, 12):
        y += 17
        body.append(svg.text(8, y, line, 12))
    y += 22
    body += _legend(draw, y)
    return _svg(draw, body, y + 45)


def _svg(draw: Draw, body: Sequence[str], height: float) -> str:
    title = escape(f"How the token {quoted(draw, draw.winner)} was chosen")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {svg.n(height)}" width="100%" role="img" '
        f'aria-label="{title}" fill="currentColor" font-family="system-ui,sans-serif" font-size="10.5">'
        f"<title>{title}</title><desc>{escape(described(draw))}</desc>{''.join(body)}</svg>"
    )


def _where(draw: Draw) -> str:
    random = "" if draw.seed is None else f" · seed {str(draw.seed).replace('-', '−')}"
    return f"token {draw.step + 1} · candidate {draw.candidate}{random}"


def _row(draw: Draw, row: Row, y: float, columns: Sequence[Column], places: Sequence[tuple[float, float]]) -> str:
    out = row.kept is False
    parts = [f"<g><title>{escape(f'{svg.printable(row.label)}: {row.why}')}</title>"]
    if row.id == draw.winner:
        parts.append(
            f'<rect x="2" y="{svg.n(y - 1)}" width="{WIDTH - 4}" height="{ROW - 1}" rx="4" fill="{svg.AMBER}" '
            f'fill-opacity="0.13"/><text x="6" y="{svg.n(y + 18)}" font-size="13" fill="{svg.AMBER}">★</text>'
        )
    elif row.id == draw.given:
        parts.append(svg.text(7, y + 18, "◆", 10))
    label = svg.shortened(svg.printable(row.label), 13)
    mono = ' font-family="ui-monospace,monospace"'
    parts.append(svg.text(20, y + 18, label, 12, svg.FAINT if out else 1, more=mono))
    if out:
        parts.append(svg.stroke(18, y + 14, 22 + 7.3 * svg.cells(label), y + 14, 0.8))
    for column, (x, width) in zip(columns, places, strict=True):
        parts += column.cell(row, x, y, width)
    return "".join(parts) + "</g>"


def _gap(draw: Draw, hidden: Hidden, y: float, places: Sequence[tuple[float, float]]) -> Iterator[str]:
    text = f"⋮ {hidden.tokens:,} more"
    if hidden.begin is not None and hidden.end is not None:
        x, width = places[-2]
        mass = max(hidden.end - hidden.begin, 0.0)
        text += f", {percent(mass)}"
        yield svg.stroke(
            x + width * hidden.begin, y + 9, x + max(width * hidden.end, width * hidden.begin + 1), y + 9, 0.6, 2
        )
    yield svg.text(20, y + 12, text, 10, svg.SOFT)


def _cut(
    draw: Draw, bars: Sequence[tuple[float, float]], y: float, places: Sequence[tuple[float, float]]
) -> Iterator[str]:
    """The line of top_p through all rows."""
    if not draw.is_greedy and 0 < draw.params.top_p < 1:
        x, width = places[-2]
        x += width * draw.params.top_p
        pieces = "".join(f"M{svg.n(x)} {svg.n(top)}V{svg.n(bottom)}" for top, bottom in bars)
        yield f'<path d="{pieces}" stroke="currentColor" stroke-width="1.6"/>'
        yield svg.text(x, y + 12, percent(draw.params.top_p), 10, anchor="middle", more=' font-weight="600"')


def _lead(draw: Draw, scale: Scale, y: float, x: float, width: float) -> Iterator[str]:
    """The margin, between the scores of the winner and the runner-up."""
    if draw.runner_up is None or draw.margin is None:
        yield svg.text(x, y + 14, "no other was left", 10)
        return
    ends = [draw.row(v) for v in (draw.runner_up, draw.winner)]
    second, first = (x + width * scale.at((row.z if draw.is_greedy else row.score) or 0.0) - 1 for row in ends)
    yield svg.stroke(second, y + 1, second, y + 9, 1)
    yield svg.stroke(first, y + 1, first, y + 9, 1)
    yield svg.stroke(second, y + 5, first, y + 5, 1)
    yield svg.text(
        x + width, y + 19, f"margin {three_digits(draw.margin)}", 10.5, anchor="end", more=' font-weight="600"'
    )


def _legend(draw: Draw, y: float) -> Iterator[str]:
    entries: list[tuple[str, str]] = [("★", "the winner")]
    if any(" " in row.label for row in rows_to_show(draw)):
        entries.append(("␣", "a space"))
    if draw.given is not None and draw.given != draw.winner:
        entries.append(("◆", "the token given"))
    z = "z: the model’s raw number (logit) + bias + penalties."
    last = f"draw: how far z is below the largest, ÷ temperature, + a random number. {z}"
    yield svg.text(8, y + 18, z if draw.is_greedy else last, 10.5, svg.SOFT)
    bars = "z" if draw.is_greedy else "the draw"
    yield svg.text(
        8, y + 33, f"Bars of log-prob and of {bars} do not begin at 0: there, longer is more.", 10.5, svg.SOFT
    )
    x = 8.0
    for mark, words in entries:
        fill = f' fill="{svg.AMBER}"' if mark == "★" else ""
        yield f'<text x="{svg.n(x)}" y="{svg.n(y)}" font-size="12"{fill}>{mark}</text>'
        yield svg.text(x + 15, y, words, 10.5, svg.SOFT)
        x += 26 + 5.6 * len(words)
    if draw.is_greedy:
        return
    if draw.params.temperature != 1:
        yield svg.outline(x, y - 8, 18)
        yield svg.text(x + 23, y, "before the temperature", 10.5, svg.SOFT)
        x += 34 + 5.6 * 22
    yield svg.stripes(x, y - 8, 18)
    yield svg.text(x + 23, y, "random number added", 10.5, svg.SOFT)
    x += 34 + 5.6 * 19
    yield svg.outline(x, y - 8, 18, "2 2")
    yield svg.text(x + 23, y, "taken away, or out", 10.5, svg.SOFT)


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
            three_digits(row.logprob), signed(row.bias), signed(row.penalty), probability, kept, chance,
            _maybe(row.noise), _maybe(row.score), row.why,
        )  # fmt: skip
        cells = "".join(f"<td>{escape(value)}</td>" for value in values)
        lines.append(f'<tr><th scope="row"><code>{escape(svg.printable(row.label))}</code></th>{cells}</tr>')
    caption = escape(" ".join(sentences(draw)))
    return f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _maybe(x: float | None) -> str:
    return "" if x is None else three_digits(x)


def show(trace: Trace, tokenizer: Tokenizer | None = None, given: int | None = None) -> Picture:
    """A draw to look at. tokenizer: names the tokens; without it they are called by their ids · given: a token to show
    whatever became of it."""
    return Picture(explain(trace, None if tokenizer is None else tokenizer.labels, given))
