"""What explains that a server's log-probabilities are not the reference's: hypotheses, each tried on the same numbers.

    Trial       one request, as ids: what was asked, what was sampled, and every number that was reported
    Variant     the model run otherwise: another prompt, weights or arithmetic of fewer bits
    Reading     the logits read otherwise: a temperature, bias or penalties inside, another place, renormalised
    Explainer   the first thing that leaves nothing but rounding; else what shrinks the deviation; else what is as large

A hypothesis is evidence, not proof: two causes may leave the same numbers. Of quantised weights neither the groups nor
the steps of a server are known here, so that often the size of the deviation is all that speaks; the words say so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from gnomon.reference.engine import ReferenceEngine
from gnomon.reference.sampler import add_bias, penalize, report
from gnomon.reference.tokenizer import Tokenizer
from gnomon.reference.transformer import hidden_states, unembed

F64 = NDArray[np.float64]

ROUNDING = 1e-4
"""What float32 may come to, in nats: of 50,680 log-probabilities that the float32 engine computed for the embedded
model the worst was off by 7.8e-5 (jax_engine/MEASURED.md). A deeper model may exceed it: `float32 arithmetic` is
tried."""

CLEARLY = 0.2
"""A cause that can be computed exactly, such as a temperature, must leave at most this part of the mean deviation."""

PARTLY = 0.5
"""Rounded weights leave more: the server's arithmetic is rounded as well, in an order unknown here."""

AS_LARGE = 3.0
"""A deviation of unknown order has the size of a rounding if their means differ by no more than this factor. float16 to
bfloat16 to 4 bits are factors of 8 and more apart."""

UNLIKE = 0.5
"""Below this part of top tokens in common it is called another model; rounding to 4 bits left more in every model
tried."""


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


@dataclass(frozen=True, slots=True)
class Place:
    """What was reported of one token. row: of the logits that it is drawn from, those after sequence[: row + 1] · top:
    what is listed, by id · listed: how long rankings are on this server · step: tokens sampled before it; None: it is
    the prompt's"""

    row: int
    token: int
    label: str
    value: float | None
    top: Mapping[int, float]
    listed: int
    step: int | None

    @property
    def values(self) -> dict[int, float]:
        return dict(self.top) if self.value is None else {**self.top, self.token: self.value}


@dataclass(frozen=True, slots=True)
class Trial:
    """text: the prompt, if it was a string · prompt: as the reference encodes it · echoed: as the server's echo shows
    it, where that can be read and is another."""

    name: str
    text: str | None
    prompt: tuple[int, ...]
    sampled: tuple[int, ...]
    places: tuple[Place, ...]
    temperature: float = 0.0
    bias: Mapping[int, float] | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    prompt_tokens: int | None = None  # as billed
    echoed: tuple[int, ...] | None = None


class Fit(NamedTuple):
    """The largest and the mean deviation of so many values, in nats."""

    worst: float
    mean: float
    values: int

    @classmethod
    def of(cls, off: F64) -> Fit:
        return cls(float(off.max()), float(off.mean()), len(off)) if len(off) else cls(0.0, 0.0, 0)


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


class Variant(NamedTuple):
    """How the model may have been run; the defaults are the law. prompt: None where it does not apply to a trial."""

    kind: Kind = Kind.rounding
    words: str = "nothing but rounding"
    prompt: Callable[[Trial], tuple[int, ...] | None] = lambda trial: trial.prompt
    weights: Callable[[Any], Any] | None = None
    rounds_logits: bool = True  # where the weights are such that every product with them is rounded


class Tried(NamedTuple):
    """A hypothesis with the deviation that it leaves. size: the mean deviation that it would cause by itself."""

    kind: Kind
    words: str
    left: Fit
    size: float | None = None


class Explanation(NamedTuple):
    kind: Kind
    words: str
    left: Fit
    tried: tuple[Tried, ...] = ()


LAW = Reading()
PLAIN = Variant()


