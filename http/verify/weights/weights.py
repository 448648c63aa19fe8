"""`gnomon verify URL --reference`: the reference computes the server's own answers again, on the same checkpoint.

    1 ask       a handful of prompts, greedy, with log-probabilities; some echoed; one at another temperature, one with
                a bias, one with penalties; each small, all within the run's budget
    2 read      labels become ids (labels.py); what stays ambiguous is left out and counted
    3 compare   teacher-forced: the reference evaluates the prompt and the tokens that the *server* sampled, so that one
                other choice moves no later place; each reported number is held against its own
    4 explain   what deviates is tried on hypotheses (explain.py), and the best is said with what it leaves

Rounding of any kind is no departure from the law: float32's is `honoured`, fewer bits and quantised weights `unclear`,
with what they come to. Processed values, shifted places, prompts encoded otherwise, another model and what nothing
explains are `wrong`, worded as what they are consistent with. A greedy token that is not the reference's is excused
where the reference's margin is within twice the deviation seen at that place (LAW.md, section 4: either logit may be
off).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from gnomon.http.verify.ask.exchange import Exchange, OutOfBudget
from gnomon.http.verify.ask.probe import Answer, Broken, Probe, Refused, Subject
from gnomon.http.verify.report import report as reports
from gnomon.http.verify.report.report import MakeSection, Section
from gnomon.http.verify.verdict import Case, Finding, Judge, Outcome, honoured, unclear, wrong
from gnomon.http.verify.weights.explain import (
    LAW,
    ROUNDING,
    Explainer,
    Explanation,
    Fit,
    Kind,
    Known,
    Place,
    Trial,
    deviations,
    overlap,
)
from gnomon.http.verify.weights.labels import Names, Style, places_of, trace_ids
from gnomon.http.verify.weights.labels import Place as Reported
from gnomon.reference.completion import end_ids
from gnomon.reference.engine import ReferenceEngine
from gnomon.reference.errors import InvalidRequest
from gnomon.reference.prompt import encode_prompt
from gnomon.reference.sampler import report
from gnomon.reference.tokenizer import Tokenizer

Progress = Callable[[str], None]
Table = tuple[str, tuple[str, ...], tuple[tuple[str, ...], ...]]
"""Title, header, rows."""

TOKENS = 16
COUNTS = (20, 5, 1)
"""How many log-probabilities are asked for a place: what this API's servers mostly take, what OpenAI's takes, any."""

STORY = "Once upon a time there was a little"
FOREIGN = "Zoë and François drank tea. 界"
DIGITS = "1, 2, 3, 4, 5, 6,"
LOOP = "the cat and the cat and the cat and the"

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
class Group:
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

    def outcome(self) -> Outcome:
        kind = self.explanation.kind
        make = wrong if kind.departs else honoured if kind is Kind.rounding else unclear
        return make(self.reason(), **self.json())


@dataclass(frozen=True, slots=True)
class Comparison:
    """cannot: why nothing could be compared; None if something was · notes: what was refused or left out, by line"""

    groups: tuple[Group, ...] = ()
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
        by_words: dict[str, list[Group]] = {}
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
        return any(finding.outcome.verdict.is_finding for finding in self.findings())

    def findings(self) -> tuple[Finding, ...]:
        """One a sentence of the law that was compared, fit for a report."""
        if self.cannot is not None:
            case = _case("greedy", "logprobs", "4.1", SAYS["greedy"], unclear(self.sentence))
            return (Finding(case, unclear(self.sentence), self.exchanges, 0.0),)
        found = []
        for group in self.groups:
            outcome = group.outcome()
            case = _case(group.name, *PARAMS[group.name], SAYS[group.name], outcome)
            found.append(Finding(case, outcome, group.exchanges, group.seconds))
        greedy = [group for group in self.groups if group.name in ("greedy", "empty", "ids")]
        if greedy and self.choices is not None and self.choices.tokens:
            outcome = self._choices(self.choices)
            says = "at temperature 0 every token is the most probable one, near-ties aside"
            case = _case("choices", "temperature", "4.4", says, outcome)
            found.append(Finding(case, outcome, greedy[0].exchanges, 0.0))
        return tuple(found)

    def _choices(self, choices: Choices) -> Outcome:
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
            (
                "Log-probabilities against the reference, in nats",
                ("what", "values", "max", "mean", "top in common"),
                tuple(_row(group) for group in self.groups),
            ),
            (
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
                tables.append((f"{group.name}: the hypotheses that leave least", header, tuple(rows)))
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


def _row(group: Group) -> tuple[str, ...]:
    common = "" if group.overlap is None else f"{group.overlap:.1%}"
    return (group.name, f"{group.fit.values:,}", f"{group.fit.worst:.1e}", f"{group.fit.mean:.1e}", common)


def _worst_row(group: Group) -> tuple[str, ...]:
    worst = group.worst
    assert worst is not None
    at = f"{worst.trial}, place {worst.place}, {worst.token!r}"
    return (group.name, at, f"{worst.theirs:.6f}", f"{worst.ours:.6f}")


def _case(name: str, param: str, law: str, says: str, outcome: Outcome) -> Case:
    async def judged(probe: Probe) -> Outcome:
        return outcome

    judge: Judge = judged
    return Case(f"weights.{name}", param, law, says, judge)


# ---- asking


class Question(NamedTuple):
    group: str
    name: str
    prompt: str | tuple[int, ...]
    fields: Mapping[str, Any]
    echo: bool = False


@dataclass(slots=True)
class Asked:
    """A question with its answer."""

    question: Question
    answer: Answer
    places: list[Reported]
    exchange: Exchange
    prompt: tuple[int, ...]


@dataclass(slots=True)
class Hearing:
    """What has come of asking so far."""

    asked: list[Asked] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    without: list[Exchange] = field(default_factory=list)  # sound answers that had no log-probabilities


async def compare(
    subject: Subject, reference: ReferenceEngine, tokenizer: Tokenizer, progress: Progress = lambda line: None
) -> Comparison:
    """Raises CannotReach. reference, tokenizer: of the checkpoint that the server is said to serve."""
    probe = Probe(subject)
    hearing = Hearing()
    count = await _count(probe, hearing)
    if count is None:
        return Comparison(cannot=hearing.notes[-1], exchanges=tuple(probe.exchanges))
    for question in await asyncio.to_thread(_questions, reference, tokenizer):
        progress(f"asking: {question.name}")
        if not await _ask(probe, question, count, reference, tokenizer, hearing):
            break
    if not hearing.asked:
        reasons = "the answers have no log-probabilities" if hearing.without else "; ".join(hearing.notes)
        return Comparison(cannot=reasons or "nothing was answered", exchanges=tuple(probe.exchanges))
    return await asyncio.to_thread(_judge, hearing, count, reference, tokenizer, progress)


async def _count(probe: Probe, hearing: Hearing) -> int | None:
    """The most log-probabilities a place, of those of COUNTS, that the server takes."""
    reason = ""
    for count in COUNTS:
        try:
            answer = await probe.complete(prompt=STORY, logprobs=count)
        except Refused as refused:
            reason = f"logprobs {count} is refused: {refused}"
            continue
        except Broken as broken:
            reason = broken.reason
            continue
        except OutOfBudget:
            reason = "the budget of tokens is spent"
            break
        if places_of(answer.choices[0]):
            return count
        reason = "the server gives no log-probabilities"
    hearing.notes.append(reason)
    return None


def _questions(reference: ReferenceEngine, tokenizer: Tokenizer) -> list[Question]:
    story = tokenizer.encode(STORY).ids
    likely = np.argsort(-reference.last_logits(story), kind="stable")[:4]
    bias = {str(v): b for v, b in zip(likely.tolist(), (-1.5, 2.0, 1.0, -2.0), strict=False)}
    return [
        Question("greedy", "a story", STORY, {}),
        Question("greedy", "letters beyond ASCII", FOREIGN, {}),
        Question("greedy", "digits", DIGITS, {}),
        Question("empty", "an empty prompt", "", {}),
        Question("ids", "a prompt of ids", tuple(story[::-1]), {}),
        Question("echo", "the story echoed", STORY, {}, echo=True),
        Question("echo", "letters beyond ASCII echoed", FOREIGN, {}, echo=True),
        Question("echo", "digits echoed", DIGITS, {}, echo=True),
        Question("temperature", "at temperature 0.5", STORY, {"temperature": 0.5, "seed": 1}),
        Question("bias", "with a bias", STORY, {"logit_bias": bias}),
        Question("penalties", "with penalties", LOOP, {"frequency_penalty": 0.75, "presence_penalty": 0.5}),
    ]


async def _ask(
    probe: Probe, question: Question, count: int, reference: ReferenceEngine, tokenizer: Tokenizer, hearing: Hearing
) -> bool:
    """Whether to go on asking."""
    try:
        prompt = encode_prompt(question.prompt, reference, tokenizer).ids
    except InvalidRequest as error:
        hearing.notes.append(f"{question.name}: not asked, as the reference refuses it: {error}")
        return True
    tokens = min(1 if question.echo else TOKENS, reference.context - len(prompt))
    if tokens < 1:
        hearing.notes.append(f"{question.name}: not asked, as the reference's context has no room for it")
        return True
    sent = question.prompt if isinstance(question.prompt, str) else list(question.prompt)
    fields = {**question.fields, **({"echo": True} if question.echo else {})}
    try:
        answer = await probe.complete(prompt=sent, max_tokens=tokens, logprobs=count, **fields)
    except Refused as refused:
        hearing.notes.append(f"{question.name}: refused: {refused}")
    except Broken as broken:
        hearing.notes.append(f"{question.name}: {broken.reason}")
    except OutOfBudget:
        hearing.notes.append("the budget of tokens is spent")
        return False
    else:
        places = places_of(answer.choices[0])
        if not places:
            hearing.without.append(answer.exchange)
            hearing.notes.append(f"{question.name}: no log-probabilities")
        else:
            hearing.asked.append(Asked(question, answer, places, answer.exchange, prompt))
    return True


# ---- reading


class Read(NamedTuple):
    trials: dict[str, list[tuple[Trial, Asked]]]  # by group
    style: Style
    listed: int
    unresolved: int
    grain: float


def _read(hearing: Hearing, count: int, names: Names, reference: ReferenceEngine) -> Read:
    plain = [(asked.places, asked.answer.text) for asked in hearing.asked if not asked.question.echo]
    style = names.style(plain or [(asked.places, "") for asked in hearing.asked])
    trials: dict[str, list[tuple[Trial, Asked]]] = {}
    listed = unresolved = 0
    longest = max(len(place.top) for asked in hearing.asked for place in asked.places)
    most = min(count, longest, reference.vocab_size)  # a sampled token may be listed beside so many
    for asked in hearing.asked:
        name = asked.question.name
        ids = _ids(asked, names, style, end_ids(reference, names.tokenizer))
        if ids is None:
            hearing.notes.append(f"{name}: the prompt is not echoed with its log-probabilities")
            continue
        prompt, sampled, echoed, first = ids
        known = next((i for i, v in enumerate(sampled) if v is None), len(sampled))
        if known < len(sampled):
            label = asked.places[first + known].token.label
            hearing.notes.append(f"{name}: left out from token {known} on, of which {label!r:.40} does not say the id")
        places: list[Place] = []
        sequence = (*prompt, *(v for v in sampled[:known] if v is not None))
        # of an echo the first token has no number, and those after the prompt are what the other trials are about
        for at in range(1, first) if first else range(known):
            place = asked.places[at]
            position = at if first else len(prompt) + at
            token = sequence[position]
            top = {}
            for one in place.top:
                v = token if one.label == place.token.label and one.id is None else names.one(one, style)
                listed += 1
                if v is None or one.value is None:
                    unresolved += 1
                elif v not in top:
                    top[v] = one.value
            step = None if first else at
            places.append(Place(position - 1, token, place.token.label, place.token.value, top, most, step))
        if not places:
            continue
        fields = asked.question.fields
        billed = asked.answer.prompt_tokens
        trial = Trial(
            name,
            asked.question.prompt if isinstance(asked.question.prompt, str) else None,
            prompt,
            sequence[len(prompt) :],
            tuple(places),
            float(fields.get("temperature", 0)),
            {int(v): bias for v, bias in fields.get("logit_bias", {}).items()} or None,
            float(fields.get("frequency_penalty", 0)),
            float(fields.get("presence_penalty", 0)),
            billed if isinstance(billed, int) else None,
            echoed,
        )
        trials.setdefault(asked.question.group, []).append((trial, asked))
    values = [
        lp for some in trials.values() for trial, _ in some for place in trial.places for lp in place.values.values()
    ]
    return Read(trials, style, listed, unresolved, grain(values))


class Ids(NamedTuple):
    prompt: tuple[int, ...]
    sampled: tuple[int | None, ...]
    echoed: tuple[int, ...] | None
    first: int  # places of the prompt that come first


def _ids(asked: Asked, names: Names, style: Style, ends: frozenset[int]) -> Ids | None:
    """The ids behind an answer's places. None for an echo that is none, or is not known to be of which ids."""
    text = asked.answer.text
    if not asked.question.echo:
        return Ids(asked.prompt, trace_ids(names, asked.places, text, style, ends), None, 0)
    assert isinstance(asked.question.prompt, str)
    spelled = asked.question.prompt
    if not text.lstrip().startswith(spelled.lstrip()) or len(asked.places) < 2:
        return None
    m = len(asked.prompt)
    if len(asked.places) in (m, m + 1) and _may_be(asked.places[:m], asked.prompt, names, style):
        return Ids(asked.prompt, (), None, m)
    for sampled in (1, 0):
        theirs = trace_ids(names, asked.places[: len(asked.places) - sampled], spelled, style, frozenset())
        ids = tuple(v for v in theirs if v is not None)
        if len(ids) == len(theirs):
            return Ids(ids, (), ids, len(ids))
    return None


