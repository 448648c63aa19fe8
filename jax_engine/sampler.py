"""The sampler in JAX: reference/sampler.py, function by function, over a batch of rows [B, V] in float32.

    1 report · 2 add_bias · 3 penalize · 4 greedy · 5 temper · 6 nucleus · 7 gumbel, draw

What differs, and why it is the same law:
- every parameter is an array [B], so that one compiled program serves any mixture of requests;
- bias and counts are dense [B, V] arrays that live on the device;
- the nucleus is found by bisection on the boundary's value, not by a sort (on a CPU a sort of 8 × 49,152 costs a
  hundred times the rest), and ties at the boundary are settled by id, as a stable sort would;
- a row never reads another row, so its result cannot depend on its neighbours; stages that no row needs are skipped.
This is the draw by XLA; kernels/cpu/draw.h is the native one, in which a row costs what it asks for.

`temperature == 0` and `top_p == 1` are decided on the request's own numbers, so they come as flags.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from gnomon.reference.prng import threefry2x32

LOWEST_TEMPERATURE = 2.0**-100  # the law lets a float32 engine raise a temperature to this
TOP = 20  # rankings are always this long on the device; the host cuts them


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
    those equal to b the first ones by id.
    """
    e = jnp.exp(s)
    q = e / e.sum(axis=-1, keepdims=True)
    keys = _sortable(z)

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds  # above(low) ≥ top_p, or low is below every key; above(high) < top_p
        middle = low + (high - low) // 2
        above = jnp.where(keys > middle[:, None], q, 0.0).sum(axis=-1)
        return jnp.where(above < top_p, low, middle), jnp.where(above < top_p, middle, high)

    highest = keys.max(axis=-1)
    _, boundary = lax.fori_loop(0, 32, halve, (jnp.zeros_like(highest), highest))
    at_boundary = keys == boundary[:, None]
    mass_above = jnp.where(keys > boundary[:, None], q, 0.0).sum(axis=-1, keepdims=True)
    is_tied = (is_nucleus & (at_boundary.sum(axis=-1, dtype=jnp.int32) > 1)).any()
    # a running sum over all ids is slow, and seldom needed
    ranked = lax.cond(is_tied, lambda: jnp.cumsum(at_boundary, axis=-1), lambda: at_boundary.astype(jnp.int32))
    rank_in_tie = ranked - 1  # −1 before the first
    mass_before = mass_above + rank_in_tie * jnp.where(at_boundary, q, 0.0)
    first = at_boundary & (rank_in_tie == 0)
    kept = (keys > boundary[:, None]) | first | (at_boundary & (mass_before < top_p[:, None]))
    return kept | ~is_nucleus[:, None]


def ranked_ids(logits: Array) -> Array:
    """The ids of the TOP largest logits in the order (−logit, id), [B, V] → [B, TOP]."""
    return lax.top_k(_one_zero(logits), min(TOP, logits.shape[-1]))[1]


def _one_zero(z: Array) -> Array:
    """−0 becomes +0, which orderings of bits tell apart. Adding 0.0 would do it too, but XLA removes that."""
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

    The same as argmax, for rows without NaN, in a tenth of the time on a CPU: XLA turns a maximum and a comparison into
    vector instructions, an argmax not, nor what is fused with it (the noise); hence the barrier.
    """
    x = lax.optimization_barrier(x)  # type: ignore[no-untyped-call]
    ids = jnp.arange(x.shape[-1], dtype=jnp.int32)
    first = jnp.where(x == x.max(axis=-1, keepdims=True), ids, x.shape[-1]).min(axis=-1)
    return jnp.minimum(first, x.shape[-1] - 1)


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
        s = temper(z, rows.temperature)
        everything = jnp.ones_like(z, bool)
        kept = lax.cond(is_nucleus.any(), lambda: nucleus(z, s, rows.top_p, is_nucleus), lambda: everything)
        return jnp.where(is_greedy, most_likely, draw(s, noise(rows, z.shape[-1]), kept))

    with jax.named_scope("draw"):
        token = lax.cond(is_greedy.all(), lambda: most_likely, drawn)
    with jax.named_scope("report"):
        return Sampled(token, *report_ids(logits, token, live))
