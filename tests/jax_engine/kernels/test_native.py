"""The native operations: the bits of a row, its errors, and how it is built, kept and refused."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import Array
from numpy.typing import NDArray

from gnomon.jax_engine.kernels import native
from gnomon.jax_engine.kernels.native import Native, NoNativeKernels
from gnomon.jax_engine.kernels.panels import Packer, Panels, of_stack
from gnomon.jax_engine.runtime.checked import keep
from helpers.damage import DAMAGES, Damage

DTYPES = ("float32", "bfloat16")
# in, out, rows: odd k; rows of less than a tile, of one and of several; blocks along k; panels that are not full
SHAPES = ((1, 1, 1), (5, 3, 2), (17, 25, 7), (33, 100, 9), (576, 49, 8), (1030, 75, 21), (2050, 30, 8), (2051, 30, 9))
# enough that threads share the work
SHARED = (576, 3001, 8)
THREADS = 3

# calls that do nothing: for what happens before anything is computed; they build in a moment
IDLE_SOURCE = """#include "xla/ffi/api/ffi.h"
static xla::ffi::Error idle() { return xla::ffi::Error::Success(); }
""" + "\n".join(
    f"XLA_FFI_DEFINE_HANDLER_SYMBOL(gnomon_{call}, idle, xla::ffi::Ffi::Bind());\n" for call in native.CALLS
)

pytestmark = pytest.mark.skipif(
    not any(shutil.which(name) for name in native.COMPILERS), reason="there is no C++ compiler"
)


@pytest.fixture(scope="module")
def built(native_cache: Path) -> Native:
    loaded = native.load_native(native_cache)
    assert isinstance(loaded, Native), loaded
    loaded.share_between(THREADS)
    return loaded


def operands(seed: int, inputs: int, out: int, rows: int, dtype: str) -> tuple[NDArray[np.float32], Array]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, inputs), dtype=np.float32)
    return x, jnp.asarray(rng.standard_normal((out, inputs), dtype=np.float32), dtype)


@cache
def packer(built: Native) -> Packer:
    return built.packer()


@cache
def jitted(built: Native) -> Callable[..., list[Array]]:
    return jax.jit(built.linear, static_argnums=3)


def linear(
    built: Native, x: NDArray[np.float32], weight: Array, live: NDArray[np.bool_] | None = None, rounded: bool = False
) -> NDArray[np.float32]:
    """Zeros in rows that are not live, of which nothing is written."""
    live = np.ones(len(x), bool) if live is None else live
    [y] = jitted(built)(jnp.asarray(x), [packer(built).weight(np.asarray(weight))], live, rounded)
    return np.where(live[:, None], y, np.float32(0))


def same_bits(a: NDArray[np.float32], b: NDArray[np.float32]) -> bool:
    return a.shape == b.shape and a.tobytes() == b.tobytes()


# ---- the bits of a row


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*SHAPES, SHARED])
def test_every_row_alone_has_the_bits_it_has_among_all(
    built: Native, shape: tuple[int, int, int], dtype: str, rounded: bool
) -> None:
    x, weight = operands(1, *shape, dtype)
    together = linear(built, x, weight, rounded=rounded)
    for r in range(len(x)):
        assert same_bits(linear(built, x[r : r + 1], weight, rounded=rounded)[0], together[r])
        assert same_bits(linear(built, x, weight, np.arange(len(x)) == r, rounded)[r], together[r])


@pytest.mark.slow
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.sampled_from(SHAPES[:5]),
    rows=st.integers(1, 20),
    dtype=st.sampled_from(DTYPES),
    rounded=st.booleans(),
)
def test_neither_neighbours_nor_order_nor_who_lives_touches_a_row(
    built: Native, seed: int, shape: tuple[int, int, int], rows: int, dtype: str, rounded: bool
) -> None:
    """Rows go to other places, among other rows, of which any may be dead."""
    x, weight = operands(seed, shape[0], shape[1], rows, dtype)
    rng = np.random.default_rng(seed)
    places = rng.permutation(rows + 3)[:rows]
    moved = rng.standard_normal((rows + 3, shape[0]), dtype=np.float32)
    moved[places] = x
    live = rng.random(rows + 3) < 0.5
    y = linear(built, moved, weight, live, rounded)
    kept = live[places]
    assert same_bits(y[places][kept], linear(built, x, weight, rounded=rounded)[kept])


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_output_has_the_same_bits_whether_threads_share_the_product_or_not(
    built: Native, dtype: str, rounded: bool
) -> None:
    x, weight = operands(2, *SHARED, dtype)
    whole = linear(built, x, weight, rounded=rounded)
    for first in (0, 1000, 2983):  # 18 outputs are too few to share, and begin and end inside tiles and groups
        part = linear(built, x, weight[first : first + 18], rounded=rounded)
        assert same_bits(part, np.ascontiguousarray(whole[:, first : first + 18]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [SHAPES[3], SHARED])
def test_what_dead_rows_hold_touches_no_live_one(built: Native, shape: tuple[int, int, int], dtype: str) -> None:
    x, weight = operands(3, *shape, dtype)
    clean = linear(built, x, weight)
    live = np.arange(len(x)) % 3 == 1
    x[~live] = np.where(np.arange(shape[0]) % 2, np.nan, np.inf)
    y = linear(built, x, weight, live)
    assert same_bits(y[live], clean[live])


@pytest.mark.parametrize("out", [30, 100_000])
def test_subnormal_sums_survive_on_whatever_thread(built: Native, out: int) -> None:
    weight = jnp.asarray(np.full((out, 40), 1e-39, np.float32))
    y = linear(built, np.ones((1, 40), np.float32), weight)
    assert same_bits(y, np.full((1, out), np.float32(1e-39) * np.float32(40), np.float32))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_number_of_threads_gives_the_same_bits(built: Native, dtype: str) -> None:
    x, weight = operands(10, *SHARED, dtype)
    results = []
    try:
        for threads in (1, 2, 5, 3, 1):
            built.share_between(threads)
            results.append(linear(built, x, weight))
    finally:
        built.share_between(THREADS)
    assert all(same_bits(y, results[0]) for y in results)


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_products_asked_for_together_are_those_asked_for_one_by_one(built: Native, dtype: str, rounded: bool) -> None:
    """Of one panel, of none that is full, and of several."""
    x, _ = operands(11, 577, 1, 9, dtype)
    weights = [operands(out, 577, out, 1, dtype)[1] for out in (48, 1, 300, 97)]
    panels = [packer(built).weight(np.asarray(weight)) for weight in weights]
    live = np.arange(9) % 4 > 0
    together = jitted(built)(jnp.asarray(x), panels, live, rounded)
    for weight, y in zip(weights, together, strict=True):
        assert same_bits(np.asarray(y)[live], linear(built, x, weight, live, rounded)[live])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_weight_of_a_stack_is_that_weight_alone(built: Native, dtype: str) -> None:
    x, _ = operands(12, 33, 1, 5, dtype)
    weights = [operands(20 + e, 33, 50, 1, dtype)[1] for e in range(3)]
    stack, live = packer(built).stack([np.asarray(weight) for weight in weights]), np.ones(5, bool)
    for e, weight in enumerate(weights):
        [y] = jitted(built)(jnp.asarray(x), [of_stack(stack, jnp.int32(e))], live, False)
        assert same_bits(np.asarray(y), linear(built, x, weight))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*SHAPES[:3], *(pytest.param(shape, marks=pytest.mark.slow) for shape in SHAPES[3:])])
def test_rows_taken_out_of_panels_are_those_that_were_packed(
    built: Native, shape: tuple[int, int, int], dtype: str
) -> None:
    _, weight = operands(13, *shape, dtype)
    rows = np.arange(shape[1])[::-1].reshape(1, -1)
    taken = packer(built).weight(np.asarray(weight))[jnp.asarray(rows)]
    assert taken.dtype == weight.dtype
    assert (np.asarray(taken) == np.asarray(weight)[rows]).all()


ENDS = """
import ctypes, sys
for _ in range(3):
    ctypes.CDLL(sys.argv[1]).gnomon_threads(4)