def _may_be(places: Sequence[Reported], ids: Sequence[int], names: Names, style: Style) -> bool:
    """Whether labels that name one id name these; others, such as bytes of unfinished characters, may be any."""
    told = [(names.one(place.token, style), v) for place, v in zip(places, ids, strict=True)]
    fragment = {v for v in ids if names.is_fragment(v)}
    return all(one is None or one == v or v in fragment for one, v in told)


def grain(values: Sequence[float]) -> float:
    """The last digit in which the values are written, if they are rounded to a few decimals; else 0."""
    for decimals in range(1, 6):
        if len(values) > 8 and all(abs(lp - round(lp, decimals)) < 1e-9 for lp in values):
            return 10.0**-decimals
    return 0.0


# ---- judging


def _judge(
    hearing: Hearing, count: int, reference: ReferenceEngine, tokenizer: Tokenizer, progress: Progress
) -> Comparison:
    names = Names(tokenizer)
    read = _read(hearing, count, names, reference)
    exchanges = tuple(asked.exchange for asked in hearing.asked)
    if not read.trials:
        reason = "no token of the server's answers could be given an id of the reference's tokenizer"
        return Comparison(cannot=reason, style=read.style, notes=tuple(hearing.notes), exchanges=exchanges)
    explainer = Explainer(reference, tokenizer, progress)
    groups: list[Group] = []
    choices = Choices()
    known: Known | None = None
    for name, some in read.trials.items():
        progress(f"comparing: {name}")
        trials = [_with_echo(trial, read) for trial, _ in some]
        found = _explain(explainer, trials, known, read.grain)
        if name == "greedy":
            known = found
        if name in ("greedy", "empty", "ids"):
            for trial in trials:
                choices = choices.plus(_greedy(trial, explainer, tokenizer))
        groups.append(_group(name, trials, [asked for _, asked in some], found.explanation, explainer, tokenizer))
    return Comparison(
        tuple(groups), choices, None, read.style, read.listed, read.unresolved, tuple(hearing.notes), exchanges
    )


