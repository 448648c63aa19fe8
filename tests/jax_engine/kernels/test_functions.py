"""The functions of lanes in kernels/cpu/functions.h against NumPy's float64, compiled for this CPU and for others whose
instructions it has."""

from __future__ import annotations

import ctypes
import math
import platform
import shutil
import subprocess
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from gnomon.jax_engine.kernels import native

FUNCTIONS = ("exp", "tanh", "erf", "log", "log1p")
SOURCE = """#include "functions.h"
using namespace gnomon;
#define EVERY(function) \\
  extern "C" void function##_of(const float* x, float* y, size_t n) { \\
    for (size_t i = 0; i < n; i += W) *(LanesAnywhere*)(y + i) = function(*(const LanesAnywhere*)(x + i)); \\
  }
"""
X86 = platform.machine() in ("x86_64", "AMD64")
OTHERS = ("-march=haswell", "-march=x86-64") if X86 else ()  # any x86 CPU of the last ten years has those
UNFUSED = OTHERS[1:]  # a multiply-add rounds twice there
SLOWER = [pytest.param(flag, marks=pytest.mark.slow) for flag in OTHERS]

Function = Callable[[NDArray[np.float32]], NDArray[np.float32]]

COMPILER = next((name for name in native.COMPILERS if shutil.which(name)), None)

pytestmark = pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")


@pytest.fixture(scope="module", params=[native.CPU_FLAG, *SLOWER])
def functions(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Function]:
    """Name → the function of every element; their number is a multiple of 16."""
    folder = tmp_path_factory.mktemp("functions")
    (folder / "functions.cc").write_text(SOURCE + "".join(f"EVERY({name})\n" for name in FUNCTIONS))
    flags = [request.param if flag == native.CPU_FLAG else flag for flag in native.COMPILER_FLAGS]
    built = [str(folder / name) for name in ("functions.so", "functions.cc")]
    subprocess.run([str(COMPILER), *flags, f"-I{native.SOURCES}", "-o", *built], check=True)
    library = ctypes.CDLL(built[0])

    def function(name: str) -> Function:
        def of(x: NDArray[np.float32]) -> NDArray[np.float32]:
            assert len(x) % 16 == 0
            y = np.empty_like(x)
            library[f"{name}_of"](
                x.ctypes.data_as(ctypes.c_void_p), y.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(len(x))
            )
            return y

        return of

    return {name: function(name) for name in FUNCTIONS}


def units(y: NDArray[np.float32], exact: NDArray[np.float64]) -> float:
    """The largest error in units of the last place of what is exact; both are finite."""
    size = np.spacing(np.maximum(np.abs(exact), np.finfo(np.float32).tiny).astype(np.float32)).astype(np.float64)
    return float((np.abs(y - exact) / size).max())


def floats(low: float, high: float, count: int = 2**20) -> NDArray[np.float32]:
    return np.random.default_rng(1).uniform(low, high, count).astype(np.float32)


@pytest.mark.parametrize(("low", "high"), [(-87.3, 88.7), (-1, 1), (-1e-3, 1e-3), (-104, -87)])
def test_exp_errs_by_less_than_one_unit_in_the_last_place(
    functions: dict[str, Function], low: float, high: float
) -> None:
    x = floats(low, high)
    assert units(functions["exp"](x), np.exp(x.astype(np.float64))) < 1


def test_exp_at_the_ends_and_of_what_is_no_number(functions: dict[str, Function]) -> None:
    infinity, nan = np.inf, np.nan
    x = np.array(
        [-infinity, infinity, nan, -nan, 0, -0.0, -104, 89, -3e38, 3e38, -103.9, 88.72, 88.73, 1e-45, -1e-45, 1]
    )
    y = functions["exp"](x.astype(np.float32))
    with np.errstate(over="ignore"):
        exact = np.exp(x.astype(np.float32).astype(np.float64)).astype(np.float32)
    assert np.array_equal(y[:-1], exact[:-1], equal_nan=True)
    assert abs(y[-1] / np.e - 1) < 2**-24


