"""How the embedded model is made: a Llama of about two million parameters, trained on short stories.
In the order of the file:
1. the two configurations: what the model is, and how it is trained;
2. the model, in flax.nnx, with the names and shapes of a Hugging Face Llama checkpoint;
3. the optimiser: Muon on the hidden matrices, Adam on embeddings and norms, warm-up, constant, linear decay;
4. the loop: short rows first, the full context in the end; checkpoints, held-out loss, a log;
5. the checkpoint, which holds weights, optimiser and data position: an interrupted run goes on bit for bit;
6. the export to a directory that transformers loads, and its judges: held-out loss and the suffix check.
Data and tokenizer are in train_data.py. Sampling, caching and serving are the engine's.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax  # type: ignore[import-untyped]
import optax.contrib  # type: ignore[import-untyped]
from flax import nnx
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer
from tqdm import tqdm  # type: ignore[import-untyped]

from gnomon.jax_engine.runtime.backend import NoDevice, require_devices
from gnomon.jax_engine.training.data import (
    END,
    FIM_MIDDLE,
    FIM_PREFIX,
    FIM_SUFFIX,
    HELD_OUT_FILE,
    SPECIAL_TOKENS,
    TRAIN_FILE,
    Batch,
    DataError,
    Epoch,
    cut_story,
    find_corpus,
    read_stories,
    train_tokenizer,
)
from gnomon.reference.system.atomic import replacing, sync_directory, sync_file

Params = Any  # the nested dict of arrays that nnx.split gives, as a pytree
Arrays = dict[str, np.ndarray]
Array = jax.Array | np.ndarray
QUERY_BLOCK = 128  # positions whose attention is computed together; changes the speed only

# 1. Configurations


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shape of the model, in the words of a Hugging Face config.json."""

    vocab_size: int = 2048  # V
    hidden_size: int = 192  # D
    num_hidden_layers: int = 4  # L
    num_attention_heads: int = 6  # N
    num_key_value_heads: int = 2  # K
    head_dim: int = 32  # H
    intermediate_size: int = 512  # F
    max_position_embeddings: int = 512
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise DataError("num_attention_heads must be a multiple of num_key_value_heads")
        if self.head_dim % 2:
            raise DataError("head_dim must be even: rotary embeddings turn pairs")


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """How a model is trained. `tokens` and `decay` may change when an interrupted run is resumed."""

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    tokens: int = 15_500_000  # tokens seen in all; the decay ends there
    batch_tokens: int = 4096  # tokens a step, B*T
    ramp_tokens: int = 1_000_000  # until then steps are half as large
    short_context: int = 256  # T at first: attention costs less
    context: int = 512  # T in the end
    context_part: float = 0.25  # the last part of `tokens`, in rows of `context`
    warmup_steps: int = 50
    decay: float = 0.55  # the last part of `tokens`, in which the learning rate falls to zero
    muon_rate: float = 0.02
    adam_rate: float = 0.006
    weight_decay: float = 0.05  # on the hidden matrices, times the learning rate
    newton_schulz_steps: int = 5
    fim_rate: float = 0.5  # of the documents, cut for fill-in-the-middle
    middle_weight: float = 4.0  # of a middle's tokens in the loss during the decay; before it, all count one
    seed: int = 0
    checkpoint_minutes: float = 4.0
    held_out_every: int = 500_000  # tokens between two measurements of the held-out loss
    held_out_stories: int = 40  # of the held-out file, measured during training

    def __post_init__(self) -> None:
        if self.batch_tokens % (2 * self.context) or self.batch_tokens % (2 * self.short_context):
            raise DataError("batch_tokens must be an even multiple of context and of short_context")
        if not (0 < self.decay <= 1 and 0 <= self.context_part <= 1 and 0 <= self.fim_rate <= 1):
            raise DataError("decay, context_part and fim_rate are parts of 1; decay is not 0")
        if self.context > self.model.max_position_embeddings:
            raise DataError("context exceeds the model's max_position_embeddings")


# 2. Model: B sequences, T positions, D width, N heads, K key/value heads, G = N/K, H head width, F, V, L


