"""The loop: short rows first, the full context in the end; checkpoints, held-out loss, a log."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from tokenizers import Tokenizer
from tqdm import tqdm  # type: ignore[import-untyped]

from gnomon.jax_engine.training.config import TrainConfig
from gnomon.jax_engine.training.data import DataError, Epoch, PackedRows
from gnomon.jax_engine.training.judges import held_out_loss, make_scorer
from gnomon.jax_engine.training.llama import FlaxParams, new_params, token_losses
from gnomon.jax_engine.training.optimizer import optimizer, rate_scale
from gnomon.jax_engine.training.state import Position, TrainState, fresh_state, save_state
from gnomon.reference.system.atomic import replacing

TrainStep = Callable[[FlaxParams, Any, PackedRows, float, float], tuple[FlaxParams, Any, jax.Array]]


@cache
def make_step(config: TrainConfig) -> TrainStep:
    """The compiled step: (params, moments, batch, rate, middle weight) to the new two and the mean loss.

    The loss returned is in nats a token, unweighted. jax.jit over plain arrays, not nnx.jit, whose bookkeeping
    a call costs milliseconds; the old arrays are donated, so that they are updated in place.
    """
    graph, _ = new_params(config.model, 0)
    rule = optimizer(config)

    def losses(params: FlaxParams, batch: PackedRows, middle_weight: float) -> tuple[jax.Array, jax.Array]:
        model = nnx.merge(graph, nnx.State(params))
        logits = model(jnp.asarray(batch.inputs), jnp.asarray(batch.segments))
        each = token_losses(logits, jnp.asarray(batch.targets).reshape(-1))
        weights = jnp.where(jnp.asarray(batch.middles).reshape(-1), middle_weight, 1.0)
        return jnp.sum(weights * each) / jnp.sum(weights), jnp.mean(each)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(
        params: FlaxParams, moments: Any, batch: PackedRows, rate: float, middle_weight: float
    ) -> tuple[FlaxParams, Any, jax.Array]:
        grads, loss = jax.grad(losses, has_aux=True)(params, batch, middle_weight)
        updates, moments = rule.update(grads, moments, params)
        params = jax.tree.map(lambda p, u: p + rate * u, params, updates)
        return params, moments, loss

    return step


def train(
    config: TrainConfig,
    stories: Sequence[str],
    held_out: Sequence[str],
    tokenizer: Tokenizer,
    folder: Path | None = None,
    state: TrainState | None = None,
    stop_after: int | None = None,
    progress: bool = True,
) -> TrainState:
    """Train to `config.tokens`, or for `stop_after` steps from here, and return the state reached.

    The arrays of a `state` that is passed in are used up: their memory is taken for the next ones.
    With a `folder`, writes checkpoint.safetensors every `checkpoint_minutes` and log.jsonl, one line a
    measurement: tokens, step, train_loss (nats a token, fill-in-the-middle included, mean since the last
    line), held_out (nats a byte), tokens_per_s, context, rate.
    """
    step = make_step(config)
    score = make_scorer(config.model)
    state = state or fresh_state(config)
    params, moments, at = state
    first, short_until = at.step, (1 - config.context_part) * config.tokens

    def rows_of(at: Position) -> Epoch:
        return Epoch(stories, tokenizer, at.context, config.fim_rate, config.seed, at.epoch)

    epoch = rows_of(at)
    losses: list[jax.Array] = []
    saved = logged = time.monotonic()
    logged_tokens = at.tokens
    bar = tqdm(total=config.tokens, initial=at.tokens, unit="tok", unit_scale=True, disable=not progress)
    if folder:
        _forget_after(folder / "log.jsonl", at.tokens)
    with bar:
        while at.tokens < config.tokens and (stop_after is None or at.step - first < stop_after):
            # 1. the next rows; an epoch's last ones, too few for a step, are left out
            context = config.short_context if at.tokens < short_until else config.context
            size = config.batch_tokens // (2 if at.tokens < config.ramp_tokens else 1)
            rows = size // context
            if at.row + rows > len(epoch) or context != at.context:
                at = at._replace(epoch=at.epoch + 1, row=0, context=context)
                epoch = rows_of(at)
                if rows > len(epoch):
                    raise DataError(f"the corpus fills {len(epoch)} rows of {context}; a step takes {rows}")
            batch = epoch.batch(at.row, rows)
            # 2. the step
            rate = rate_scale(config, at.step, at.tokens)
            decaying = at.tokens > (1 - config.decay) * config.tokens
            middle_weight = config.middle_weight if decaying else 1.0
            params, moments, loss = step(params, moments, batch, rate, middle_weight)
            losses.append(loss)
            before, at = at, at._replace(step=at.step + 1, tokens=at.tokens + size, row=at.row + rows)
            bar.update(size)
            if at.step % 10 == 0:
                bar.set_postfix(loss=f"{float(loss):.3f}")
            # 3. what is written down
            finished = at.tokens >= config.tokens
            due = at.tokens // config.held_out_every > before.tokens // config.held_out_every
            if folder and (due or finished):
                mean = float(jnp.mean(jnp.stack(losses)))
                now = time.monotonic()
                judged = held_out[: config.held_out_stories]
                nats = held_out_loss(score, params, tokenizer, judged, config.model.max_position_embeddings)
                record = {
                    "tokens": at.tokens,
                    "step": at.step,
                    "train_loss": round(mean, 4),
                    "held_out": round(nats, 4),
                    "tokens_per_s": round((at.tokens - logged_tokens) / (now - logged)),
                    "context": context,
                    "rate": round(rate, 4),
                }
                with (folder / "log.jsonl").open("a", encoding="utf-8") as log:
                    log.write(json.dumps(record) + "\n")
                losses, logged, logged_tokens = [], time.monotonic(), at.tokens
            if folder and (finished or time.monotonic() - saved > 60 * config.checkpoint_minutes):
                save_state(folder, config, TrainState(params, moments, at))
                saved = time.monotonic()
    return TrainState(params, moments, at)


def _forget_after(log: Path, tokens: int) -> None:
    """Drop the log lines that an interrupted run wrote after its last checkpoint: they will come again."""
    if log.is_file():
        kept = []
        for number, line in enumerate(log.read_bytes().splitlines(keepends=True), 1):
            try:
                if json.loads(line)["tokens"] <= tokens:
                    kept.append(line)
            except (ValueError, KeyError, TypeError):
                if line.endswith(b"\n"):
                    raise DataError(f"{log}, line {number}: not a line of this log; mend or remove it") from None
                # else the run was interrupted within this one
        with replacing(log) as file:
            file.writelines(kept)