def _with_echo(trial: Trial, read: Read) -> Trial:
    """The trial with the ids of its prompt as the server's own echo has them, where those are others."""
    echoed = next((one.echoed for one, _ in read.trials.get("echo", []) if one.text == trial.text), None)
    if echoed is None or trial.text is None or trial.echoed is not None:
        return trial
    return replace(trial, echoed=echoed)


def _explain(explainer: Explainer, trials: Sequence[Trial], known: Known | None, grain: float) -> Known:
    """Trials that are as the reference's are no evidence of what happens to the others."""
    off = [trial for trial in trials if explainer.plain([trial]).worst > ROUNDING + grain / 2]
    return explainer.explain(off or trials, known, grain)


def _group(
    name: str,
    trials: Sequence[Trial],
    asked: Sequence[Asked],
    explanation: Explanation,
    explainer: Explainer,
    tokenizer: Tokenizer,
) -> Group:
    rows = [explainer.logits(trial) for trial in trials]
    billed = [
        f"the prompt of “{trial.name}” is billed as {trial.prompt_tokens} tokens, and has {len(one.prompt)} here"
        for trial, one in zip(trials, asked, strict=True)
        if trial.prompt_tokens not in (None, len(one.prompt))
    ]
    fit = explainer.plain(trials)
    error = explanation.left.worst if not explanation.kind.departs else 0.0
    return Group(
        name,
        tuple(trial.name for trial in trials),
        fit,
        explanation,
        overlap(trials, rows, error),
        _worst(trials, explainer, tokenizer),
        billed[0] if billed else "",
        tuple(one.exchange for one in asked),
        math.fsum(one.exchange.seconds for one in asked),
    )