class Linear(nnx.Module):
    """y = x Wᵀ without a bias; weight [out, in], as checkpoints store it and as XLA's CPU products like it."""

    def __init__(self, fan_in: int, fan_out: int, rngs: nnx.Rngs, scale: float = 1.0) -> None:
        std = scale / math.sqrt(fan_in)
        self.weight = nnx.Param(std * jax.random.normal(rngs.params(), (fan_out, fan_in), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.lax.dot_general(x, self.weight[...], (((1,), (1,)), ((), ())))


class RMSNorm(nnx.Module):
    """Root-mean-square norm (Zhang & Sennrich 2019), weight [D]."""

    def __init__(self, width: int, eps: float) -> None:
        self.weight = nnx.Param(jnp.ones((width,), jnp.float32))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        scale = jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.eps)
        return x * scale * self.weight[...]


class Embedding(nnx.Module):
    """Token embeddings [V, D], used at both ends of the model."""

    def __init__(self, vocab: int, width: int, rngs: nnx.Rngs) -> None:
        self.weight = nnx.Param(0.02 * jax.random.normal(rngs.params(), (vocab, width), jnp.float32))


def rotary_tables(context: int, head_dim: int, theta: float) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines [T, H/2] of the rotary embedding (Su et al. 2021), float32, computed in float64."""
    rates = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    angles = np.arange(context)[:, None] * rates
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rotate(x: jax.Array, cos: np.ndarray, sin: np.ndarray) -> jax.Array:
    """Turn x [B, T, heads, H] by its positions; the pairs are (i, i + H/2), as in Hugging Face checkpoints."""
    low, high = jnp.split(x, 2, axis=-1)
    c, s = cos[:, None, :], sin[:, None, :]
    return jnp.concatenate([low * c - high * s, high * c + low * s], axis=-1)


class Attention(nnx.Module):
    """Causal grouped-query attention (Ainslie et al. 2023)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        d, h = config.hidden_size, config.head_dim
        self.shape = (config.num_attention_heads, config.num_key_value_heads, h)
        self.theta = config.rope_theta
        self.q_proj = Linear(d, config.num_attention_heads * h, rngs)
        self.k_proj = Linear(d, config.num_key_value_heads * h, rngs)
        self.v_proj = Linear(d, config.num_key_value_heads * h, rngs)
        out_scale = 1 / math.sqrt(2 * config.num_hidden_layers)
        self.o_proj = Linear(config.num_attention_heads * h, d, rngs, out_scale)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """x [B*T, D] and mask [B, T, T] (True: visible) to [B*T, D]."""
        n, k, h = self.shape
        b, t = mask.shape[:2]
        cos, sin = rotary_tables(t, h, self.theta)
        query = rotate(self.q_proj(x).reshape(b, t, n, h), cos, sin) * h**-0.5
        key = rotate(self.k_proj(x).reshape(b, t, k, h), cos, sin)
        value = self.v_proj(x).reshape(b, t, k, h)
        grouped = query.reshape(b, t, k, n // k, h)
        blocks = []
        for start in range(0, t, QUERY_BLOCK):  # later keys are masked anyway: leave them out by the block
            stop = min(start + QUERY_BLOCK, t)
            scores = jnp.einsum("btkgh,bskh->bkgts", grouped[:, start:stop], key[:, :stop])
            scores = jnp.where(mask[:, None, None, start:stop, :stop], scores, -1e30)
            weights = jax.nn.softmax(scores, axis=-1)
            blocks.append(jnp.einsum("bkgts,bskh->btkgh", weights, value[:, :stop]))
        mixed = jnp.concatenate(blocks, axis=1)
        return self.o_proj(mixed.reshape(b * t, n * h))


class MLP(nnx.Module):
    """SwiGLU (Shazeer 2020): down(silu(gate(x)) * up(x))."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        d, f = config.hidden_size, config.intermediate_size
        self.gate_proj = Linear(d, f, rngs)
        self.up_proj = Linear(d, f, rngs)
        self.down_proj = Linear(f, d, rngs, 1 / math.sqrt(2 * config.num_hidden_layers))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down_proj(jax.nn.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nnx.Module):
    """Pre-norm block: attention, then the feed-forward part, each added to the stream."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, rngs)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config, rngs)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        x = x + self.self_attn(self.input_layernorm(x), mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nnx.Module):
    """Llama (Touvron et al. 2023) with tied embeddings: tokens and segments, int32 [B, T], to logits."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs) -> None:
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, rngs)
        self.layers = nnx.List([Layer(config, rngs) for _ in range(config.num_hidden_layers)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def hidden(self, tokens: Array, segments: Array) -> jax.Array:
        """The normed last hidden states [B*T, D]; attention is causal and stays within a segment."""
        t = tokens.shape[1]
        mask = jnp.tril(jnp.ones((t, t), bool)) & (segments[:, :, None] == segments[:, None, :])
        x = self.embed_tokens.weight[...][tokens.reshape(-1)]
        for layer in self.layers:
            x = layer(x, mask)
        return self.norm(x)

    def head(self, x: jax.Array) -> jax.Array:
        """Hidden states [..., D] to logits [..., V]."""
        return jax.lax.dot_general(x, self.embed_tokens.weight[...], (((x.ndim - 1,), (1,)), ((), ())))

    def __call__(self, tokens: Array, segments: Array) -> jax.Array:
        """Logits [B*T, V]."""
        return self.head(self.hidden(tokens, segments))


def new_params(config: ModelConfig, seed: int) -> tuple[nnx.GraphDef[Llama], Params]:
    """A freshly drawn model, split into its structure and its float32 arrays."""
    graph, state = nnx.split(Llama(config, nnx.Rngs(params=seed)))
    return graph, nnx.to_pure_dict(state)


def token_losses(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Nats of each target [M] under logits [M, V]; the pick is a masked sum, whose gradient is no scatter."""
    hit = targets[:, None] == jnp.arange(logits.shape[-1])
    return jax.nn.logsumexp(logits, axis=-1) - jnp.sum(jnp.where(hit, logits, 0.0), axis=-1)


# 3. Optimiser


def muon_axes(params: Params) -> Params:
    """Which axes of which arrays Muon orthogonalises: the [out, in] matrices of the layers, nothing else."""

    def axes(path: tuple[Any, ...], leaf: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
        hidden = leaf.ndim == 2 and path[0].key == "layers"
        return optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=0) if hidden else None

    return jax.tree_util.tree_map_with_path(axes, params)


def optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Gradients clipped at norm 1, then Muon (Jordan et al. 2024) or Adam, at constant rates.

    The schedule multiplies the finished update (`rate_scale`), so no length of the run is kept in the state.
    """
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.contrib.muon(
            learning_rate=config.muon_rate,
            ns_steps=config.newton_schulz_steps,
            beta=0.95,
            weight_decay=config.weight_decay,
            adam_b1=0.9,
            adam_b2=0.98,
            adam_learning_rate=config.adam_rate,
            muon_weight_dimension_numbers=muon_axes,
        ),
    )


def rate_scale(config: TrainConfig, step: int, tokens: int) -> float:
    """Warm-up, constant, linear decay to zero (WSD: Hu et al. 2024), as a factor of the learning rates."""
    warm = min(1.0, (step + 1) / config.warmup_steps)
    left = (config.tokens - tokens) / (config.decay * config.tokens)
    return warm * max(0.0, min(1.0, left))


# 4. Loop


class Position(NamedTuple):
    """Where a run stands: steps done, tokens seen, and the next row (of an epoch packed for a context)."""

    step: int
    tokens: int
    epoch: int
    row: int
    context: int


class State(NamedTuple):
    """All that training needs to go on."""

    params: Params
    moments: Any  # optax's state
    position: Position


def start(config: TrainConfig) -> State:
    """The state before the first step."""
    _, params = new_params(config.model, config.seed)
    return State(params, optimizer(config).init(params), Position(0, 0, 0, 0, config.short_context))


TrainStep = Callable[[Params, Any, Batch, float, float], tuple[Params, Any, jax.Array]]


@cache
def make_step(config: TrainConfig) -> TrainStep:
    """The compiled step: (params, moments, batch, rate, middle weight) to the new two and the mean loss.

    The loss returned is in nats a token, unweighted. jax.jit over plain arrays, not nnx.jit, whose bookkeeping
    a call costs milliseconds; the old arrays are donated, so that they are updated in place.
    """
    graph, _ = new_params(config.model, 0)
    rule = optimizer(config)

    def losses(params: Params, batch: Batch, middle_weight: float) -> tuple[jax.Array, jax.Array]:
        model = nnx.merge(graph, nnx.State(params))
        logits = model(jnp.asarray(batch.inputs), jnp.asarray(batch.segments))
        each = token_losses(logits, jnp.asarray(batch.targets).reshape(-1))
        weights = jnp.where(jnp.asarray(batch.middles).reshape(-1), middle_weight, 1.0)
        return jnp.sum(weights * each) / jnp.sum(weights), jnp.mean(each)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(
        params: Params, moments: Any, batch: Batch, rate: float, middle_weight: float
    ) -> tuple[Params, Any, jax.Array]:
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
    state: State | None = None,
    stop_after: int | None = None,
    progress: bool = True,
) -> State:
    """Train to `config.tokens`, or for `stop_after` steps from here, and return the state reached.

    The arrays of a `state` that is passed in are used up: their memory is taken for the next ones.
    With a `folder`, writes checkpoint.safetensors every `checkpoint_minutes` and log.jsonl, one line a
    measurement: tokens, step, train_loss (nats a token, fill-in-the-middle included, mean since the last
    line), held_out (nats a byte), tokens_per_s, context, rate.
    """
    step = make_step(config)
    score = make_scorer(config.model)
    state = state or start(config)
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
                save_checkpoint(folder, config, State(params, moments, at))
                saved = time.monotonic()
    return State(params, moments, at)


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


# 5. Checkpoint


def _named_arrays(params: Params, moments: Any) -> tuple[Arrays, Any]:
    leaves, tree = jax.tree_util.tree_flatten_with_path({"params": params, "moments": moments})
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}, tree


def save_checkpoint(folder: Path, config: TrainConfig, state: State) -> None:
    """Write checkpoint.safetensors: a crash while writing, of the machine too, leaves the previous one whole."""
    arrays, _ = _named_arrays(state.params, state.moments)
    metadata = {
        "position": json.dumps(state.position._asdict()),
        "config": json.dumps(dataclasses.asdict(config)),
        "sha256": _digest(arrays),
    }
    partial_file = folder / "checkpoint.partial"
    save_file(arrays, partial_file, metadata)
    sync_file(partial_file)
    os.replace(partial_file, folder / "checkpoint.safetensors")
    sync_directory(folder)


def _digest(arrays: Arrays) -> str:
    """Of every array's name and bytes."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(name.encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def load_checkpoint(folder: Path) -> tuple[TrainConfig, State]:
    """The configuration and the state that `save_checkpoint` wrote. Raises DataError for anything else."""
    path = folder / "checkpoint.safetensors"
    if not path.is_file():
        raise DataError(f"no checkpoint.safetensors in {folder}")
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
        stored = load_file(path)
        fields = json.loads(metadata["config"])
        config = TrainConfig(**{**fields, "model": ModelConfig(**fields["model"])})
        position = Position(**json.loads(metadata["position"]))
        digest = metadata["sha256"]
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is no checkpoint of this program: {error}") from error
    if _digest(stored) != digest:
        raise DataError(f"{path} is damaged: its arrays are not those that were written")
    fresh = start(config)
    named, tree = _named_arrays(fresh.params, fresh.moments)
    wrong = sorted(
        name for name in named.keys() | stored.keys()
        if name not in named or name not in stored or named[name].shape != stored[name].shape
    )  # fmt: skip
    if wrong:
        raise DataError(f"{path} does not fit its configuration: {', '.join(wrong)}")
    loaded = jax.tree_util.tree_unflatten(tree, [jnp.asarray(stored[name]) for name in named])
    return config, State(loaded["params"], loaded["moments"], position)


# 6. Export and judges


def checkpoint_arrays(params: Params) -> Arrays:
    """The weights by their Hugging Face names, float32, matrices [out, in]; the tied head is not repeated."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return {
        "model." + ".".join(str(key.key) for key in path): np.ascontiguousarray(leaf, np.float32)
        for path, leaf in leaves
    }


def params_from_arrays(config: ModelConfig, arrays: Arrays) -> Params:
    """The inverse of `checkpoint_arrays`; names and shapes must be exactly the model's."""
    _, params = new_params(config, 0)
    expected = checkpoint_arrays(params)
    wrong = sorted(
        name for name in expected.keys() | arrays.keys()
        if name not in expected or name not in arrays or expected[name].shape != arrays[name].shape
    )  # fmt: skip
    if wrong:
        raise DataError(f"the weights do not fit config.json: {', '.join(wrong)}")
    _, tree = jax.tree_util.tree_flatten(params)
    return jax.tree_util.tree_unflatten(tree, [jnp.asarray(arrays[name]) for name in expected])


def export(config: ModelConfig, params: Params, tokenizer: Tokenizer, folder: Path) -> None:
    """Write a Hugging Face directory that transformers and other engines load unchanged."""
    folder.mkdir(parents=True, exist_ok=True)
    end = tokenizer.token_to_id(END)
    fields = dataclasses.asdict(config)
    rope_theta = fields.pop("rope_theta")
    files: dict[str, Any] = {
        "config.json": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            **fields,
            "hidden_act": "silu",
            "rope_theta": rope_theta,
            "rope_parameters": {"rope_type": "default", "rope_theta": rope_theta},
            "tie_word_embeddings": True,
            "attention_bias": False,
            "mlp_bias": False,
            "attention_dropout": 0.0,
            "initializer_range": 0.02,
            "pretraining_tp": 1,
            "use_cache": True,
            "bos_token_id": end,
            "eos_token_id": end,
            "pad_token_id": None,
            "dtype": "float32",
            "torch_dtype": "float32",
        },
        "generation_config.json": {"bos_token_id": end, "eos_token_id": end, "do_sample": False},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": config.max_position_embeddings,
            "add_prefix_space": False,
            "add_bos_token": False,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "bos_token": END,
            "eos_token": END,
            "fim_prefix_token": FIM_PREFIX,
            "fim_suffix_token": FIM_SUFFIX,
            "fim_middle_token": FIM_MIDDLE,
            "additional_special_tokens": [FIM_PREFIX, FIM_SUFFIX, FIM_MIDDLE],
            "added_tokens_decoder": {
                str(tokenizer.token_to_id(token)): {
                    "content": token,
                    "lstrip": False,
                    "normalized": False,
                    "rstrip": False,
                    "single_word": False,
                    "special": True,
                }
                for token in SPECIAL_TOKENS
            },
        },
        "special_tokens_map.json": {
            "bos_token": END,
            "eos_token": END,
            "additional_special_tokens": [FIM_PREFIX, FIM_SUFFIX, FIM_MIDDLE],
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    tokenizer.save(str(folder / "tokenizer.json"))
    save_file(checkpoint_arrays(params), folder / "model.safetensors", {"format": "pt"})


def load_export(folder: Path) -> tuple[ModelConfig, Params, Tokenizer]:
    """Read a directory that `export` wrote: configuration, weights, tokenizer."""
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        if not (folder / name).is_file():
            raise DataError(f"no {name} in {folder}")
    fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if fields.get("model_type") != "llama" or not fields.get("tie_word_embeddings"):
        raise DataError(f"{folder} holds no Llama with tied embeddings")
    names = [field.name for field in dataclasses.fields(ModelConfig)]
    missing = [name for name in names if name not in fields]
    if missing:
        raise DataError(f"config.json in {folder} lacks {', '.join(missing)}")
    config = ModelConfig(**{name: fields[name] for name in names})
    params = params_from_arrays(config, load_file(folder / "model.safetensors"))
    return config, params, Tokenizer.from_file(str(folder / "tokenizer.json"))


Scorer = Callable[[Params, np.ndarray, np.ndarray], np.ndarray]


@cache
def make_scorer(config: ModelConfig) -> Scorer:
    """The compiled judge: (params, inputs, targets), int32 [B, T], to the targets' log-probabilities [B, T]."""
    graph, _ = new_params(config, 0)

    @jax.jit
    def score(params: Params, inputs: jax.Array, targets: jax.Array) -> jax.Array:
        model = nnx.merge(graph, nnx.State(params))
        logits = model(inputs, jnp.zeros_like(inputs))
        return -token_losses(logits, targets.reshape(-1)).reshape(inputs.shape)

    return lambda params, inputs, targets: np.asarray(score(params, inputs, targets))


def held_out_loss(score: Scorer, params: Params, tokenizer: Tokenizer, stories: Sequence[str], context: int) -> float:
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


Writer = Callable[[Params, Sequence[Sequence[int]], Sequence[int], bool], list[list[int]]]


@cache
def make_writer(config: ModelConfig, context: int = 192, steps: int = 40) -> Writer:
    """A greedy writer without a cache: (params, prompts, limits, may_end) to the new tokens of each prompt.

    Writes at most `limits[i]` tokens, and no more than `steps`. With `may_end`, `<|endoftext|>` ends a text
    (and is not returned); without, it is never chosen.
    """
    graph, _ = new_params(config, 0)

    @jax.jit
    def write(
        params: Params, tokens: jax.Array, lengths: jax.Array, limits: jax.Array, may_end: jax.Array
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
        params: Params, prompts: Sequence[Sequence[int]], limits: Sequence[int], may_end: bool
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
    config: ModelConfig, params: Params, tokenizer: Tokenizer, stories: Sequence[str], most: int
) -> JoinCheck:
    """Cut each story at word borders, have the model fill the gap, and ask it how likely the suffix is then.

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


def run(args: argparse.Namespace) -> None:
    """`run`: train, or go on with what is in --out."""
    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    stories = read_stories(find_corpus(args.data, TRAIN_FILE))
    held_out = read_stories(find_corpus(args.data, HELD_OUT_FILE))
    state = None
    if (folder / "checkpoint.safetensors").is_file():
        config, state = load_checkpoint(folder)
    else:
        config = TrainConfig(seed=args.seed)
    config = dataclasses.replace(config, tokens=args.tokens or config.tokens, decay=args.decay or config.decay)
    vocabulary = folder / "tokenizer.json"
    if not vocabulary.is_file():
        train_tokenizer(stories, config.model.vocab_size).save(str(vocabulary))
    train(config, stories, held_out, Tokenizer.from_file(str(vocabulary)), folder, state)


def run_export(args: argparse.Namespace) -> None:
    """`export`: the run folder's checkpoint as a Hugging Face directory."""
    config, state = load_checkpoint(Path(args.run_folder))
    tokenizer = Tokenizer.from_file(str(Path(args.run_folder) / "tokenizer.json"))
    export(config.model, state.params, tokenizer, Path(args.out))
    print(f"{args.out}: the model after {state.position.tokens:,} tokens")


def run_evaluate(args: argparse.Namespace) -> None:
    """`evaluate`: the two measurements of the model card, of any directory that holds such a model."""
    config, params, tokenizer = load_export(Path(args.directory))
    stories = read_stories(find_corpus(args.data, HELD_OUT_FILE))
    context = config.max_position_embeddings
    loss = held_out_loss(make_scorer(config), params, tokenizer, stories, context)
    print(f"held-out loss: {loss:.4f} nats per byte, {len(stories)} stories")
    check = join_check(config, params, tokenizer, stories * 3, most=128)
    print(
        f"mean log-probability of a suffix token, {check.cuts} cuts: after the model's middle {check.fim:.3f}, "
        f"after a blind continuation {check.blind:.3f} (standard error of the difference {check.error:.3f}), "
        f"after the true middle {check.true:.3f}; "
        f"the middle joins better in {check.fim_better}, ends by itself in {check.ended}"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m gnomon.jax_engine.training.train")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("run", help="train, or go on after an interruption")
    command.add_argument("--data")
    command.add_argument("--out", required=True)
    command.add_argument("--tokens", type=int)
    command.add_argument("--decay", type=float)
    command.add_argument("--seed", type=int, default=0)
    command.set_defaults(run=run)
    command = commands.add_parser("export", help="write the checkpoint as a Hugging Face directory")
    command.add_argument("run_folder")
    command.add_argument("out")
    command.set_defaults(run=run_export)
    command = commands.add_parser("evaluate", help="held-out loss and suffix check of a directory")
    command.add_argument("directory")
    command.add_argument("--data")
    command.set_defaults(run=run_evaluate)
    args = parser.parse_args(argv)
    try:
        require_devices()
        args.run(args)
    except (DataError, NoDevice) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
