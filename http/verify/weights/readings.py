"""The logits read otherwise: a temperature, bias or penalties inside, another place, renormalised."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import NamedTuple

import numpy as np

from gnomon.http.verify.weights.trial import ComparedPlace, Fit, Trial
from gnomon.reference.arrays import F64
from gnomon.reference.sampler import add_bias, penalize, report


class Kind(StrEnum):
    """rounding: float32's · precision: fewer bits, reported, no departure from the law · the others depart from it"""

    rounding = "rounding"
    precision = "precision"
    prompt = "prompt"
    processed = "processed"
    shifted = "shifted"
    model = "model"
    unexplained = "unexplained"

    @property
    def departs(self) -> bool:
        return self not in (Kind.rounding, Kind.precision)


class Reading(NamedTuple):
    """How reported values may come from logits; the defaults are the law."""

    kind: Kind = Kind.rounding
    words: str = "nothing but rounding"
    temperature: float | None = None  # inside
    bias: bool = False
    penalties: bool = False
    counts_prompt: bool = False
    shift: int = 0  # places by which the logits are others
    lists_apart: bool = False  # shifted: the value is that of the token there, not of this token there
    renormalized: bool = False  # over the listed tokens


LAW = Reading()


class VariantLogits(NamedTuple):
    """Logits [T, V] under a variant; longer: by how many tokens its prompt is longer than the trial's."""

    logits: F64
    longer: int


def readings(trials: Sequence[Trial], rows: Sequence[VariantLogits]) -> Iterator[Reading]:
    """The readings that can differ from the law's on these trials."""
    temperature = fitted_temperature(trials, rows)
    asked = {trial.temperature for trial in trials} - {0.0, 1.0}
    has_bias, has_penalties = (
        any(trial.bias for trial in trials),
        any(trial.frequency_penalty or trial.presence_penalty for trial in trials),
    )
    for bias in (False, True)[: 1 + has_bias]:
        for penalties, counts_prompt in ((False, False), (True, False), (True, True))[: 1 + 2 * has_penalties]:
            for inside in (None, *asked):
                parts = [
                    *(["the bias"] if bias else []),
                    *(
                        ["the penalties, the prompt counted," if counts_prompt else "the penalties"]
                        if penalties
                        else []
                    ),
                    *([f"the temperature of {inside:g}"] if inside is not None else []),
                ]
                if parts:
                    words = f"{' and '.join(parts)} inside the values"
                    yield Reading(Kind.processed, words, inside, bias, penalties, counts_prompt)
    for shift in (-1, 1):
        where = "before" if shift < 0 else "after"
        yield Reading(Kind.shifted, f"the values of the place {where}", shift=shift)
        words = f"the values of the place {where}, with its token's"
        yield Reading(Kind.shifted, words, shift=shift, lists_apart=True)
    yield Reading(Kind.processed, "values made to add up to 1 over the listed tokens", renormalized=True)
    if temperature is not None and temperature not in asked:
        words = f"a temperature of {temperature:.3g} inside the values, which was not asked for"
        yield Reading(Kind.processed, words, temperature)


def fitted_temperature(trials: Sequence[Trial], rows: Sequence[VariantLogits]) -> float | None:
    """The temperature at which differences between a place's values fit best; None where it is about 1."""
    both = own = 0.0
    for trial, row in zip(trials, rows, strict=True):
        logits, longer = row
        for place in trial.places:
            at = place.row + longer
            values = place.values
            if len(values) > 1 and 0 <= at < len(logits):
                theirs = np.array(list(values.values()))
                mine = logits[at, list(values)]
                theirs, mine = theirs - theirs.mean(), mine - mine.mean()
                both += float(theirs @ mine)
                own += float(mine @ mine)
    if both <= 0 or own <= 0:
        return None
    temperature = own / both
    rounded = round(temperature, 2)
    temperature = rounded if abs(rounded / temperature - 1) < 1e-3 else temperature
    return temperature if 0.05 < temperature < 20 and abs(temperature - 1) > 0.01 else None


def deviations(trial: Trial, logits: F64, longer: int, reading: Reading) -> F64:
    """What every value is above what the reading gives. longer: by how many tokens the prompt of `logits` is longer
    than the trial's."""
    off: list[float] = []
    for place in trial.places:
        at = place.row + longer + reading.shift
        if not 0 <= at < len(logits) or (longer < 0 and place.step is None and place.row + longer < 0):
            continue
        values = place.values
        if reading.lists_apart and place.value is not None:
            other = _token_after(trial, place.row + reading.shift)
            if other is None:
                continue
            values = {v: lp for v, lp in place.top.items() if v != place.token or v == other} | {other: place.value}
        if not values:
            continue
        logprobs = _read(trial, logits[at], place, reading)
        off += [lp - logprobs[v] for v, lp in values.items()]
    return np.array(off, np.float64)


def _token_after(trial: Trial, row: int) -> int | None:
    sequence = (*trial.prompt, *trial.sampled)
    return sequence[row + 1] if 0 <= row + 1 < len(sequence) else None


def _read(trial: Trial, logits: F64, place: ComparedPlace, reading: Reading) -> F64:
    z = logits
    if place.step is not None:
        if reading.bias:
            z = add_bias(z, trial.bias)
        if reading.penalties:
            counted = trial.sampled[: place.step]
            counted = (*trial.prompt, *counted) if reading.counts_prompt else counted
            counts = np.bincount(np.array(counted, np.int64), minlength=len(z))
            z = penalize(z, counts, trial.frequency_penalty, trial.presence_penalty)
    if reading.temperature is not None:
        z = z / reading.temperature
    logprobs = report(z)
    if reading.renormalized and place.top:
        logprobs = logprobs - math.log(np.exp(logprobs[list(place.top)]).sum())
    return logprobs


def fit_of(trials: Sequence[Trial], rows: Sequence[VariantLogits], reading: Reading) -> Fit:
    return Fit.of(np.concatenate([deviations(trial, *row, reading) for trial, row in zip(trials, rows, strict=True)]))


def overlap(trials: Sequence[Trial], logits: Sequence[F64], error: float) -> float | None:
    """The part of the listed tokens that are among as many of the reference's; near-ties (within twice `error` of the
    last one) are. None where nothing is listed."""
    shared = listed = 0
    for trial, rows in zip(trials, logits, strict=True):
        for place in trial.places:
            if not place.top or place.row >= len(rows):
                continue
            most = sorted(place.top, key=place.top.__getitem__, reverse=True)[: place.listed]
            row = rows[place.row]
            last = np.partition(row, len(row) - place.listed)[len(row) - place.listed]
            shared += int(sum(row[v] >= last - 2 * error for v in most))
            listed += len(most)
    return shared / listed if listed else None
