"""A draw in words: which of its rows tell its story, and what happened, for those who cannot see the picture."""

from __future__ import annotations

from gnomon.reference.trace.explain import Draw, Row, percent, three_digits
from gnomon.reference.trace.svg import printable, shortened

TOP_RANKS, MOST_SHIFTED, MOST_LUCKY = 7, 2, 2  # tokens shown: of the highest z, of the largest bias, of the best score


def rows_to_show(draw: Draw) -> list[Row]:
    """Of a draw's rows those that tell its story, in their order."""
    ids = {row.id for row in draw.rows if row.rank < TOP_RANKS}
    ids |= {v for v in (draw.winner, draw.runner_up, draw.given) if v is not None}
    biased = sorted((row for row in draw.rows if row.bias), key=lambda row: (-abs(row.bias), row.id))
    lucky = sorted((row for row in draw.rows if row.score is not None), key=lambda row: (-(row.score or 0.0), row.id))
    removed = [row for row in draw.rows if row.kept is False]
    ids |= {row.id for row in (*biased[:MOST_SHIFTED], *lucky[:MOST_LUCKY], *removed[:2])}
    return [row for row in draw.rows if row.id in ids]


def quoted(draw: Draw, v: int) -> str:
    return f"“{shortened(printable(draw.row(v).label), 24)}”"


def signed(x: float) -> str:
    return ("+" if x > 0 else "") + three_digits(x)


def fixed(x: float) -> str:
    """Two places behind the point, as long as there is room for them."""
    text = f"{x:.2f}" if abs(x) < 100 else f"{x:.0f}" if abs(x) < 1e5 else f"{x:.0e}"
    return text.replace("-", "−")


def sentences(draw: Draw) -> list[str]:
    """What happened, for those who cannot see it, and for those who do."""
    winner, p = quoted(draw, draw.winner), draw.params.top_p
    said = []
    if not draw.is_greedy and p < 1:
        kept = sum(row.kept is True for row in draw.rows) + (draw.others.kept or 0)
        rule = (
            f"takes the likeliest tokens until together they have {percent(p)}"
            if p
            else "takes the likeliest token alone"
        )
        said.append(
            f"top_p {three_digits(p)} {rule}: {kept:,} of {draw.vocab_size:,}; {draw.vocab_size - kept:,} are out."
        )
    if draw.runner_up is None:
        said.append(f"{winner} was the only one left.")
    else:
        second, margin = quoted(draw, draw.runner_up), three_digits(draw.margin or 0.0)
        why = "has the largest z" if draw.is_greedy else "has the largest sum"
        said.append(f"{winner} {why}, {margin} ahead of {second}.")
    if not draw.is_greedy and draw.runner_up is not None:
        first = draw.rows[0]
        if first.id != draw.winner:
            most = shortened(printable(first.label), 24)
            said.append(f"The most probable token was “{most}”: the random numbers decided otherwise.")
    if draw.given is not None and draw.given != draw.winner:
        said.append(f"The token given was {quoted(draw, draw.given)}.")
    return said


def described(draw: Draw) -> str:
    """The picture in words, row by row."""
    rows = (
        f"{printable(row.label)}, log-probability {three_digits(row.logprob)}: {row.why}." for row in rows_to_show(draw)
    )
    return " ".join([*sentences(draw), *rows])
