"""A table's rows: ratios of two sides, as JSON and as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio. `ours` and `theirs` hold a figure of every round, in the same unit; `other` says what theirs is."""

    name: str
    unit: str
    ours: Sequence[float]
    theirs: Sequence[float]
    other: str
    target: float | None = None  # what the ratio is to reach
    most: float | None = None  # what ours may be, in its unit; a row has one of the two, or none

    def to_json(self) -> dict[str, Any]:
        ours, theirs = median(self.ours), median(self.theirs)
        better = "larger" if self.unit.endswith("/s") else "smaller"
        ratio = ours / theirs if better == "larger" else theirs / ours
        met = None if self.target is None else ratio >= self.target
        met = met if self.most is None else ours <= self.most
        figures = {"unit": self.unit, "better": better, "ours": ours, "theirs": theirs, "other": self.other}
        rounds = {"ours": list(self.ours), "theirs": list(self.theirs)}
        aims = {"target": self.target, "most": self.most, "met": met}
        return {"row": self.name, **figures, "ratio": ratio, **aims, "rounds": rounds}


@dataclass(frozen=True, slots=True)
class NotMeasured:
    name: str
    reason: str
    failed: bool = False  # that it could not be measured is a fault, not a fact about this machine

    def to_json(self) -> dict[str, Any]:
        return {"row": self.name, "not measured": self.reason}


Ratios = Iterator[Ratio | NotMeasured]


def render(report: Mapping[str, Any]) -> str:
    """The report as text: a line for every entry of the head, then the table."""
    lines = [f"{name}: {value}" for name, value in report["head"].items()]
    lines += ["", "| row | ours | the other side | ratio | target | met | rounds |", "|---|---|---|---|---|---|---|"]
    return "\n".join([*lines, *map(describe_row, report["rows"])])


def describe_row(row: Mapping[str, Any]) -> str:
    if "not measured" in row:
        return f"| {row['row']} | not measured: {row['not measured']} | | | | | |"
    ours, theirs = (f"{row[side]:.4g} {row['unit']}{_extremes(row['rounds'][side])}" for side in ("ours", "theirs"))
    target = "" if row["target"] is None else f"≥ {row['target']:.3g}"
    target = target if row["most"] is None else f"≤ {row['most']:g} {row['unit']}"
    met = {None: "", True: "yes", False: "NO"}[row["met"]]
    rounds = len(row["rounds"]["ours"])
    return f"| {row['row']} | {ours} | {theirs}, {row['other']} | {row['ratio']:.3g} | {target} | {met} | {rounds} |"


def _extremes(figures: Sequence[float]) -> str:
    return f" ({min(figures):.4g} to {max(figures):.4g})" if len(figures) > 1 else ""
