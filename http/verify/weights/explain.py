"""What explains that a server's log-probabilities are not the reference's: hypotheses, each tried on the same numbers.

    Variant     the model run otherwise: variants.py, precisions.py
    Reading     the logits read otherwise: readings.py
    Explainer   the first thing that leaves nothing but rounding; else what shrinks the deviation; else what is as large

A hypothesis is evidence, not proof: two causes may leave the same numbers. Of quantised weights neither the groups nor
the steps of a server are known here, so that often the size of the deviation is all that speaks; the words say so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from gnomon.http.verify.weights.precisions import FLOAT32, precisions
from gnomon.http.verify.weights.readings import LAW, Kind, VariantLogits, deviations, fit_of, overlap, readings
from gnomon.http.verify.weights.trial import ROUNDING, Fit, Trial
from gnomon.http.verify.weights.variants import PLAIN, Variant, prompt_variants
from gnomon.reference.arrays import F64
from gnomon.reference.engine import ReferenceEngine
from gnomon.reference.sampler import report
from gnomon.reference.tokenizer import Tokenizer
from gnomon.reference.transformer import hidden_states, unembed

CLEARLY = 0.2
"""A cause that can be computed exactly, such as a temperature, must leave at most this part of the mean deviation."""

PARTLY = 0.5
"""Rounded weights leave more: the server's arithmetic is rounded as well, in an order unknown here."""

AS_LARGE = 2.0
"""A deviation has the size of a rounding if it is within this factor of what that would cause by itself. On the
embedded model the means are 9e-4 to 3e-3 for float16, 8e-3 to 3e-2 for bfloat16, 2e-2 for 8 bits, 3e-1 for 4: what is
near two of them is said to be either."""

SUMS = 32.0
"""float32 is rounded within sums as well, and not only the result of each operation: servers in float32 were off by 4
to 17 times as much on the embedded model. Fewer bits are commonly summed in float32."""

LEANING = 0.6
"""Roundings go either way: if the mean of the deviations, with their signs, is more than this part of the mean of their
sizes, they are no rounding."""

UNLIKE = 0.5
"""Below this part of top tokens in common it is called another model. Rounding to 4 bits leaves 0.9 on the embedded
model."""


class Tried(NamedTuple):
    """A hypothesis with the deviation that it leaves. size: the mean deviation that it would cause by itself."""

    kind: Kind
    words: str
    left: Fit
    size: float | None = None
    family: str = ""


class Explanation(NamedTuple):
    kind: Kind
    words: str
    left: Fit
    tried: tuple[Tried, ...] = ()


class Attempt(NamedTuple):
    tried: Tried
    variant: Variant


class Known(NamedTuple):
    """What explained the trials that depend on least, and how far they were off."""

    explanation: Explanation
    variant: Variant
    fit: Fit