class Explainer:
    """Runs the variants, each trial once a variant, and keeps what came of it only for the plain one."""

    def __init__(self, engine: ReferenceEngine, tokenizer: Tokenizer, progress: Callable[[str], None]) -> None:
        self._engine, self._tokenizer, self._progress = engine, tokenizer, progress
        self._plain: dict[str, F64] = {}

    def logits(self, trial: Trial) -> F64:
        """Raw logits [T, V] after each token of prompt and sampled tokens."""
        if trial.name not in self._plain:
            self._plain[trial.name] = self._engine.all_logits([*trial.prompt, *trial.sampled])
        return self._plain[trial.name]

    def plain(self, trials: Sequence[Trial]) -> Fit:
        return Fit.of(np.concatenate([deviations(trial, self.logits(trial), 0, LAW) for trial in trials]))

    def explain(
        self, trials: Sequence[Trial], before: Variant = PLAIN, grain: float = 0.0
    ) -> tuple[Explanation, Variant]:
        """before: what explained trials that depend on less · grain: the values' own last digit. The variant is that of
        the explanation, for trials that depend on more."""
        rounding = ROUNDING + grain / 2
        plain = self.plain(trials)
        if plain.worst <= rounding:
            return Explanation(Kind.rounding, _rounding(plain, grain), plain), PLAIN
        tried: list[tuple[Tried, Variant]] = []
        for variant in dict.fromkeys((PLAIN, before)):
            rows = self._rows(trials, variant)
            for reading in (LAW, *readings(trials, rows)):
                if variant is PLAIN and reading is LAW:
                    continue
                words = " and ".join(one.words for one in (variant, reading) if one not in (PLAIN, LAW))
                kind = reading.kind if reading is not LAW else variant.kind
                tried.append((Tried(kind, words, _fit(trials, rows, reading)), variant))
        found = _exact(tried, rounding, plain)
        if found is None:
            for variant in prompt_variants(trials, self._tokenizer, self._engine):
                if variant is not before:
                    rows = self._rows(trials, variant)
                    tried.append((Tried(variant.kind, variant.words, _fit(trials, rows, LAW)), variant))
            found = _exact(tried, rounding, plain)
        if found is None:
            for variant in precisions():
                self._progress(f"trying {variant.words}")
                rows = self._rows(trials, variant)
                size = self._size(trials, rows)
                tried.append((Tried(variant.kind, variant.words, _fit(trials, rows, LAW), size), variant))
            found = _exact(tried, rounding, plain) or self._likely(trials, tried, plain)
        in_order = tuple(sorted((one for one, _ in tried), key=lambda one: one.left.mean))
        if found is None:
            return self._last(trials, plain, in_order), PLAIN
        best, variant = found
        return Explanation(best.kind, best.words, best.left, in_order), variant

    def _rows(self, trials: Sequence[Trial], variant: Variant) -> list[tuple[F64, int] | None]:
        """For each trial the logits under the variant, and by how much longer its prompt is."""
        if variant is PLAIN:
            return [(self.logits(trial), 0) for trial in trials]
        params = self._engine.params if variant.weights is None else variant.weights(self._engine.params)
        rows: list[tuple[F64, int] | None] = []
        for trial in trials:
            prompt = variant.prompt(trial)
            if prompt is None:
                rows.append((self.logits(trial), 0))
                continue
            sequence = [*prompt, *trial.sampled][: self._engine.context]
            states = hidden_states(self._engine.config, params, sequence)
            if variant.rounds_logits:
                logits = unembed(self._engine.config, params, states)
            else:
                logits = unembed(self._engine.config, self._engine.params, np.array(states))
            rows.append((np.array(logits), len(prompt) - len(trial.prompt)))
        return rows

    def _size(self, trials: Sequence[Trial], rows: Sequence[tuple[F64, int] | None]) -> float:
        """How far the variant is from the reference itself, on the same values."""
        own = []
        for trial, row in zip(trials, rows, strict=True):
            assert row is not None
            here, there = report(self.logits(trial)), report(row[0])
            own += [abs(here[place.row, v] - there[place.row, v]) for place in trial.places for v in place.values]
        return float(np.mean(own))

    def _likely(
        self, trials: Sequence[Trial], tried: Sequence[tuple[Tried, Variant]], plain: Fit
    ) -> tuple[Tried, Variant] | None:
        """What leaves clearly less; what it leaves may be of the size of a rounding."""
        clear = [
            (one, variant)
            for one, variant in tried
            if one.left.values >= plain.values / 2
            and one.left.mean <= plain.mean * (PARTLY if one.kind is Kind.precision else CLEARLY)
        ]
        if clear:
            best, variant = min(clear, key=lambda pair: pair[0].left.mean)
            if best.kind is Kind.precision:
                share = f"it leaves {best.left.mean / plain.mean:.0%} of the mean deviation"
                return best._replace(words=f"{best.words} ({share})"), variant
            rest = _nearest(tried, best.left.mean)
            more = f", the rest of the size of {rest[0].words}" if rest is not None else ""
            return best._replace(words=f"{best.words}{more}"), variant
        near = _nearest(tried, plain.mean)
        if near is None:
            return None
        words = f"{near[0].words}, by its size alone (a mean deviation of {near[0].size:.1e} expected)"
        return near[0]._replace(words=words, left=plain), PLAIN

    def _last(self, trials: Sequence[Trial], plain: Fit, tried: tuple[Tried, ...]) -> Explanation:
        common = overlap(trials, [self.logits(trial) for trial in trials], 0.0)
        if common is not None and common < UNLIKE:
            words = f"another model or vocabulary: {common:.0%} of the most probable tokens in common"
            return Explanation(Kind.model, words, plain, tried)
        return Explanation(Kind.unexplained, "none of the causes tried", plain, tried)