"""


def test_a_process_ends_whatever_its_threads_do(built: Native, native_cache: Path) -> None:
    [library] = native_cache.glob(f"{built.name}-*.so")
    done = subprocess.run([sys.executable, "-c", ENDS, str(library)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# ---- its errors


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*SHAPES, SHARED, (1536, 576, 128)])
def test_a_sum_errs_by_no_more_than_its_roundings(built: Native, shape: tuple[int, int, int], dtype: str) -> None:
    """in roundings to float32, each of half a unit in the last place: |error| ≤ in · 2⁻²⁴ · Σ |x| |w|, in any order;
    (1 + 2⁻²⁴)ⁿ for n ≤ 2050 adds less than a thousandth to it."""
    x, weight = operands(5, *shape, dtype)
    exact, size = x.astype(np.float64), np.asarray(weight, np.float64).T
    bound = 1.001 * shape[0] * 2.0**-24 * (np.abs(exact) @ np.abs(size))
    assert (np.abs(linear(built, x, weight) - exact @ size) <= bound).all()


@pytest.mark.parametrize("shape", [*SHAPES, SHARED, (1536, 576, 128)])
def test_rounding_x_adds_no_more_than_half_a_unit_of_bfloat16(built: Native, shape: tuple[int, int, int]) -> None:
    """2⁻⁸ of every product, and for the sum of a pair roundings that may be cut off: 2⁻²³ instead of 2⁻²⁴."""
    x, weight = operands(6, *shape, "bfloat16")
    exact, size = x.astype(np.float64), np.asarray(weight, np.float64).T
    bound = (2.0**-8 + 1.01 * shape[0] * 2.0**-23) * (np.abs(exact) @ np.abs(size))
    assert (np.abs(linear(built, x, weight, rounded=True) - exact @ size) <= bound).all()


# ---- in programs


def test_a_program_of_many_products_and_a_donated_argument_agrees_with_single_calls(built: Native) -> None:
    """Every product is shared by threads and read at once by the next: it is whole when it returns."""
    x, weight = operands(7, 1000, 1000, 8, "float32")
    weight, live = weight / 32, np.arange(8) < 5
    panels = packer(built).weight(np.asarray(weight))

    def program(x: Array, panels: Panels, live: Array) -> Array:
        for _ in range(40):
            [x] = built.linear(x, [panels], live)
        return x

    compiled = jax.jit(program, donate_argnums=0).lower(jnp.asarray(x), panels, live).compile()
    step = x
    for _ in range(40):
        step = linear(built, step, weight, live)
    for _ in range(3):
        given = jnp.asarray(x)
        assert same_bits(np.asarray(compiled(given, panels, live))[live], step[live])
        assert given.is_deleted()


def test_products_called_from_many_threads_at_once_all_end_with_the_same_bits(built: Native) -> None:
    x, weight = operands(8, *SHARED, "float32")
    live, panels = np.ones(len(x), bool), packer(built).weight(np.asarray(weight))
    compiled = jax.jit(built.linear).lower(jnp.asarray(x), [panels], live).compile()
    want = linear(built, x, weight)
    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(lambda _: np.asarray(compiled(jnp.asarray(x), [panels], live)[0]), range(200)))
    assert all(same_bits(y, want) for y in results)


def test_arguments_that_do_not_fit_are_an_error_not_a_crash(built: Native) -> None:
    x, weight = operands(9, 16, 8, 4, "float32")
    panels, live = packer(built).weight(np.asarray(weight)), np.ones(4, bool)
    for wrong, message in (
        (replace(panels, words=panels.words[:, :15]), "shapes are not"),
        (replace(panels, out=1000), "shapes are not"),
        (replace(panels, words=panels.words.astype(jnp.float16)), "neither float32 nor bfloat16"),
    ):
        with pytest.raises(jax.errors.JaxRuntimeError, match=message):
            np.asarray(jitted(built)(jnp.asarray(x), [wrong], live, False))
    with pytest.raises(jax.errors.JaxRuntimeError, match="not as many rows as bits"):
        np.asarray(jitted(built)(jnp.asarray(x), [panels], live[:3], False))
    narrow = packer(built).weight(np.asarray(weight.astype(jnp.bfloat16)))
    with pytest.raises(jax.errors.JaxRuntimeError, match="weights of two kinds"):
        np.asarray(jitted(built)(jnp.asarray(x), [panels, narrow], live, False))


# ---- building


def idle_source(tmp_path: Path) -> Path:
    (tmp_path / "idle").mkdir()
    source = tmp_path / "idle" / "idle.cc"
    source.write_text(IDLE_SOURCE)
    return source


def idle_file() -> Path:
    """The source that the fixture `idle` has put in place of ours."""
    return native.SOURCES / "idle.cc"


@pytest.fixture
def idle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Has `load` build a source that does nothing, as if in a new process; returns how many builds there were."""
    source = idle_source(tmp_path)
    source.write_text(f"{IDLE_SOURCE}// {tmp_path}\n")  # a name of its own in XLA's table, which forgets nothing
    builds: list[Path] = []
    build = native._build

    def counted(compiler: list[str], cache: Path, *rest: Any) -> Path:
        builds.append(cache)
        return build(compiler, cache, *rest)

    monkeypatch.setattr(native, "SOURCES", source.parent)
    monkeypatch.setattr(native, "_registered", {})
    monkeypatch.setattr(native, "_build", counted)
    monkeypatch.delenv("CXX", raising=False)
    return lambda: len(builds)


