"""Weights packed as the native product reads them: panels of outputs, in which the outputs stand side by side and their
inputs one after the other (see cpu/linear.h). They are packed once, and the packed form is the only one there is: rows
of an embedding, which may also be the head, are taken out of the panels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import Array, lax
from numpy.typing import NDArray

from gnomon.jax_engine.runtime.huge_pages import HugePages

WORD = 4  # bytes: a weight in float32, or two in bfloat16


@partial(jax.tree_util.register_dataclass, data_fields=("words", "at"), meta_fields=("out", "inputs"))
@dataclass(frozen=True)
class Panels:
    """A weight [out, in], or one of a stack of them."""

    words: Any  # [panels, in, lanes] float32, or [panels, in / 2, lanes, 2] bfloat16; a stack has [E] before that
    out: int
    inputs: int
    at: Any = None  # int32: which of the stack

    def __getitem__(self, rows: Array) -> Array:
        """Rows [...] of a weight that is no stack → [..., in]."""
        lanes = self.words.shape[2]
        taken: Array = self.words[rows // lanes, :, rows % lanes]
        return taken.reshape(*rows.shape, -1)[..., : self.inputs]


def of_stack(stack: Any, e: Array) -> Any:
    """The weight number `e` of a stack, packed or [E, out, in]. Of a packed one nothing is copied."""
    return replace(stack, at=e) if isinstance(stack, Panels) else lax.dynamic_index_in_dim(stack, e, keepdims=False)


class Packer:
    """Makes panels on huge pages. lanes: outputs of a panel; pack: `gnomon_pack`."""

    def __init__(self, lanes: int, pack: Any) -> None:
        self._lanes, self._pack, self._memory = lanes, pack, HugePages()

    def weight(self, weight: NDArray[Any]) -> Panels:
        """weight [out, in] float32 or bfloat16, which may be let go afterwards."""
        panels = self._packed([weight])
        return Panels(jax.device_put(panels[0]), *weight.shape)

    def stack(self, weights: Sequence[NDArray[Any]]) -> Panels:
        """The same for each [out, in] of a stack."""
        return Panels(jax.device_put(self._packed(weights)), *weights[0].shape)

    def _packed(self, weights: Sequence[NDArray[Any]]) -> NDArray[Any]:
        (out, inputs), dtype = weights[0].shape, weights[0].dtype
        of_word = WORD // dtype.itemsize
        pairs = () if of_word == 1 else (of_word,)
        panels = self._memory.array(
            (len(weights), -(-out // self._lanes), -(-inputs // of_word), self._lanes, *pairs), dtype
        )
        for weight, own in zip(weights, panels, strict=True):
            whole = np.ascontiguousarray(weight)
            self._pack(whole.ctypes.data, dtype.itemsize, out, inputs, own.ctypes.data)
        return panels
