"""Muon on the hidden matrices, Adam on embeddings and norms; warm-up, constant, linear decay."""

from __future__ import annotations

from typing import Any

import jax
import optax  # type: ignore[import-untyped]
import optax.contrib  # type: ignore[import-untyped]

from gnomon.jax_engine.training.config import TrainConfig
from gnomon.jax_engine.training.llama import FlaxParams


def muon_axes(params: FlaxParams) -> FlaxParams:
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