@pytest.mark.slow
def test_a_second_start_builds_nothing(
    tmp_path: Path, idle: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = native.load_native(tmp_path / "kept")
    monkeypatch.setattr(native, "_registered", {})
    assert native.load_native(tmp_path / "kept") == first
    assert isinstance(first, Native)
    assert idle() == 1


@pytest.mark.slow
def test_another_source_other_flags_and_another_cpu_are_built_anew(
    tmp_path: Path, idle: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = [native.load_native(tmp_path / "kept")]
    idle_file().write_text(idle_file().read_text() + "// changed\n")
    loaded.append(native.load_native(tmp_path / "kept"))
    monkeypatch.setattr(native, "COMPILER_FLAGS", (*native.COMPILER_FLAGS, "-fno-unroll-loops"))
    loaded.append(native.load_native(tmp_path / "kept"))
    run = native._run
    monkeypatch.setattr(native, "_run", lambda command: run(command) + "#define __A_CPU_OF_TOMORROW__ 1\n")
    loaded.append(native.load_native(tmp_path / "kept"))
    assert idle() == 4
    assert len({each.description for each in loaded if isinstance(each, Native)}) == 4
    assert len(list((tmp_path / "kept").glob("*.so"))) == 4


@pytest.mark.slow
def test_building_prints_nothing(
    tmp_path: Path, idle: Callable[[], int], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    idle_file().write_text(idle_file().read_text() + '#warning "a word to the wise"\n')
    monkeypatch.setattr(native, "COMPILER_FLAGS", tuple(flag for flag in native.COMPILER_FLAGS if flag != "-w"))
    assert isinstance(native.load_native(tmp_path / "kept"), Native)
    assert idle() == 1
    assert capfd.readouterr() == ("", "")


def test_without_a_compiler_the_reason_names_what_was_looked_for(
    tmp_path: Path, idle: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert str(native.load_native(tmp_path)) == "there is no C++ compiler: no-such-compiler not found"
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    reason = native.load_native(tmp_path)
    assert isinstance(reason, NoNativeKernels)
    assert str(reason) == "there is no C++ compiler: c++, g++, clang++ not found"
    assert idle() == 0


def test_a_source_that_does_not_compile_gives_the_compilers_error_and_leaves_nothing(
    tmp_path: Path, idle: Callable[[], int]
) -> None:
    idle_file().write_text("this is not C++;\n")
    reason = native.load_native(tmp_path / "kept")
    assert isinstance(reason, NoNativeKernels)
    assert "failed" in str(reason)
    assert "error" in str(reason)
    assert list((tmp_path / "kept").iterdir()) == []
    assert idle() == 1


@pytest.mark.parametrize("source", ["", 'extern "C" void* gnomon_linear(void*) { return nullptr; }'])
def test_a_library_without_the_call_or_for_another_interface_gives_a_reason(
    tmp_path: Path, idle: Callable[[], int], source: str
) -> None:
    idle_file().write_text(f"{source}// {tmp_path}\n")
    reason = native.load_native(tmp_path / "kept")
    assert isinstance(reason, NoNativeKernels)
    assert str(reason).startswith("the library cannot be used: ")


def test_a_cached_file_that_is_no_library_gives_a_reason(
    tmp_path: Path, idle: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_nonsense(compiler: list[str], cache: Path, name: str, *rest: Any) -> Path:
        return keep(cache, name, ".so", b"no library")

    monkeypatch.setattr(native, "_build", write_nonsense)
    assert isinstance(native.load_native(tmp_path / "kept"), NoNativeKernels)


# in a process of its own, which loading half a library would end by a signal
LOAD = """
import sys
from pathlib import Path
from gnomon.jax_engine.kernels import native
native.SOURCES = Path(sys.argv[1])
print(native.load_native(Path(sys.argv[2]), print))
"""


@pytest.mark.slow
def test_half_a_library_does_not_end_the_process_but_is_built_anew_with_a_line(tmp_path: Path) -> None:
    source, kept = idle_source(tmp_path), tmp_path / "kept"
    command = [sys.executable, "-c", LOAD, str(source.parent), str(kept)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}

    def load() -> list[str]:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
        assert done.returncode == 0, (done.returncode, done.stderr)
        return done.stdout.splitlines()

    building, loaded = load()
    [library] = kept.glob("*.so")
    os.truncate(library, library.stat().st_size // 2)
    damaged, *again = load()
    assert damaged.startswith(f"{library} is damaged: its ")
    assert again == [building, loaded]
    assert list(kept.glob("*.so")) == [library]  # the compiler makes the same of the same


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
def test_a_damaged_library_is_built_anew_with_one_line(
    tmp_path: Path, idle: Callable[[], int], monkeypatch: pytest.MonkeyPatch, damage: Damage
) -> None:
    """It is built and not loaded at first: XLA takes a call of one name once a process."""

    def refuse(library: str) -> None:
        raise OSError("not now")

    with monkeypatch.context() as building:
        building.setattr("ctypes.CDLL", refuse)
        assert isinstance(native.load_native(tmp_path / "kept"), NoNativeKernels)
    [library] = (tmp_path / "kept").glob("*.so")
    damage.do(library)
    said: list[str] = []
    assert isinstance(native.load_native(tmp_path / "kept", said.append), Native)
    assert list((tmp_path / "kept").glob("*.so")) == [library]
    assert [damage.wrong in line for line in said] == [True, False]
    assert said[1].startswith("building the native operations with ")
    assert idle() == 2


def test_a_cache_directory_that_cannot_be_made_gives_a_reason(tmp_path: Path, idle: Callable[[], int]) -> None:
    (tmp_path / "file").write_text("in the way")
    assert isinstance(native.load_native(tmp_path / "file" / "cache"), NoNativeKernels)


def test_no_cache_directory_and_no_cpu_each_have_their_reason(
    tmp_path: Path, idle: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert str(native.load_native(None)) == "there is no cache directory to build it in"
    monkeypatch.setattr(jax, "default_backend", lambda: "rocm")
    assert str(native.load_native(tmp_path)) == "the device is not a CPU but rocm"
    assert idle() == 0


@pytest.mark.slow
def test_two_processes_that_build_at_once_both_get_their_library(tmp_path: Path) -> None:
    """Their compiler builds only when both are building, so neither finds the other's result."""
    source, compiler, kept = idle_source(tmp_path), tmp_path / "slow-c++", tmp_path / "kept"
    real = next(path for name in native.COMPILERS if (path := shutil.which(name)))
    compiler.write_text(
        "#!/bin/sh\n"
        f'case "$*" in *"{source}"*) touch {tmp_path}/building.$$; i=0\n'
        f"while [ $(ls {tmp_path} | grep -c building) -lt 2 ] && [ $i -lt 600 ]\n"
        "do sleep 0.1; i=$((i+1)); done;; esac\n"
        f'exec {real} "$@"\n'
    )
    compiler.chmod(0o755)
    code = (
        "from pathlib import Path; from gnomon.jax_engine.kernels import native; import sys\n"
        "native.SOURCES = Path(sys.argv[1])\n"
        "print(native.load_native(Path(sys.argv[2])).description)"
    )
    environment = {**os.environ, "CXX": str(compiler), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", code, str(source.parent), str(kept)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert outputs[0] == outputs[1]
    assert "gnomon_native_" in outputs[0]
    assert len(list(tmp_path.glob("building.*"))) == 2
    assert sorted(file.suffix for file in kept.iterdir()) == [".o", ".so"]
