"""The options of jax that would change what the engine computes, or end it, and the values they have inside it.

A user may set any of them for other work: JAX_ENABLE_X64=1, jax.config.update in a notebook. The engine pins them for
its own calls alone. jax keeps such a value for one thread, so each thread that traces a program or runs one enters
`pinned()`; nothing changes for anybody else in the process. Options that are the process's cannot be pinned so: those
in REFUSED are refused by name where they are set.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import jax
from jax._src.config import config_states  # of 0.10.2 to 0.12: some options have no public context manager

PINS: Mapping[str, Any] = {
    # option → its value here; without it:
    "jax_enable_x64": False,  # other dtypes than the programs are written for
    "jax_numpy_dtype_promotion": "standard",  # strict: mixed int32 and float32 are refused
    "jax_numpy_rank_promotion": "allow",  # raise: broadcasting is refused
    "jax_default_matmul_precision": "highest",  # fewer bits on a GPU
    "jax_disable_jit": False,  # nothing can be compiled ahead of time
    "jax_no_tracing": False,
    "jax_no_execution": False,
    "jax_transfer_guard_host_to_device": "allow",  # arguments of a step come from the host
    "jax_transfer_guard_device_to_host": "allow",
    "jax_transfer_guard_device_to_device": "allow",
    "jax_default_device": None,  # a device beside those of the mesh
    "jax_debug_nans": False,  # a request's logits that are not finite fail that request, not the engine
    "jax_debug_infs": False,
    "jax_check_tracer_leaks": False,  # every call traced again
    "jax_enable_checks": False,
    "jax_error_checking_behavior_nan": "ignore",  # other programs
    "jax_error_checking_behavior_divide": "ignore",
    "jax_error_checking_behavior_oob": "ignore",
    "eager_constant_folding": False,  # other roundings
    "jax_compiler_enable_remat_pass": True,
    "jax_exec_time_optimization_effort": 0.0,  # other optimisations of XLA, and other roundings
    "jax_memory_fitting_effort": 0.0,
    "jax_optimization_level": "UNKNOWN",
    "jax_memory_fitting_level": "O2",
    "jax_enable_pgle": False,  # programs are replaced while they run, by profile
    "jax_compilation_cache_expect_pgle": False,
    "jax_compilation_cache_check_contents": False,  # two compilations of one program differ in their bytes
    "jax_thread_guard": False,  # the thread that makes the engine is not the one that runs it
}

REFUSED: Mapping[str, Any] = {
    # option of the whole process → the one value that is allowed
    "jax_disable_most_optimizations": False,  # other roundings, and many times slower
}


@contextmanager
def pinned(more: Mapping[str, Any] | None = None) -> Iterator[None]:
    """jax's options have the values of PINS, and of `more`, in this thread; what this jax lacks needs no value."""
    with ExitStack() as stack:
        for name, value in {**PINS, **(more or {})}.items():
            if name in config_states:
                stack.enter_context(config_states[name](value))
        yield


def refused_option() -> str | None:
    """What is wrong with an option of the process, or None."""
    for name, allowed in REFUSED.items():
        value = jax.config.values.get(name, allowed)
        if value != allowed:
            return f"{name.upper()}={value!r} changes what is computed; allowed: {allowed!r}"
    return None
