"""The sampler in JAX: reference/sampler.py, function by function, over a batch of rows [B, V] in float32.

    1 report · 2 add_bias · 3 penalize · 4 greedy · 5 temper · 6 nucleus · 7 gumbel, draw

What differs, and why it is the same law:
- every parameter is an array [B], so that one compiled program serves any mixture of requests;
- bias and counts are dense [B, V] arrays that live on the device;
- nothing is sorted, which of 8 × 49,152 numbers would cost more than all the rest: the nucleus ends at a value, found
  digit by digit from sums, and at an id, found from counts; a place in a ranking is the number of those before it;
- on a GPU all stages are computed for every row, and masked: a loop or a branch that depends on what it has computed
  makes the host wait for it. So the program has neither, and few kernels. On a CPU a stage that no row asks for is
  skipped;
- a row never reads another row, so its result cannot depend on its neighbours.
This is the draw by XLA; kernels/cpu/draw.h is the native one, in which a row costs what it asks for.

`temperature == 0` and `top_p == 1` are decided on the request's own numbers, so they come as flags.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from gnomon.reference.prng import threefry2x32

LOWEST_TEMPERATURE = 2.0**-100  # the law lets a float32 engine raise a temperature to this
TOP = 20  # rankings are always this long on the device; the host cuts them


class _Form(NamedTuple):
    """What the platform decides of the program; of what it means, nothing."""

    digit: int  # bits of a boundary that one round finds, by 2^digit − 1 sums
    runs: int  # at most so many runs,
    candidates: int  # and so many ids, are counted against each other: that takes their number squared
    argmax: bool  # XLA's own
    branches: bool  # around stages that no row may ask for


_CPU = _Form(digit=1, runs=256, candidates=320, argmax=False, branches=True)  # pays for every sum and comparison
_GPU = _Form(digit=8, runs=1280, candidates=2560, argmax=True, branches=False)  # pays for every kernel


def _form() -> _Form:
    return _CPU if jax.default_backend() == "cpu" else _GPU


class Rows(NamedTuple):
    """The sampling parameters of every row, [B] each; NumPy's on the host, jax's inside a program."""

    temperature: Any  # float32
    top_p: Any  # float32
    frequency_penalty: Any  # float32
    presence_penalty: Any  # float32
    is_greedy: Any  # bool: the request's temperature is 0
    is_nucleus: Any  # bool: the request's top_p is below 1, and it is not greedy
    is_biased: Any  # bool: the request has a logit_bias; where it has none, the row's bias is zeros
    seed_high: Any  # uint32: the seed mod 2⁶⁴, upper half
    seed_low: Any  # uint32
    candidate: Any  # uint32
    step: Any  # uint32


class Reported(NamedTuple):
    """What is reported of one id in every row; arrays as in Rows."""

    logprob: Any  # [B] float32: the id's raw log-probability
    top_ids: Any  # [B, TOP] int32, in the order (−logit, id)
    top_logprobs: Any  # [B, TOP] float32
    finite: Any  # [B] bool: all raw logits of the row are finite


class Sampled(NamedTuple):
    """What one step gives for every row: a token, and its report."""

    token: Any  # [B] int32
    logprob: Any
    top_ids: Any
    top_logprobs: Any
    finite: Any


def report(logits: Array) -> Array:
    """1. Log-probabilities in nats of the raw logits, [B, V] → [B, V]."""
    below = logits - logits.max(axis=-1, keepdims=True)
    return below - jnp.log(jnp.exp(below).sum(axis=-1, keepdims=True))


def add_bias(logits: Array, bias: Array) -> Array:
    """2. bias [B, V], zero where a request named no id."""
    return logits + bias


def penalize(z: Array, counts: Array, frequency_penalty: Array, presence_penalty: Array) -> Array:
    """3. counts [B, V] int32: how often each id occurs among the tokens that the row's candidate has sampled so far."""
    z = z - frequency_penalty[:, None] * counts
    return z - presence_penalty[:, None] * (counts > 0)


def greedy(z: Array) -> Array:
    """4. The largest z; the lowest id on a tie, [B, V] → [B]."""
    return _first_largest(z)


def temper(z: Array, temperature: Array) -> Array:
    """5. Scaled distances from the maximum: 0 at every maximum, negative or −∞ elsewhere."""
    distance = z - z.max(axis=-1, keepdims=True)
    return jnp.where(distance == 0, 0.0, distance / jnp.maximum(temperature, LOWEST_TEMPERATURE)[:, None])


