"""`gnomon verify URL --reference`: the reference computes the server's own answers again, on the same checkpoint.

    1 ask       a handful of small prompts (questions.py)
    2 read      labels become ids (resolved.py)
    3 compare   teacher-forced: the reference evaluates the prompt and the tokens that the *server* sampled, so that one
                other choice moves no later place; each reported number is held against its own
    4 explain   what deviates is tried on hypotheses (explain.py), and the best is said with what it leaves

A greedy token that is not the reference's is excused where the reference's margin is within twice the deviation seen at
that place (LAW.md, section 4: either logit may be off).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from gnomon.http.verify.ask.probe import Probe, Subject
from gnomon.http.verify.report.report import MakeSection, Section
from gnomon.http.verify.weights.comparison import Choices, Comparison, TrialGroup, Worst
from gnomon.http.verify.weights.explain import Explainer, Explanation, Known
from gnomon.http.verify.weights.labels import TokenNames
from gnomon.http.verify.weights.questions import Answered, AnswersSoFar, ask, most_logprobs, questions
from gnomon.http.verify.weights.readings import LAW, deviations, overlap
from gnomon.http.verify.weights.resolved import ResolvedTrials, resolve
from gnomon.http.verify.weights.trial import ROUNDING, Trial
from gnomon.reference.engine import ReferenceEngine
from gnomon.reference.sampler import report
from gnomon.reference.tokenizer import Tokenizer

OnStep = Callable[[str], None]


async def compare_weights(
    subject: Subject, reference: ReferenceEngine, tokenizer: Tokenizer, progress: OnStep = lambda line: None
) -> Comparison:
    """Raises CannotReach. reference, tokenizer: of the checkpoint that the server is said to serve."""
    probe = Probe(subject)
    answers = AnswersSoFar()
    count = await most_logprobs(probe, answers)
    if count is None:
        return Comparison(cannot=answers.notes[-1], exchanges=tuple(probe.exchanges))
    for question in await asyncio.to_thread(questions, reference, tokenizer):
        progress(f"asking: {question.name}")
        if not await ask(probe, question, count, reference, tokenizer, answers):
            break
    if not answers.asked:
        reasons = "the answers have no log-probabilities" if answers.without else "; ".join(answers.notes)
        return Comparison(cannot=reasons or "nothing was answered", exchanges=tuple(probe.exchanges))
    return await asyncio.to_thread(_judge, answers, count, reference, tokenizer, progress)


def _judge(
    answers: AnswersSoFar, count: int, reference: ReferenceEngine, tokenizer: Tokenizer, progress: OnStep
) -> Comparison:
    names = TokenNames(tokenizer)
    read = resolve(answers, count, names, reference)
    exchanges = tuple(asked.exchange for asked in answers.asked)
    if not read.trials:
        reason = "no token of the server's answers could be given an id of the reference's tokenizer"
        return Comparison(cannot=reason, style=read.style, notes=tuple(answers.notes), exchanges=exchanges)
    explainer = Explainer(reference, tokenizer, progress)
    groups: list[TrialGroup] = []
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
        tuple(groups), choices, None, read.style, read.listed, read.unresolved, tuple(answers.notes), exchanges
    )


def _with_echo(trial: Trial, read: ResolvedTrials) -> Trial:
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
    asked: Sequence[Answered],
    explanation: Explanation,
    explainer: Explainer,
    tokenizer: Tokenizer,
) -> TrialGroup:
    rows = [explainer.logits(trial) for trial in trials]
    billed = [
        f"the prompt of “{trial.name}” is billed as {trial.prompt_tokens} tokens, and has {len(one.prompt)} here"
        for trial, one in zip(trials, asked, strict=True)
        if trial.prompt_tokens not in (None, len(one.prompt))
    ]
    fit = explainer.plain(trials)
    error = explanation.left.worst if not explanation.kind.departs else 0.0
    return TrialGroup(
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
        comparison = await compare_weights(subject, reference, tokenizer)
        return Section("With the weights", comparison.findings(), comparison.tables(), comparison.lines())

    return make