def _worst(trials: Sequence[Trial], explainer: Explainer, tokenizer: Tokenizer) -> Worst | None:
    worst: Worst | None = None
    for trial in trials:
        logits = explainer.logits(trial)
        for number, place in enumerate(trial.places):
            logprobs = report(logits[place.row])
            for v, theirs in place.values.items():
                ours = float(logprobs[v])
                if worst is None or abs(theirs - ours) > abs(worst.theirs - worst.ours):
                    worst = Worst(trial.name, number, tokenizer.labels[v], theirs, ours)
    return worst


def _greedy(trial: Trial, explainer: Explainer, tokenizer: Tokenizer) -> Choices:
    """The sampled tokens of one greedy trial against the reference's, given the same tokens before."""
    logits = explainer.logits(trial)
    total = Choices()
    for place in trial.places:
        if place.step is None:
            continue
        row = logits[place.row]
        best = int(np.argmax(row))
        margin = float(row[best] - row[place.token])
        if margin == 0:
            total = total.plus(Choices(1))
            continue
        off = deviations(replace(trial, places=(place,)), logits, 0, LAW)
        excused = margin <= 2 * max(float(off.max()) if len(off) else 0.0, ROUNDING)
        where = (
            f"{tokenizer.labels[place.token]!r:.40} at token {place.step} of “{trial.name}”, where the reference has "
        )
        where += f"{tokenizer.labels[best]!r:.40} by a margin of {margin:.2g}"
        repeated = not excused and best in (*trial.prompt, *trial.sampled[: place.step])
        total = total.plus(Choices(1, 1, int(not excused), int(repeated), margin, "" if excused else where))
    return total


def compared_with(reference: ReferenceEngine, tokenizer: Tokenizer) -> MakeSection:
    """A section of the report, for `--reference`."""

    async def make(subject: Subject) -> Section:
        comparison = await compare(subject, reference, tokenizer)
        tables = tuple(reports.Table(*table) for table in comparison.tables())
        return Section("With the weights", comparison.findings(), tables, comparison.lines())

    return make
