"""The two measurements of the model card: held-out loss, and how well a written middle joins the suffix."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tokenizers import Tokenizer

from gnomon.jax_engine.training.config import ModelShape
from gnomon.jax_engine.training.data import DataError, cut_story
from gnomon.jax_engine.training.llama import FlaxParams, new_params, token_losses

Scorer = Callable[[FlaxParams, np.ndarray, np.ndarray], np.ndarray]


@cache
def make_scorer(config: ModelShape) -> Scorer:
    """The compiled judge: (params, inputs, targets), int32 [B, T], to the targets' log-probabilities [B, T]."""
    graph, _ = new_params(config, 0)

    @jax.jit
    def score(params: FlaxParams, inputs: jax.Array, targets: jax.Array) -> jax.Array:
        model = nnx.merge(graph, nnx.State(params))
        logits = model(inputs, jnp.zeros_like(inputs))
        return -token_losses(logits, targets.reshape(-1)).reshape(inputs.shape)

    return lambda params, inputs, targets: np.asarray(score(params, inputs, targets))


def held_out_loss(
    score: Scorer, params: FlaxParams, tokenizer: Tokenizer, stories: Sequence[str], context: int
) -> float:
    """Nats per UTF-8 byte of stories in ordinary order, each after one `<|endoftext|>`, which is not scored.

    The end of a story is not scored either. A story longer than the context is read in windows that overlap
    by half; every token counts once, where it has most before it.
    """
    nats, size = 0.0, 0
    rows: list[tuple[list[int], int]] = []  # tokens of a window, how many of its targets count (the last ones)
    for story in stories:
        ids = [0, *tokenizer.encode(story, add_special_tokens=False).ids]
        size += len(story.encode())
        end = min(len(ids), context + 1)
        rows.append((ids[:end], end - 1))
        while end < len(ids):
            fresh = min(context // 2, len(ids) - end)
            end += fresh
            rows.append((ids[end - context - 1 : end], fresh))
    for at in range(0, len(rows), 8):
        part = rows[at : at + 8]
        inputs = np.zeros((8, context), np.int32)
        targets = np.zeros((8, context), np.int32)
        counts = np.zeros((8, context), bool)
        for row, (ids, fresh) in enumerate(part):
            length = len(ids) - 1
            inputs[row, :length], targets[row, :length] = ids[:-1], ids[1:]
            counts[row, length - fresh : length] = True
        nats -= float(np.sum(score(params, inputs, targets), where=counts, dtype=np.float64))
    return nats / size


Writer = Callable[[FlaxParams, Sequence[Sequence[int]], Sequence[int], bool], list[list[int]]]


@cache
def make_writer(config: ModelShape, context: int = 192, steps: int = 40) -> Writer:
    """A greedy writer without a cache: (params, prompts, limits, may_end) to the new tokens of each prompt.

    Writes at most `limits[i]` tokens, and no more than `steps`. With `may_end`, `<|endoftext|>` ends a text
    (and is not returned); without, it is never chosen.
    """
    graph, _ = new_params(config, 0)

    @jax.jit
    def write(
        params: FlaxParams, tokens: jax.Array, lengths: jax.Array, limits: jax.Array, may_end: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        model = nnx.merge(graph, nnx.State(params))
        b, t = tokens.shape
        rows = jnp.arange(b)

        def one(carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
            tokens, at, running = carry
            x = model.hidden(tokens, jnp.zeros_like(tokens)).reshape(b, t, -1)
            logits = model.head(x[rows, at - 1])
            logits = logits.at[:, 0].add(jnp.where(may_end, 0.0, -jnp.inf))
            chosen = jnp.argmax(logits, axis=-1).astype(jnp.int32)
            running &= (chosen != 0) & (at < lengths + limits)
            tokens = tokens.at[rows, at].set(jnp.where(running, chosen, tokens[rows, at]))
            return tokens, at + running, running

        carry = (tokens, lengths, jnp.ones((b,), bool))
        tokens, ends, _ = jax.lax.while_loop(lambda carry: jnp.any(carry[2]), one, carry)
        return tokens, ends

    def writer(
        params: FlaxParams, prompts: Sequence[Sequence[int]], limits: Sequence[int], may_end: bool
    ) -> list[list[int]]:
        lengths = np.array([len(prompt) for prompt in prompts], np.int32)
        if lengths.max() + steps > context:
            raise DataError(f"a prompt of {lengths.max()} tokens leaves no room for {steps} in {context}")
        tokens = np.zeros((len(prompts), context), np.int32)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = prompt
        out, ends = write(params, tokens, lengths, np.minimum(limits, steps).astype(np.int32), np.array(may_end))
        written, stops = np.asarray(out), np.asarray(ends)
        return [written[row, lengths[row] : stops[row]].tolist() for row in range(len(prompts))]

    return writer


class JoinCheck(NamedTuple):
    """How well middles join the suffix: mean log-probability of a suffix token, in nats, over `cuts`."""

    cuts: int
    fim: float  # after the middle that the model wrote knowing the suffix
    blind: float  # after a continuation of the prefix alone, of the same number of tokens
    true: float  # after the middle that the story has
    error: float  # standard error of the mean of `fim` minus `blind`
    fim_better: int  # cuts in which `fim` exceeds `blind`
    ended: int  # middles that ended by themselves within 40 tokens


def join_check(
    config: ModelShape, params: FlaxParams, tokenizer: Tokenizer, stories: Sequence[str], most: int
) -> JoinCheck:
    """StoryCut each story at word borders, have the model fill the gap, and ask it how likely the suffix is then.

    Judged in ordinary order: `<|endoftext|> prefix middle suffix`, the suffix scored. Both texts are greedy;
    the blind one may not end. The first `most` cuts count whose suffix is not empty and whose parts need no
    more than 144 tokens; a story given twice is cut in two ways.
    """
    writer, score = make_writer(config), make_scorer(config)
    rng = np.random.default_rng(0)
    parts: list[tuple[list[int], ...]] = []
    for story in stories:
        cut = cut_story(story, rng, jitter=0.0)
        prefix, middle, suffix = (tokenizer.encode(text, add_special_tokens=False).ids for text in cut)
        if suffix and len(prefix) + len(middle) + len(suffix) <= 144 and len(parts) < most:
            parts.append((prefix, middle, suffix))
    if not parts:
        raise DataError("no story is short enough for the join check")

    def judge(middles: Sequence[Sequence[int]]) -> np.ndarray:
        inputs, targets = np.zeros((2, len(parts), 192), np.int32)
        picked = np.zeros((len(parts), 192), bool)
        for row, ((prefix, _, suffix), middle) in enumerate(zip(parts, middles, strict=True)):
            ids = [0, *prefix, *middle, *suffix]
            inputs[row, : len(ids) - 1], targets[row, : len(ids) - 1] = ids[:-1], ids[1:]
            picked[row, len(ids) - 1 - len(suffix) : len(ids) - 1] = True
        sums = np.sum(score(params, inputs, targets), axis=1, where=picked, dtype=np.float64)
        return np.asarray(sums / picked.sum(axis=1))

    filled = writer(params, [[1, *p, 2, *s, 3] for p, _, s in parts], [40] * len(parts), True)
    blind = writer(params, [[0, *p] for p, _, _ in parts], [len(middle) for middle in filled], False)
    with_fim, with_blind, with_true = (judge(m) for m in (filled, blind, [middle for _, middle, _ in parts]))
    return JoinCheck(
        cuts=len(parts),
        fim=float(with_fim.mean()),
        blind=float(with_blind.mean()),
        true=float(with_true.mean()),
        error=float((with_fim - with_blind).std() / math.sqrt(len(parts))),
        fim_better=int((with_fim > with_blind).sum()),
        ended=sum(len(middle) < 40 for middle in filled),
    )
