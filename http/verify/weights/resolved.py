"""From answers to trials: labels become ids (labels.py); what stays ambiguous is left out and counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from gnomon.http.verify.weights.labels import LabelledPlace, Style, TokenNames, trace_ids
from gnomon.http.verify.weights.questions import Answered, AnswersSoFar
from gnomon.http.verify.weights.trial import ComparedPlace, Trial
from gnomon.reference.completion import end_ids
from gnomon.reference.engine import ReferenceEngine


class ResolvedTrials(NamedTuple):
    trials: dict[str, list[tuple[Trial, Answered]]]  # by group
    style: Style
    listed: int
    unresolved: int
    grain: float


def resolve(answers: AnswersSoFar, count: int, names: TokenNames, reference: ReferenceEngine) -> ResolvedTrials:
    plain = [(asked.places, asked.answer.text) for asked in answers.asked if not asked.question.echo]
    style = names.style(plain or [(asked.places, "") for asked in answers.asked])
    trials: dict[str, list[tuple[Trial, Answered]]] = {}
    listed = unresolved = 0
    longest = max(len(place.top) for asked in answers.asked for place in asked.places)
    most = min(count, longest, reference.vocab_size)  # a sampled token may be listed beside so many
    for asked in answers.asked:
        name = asked.question.name
        ids = _ids(asked, names, style, end_ids(reference, names.tokenizer))
        if ids is None:
            answers.notes.append(f"{name}: the prompt is not echoed with its log-probabilities")
            continue
        prompt, sampled, echoed, first = ids
        known = next((i for i, v in enumerate(sampled) if v is None), len(sampled))
        if known < len(sampled):
            label = asked.places[first + known].token.label
            answers.notes.append(f"{name}: left out from token {known} on, of which {label!r:.40} does not say the id")
        places: list[ComparedPlace] = []
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
            places.append(ComparedPlace(position - 1, token, place.token.label, place.token.value, top, most, step))
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
    return ResolvedTrials(trials, style, listed, unresolved, grain(values))


class TracedIds(NamedTuple):
    prompt: tuple[int, ...]
    sampled: tuple[int | None, ...]
    echoed: tuple[int, ...] | None
    first: int  # places of the prompt that come first


def _ids(asked: Answered, names: TokenNames, style: Style, ends: frozenset[int]) -> TracedIds | None:
    """The ids behind an answer's places. None for an echo that is none, or is not known to be of which ids."""
    text = asked.answer.text
    if not asked.question.echo:
        return TracedIds(asked.prompt, trace_ids(names, asked.places, text, style, ends), None, 0)
    assert isinstance(asked.question.prompt, str)
    spelled = asked.question.prompt
    if not text.lstrip().startswith(spelled.lstrip()) or len(asked.places) < 2:
        return None
    m = len(asked.prompt)
    if len(asked.places) in (m, m + 1) and _may_be(asked.places[:m], asked.prompt, names, style):
        return TracedIds(asked.prompt, (), None, m)
    for sampled in (1, 0):
        theirs = trace_ids(names, asked.places[: len(asked.places) - sampled], spelled, style, frozenset())
        ids = tuple(v for v in theirs if v is not None)
        if len(ids) == len(theirs):
            return TracedIds(ids, (), ids, len(ids))
    return None


def _may_be(places: Sequence[LabelledPlace], ids: Sequence[int], names: TokenNames, style: Style) -> bool:
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
