"""Mistakes in a program that a GPU has to wait for, by the column of the table that must show them.

Run as a script it prints the table of gpu_aot.py, with its options, for a small model: `begin` with each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from unittest.mock import patch

import gpu_aot
import jax
import jax.numpy as jnp
from jax import Array, lax

from gnomon.jax_engine.device import Program
from helpers.abstract_device import AbstractDevice, llama_config


def _sorted(x: Array) -> Array:
    return jnp.sort(x, axis=-1)


def _branched(x: Array) -> Array:
    return lax.cond(x.sum() > 3, lambda: jnp.sin(x).cumsum(), lambda: jnp.cos(x))


def _looped(x: Array) -> Array:
    return lax.while_loop(lambda y: y.sum() > 3, lambda y: y / 2 + jnp.sin(y), x)


SPOILS: Mapping[str, Callable[[Array], Array]] = {
    "sorts": _sorted,
    "conditionals": _branched,
    "unknown loops": _looped,
}


def spoiled(function: Callable[..., Any], column: str) -> Callable[..., Any]:
    """The function, with the mistake made of its first floating point result."""

    def mistaken(*arguments: Any) -> Any:
        leaves, tree = jax.tree.flatten(function(*arguments))
        at = next(i for i, leaf in enumerate(leaves) if leaf.dtype == jnp.float32 and leaf.ndim)
        flat = leaves[at].reshape(-1)
        leaves[at] = SPOILS[column](flat).reshape(leaves[at].shape)
        return jax.tree.unflatten(tree, leaves)

    return mistaken


class SpoiledModel(gpu_aot.Model):
    """A model whose programs are `begin` as it is, and with each of the mistakes, by the mistake's name."""

    def device(self, devices: Sequence[Any]) -> AbstractDevice:
        device = super().device(devices)
        begin = device.programs()["begin"]
        programs = {"unspoiled": begin, **{name.replace(" ", "-"): _spoiled_program(begin, name) for name in SPOILS}}
        device.programs = lambda: programs  # type: ignore[method-assign]
        return device


def _spoiled_program(program: Program, column: str) -> Program:
    return program._replace(function=spoiled(program.function, column))


if __name__ == "__main__":
    with patch.object(gpu_aot, "models", return_value={"tiny": SpoiledModel(llama_config(), "float32")}):
        gpu_aot.main()