def _rounding(fit: Fit, grain: float) -> str:
    if fit.worst <= ROUNDING:
        return "float32 rounding"
    return f"float32 rounding and values that are written with {round(-math.log10(grain))} decimals"


def _exact(tried: Sequence[tuple[Tried, Variant]], rounding: float, plain: Fit) -> tuple[Tried, Variant] | None:
    """What leaves nothing but rounding, of enough values; the first of several within a factor of two."""
    exact = [pair for pair in tried if pair[0].left.worst <= rounding and pair[0].left.values >= plain.values / 2]
    if not exact:
        return None
    best = min(one.left.mean for one, _ in exact)
    return next(pair for pair in exact if pair[0].left.mean <= 2 * best)


def _nearest(tried: Sequence[tuple[Tried, Variant]], mean: float) -> tuple[Tried, Variant] | None:
    """The precision whose roundings are as large, if there is one."""
    sized = [(one, variant) for one, variant in tried if one.size is not None and one.size > 0]
    if not sized or mean == 0:
        return None

    def apart(pair: tuple[Tried, Variant]) -> float:
        return abs(math.log(mean / pair[0].size)) if pair[0].size else math.inf

    best = min(sized, key=apart)
    return best if apart(best) <= math.log(AS_LARGE) else None


# ---- reading logits otherwise


def readings(trials: Sequence[Trial], rows: Sequence[tuple[F64, int] | None]) -> Iterator[Reading]:
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


