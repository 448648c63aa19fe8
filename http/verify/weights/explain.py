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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from gnomon.reference.arrays import F64
from gnomon.reference.engine import ReferenceEngine
from gnomon.reference.sampler import add_bias, penalize, report
from gnomon.reference.tokenizer import Tokenizer
from gnomon.reference.transformer import hidden_states, unembed

ROUNDING = 1e-4
"""What float32 may come to, in nats: of 50,680 log-probabilities that the float32 engine computed for the embedded
model the worst was off by 7.8e-5 (jax_engine/MEASURED.md). A deeper model may exceed it: `float32 arithmetic` is
tried."""

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

FLOAT32 = "float32 arithmetic"

UNLIKE = 0.5
"""Below this part of top tokens in common it is called another model. Rounding to 4 bits leaves 0.9 on the embedded
model."""


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
    """The largest and the mean size of the deviations of so many values, in nats; lean: their mean with signs."""

    worst: float
    mean: float
    values: int
    lean: float = 0.0

    @classmethod
    def of(cls, off: F64) -> Fit:
        if not len(off):
            return cls(0.0, 0.0, 0)
        return cls(float(abs(off).max()), float(abs(off).mean()), len(off), float(off.mean()))


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
    family: str = ""  # what a deviation of this size may be, in words


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


class Rows(NamedTuple):
    """Logits [T, V] under a variant; longer: by how many tokens its prompt is longer than the trial's."""

    logits: F64
    longer: int


LAW = Reading()
PLAIN = Variant()


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
        left = _fit(trials, self._rows(trials, variant), LAW)
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
                attempts.append(Attempt(Tried(kind, words, _fit(trials, rows, reading)), variant))
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
                Attempt(Tried(variant.kind, variant.words, _fit(trials, rows, LAW), size, variant.family), variant)
            )
        return attempts

    def _rows(self, trials: Sequence[Trial], variant: Variant) -> list[Rows]:
        if variant is PLAIN:
            return [Rows(self.logits(trial), 0) for trial in trials]
        config = self._engine.config
        params = self._engine.params if variant.weights is None else variant.weights(self._engine.params)
        rows: list[Rows] = []
        for trial in trials:
            prompt = variant.prompt(trial)
            if prompt is None:
                rows.append(Rows(self.logits(trial), 0))
                continue
            states = hidden_states(config, params, [*prompt, *trial.sampled][: self._engine.context])
            if variant.rounds_logits:
                logits = unembed(config, params, states)
            else:
                logits = unembed(config, self._engine.params, np.array(states))
            rows.append(Rows(np.array(logits), len(prompt) - len(trial.prompt)))
        return rows

    def _size(self, trials: Sequence[Trial], rows: Sequence[Rows]) -> float:
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


# ---- reading logits otherwise


def readings(trials: Sequence[Trial], rows: Sequence[Rows]) -> Iterator[Reading]:
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


def fitted_temperature(trials: Sequence[Trial], rows: Sequence[Rows]) -> float | None:
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


def _fit(trials: Sequence[Trial], rows: Sequence[Rows], reading: Reading) -> Fit:
    return Fit.of(np.concatenate([deviations(trial, *row, reading) for trial, row in zip(trials, rows, strict=True)]))


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
    yield Variant(Kind.precision, FLOAT32, weights=_arithmetic(np.float32), family=FLOAT32)
    for name, dtype in (("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)):
        rounding = partial(Variant, Kind.precision, family=name)
        yield rounding(f"weights rounded to {name}", weights=_each(_cast(dtype)))
        yield rounding(f"{name} arithmetic", weights=_arithmetic(dtype), rounds_logits=False)
        yield rounding(f"{name} arithmetic, the logits' too", weights=_arithmetic(dtype))
    words = "the layers' matrices in 8-bit floats (E4M3), scaled by rows"
    yield Variant(Kind.precision, words, weights=_each(_float8, whole=False), family="8-bit floats")
    for bits in (8, 6, 5, 4):
        schemes: tuple[tuple[str, int | None, bool], ...] = (
            (f"all matrices quantised to {bits} bits in groups of 32", 32, True),
            (f"the layers' matrices quantised to {bits} bits in groups of 128", 128, False),
            (f"the layers' matrices quantised to {bits} bits by rows", None, False),
        )
        for words, group, whole in schemes if bits in (8, 4) else schemes[:1]:
            weights = _quantised(bits, group, whole)
            yield Variant(Kind.precision, words, weights=weights, family=f"weights quantised to {bits} bits")


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


def _float8(array: F64) -> F64:
    if array.ndim != 2:
        return array
    step = np.abs(array).max(axis=-1, keepdims=True) / 448  # its largest number
    step = np.where(step == 0, 1.0, step)
    return (array / step).astype(ml_dtypes.float8_e4m3fn).astype(np.float64) * step


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