def nucleus(z: Array, s: Array, top_p: Array, is_nucleus: Array) -> Array:
    """6. Which ids may be drawn, [B, V] of bool: all of them in rows that are not `is_nucleus`.

    In the order (−z, id) an id is kept if the mass before it is below top_p. With above(t) the mass of all z > t, the
    boundary is the smallest value b among the z with above(b) < top_p: larger z are kept, smaller ones are not, and of
    those equal to b the first ones by id: that with r equal ones before it if above(b) + r·q is below top_p, q being
    the mass of one, or if r is 0.
    """
    e = jnp.exp(s)
    q = e / e.sum(axis=-1, keepdims=True)
    keys = _sortable(z)
    boundary, mass_above = _boundary(keys, q, top_p)
    boundary = jnp.minimum(boundary, _sortable(z.max(axis=-1)))[:, None]  # where top_p is 0, no mass is below it
    is_tied = keys == boundary
    mass_of_one = jnp.where(is_tied, q, 0.0).max(axis=-1, keepdims=True)

    def is_kept(ties_before: Array) -> Array:
        return (ties_before == 0) | (mass_above[:, None] + ties_before * mass_of_one < top_p[:, None])

    ids = jnp.arange(z.shape[-1], dtype=jnp.int32)
    kept = (keys > boundary) | (is_tied & (ids <= _last_kept(is_tied, is_kept)[:, None]))
    return kept | ~is_nucleus[:, None]


def _boundary(keys: Array, q: Array, top_p: Array) -> tuple[Array, Array]:
    """The smallest t [B] with a mass above it below top_p, and that mass; all ones and 0 if there is none. keys [B, V]
    of uint32; the mass above t is the sum of q over all keys > t.

    t is found digit by digit, the highest first. With the lower digits all ones, the right digit is the smallest above
    which the mass is below top_p, so it is the number of those above which it is not: the mass never grows with t, in
    floating point either, where a sum leaves out more of the same numbers in the same order. Hence all that is compared
    with top_p, and the mass that is returned, are values of one and the same sum.
    """
    digit = _form().digit
    t, mass = jnp.zeros_like(top_p, jnp.uint32), jnp.zeros_like(top_p)
    for shift in reversed(range(0, 32, digit)):
        tried = t[:, None] + np.uint32(2**shift) * np.arange(1, 2**digit, dtype=np.uint32) - np.uint32(1)
        above = jnp.where(keys[:, :, None] > tried[:, None, :], q[:, :, None], 0.0).sum(axis=1)
        is_below = above < top_p[:, None]
        t = t + ((~is_below).sum(axis=-1, dtype=jnp.uint32) << shift)
        mass = jnp.maximum(mass, jnp.where(is_below, above, 0.0).max(axis=-1))
    return t, mass


def _last_kept(is_tied: Array, is_kept: Callable[[Array], Array]) -> Array:
    """The id of the last tie that is kept, or some number above all ids if all are, [B, V] → [B]. is_kept: of numbers
    of ties [B, n], whether a tie with so many before it is kept; if not, none with more is, in floating point either.

    The run of ids that it is in is the first after which no further tie would be kept; its place there is found alike.
    """
    runs = _in_runs(is_tied, False)
    run, before = _passed(runs.sum(axis=-1, dtype=jnp.int32), is_kept)
    inside = runs[jnp.arange(len(runs)), jnp.minimum(run, runs.shape[1] - 1)]
    place, _ = _passed(inside.astype(jnp.int32), lambda ties: is_kept(before[:, None] + ties))
    return run * runs.shape[-1] + place


def _passed(counts: Array, is_kept: Callable[[Array], Array]) -> tuple[Array, Array]:
    """counts [B, C] of ties → [B], [B]: after how many of the counts a further tie would be kept, and how many ties
    are in those."""
    places = jnp.arange(counts.shape[-1], dtype=jnp.int32)
    ties = jnp.where(places <= places[:, None], counts[:, None, :], 0).sum(axis=-1)  # up to there
    kept = is_kept(ties)
    return kept.sum(axis=-1, dtype=jnp.int32), jnp.where(kept, ties, 0).max(axis=-1)