class Explainer:
    """Runs the variants, and keeps what comes of the plain one alone."""

    def __init__(self, engine: ReferenceEngine, tokenizer: Tokenizer, progress: Callable[[str], None]) -> None:
        self._engine, self._tokenizer, self._progress = engine, tokenizer, progress
        self._plain: dict[str, F64] = {}
        self._sizes: list[Tried] = []  # of every precision, on the first trials for which that was asked

    def logits(self, trial: Trial) -> F64:
        """Raw logits [T, V] after each token of prompt and sampled tokens."""
        if trial.name not in self._plain:
            self._plain[trial.name] = self._engine.all_logits([*trial.prompt, *trial.sampled])
        return self._plain[trial.name]

    def plain(self, trials: Sequence[Trial]) -> Fit:
        return Fit.of(np.concatenate([deviations(trial, self.logits(trial), 0, LAW) for trial in trials]))

    def explain(self, trials: Sequence[Trial], known: Known | None = None, grain: float = 0.0) -> Known:
        """known: of trials that depend on less; what explained them is tried first · grain: the values' last digit."""
        rounding, plain = ROUNDING + grain / 2, self.plain(trials)
        if plain.worst <= rounding:
            return Known(Explanation(Kind.rounding, _rounding(plain, grain), plain), PLAIN, plain)
        if known is not None and known.explanation.kind in (Kind.precision, Kind.model, Kind.unexplained):
            same = self._as_known(trials, known, plain)
            if same is not None:
                return same
        before = PLAIN if known is None else known.variant
        tried = [
            *self._try_readings(trials, PLAIN),
            *(self._try_readings(trials, before) if before is not PLAIN else []),
        ]
        found = _exact(tried, rounding, plain)
        if found is None:
            tried += self._try(trials, prompt_variants(trials, self._tokenizer, self._engine))
            found = _exact(tried, rounding, plain)
        if found is None:
            if known is None or not self._sizes:
                roundings = self._try(trials, precisions())
                self._sizes = self._sizes or [one for one, _ in roundings]
                tried += roundings
            found = _exact(tried, rounding, plain) or self._likely(tried, plain)
        in_order = tuple(sorted((one for one, _ in tried), key=lambda one: one.left.mean))
        if found is not None:
            best, variant = found
            return Known(Explanation(best.kind, best.words, best.left, in_order), variant, plain)
        return Known(self._by_size(trials, plain, in_order), PLAIN, plain)

    def _as_known(self, trials: Sequence[Trial], known: Known, plain: Fit) -> Known | None:
        """The same cause, if it explains these trials as well as those."""
        variant, explanation = known.variant, known.explanation
        if variant is PLAIN:
            if not known.fit.mean / AS_LARGE <= plain.mean <= known.fit.mean * AS_LARGE:
                return None
            return Known(explanation._replace(left=plain, tried=()), variant, plain)
        left = fit_of(trials, self._rows(trials, variant), LAW)
        if left.mean > plain.mean * PARTLY and left.worst > ROUNDING:
            return None
        return Known(explanation._replace(left=left, tried=()), variant, plain)

    def _try_readings(self, trials: Sequence[Trial], variant: Variant) -> list[Attempt]:
        rows = self._rows(trials, variant)
        attempts = []
        for reading in (LAW, *readings(trials, rows)):
            words = " and ".join(one.words for one in (variant, reading) if one is not PLAIN and one is not LAW)
            kind = variant.kind if reading is LAW else reading.kind
            if words:
                attempts.append(Attempt(Tried(kind, words, fit_of(trials, rows, reading)), variant))
        return attempts

    def _try(self, trials: Sequence[Trial], variants: Iterable[Variant]) -> list[Attempt]:
        attempts = []
        for variant in variants:
            if all(variant.prompt(trial) is None for trial in trials):
                continue
            self._progress(f"trying {variant.words}")
            rows = self._rows(trials, variant)
            size = None if variant.kind is not Kind.precision else self._size(trials, rows)
            attempts.append(
                Attempt(Tried(variant.kind, variant.words, fit_of(trials, rows, LAW), size, variant.family), variant)
            )
        return attempts

    def _rows(self, trials: Sequence[Trial], variant: Variant) -> list[VariantLogits]:
        if variant is PLAIN:
            return [VariantLogits(self.logits(trial), 0) for trial in trials]
        config = self._engine.config
        params = self._engine.params if variant.weights is None else variant.weights(self._engine.params)
        rows: list[VariantLogits] = []
        for trial in trials:
            prompt = variant.prompt(trial)
            if prompt is None:
                rows.append(VariantLogits(self.logits(trial), 0))
                continue
            states = hidden_states(config, params, [*prompt, *trial.sampled][: self._engine.context])
            if variant.rounds_logits:
                logits = unembed(config, params, states)
            else:
                logits = unembed(config, self._engine.params, np.array(states))
            rows.append(VariantLogits(np.array(logits), len(prompt) - len(trial.prompt)))
        return rows

    def _size(self, trials: Sequence[Trial], rows: Sequence[VariantLogits]) -> float:
        """How far the variant is from the reference itself, in the mean of the same values."""
        own: list[float] = []
        for trial, row in zip(trials, rows, strict=True):
            for place in trial.places:
                here, there = report(self.logits(trial)[place.row]), report(row.logits[place.row])
                own += [abs(here[v] - there[v]) for v in place.values]
        return float(np.mean(own))

    def _likely(self, tried: Sequence[Attempt], plain: Fit) -> Attempt | None:
        """What leaves clearly less; what it leaves may be of the size of a rounding."""
        clear = [
            attempt
            for attempt in tried
            if attempt.tried.left.values >= plain.values / 2
            and attempt.tried.left.mean <= plain.mean * (PARTLY if attempt.tried.kind is Kind.precision else CLEARLY)
        ]
        if not clear:
            return None
        best = min(clear, key=lambda attempt: attempt.tried.left.mean)
        rest = "" if best.tried.kind is Kind.precision else _sized(self._sizes, best.tried.left).words
        if rest:
            return best._replace(tried=best.tried._replace(words=f"{best.tried.words}, and {rest} besides"))
        return best

    def _by_size(self, trials: Sequence[Trial], plain: Fit, tried: tuple[Tried, ...]) -> Explanation:
        """What no cause that was tried leaves clearly less of."""
        common = overlap(trials, [self.logits(trial) for trial in trials], 0.0)
        sized = _sized(self._sizes, plain)
        if sized.families and (common is None or common >= UNLIKE):
            kind = Kind.rounding if sized.families == (FLOAT32,) else Kind.precision
            return Explanation(kind, f"{sized.words}, by its size alone", plain, tried)
        if common is not None and common < UNLIKE:
            words = f"another model or vocabulary: {common:.0%} of the most probable tokens in common"
            return Explanation(Kind.model, words, plain, tried)
        return Explanation(Kind.unexplained, "unexplained: none of the causes tried fits", plain, tried)


def _rounding(fit: Fit, grain: float) -> str:
    if fit.worst <= ROUNDING:
        return "float32 rounding"
    return f"float32 rounding and values that are written with {round(-math.log10(grain))} decimals"


def _exact(tried: Sequence[Attempt], rounding: float, plain: Fit) -> Attempt | None:
    """What leaves nothing but rounding, of enough values; the first of several within a factor of two."""
    enough = [attempt for attempt in tried if attempt.tried.left.values >= plain.values / 2]
    exact = [attempt for attempt in enough if attempt.tried.left.worst <= rounding]
    if not exact:
        return None
    best = min(attempt.tried.left.mean for attempt in exact)
    return next(attempt for attempt in exact if attempt.tried.left.mean <= 2 * best)


class Sized(NamedTuple):
    families: tuple[str, ...]
    words: str


def _sized(sizes: Sequence[Tried], off: Fit) -> Sized:
    """What deviations of this size may be; nothing, if nothing that was tried causes such ones."""
    near: dict[str, list[float]] = {}
    for family in dict.fromkeys(one.family for one in sizes):
        of_it = [one.size for one in sizes if one.family == family and one.size]
        most = SUMS if family == FLOAT32 else AS_LARGE
        if of_it and min(of_it) / AS_LARGE <= off.mean <= max(of_it) * most:
            near[family] = of_it
    if not near or abs(off.lean) > LEANING * off.mean:
        return Sized((), "")
    expected = [size for of_it in near.values() for size in of_it]
    words = f"{' or '.join(near)} (which would be off by {min(expected):.1e} to {max(expected):.1e} in the mean)"
    return Sized(tuple(near), words)