def fitted_temperature(trials: Sequence[Trial], rows: Sequence[tuple[F64, int] | None]) -> float | None:
    """The temperature at which differences between a place's values fit best; None where it is about 1."""
    both = own = 0.0
    for trial, row in zip(trials, rows, strict=True):
        if row is None:
            continue
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
    """How far every value is from what the reading gives. longer: by how many tokens the prompt of `logits` is longer
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
        off += [abs(logprobs[v] - lp) for v, lp in values.items()]
    return np.array(off, np.float64)


def _token_after(trial: Trial, row: int) -> int | None:
    sequence = (*trial.prompt, *trial.sampled)
    return sequence[row + 1] if 0 <= row + 1 < len(sequence) else None


def _read(trial: Trial, logits: F64, place: Place, reading: Reading) -> F64:
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


def _fit(trials: Sequence[Trial], rows: Sequence[tuple[F64, int] | None], reading: Reading) -> Fit:
    off = [
        deviations(trial, row[0], row[1], reading) for trial, row in zip(trials, rows, strict=True) if row is not None
    ]
    return Fit.of(np.concatenate(off)) if off else Fit(0.0, 0.0, 0)


# ---- running the model otherwise


def prompt_variants(trials: Sequence[Trial], tokenizer: Tokenizer, engine: ReferenceEngine) -> Iterator[Variant]:
    """Other ways to put the prompts into ids, each for the trials on which it makes a difference."""
    marks = dict.fromkeys(
        v
        for v in (tokenizer.bos_id, engine.config.bos_token_id, tokenizer.end_of_text_id, *sorted(engine.eos_ids))
        if v is not None and 0 <= v < engine.vocab_size
    )
    for v in marks:
        name = tokenizer.special.get(v, tokenizer.labels[v])
        yield _encoded(f"{name} (id {v}) before the prompt", partial(_begun_with, v))
        yield _encoded(f"{name} (id {v}) for an empty prompt", partial(_standing_for_nothing, v))
    yield _encoded(
        "the prompt without the token that begins a document",
        lambda trial: trial.prompt[1:] if len(trial.prompt) > 1 and trial.prompt[0] in marks else trial.prompt,
    )
    yield _encoded("the prompt as its echo shows it", lambda trial: trial.echoed or trial.prompt)

    def head(trial: Trial) -> tuple[int, ...]:
        return () if tokenizer.bos_id is None else (tokenizer.bos_id,)

    ways: tuple[tuple[str, Callable[[str], Sequence[int]]], ...] = (
        ("special tokens' literals as text", lambda text: tokenizer.encode_literal(text).ids),
        ("no space put before the prompt", lambda text: tokenizer.encode_following(text).ids),
        ("a space put before the prompt", lambda text: tokenizer.encode_literal(" " + text).ids),
        ("the prompt without spaces around it", lambda text: tokenizer.encode_literal(text.strip()).ids),
        ("the prompt cut into single bytes", lambda text: _single_bytes(tokenizer, text)),
    )
    for words, encode in ways:

        def prompt(trial: Trial, encode: Callable[[str], Sequence[int]] = encode) -> tuple[int, ...]:
            return (*head(trial), *encode(trial.text)) if trial.text else trial.prompt

        yield _encoded(words, prompt)


def _begun_with(v: int, trial: Trial) -> tuple[int, ...]:
    return (v, *trial.prompt)


def _standing_for_nothing(v: int, trial: Trial) -> tuple[int, ...]:
    return (v,) if trial.text == "" else trial.prompt


def _single_bytes(tokenizer: Tokenizer, text: str) -> list[int]:
    alone = {data: v for v, data in reversed(list(enumerate(tokenizer.token_bytes))) if len(data) == 1}
    ids = [alone.get(bytes([byte])) for byte in text.encode()]
    return [v for v in ids if v is not None] if None not in ids else []


def _encoded(words: str, prompt: Callable[[Trial], tuple[int, ...]]) -> Variant:
    def changed(trial: Trial) -> tuple[int, ...] | None:
        ids = prompt(trial)
        return None if not ids or ids == trial.prompt else ids

    return Variant(Kind.prompt, f"a prompt encoded otherwise: {words}", changed)


def precisions() -> Iterator[Variant]:
    """Weights and arithmetic of fewer bits, the finest first."""
    for name, dtype in (("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)):
        yield Variant(Kind.precision, f"weights rounded to {name}", weights=_each(_cast(dtype)))
    yield Variant(Kind.precision, "float32 arithmetic", weights=_arithmetic(np.float32))
    for name, dtype in (("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)):
        weights = _arithmetic(dtype)
        yield Variant(Kind.precision, f"{name} arithmetic", weights=weights, rounds_logits=False)
        yield Variant(Kind.precision, f"{name} arithmetic, the logits' too", weights=weights)
    for bits in (8, 4):
        for words, group, whole in (
            (f"all matrices quantised to {bits} bits in groups of 32", 32, True),
            (f"the layers' matrices quantised to {bits} bits in groups of 128", 128, False),
            (f"the layers' matrices quantised to {bits} bits by rows", None, False),
        ):
            estimate = f"{words} (an estimate: how a server quantises is its own)"
            yield Variant(Kind.precision, estimate, weights=_quantised(bits, group, whole))


def _each(change: Callable[[F64], F64], whole: bool = True) -> Callable[[Any], Any]:
    """Changes every array, or with `whole` false those of the layers, nested as they are."""

    def changed(tree: Any, name: str = "") -> Any:
        if isinstance(tree, Mapping):
            return {key: changed(node, str(key)) for key, node in tree.items()}
        if isinstance(tree, list | tuple):
            return [changed(node, name) for node in tree]
        return change(tree) if whole or name not in ("embed_tokens", "lm_head", "embed_positions") else tree

    return changed


def _cast(dtype: Any) -> Callable[[F64], F64]:
    return lambda array: array.astype(dtype).astype(np.float64)


def _quantised(bits: int, group: int | None, whole: bool) -> Callable[[Any], Any]:
    """Matrices in symmetric steps, each group of a row with a step of its own; vectors stay."""
    most = 2 ** (bits - 1) - 1

    def change(array: F64) -> F64:
        if array.ndim != 2:
            return array
        size = group if group is not None and array.shape[1] % group == 0 else array.shape[1]
        grouped = array.reshape(len(array), -1, size)
        step = np.abs(grouped).max(axis=-1, keepdims=True) / most
        step = np.where(step == 0, 1.0, step)
        return (np.round(grouped / step) * step).reshape(array.shape)

    return _each(change, whole)


def _arithmetic(dtype: Any) -> Callable[[Any], Any]:
    """Weights under which the model computes in `dtype`: every operation on them gives a rounded result."""

    class Rounded(np.ndarray[Any, np.dtype[np.float64]]):
        """An array of float64 of which whatever is computed is rounded."""

        def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
            options.pop("out", None)
            return rounded(getattr(ufunc, method)(*map(bare, inputs), **options))

        def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
            return rounded(function(*map(bare, args), **{name: bare(value) for name, value in options.items()}))

    def bare(value: Any) -> Any:
        if isinstance(value, Rounded):
            return value.view(np.ndarray)
        return type(value)(map(bare, value)) if isinstance(value, list | tuple) else value

    def rounded(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(map(rounded, value))
        if isinstance(value, np.ndarray | np.floating) and value.dtype == np.float64:
            return np.asarray(value).astype(dtype).astype(np.float64).view(Rounded)
        return value

    return _each(rounded)


# ---- rankings


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
