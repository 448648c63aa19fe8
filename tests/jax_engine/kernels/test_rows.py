"""Norms, rotary positions and activations, natively and by XLA, against what they mean in NumPy's float64, and the bits
of a row."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from gnomon.jax_engine.kernels import native, xla
from gnomon.jax_engine.kernels.native import Native
from gnomon.reference import model, transformer

NORMS = ("rms", "rms_offset", "layer")
WIDTHS = (1, 3, 15, 16, 17, 64, 577, 1000)  # less than the lanes of a vector, full ones, and some beyond
ROWS = 40
EPS = 1e-5

F32 = NDArray[np.float32]
Mask = NDArray[np.bool_]
Operation = Callable[[Any, Mask], F32]  # of some rows: which they are, [R], and who of them lives


@pytest.fixture(scope="module")
def built(native_cache: Path) -> Native:
    if not any(shutil.which(name) for name in native.COMPILERS):
        pytest.skip("there is no C++ compiler")
    loaded = native.load_native(native_cache)
    assert isinstance(loaded, Native), loaded
    loaded.share_between(3)
    return loaded


@pytest.fixture(params=["native", pytest.param("xla", marks=pytest.mark.slow)])
def form(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue("built") if request.param == "native" else xla


def normal(seed: int, *shape: int) -> F32:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def exact_norm(x: Any, weight: Any, bias: Any, kind: str) -> Any:
    x, weight = np.asarray(x, np.float64), np.asarray(weight, np.float64)
    if kind == "layer":
        x = x - x.mean(axis=-1, keepdims=True)
    y = model.rms_norm(x, 1 + weight if kind == "rms_offset" else weight, EPS)
    return y if bias is None else y + np.asarray(bias, np.float64)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("kind", NORMS)
def test_a_norm_is_the_references(form: Any, kind: str, has_bias: bool, dtype: str) -> None:
    for D in WIDTHS:
        x = 2 + 3 * normal(D, 5, D)
        weight, bias = (jnp.asarray(vector, dtype) for vector in normal(1, 2, D))
        has_bias = has_bias and kind == "layer"
        y = form.norm(jnp.asarray(x), weight, bias if has_bias else None, kind, EPS, np.ones(5, bool))
        assert (y.shape, y.dtype) == (x.shape, jnp.float32)
        np.testing.assert_allclose(
            y, exact_norm(x, weight, bias if has_bias else None, kind), rtol=1e-6, atol=3e-6 if D > 1 else 1e-3
        )


def test_heads_beside_each_other_are_normed_one_by_one(form: Any) -> None:
    x, weight, live = normal(1, 2, 3, 4, 17), normal(2, 17), np.array([[True, False, True], [False, True, True]])
    y = np.asarray(form.norm(jnp.asarray(x), jnp.asarray(weight), None, "rms", EPS, live))
    np.testing.assert_allclose(y[live], exact_norm(x, weight, None, "rms")[live], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("half", "H"), [(1, 2), (3, 9), (8, 16), (32, 64), (20, 80), (33, 66)])
def test_the_first_coordinates_of_a_head_are_turned_and_the_others_kept(form: Any, half: int, H: int) -> None:
    x, angle = normal(1, 2, 3, 5, H), normal(2, 2, 3, half).astype(np.float64)
    turn = [jnp.asarray(of(angle), jnp.float32) for of in (np.cos, np.sin)]
    y = np.asarray(form.rotate(jnp.asarray(x), *turn, np.ones((2, 3), bool)))
    for b in range(2):
        exact = model.rotate(x[b, ..., : 2 * half].astype(np.float64), angle[b])
        np.testing.assert_allclose(y[b, ..., : 2 * half], exact, rtol=1e-6, atol=1e-6)
    assert np.array_equal(y[..., 2 * half :], x[..., 2 * half :])


@pytest.mark.parametrize("is_gated", [False, True])
@pytest.mark.parametrize("kind", native.ACTIVATIONS)
def test_an_activation_is_the_references(form: Any, kind: str, is_gated: bool) -> None:
    for F in WIDTHS:
        factors = [4 * normal(F, 5, F), normal(1, 5, F)][: 1 + is_gated]
        factors[0].flat[:4] = (0.0, -200, 90, -90)[: min(4, factors[0].size)]
        y = form.activate([jnp.asarray(factor) for factor in factors], kind, np.ones(5, bool))
        exact = transformer.activate(factors[0].astype(np.float64), kind)
        np.testing.assert_allclose(y, exact * factors[1] if is_gated else exact, rtol=3e-6, atol=3e-6)


# ---- the bits of a row


def operations(built: Native) -> dict[str, Operation]:
    """Each operation of 40 rows of an odd width, of which some are taken."""
    D, N, H, half = 577, 3, 35, 13
    x, up, vectors = 3 * normal(1, ROWS, D), normal(2, ROWS, D), normal(3, 2, D)
    heads, turn = normal(4, ROWS, N, H), normal(5, 2, ROWS, half)
    head_weight = jnp.asarray(normal(6, H))

    def rows(of: Any, *arrays: F32) -> Operation:
        jitted = jax.jit(of)

        def operation(which: Any, live: Mask) -> F32:
            taken = [array[which].copy() for array in arrays]
            for array in taken:
                array[~live] = np.nan
            return np.asarray(jitted(*map(jnp.asarray, taken), live))

        return operation

    def heads_of(live: Any) -> Any:
        return live[:, None]

    every: dict[str, Operation] = {
        f"norm {kind}": rows(
            lambda x, live, kind=kind: built.norm(
                x, vectors[0], vectors[1] if kind == "layer" else None, kind, EPS, live
            ),
            x,
        )
        for kind in NORMS
    }
    every["norm heads"] = rows(lambda x, live: built.norm(x, head_weight, None, "rms", EPS, live), heads)
    every["rotate"] = rows(
        lambda x, cos, sin, live: built.rotate(x[:, None], cos[:, None], sin[:, None], heads_of(live)), heads, *turn
    )
    for kind in native.ACTIVATIONS:
        every[kind] = rows(lambda x, live, kind=kind: built.activate([x], kind, live), x)
        every[f"{kind} gated"] = rows(lambda x, up, live, kind=kind: built.activate([x, up], kind, live), x, up)
    return every


@pytest.mark.parametrize(
    "counts", [(1, 2, 3, 8, 33, ROWS), pytest.param((4, 5, 6, 7, 9, 16, 31, 32), marks=pytest.mark.slow)], ids=str
)
def test_a_row_has_the_same_bits_among_any_number_of_others(built: Native, counts: tuple[int, ...]) -> None:
    """In any order, with one thread or three, and whoever else is dead; NaN in the dead."""
    rng = np.random.default_rng(7)
    for name, operation in operations(built).items():
        whole = operation(slice(None), np.ones(ROWS, bool))
        assert np.isfinite(whole).all(), name
        for count in counts:
            built.share_between(1 + 2 * (count % 2))
            which, live = rng.permutation(ROWS)[:count], rng.random(count) < 0.6
            y = operation(which, live)
            assert y[live].tobytes() == whole[which][live].tobytes(), (name, count)


def test_shared_between_threads_many_rows_have_the_bits_they_have_alone(built: Native) -> None:
    """Rows as many as in a chunk, so that the threads have work."""
    x, up, weight = (
        jnp.asarray(normal(seed, *shape)) for seed, shape in enumerate([(300, 1537), (300, 1537), (1537,)])
    )
    live, given = jnp.ones(300, bool), set()
    for threads in (1, 2, 3):
        built.share_between(threads)
        y = built.norm(x, weight, None, "layer", EPS, live)
        z = built.activate([x, up], "silu", live)
        given.add(np.asarray(y).tobytes() + np.asarray(z).tobytes())
    assert len(given) == 1
