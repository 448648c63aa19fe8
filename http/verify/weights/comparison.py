"""What came of comparing a server's numbers with the reference's: findings, tables and lines of a report.

Rounding of any kind is no departure from the law: float32's is `honoured`, fewer bits and quantised weights `unclear`,
with what they come to. Processed values, shifted places, prompts encoded otherwise, another model and what nothing
explains are `wrong`, worded as what they are consistent with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from gnomon.http.verify.ask.exchange import Exchange
from gnomon.http.verify.ask.probe import Probe
from gnomon.http.verify.report.report import Table
from gnomon.http.verify.verdict import Case, Finding, Judge, Judgement, honoured, unclear, wrong
from gnomon.http.verify.weights.explain import Explanation
from gnomon.http.verify.weights.labels import Style
from gnomon.http.verify.weights.readings import Kind
from gnomon.http.verify.weights.trial import ROUNDING, Fit

SAYS = {
    "greedy": "at temperature 0 the log-probabilities are the reference's",
    "empty": "an empty prompt is the beginning of a document",
    "ids": "a prompt of ids is used as it is",
    "echo": "echoed tokens have the reference's log-probabilities, given those before them",
    "temperature": "temperature changes no log-probability",
    "bias": "logit_bias changes no log-probability",
    "penalties": "penalties change no log-probability",
}

PARAMS = {
    "greedy": ("logprobs", "4.1"),
    "empty": ("prompt", "2"),
    "ids": ("prompt", "2"),
    "echo": ("echo", "7"),
    "temperature": ("temperature", "4.1"),
    "bias": ("logit_bias", "4.1"),
    "penalties": ("frequency_penalty", "4.1"),
}


class Worst(NamedTuple):
    """Where a value is off by most: a trial's place, and what either side says there."""

    trial: str
    place: int
    token: str
    theirs: float
    ours: float


class Choices(NamedTuple):
    """Greedy tokens: all, those that are not the reference's own, and those of them that no near-tie excuses."""

    tokens: int = 0
    others: int = 0
    wrong: int = 0
    repeated: int = 0  # of the wrong ones, those whose place belonged to a token that had occurred before
    largest_margin: float = 0.0  # the reference's, among the others
    where: str = ""  # the first that is not excused

    def plus(self, more: Choices) -> Choices:
        return Choices(
            self.tokens + more.tokens,
            self.others + more.others,
            self.wrong + more.wrong,
            self.repeated + more.repeated,
            max(self.largest_margin, more.largest_margin),
            self.where or more.where,
        )


@dataclass(frozen=True, slots=True)
class TrialGroup:
    """Trials that test one sentence, and what came of them. overlap: None where no ranking could be read."""

    name: str
    trials: tuple[str, ...]
    fit: Fit
    explanation: Explanation
    overlap: float | None
    worst: Worst | None
    billed: str  # what usage says of the prompts' lengths, where that is not what the reference has; else ""
    exchanges: tuple[Exchange, ...]
    seconds: float

    def json(self) -> dict[str, Any]:
        best = self.explanation
        return {
            "group": self.name,
            "trials": list(self.trials),
            "values": self.fit.values,
            "max": self.fit.worst,
            "mean": self.fit.mean,
            "overlap": self.overlap,
            "worst": None if self.worst is None else self.worst._asdict(),
            "prompt_tokens": self.billed or None,
            "explanation": {"kind": str(best.kind), "words": best.words, "left": best.left._asdict()},
            "tried": [
                {
                    "kind": str(one.kind),
                    "words": one.words,
                    "max_left": one.left.worst,
                    "mean_left": one.left.mean,
                    "size": one.size,
                }
                for one in best.tried
            ],
        }

    def reason(self) -> str:
        """What deviates, by how much, and what that is consistent with."""
        off = f"at most {self.fit.worst:.1e}, {self.fit.mean:.1e} in the mean of {self.fit.values:,} values"
        best = self.explanation
        if best.kind is Kind.rounding:
            return f"off by {off}: {best.words}"
        words = best.words
        if best.kind is not Kind.unexplained:
            words = f"consistent with {words}"
            if best.left.worst < self.fit.worst:
                words += f", which leaves at most {best.left.worst:.1e}, {best.left.mean:.1e} in the mean"
        billed = f"; {self.billed}" if self.billed and best.kind.departs else ""
        return f"off by {off}: {words}{billed}"

    def judgement(self) -> Judgement:
        kind = self.explanation.kind
        make = wrong if kind.departs else honoured if kind is Kind.rounding else unclear
        return make(self.reason(), **self.json())