def _in_runs(x: Array, padding: Any) -> Array:
    """Runs of neighbours, [B, C] → [B, runs, width], at most as many as the form allows; the last is padded."""
    width = 1 << ((x.shape[-1] - 1) // _form().runs).bit_length()
    padded = jnp.pad(x, ((0, 0), (0, -x.shape[-1] % width)), constant_values=padding)
    return padded.reshape(len(x), -1, width)


def ranked_ids(logits: Array) -> Array:
    """The ids of the TOP largest logits in the order (−logit, id), [B, V] → [B, TOP].

    While they are too many to be counted against each other, they are cut into runs of neighbours, and only the first
    TOP runs in the order (−largest, first id) stay. None of the first TOP is lost: before a run that goes there are TOP
    others, and of each the largest is before all of this run, being larger, or as large with a lower id, since the ids
    of one run are all below those of the other.
    """
    values, ids = logits, jnp.broadcast_to(jnp.arange(logits.shape[-1], dtype=jnp.int32), logits.shape)
    while values.shape[-1] > _form().candidates:
        runs = _in_runs(values, -jnp.inf)
        width = runs.shape[-1]
        first_ids = _first(runs.max(axis=-1), ids[:, ::width], TOP)[:, :, None]
        ids = (first_ids + jnp.arange(width, dtype=jnp.int32)).reshape(len(values), -1)
        values = jnp.take_along_axis(logits, ids, axis=-1, mode="fill", fill_value=-jnp.inf)  # beyond V
    ranked = _first(values, ids, min(TOP, logits.shape[-1]))
    return jnp.minimum(ranked, logits.shape[-1] - 1)  # NaN is nowhere in the order, and padding may take its place


def _first(values: Array, ids: Array, count: int) -> Array:
    """The first ids in the order (−value, id), [B, C] → [B, count]: an id's place is the number of those before it."""
    value, other = values[:, :, None], values[:, None, :]
    is_before = (other > value) | ((other == value) & (ids[:, None, :] < ids[:, :, None]))
    places = is_before.sum(axis=-1, dtype=jnp.int32)
    is_at = places[:, None, :] == jnp.arange(count, dtype=jnp.int32)[:, None]
    return jnp.where(is_at, ids[:, None, :], 0).max(axis=-1)


def _one_zero(z: Array) -> Array:
    """−0 becomes +0, which its bits tell apart. Adding 0.0 would do it too, but XLA removes that."""
    return jnp.where(z == 0, 0.0, z)


def _sortable(z: Array) -> Array:
    """uint32 keys ≥ 1 in the order of z; −0 and +0 are equal."""
    bits = lax.bitcast_convert_type(_one_zero(z), jnp.uint32)
    return jnp.where(bits >= jnp.uint32(2**31), ~bits, bits | jnp.uint32(2**31))


def gumbel(x0: Array, x1: Array) -> Array:
    """Standard Gumbel noise in float32 from 64 random bits each; the formula and its reasons are the reference's."""
    high = x0 >= jnp.uint32(2**31)
    w0, w1 = jnp.where(high, ~x0, x0).astype(jnp.float32), jnp.where(high, ~x1, x1).astype(jnp.float32)
    w = w0 * 2.0**-32 + (w1 + 0.5) * 2.0**-64
    return -jnp.log(jnp.where(high, -jnp.log(w), -jnp.log1p(-w)))


def noise(rows: Rows, vocab_size: int) -> Array:
    """Every row's Gumbel noise for its step, [B, V]: the words of prng.token_words, for a batch."""
    key = threefry2x32((rows.seed_high, rows.seed_low), (rows.candidate, rows.step))
    ids = jnp.arange(vocab_size, dtype=jnp.uint32)[None, :]
    return gumbel(*threefry2x32((key[0][:, None], key[1][:, None]), (ids, jnp.zeros_like(ids))))


def draw(s: Array, g: Array, kept: Array) -> Array:
    """7. Gumbel-max over the kept ids; the lowest id on a tie, [B, V] → [B]."""
    return _first_largest(jnp.where(kept, s + g, -jnp.inf))


def _first_largest(x: Array) -> Array:
    """The index of the largest of every row, the first one on a tie, [B, V] → [B].

    For rows without NaN a maximum and a comparison come to the same as an argmax. On a CPU they halve the time of the
    whole draw: XLA makes vector instructions of them, and none of an argmax. On a GPU an argmax is half the kernels.
    """
    if _form().argmax:
        return jnp.argmax(x, axis=-1).astype(jnp.int32)
    ids = jnp.arange(x.shape[-1], dtype=jnp.int32)
    first = jnp.where(x == x.max(axis=-1, keepdims=True), ids, x.shape[-1]).min(axis=-1)
    return jnp.minimum(first, x.shape[-1] - 1)


def _where_any(asks: Array, stage: Callable[[], Array], otherwise: Array) -> Array:
    """What a stage gives, which is `otherwise` in rows that do not ask for it, asks [B]: where branches cost nothing it
    is left out if none does."""
    return lax.cond(asks.any(), stage, lambda: otherwise) if _form().branches else stage()


def report_ids(logits: Array, ids: Array, live: Array) -> Reported:
    """What is reported of one id a row, ids [B]. logits [B, V] float32, raw. Of rows that are not live [B] anything."""
    logprobs = report(logits)
    top_ids = ranked_ids(logits)
    return Reported(
        jnp.take_along_axis(logprobs, ids[:, None], axis=-1)[:, 0],
        top_ids,
        jnp.take_along_axis(logprobs, top_ids, axis=-1),
        jnp.isfinite(logits).all(axis=-1),
    )


def sample(logits: Array, bias: Array, counts: Array, rows: Rows, live: Array) -> Sampled:
    """One token for every row, and what is reported with it. logits [B, V] float32, raw. Rows that are not live [B] get
    some id and ask for no stage."""
    is_greedy, is_nucleus = rows.is_greedy | ~live, rows.is_nucleus & live
    with jax.named_scope("adjust"):
        z = penalize(add_bias(logits, bias), counts, rows.frequency_penalty, rows.presence_penalty)
        most_likely = greedy(z)

    def drawn() -> Array:
        s, everything = temper(z, rows.temperature), jnp.ones_like(z, bool)
        kept = _where_any(is_nucleus, lambda: nucleus(z, s, rows.top_p, is_nucleus), everything)
        return jnp.where(is_greedy, most_likely, draw(s, noise(rows, z.shape[-1]), kept))

    with jax.named_scope("draw"):
        token = _where_any(~is_greedy, drawn, most_likely)
    with jax.named_scope("report"):
        return Sampled(token, *report_ids(logits, token, live))
