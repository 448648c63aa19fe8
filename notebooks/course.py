"""What every notebook of the course shares: how figures look, and how an exercise says whether it is solved.

`style()` starts from matplotlib's own defaults and its own letters, so that a figure is the same in every installation.
A figure is a light card with dark ink, readable on a light and on a dark page. The colours of the cycle differ in
lightness, so that they stay apart in greyscale; lines differ in their dashes too, and bars are told apart with
`HATCHES`.

`exercise(n)` runs asserts about the learner's code and says "solved" or what did not hold, instead of ending the
notebook there. `logprobs_of_the_end` is what an exercise asks for and later cells need: here it is out of sight.
"""

from __future__ import annotations

import ast
import linecache
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import matplotlib as mpl
from cycler import cycler

CARD, INK, MUTED, GRID = "#fbf9f4", "#1c1c1c", "#6b675f", "#dcd7cb"
DARK, MIDDLE, LIGHT, PALE = "#16365c", "#c4501b", "#6fa8c9", "#e3c383"  # lightness 22, 48, 66, 80 of 100
COLOURS = (DARK, MIDDLE, LIGHT, PALE)
DASHES = ("-", "--", "-.", ":")
HATCHES = ("", "///", "\\\\\\\\", "xx")
SHADES = "cividis"  # for heat maps: its lightness rises evenly, and colour-blind readers see the same order


def style() -> None:
    """Sets how figures look and are stored; call it once, at the top of a notebook."""
    mpl.rcdefaults()
    mpl.rcParams.update(
        {
            "figure.dpi": 92,
            "figure.figsize": (8.0, 3.6),
            "figure.facecolor": CARD,
            "figure.constrained_layout.use": True,
            "axes.facecolor": CARD,
            "axes.edgecolor": MUTED,
            "axes.labelcolor": INK,
            "axes.titlecolor": INK,
            "axes.titlesize": 11.5,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.axisbelow": True,
            "axes.prop_cycle": cycler(color=COLOURS, linestyle=DASHES),
            "grid.color": GRID,
            "text.color": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "font.family": "DejaVu Sans",
            "font.size": 9.5,
            "hatch.color": CARD,
            "hatch.linewidth": 1.2,
            "image.cmap": SHADES,
            "image.interpolation": "nearest",
            "legend.frameon": False,
            "lines.linewidth": 2.0,
        }
    )
    from matplotlib_inline.backend_inline import set_matplotlib_formats

    set_matplotlib_formats("retina", facecolor=CARD, bbox_inches="tight", metadata={"Software": None})


class exercise:
    """`with exercise(1):` around asserts prints whether they hold; the first that does not is shown."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, frames: TracebackType | None
    ) -> bool:
        if error is None:
            print(f"Exercise {self.number}: solved.")
            return False
        if not isinstance(error, Exception) or frames is None:
            return False
        said = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
        print(f"Exercise {self.number}: not yet. This does not hold:")
        print(_statement(frames.tb_frame.f_code.co_filename, frames.tb_lineno))
        if said:
            print(said)
        return True


def _statement(file: str, line: int) -> str:
    """The innermost statement at a line of a cell, as it is written there."""
    source = "".join(linecache.getlines(file))
    around = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.stmt) and node.lineno <= line <= (node.end_lineno or node.lineno)
    ]
    innermost = min(around, key=lambda node: (node.end_lineno or node.lineno) - node.lineno)
    return "    " + (ast.get_source_segment(source, innermost) or "")


def logprobs_of_the_end(
    server: Callable[..., dict[str, Any]], tokenizer: Any, context: str, end: str
) -> Sequence[float | None]:
    """What a server says of the tokens of `end` behind `context`, asked in the way of the evaluation harnesses."""
    before, whole = (list(tokenizer.encode(text).ids) for text in (context, context + end))
    assert whole[: len(before)] == before, "the end changes how the context is cut into tokens"
    answer = server(prompt=whole, echo=True, logprobs=1, max_tokens=1, temperature=0)
    numbers: list[float | None] = answer["token_logprobs"]
    return numbers[len(before) : len(whole)]