@dataclass(frozen=True, slots=True)
class Comparison:
    """cannot: why nothing could be compared; None if something was · notes: what was refused or left out, by line"""

    groups: tuple[TrialGroup, ...] = ()
    choices: Choices | None = None
    cannot: str | None = None
    style: Style | None = None
    listed: int = 0  # tokens in rankings as they came
    unresolved: int = 0  # of these, those whose label no id could be given
    notes: tuple[str, ...] = ()
    exchanges: tuple[Exchange, ...] = ()

    @property
    def sentence(self) -> str:
        """What explains the deviations, all in all."""
        if self.cannot is not None:
            return f"cannot compare: {self.cannot}"
        worst = max(group.fit.worst for group in self.groups)
        by_words: dict[str, list[TrialGroup]] = {}
        for group in self.groups:
            by_words.setdefault(group.explanation.words, []).append(group)
        count = sum(group.fit.values for group in self.groups)
        if all(group.explanation.kind is Kind.rounding for group in self.groups):
            return f"float32 rounding: {count:,} log-probabilities are off by {worst:.1e} at most"
        parts = []
        for words, groups in by_words.items():
            names = ", ".join(group.name for group in groups)
            off = max(group.fit.worst for group in groups)
            left = max(group.explanation.left.worst for group in groups)
            kind = groups[0].explanation.kind
            said = words if kind in (Kind.rounding, Kind.unexplained) else f"consistent with {words}"
            parts.append(f"{names}: off by {off:.1e}, {said}" + (f" (leaves {left:.1e})" if left != off else ""))
        return "; ".join(parts)

    @property
    def departs(self) -> bool:
        """Whether the exit code should say so."""
        return any(finding.judgement.verdict.is_finding for finding in self.findings())

    def findings(self) -> tuple[Finding, ...]:
        """One a sentence of the law that was compared, fit for a report."""
        if self.cannot is not None:
            case = _case("greedy", "logprobs", "4.1", SAYS["greedy"], unclear(self.sentence))
            return (Finding(case, unclear(self.sentence), self.exchanges, 0.0),)
        found = []
        for group in self.groups:
            judgement = group.judgement()
            case = _case(group.name, *PARAMS[group.name], SAYS[group.name], judgement)
            found.append(Finding(case, judgement, group.exchanges, group.seconds))
        greedy = [group for group in self.groups if group.name in ("greedy", "empty", "ids")]
        if greedy and self.choices is not None and self.choices.tokens:
            judgement = self._choices(self.choices)
            says = "at temperature 0 every token is the most probable one, near-ties aside"
            case = _case("choices", "temperature", "4.4", says, judgement)
            found.append(Finding(case, judgement, greedy[0].exchanges, 0.0))
        return tuple(found)

    def _choices(self, choices: Choices) -> Judgement:
        tokens, others, wrongly, repeated, margin, where = choices
        if any(group.explanation.kind.departs for group in self.groups if group.name in ("greedy", "empty", "ids")):
            return unclear(f"{others} of {tokens} greedy tokens are not the reference's, whose values are others, too")
        if wrongly:
            said = f"{wrongly} of {tokens} greedy tokens are neither the reference's nor near-ties: {where}"
            if repeated == wrongly:
                said += "; what was passed over had occurred before each time: consistent with a penalty on repetition"
            return wrong(said)
        if others:
            return honoured(f"{others} of {tokens} greedy tokens are near-ties, by margins up to {margin:.1e}")
        return honoured(f"all {tokens} greedy tokens are the reference's")

    def tables(self) -> tuple[Table, ...]:
        """What deviates and where most, and the hypotheses that came nearest; each is narrow enough for 80 columns."""
        if self.cannot is not None:
            return ()
        tables: list[Table] = [
            Table(
                "Log-probabilities against the reference, in nats",
                ("what", "values", "max", "mean", "top in common"),
                tuple(_row(group) for group in self.groups),
            ),
            Table(
                "Where they are off most",
                ("what", "at", "server", "reference"),
                tuple(_worst_row(group) for group in self.groups if group.worst is not None),
            ),
        ]
        for group in self.groups:
            if group.explanation.tried:
                rows = [
                    (
                        one.words,
                        f"{one.left.worst:.1e}",
                        f"{one.left.mean:.1e}",
                        "" if one.size is None else f"{one.size:.1e}",
                    )
                    for one in group.explanation.tried[:6]
                ]
                header = ("hypothesis", "max left", "mean left", "mean it would cause")
                tables.append(Table(f"{group.name}: the hypotheses that leave least", header, tuple(rows)))
        return tuple(tables)

    def lines(self) -> tuple[str, ...]:
        """The sentence, then what a reader should know of how it came about."""
        if self.cannot is not None:
            return (self.sentence, *self.notes)
        left_out = (
            f", {self.unresolved:,} of {self.listed:,} left out, as they could not be told" if self.unresolved else ""
        )
        scale = f"values are exact up to {ROUNDING:.0e} (float32); fewer bits are reported, not accused"
        return (self.sentence, f"labels read as {self.style}{left_out}", scale, *self.notes)

    def rows(self) -> tuple[tuple[str, ...], ...]:
        """The first table with its header, for whoever wants no more."""
        return next((header, *rows) for _, header, rows in self.tables()) if self.groups else ()

    def to_json(self) -> dict[str, Any]:
        return {
            "sentence": self.sentence,
            "cannot": self.cannot,
            "departs": self.departs,
            "rounding": ROUNDING,
            "labels": None if self.style is None else str(self.style),
            "listed": self.listed,
            "unresolved": self.unresolved,
            "groups": [group.json() for group in self.groups],
            "choices": None if self.choices is None else self.choices._asdict(),
            "notes": list(self.notes),
        }


def _row(group: TrialGroup) -> tuple[str, ...]:
    common = "" if group.overlap is None else f"{group.overlap:.1%}"
    return (group.name, f"{group.fit.values:,}", f"{group.fit.worst:.1e}", f"{group.fit.mean:.1e}", common)


def _worst_row(group: TrialGroup) -> tuple[str, ...]:
    worst = group.worst
    assert worst is not None
    at = f"{worst.trial}, place {worst.place}, {worst.token!r}"
    return (group.name, at, f"{worst.theirs:.6f}", f"{worst.ours:.6f}")


def _case(name: str, param: str, law: str, says: str, judgement: Judgement) -> Case:
    async def judged(probe: Probe) -> Judgement:
        return judgement

    judge: Judge = judged
    return Case(f"weights.{name}", param, law, says, judge)