def test_log_errs_by_less_than_one_unit_at_every_exponent(functions: dict[str, Function]) -> None:
    """Of the smallest subnormals all."""
    mantissas = 1 + 2047 * np.arange(4096, dtype=np.uint32)
    for exponent in range(255):
        x = (np.uint32(exponent << 23) + mantissas).view(np.float32)
        assert units(functions["log"](x), np.log(x.astype(np.float64))) < 1
    few = np.arange(1, 2**12 + 1, dtype=np.uint32).view(np.float32)
    assert units(functions["log"](few), np.log(few.astype(np.float64))) < 1


@pytest.mark.parametrize(("low", "high"), [(0.5, 2), (0.99, 1.01), (0.7, 0.72), (1.40, 1.42)])
def test_log_near_one_errs_by_less_than_one_unit_of_a_small_result(
    functions: dict[str, Function], low: float, high: float
) -> None:
    x = floats(low, high)
    assert units(functions["log"](x), np.log(x.astype(np.float64))) < 1
    assert functions["log"](np.ones(16, np.float32)).tobytes() == bytes(64)


@pytest.mark.parametrize("least", [0.5, 0.3, 1e-3, 1e-10, 2**-65])
def test_log1p_of_what_is_subtracted_errs_by_less_than_one_unit(functions: dict[str, Function], least: float) -> None:
    x = -floats(least / 2, least)
    x[:2] = -0.5, -least
    assert units(functions["log1p"](x), np.log1p(x.astype(np.float64))) < 1


@pytest.mark.parametrize("most", [1e-30, 1e-3, 0.56, 1, 20])
def test_tanh_errs_by_less_than_two_units_in_the_last_place(functions: dict[str, Function], most: float) -> None:
    x = floats(-most, most)
    assert units(functions["tanh"](x), np.tanh(x.astype(np.float64))) < 2


def test_tanh_at_the_ends_and_of_what_is_no_number(functions: dict[str, Function]) -> None:
    x = np.array([-np.inf, np.inf, np.nan, 0, -0.0, 1e-45, -1e-45, 3e38, -3e38, 9.1] + [50] * 6, np.float32)
    want = np.array([-1, 1, np.nan, 0, -0.0, 1e-45, -1e-45, 1, -1, 1] + [1] * 6, np.float32)
    y = functions["tanh"](x)
    assert np.array_equal(y, want, equal_nan=True)
    assert (np.signbit(y) == np.signbit(want))[~np.isnan(x)].all()


@pytest.mark.parametrize("most", [1e-30, 1e-3, 1, 1.1, 5])
def test_erf_errs_by_less_than_two_units_in_the_last_place(functions: dict[str, Function], most: float) -> None:
    x = floats(-most, most, 2**16)
    assert units(functions["erf"](x), np.array([math.erf(one) for one in x])) < 2


def test_erf_at_the_ends_and_of_what_is_no_number(functions: dict[str, Function]) -> None:
    x = np.array([-np.inf, np.inf, np.nan, 0, -0.0, 3e38, -3e38, 4] + [50] * 8, np.float32)
    want = np.array([-1, 1, np.nan, 0, -0.0, 1, -1, 1] + [1] * 8, np.float32)
    y = functions["erf"](x)
    assert np.array_equal(y, want, equal_nan=True)
    assert (np.signbit(y) == np.signbit(want))[~np.isnan(x)].all()


def test_what_a_lane_holds_changes_no_other(functions: dict[str, Function]) -> None:
    """Any lane among NaN, infinities and numbers that are too large gives the bits that it gives among equals."""
    x = floats(-110, 95, 2**10)
    x[::3], x[1::7] = np.nan, np.inf
    for function in functions.values():
        y = function(x)
        alone = np.array([function(np.full(16, one))[0] for one in x])
        assert y.tobytes() == alone.tobytes()
