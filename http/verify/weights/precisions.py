"""The model run with weights and arithmetic of fewer bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np

from gnomon.http.verify.weights.readings import Kind
from gnomon.http.verify.weights.variants import Variant
from gnomon.reference.arrays import F64

FLOAT32 = "float32 arithmetic"


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
