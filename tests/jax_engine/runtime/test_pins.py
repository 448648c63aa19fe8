"""Whatever jax is set to, by a variable or by another library: the same bytes, or one sentence; and nothing of it is
changed for anybody else. Setting an option in this process is what its variable does at the start of one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gnomon.jax_engine.engine import JaxEngine
from gnomon.jax_engine.runtime import pins
from gnomon.jax_engine.runtime.settings import EngineSettings
from gnomon.reference.checkpoint.load import Checkpoint, load_checkpoint
from gnomon.reference.engine import JobRequest
from gnomon.reference.sampler import SamplingParams
from helpers.models import tiny_llama

SETTINGS = EngineSettings(slots=2, page_size=8, chunk=16, pool_tokens=512, native=False)
GREEDY = SamplingParams(max_tokens=4, temperature=0.0)
SAMPLED = SamplingParams(max_tokens=6, temperature=0.9, top_p=0.8, frequency_penalty=0.5, logit_bias={3: 2.0})

# option → values that are not what the engine wants; the first of the few that users meet run always
FEW: dict[str, list[Any]] = {
    "jax_enable_x64": [True],
    "jax_numpy_dtype_promotion": ["strict"],
    "jax_numpy_rank_promotion": ["raise"],
    "jax_transfer_guard": ["disallow"],
    "jax_disable_jit": [True],
    "jax_default_matmul_precision": ["bfloat16"],
}
MORE: dict[str, list[Any]] = {
    "jax_transfer_guard": ["disallow_explicit"],
    "jax_default_matmul_precision": ["default", "tensorfloat32"],
    "jax_numpy_rank_promotion": ["warn"],
    "jax_no_tracing": [True],
    "jax_no_execution": [True],
    "jax_transfer_guard_host_to_device": ["disallow_explicit"],
    "jax_transfer_guard_device_to_host": ["disallow_explicit"],
    "jax_transfer_guard_device_to_device": ["disallow_explicit"],
    "jax_debug_nans": [True],
    "jax_debug_infs": [True],
    "jax_check_tracer_leaks": [True],
    "jax_enable_checks": [True],
    "jax_error_checking_behavior_nan": ["raise"],
    "jax_error_checking_behavior_divide": ["raise"],
    "jax_error_checking_behavior_oob": ["raise"],
    "eager_constant_folding": [True],
    "jax_compiler_enable_remat_pass": [False],
    "jax_exec_time_optimization_effort": [-1.0],
    "jax_memory_fitting_effort": [-1.0],
    "jax_optimization_level": ["O0", "O1"],
    "jax_memory_fitting_level": ["O0", "O3"],
    "jax_enable_pgle": [True],
    "jax_compilation_cache_expect_pgle": [True],
    "jax_compilation_cache_check_contents": [True],
    "jax_thread_guard": [True],
}
# Not pinned: of no effect on the engine's bytes. With values to try, where one can be set in a process that runs.
HARMLESS: dict[str, list[Any]] = {
    "jax2tf_associative_scan_reductions": [],
    "jax2tf_default_native_serialization": [],
    "jax_serialization_version": [],
    "jax_export_calling_convention_version": [],
    "jax_export_ignore_forward_compatibility": [],
    "jax_platforms": [],  # see test_backend.py
    "jax_platform_name": [],
    "jax_xla_backend": [],
    "jax_backend_target": [],
    "jax_pjrt_client_create_options": [],
    "jax_check_static_indices": [True],
    "jax_captured_constants_warn_bytes": [],
    "jax_captured_constants_report_frames": [1],
    "jax_debug_leaked_clients_on_clear_backends": [],
    "jax_debug_key_reuse": [True],
    "jax_log_compiles": [],  # lines on standard error, which was asked for
    "jax_explain_cache_misses": [],
    "jax_log_checkpoint_residuals": [],
    "jax_scan3": [True],
    "jax_remat3": [True],
    "jax_custom_vjp3": [True],
    "jax_distributed_debug": [],
    "jax_random_seed_offset": [7],  # the engine draws by threefry of its own
    "jax_legacy_prng_key": ["error"],
    "jax_enable_custom_prng": [True],
    "jax_default_prng_impl": ["rbg"],
    "jax_threefry_partitionable": [False],
    "jax_threefry_gpu_kernel_lowering": [True],
    "jax_high_dynamic_range_gumbel": [True],
    "jax_use_direct_linearize": [False],
    "jax_use_simplified_jaxpr_constants": [True],
    "jax_embedded_constants_max_bytes": [0],
    "jax_remove_size_one_mesh_axis_from_type": [True],
    "check_vma": [True],
    "jax_softmax_custom_jvp": [True],
    "jax_allow_f16_reductions": [False],
    "jax_auto_pcast": [False],
    "jax_explicit_x64_dtypes": ["error"],
    "jax_raise_persistent_cache_errors": [True],
    "jax_persistent_cache_min_compile_time_secs": [100.0],
    "jax_persistent_cache_min_entry_size_bytes": [10**9],
    "jax_persistent_cache_enable_xla_caches": ["all"],
    "jax_compilation_cache_include_metadata_in_key": [True],  # slower: other keys
    "jax_compilation_cache_dir": [],  # see test_programs.py
    "jax_compilation_cache_max_size": [],
    "jax_enable_compilation_cache": [False],  # slower: nothing is kept
    "jax_remove_custom_partitioning_ptr_from_cache_key": [True],
    "jax_hlo_source_file_canonicalization_regex": [".*"],
    "jax_source_url_schema": [],
    "jax_include_full_tracebacks_in_locations": [False],
    "jax_traceback_in_locations_limit": [0],
    "jax_share_binary_between_hosts": [True],
    "jax_share_binary_between_hosts_timeout_ms": [],
    "jax_pgle_profiling_runs": [],
    "jax_pgle_aggregation_percentile": [],
    "jax_disallow_mesh_context_manager": [True],
    "jax_traceback_filtering": ["off"],
    "jax_use_emit_pipeline_primitive": [True],
    "jax_bcoo_cusparse_lowering": [True],
    "jax_disable_vmap_shmap_error": [True],
    "jax_mutable_array_checks": [False],
    "jax_refs_to_pins": [True],
    "jax_disable_bwd_checks": [True],
    "jax_experimental_unsafe_xla_runtime_errors": [True],
    "jax_xla_profile_version": [3],
    "jax_array_garbage_collection_guard": [],  # fatal ends the process by design, for whoever looks for cycles
    "jax_send_traceback_to_runtime": ["full"],
    "jax_debug_log_modules": [],
    "jax_logging_level": [],
    "jax_use_shardy_partitioner": [False],  # of several devices
    "jax_use_magma": ["off"],
    "jax_cpu_collectives_implementation": [],
    "jax_dump_ir_to": [],
    "jax_include_debug_info_in_dumps": [],
    "jax_dump_ir_modes": [],
    "jax_ragged_dot_use_ragged_dot_instruction": [False],
    "jax_ragged_dot_use_gpu_pallas_triton_lowering": [True],
    "jax_pallas_verbose_errors": [],
    "jax_pallas_enable_debug_checks": [True],
    "jax_pallas_use_mosaic_gpu": [False],
    "jax_pallas_poison_buffers": [True],
    "jax_mosaic_allow_hlo": [True],
    "jax_check_proxy_envs": [],
    "jax_enable_recoverability": [],
    "jax_enable_preemption_service": [],
    "jax_cuda_visible_devices": [],  # which devices there are, not what they compute
    "jax_rocm_visible_devices": [],
    "jax_oneapi_visible_devices": [],
    "mock_num_gpu_processes": [],
    "jax_mock_gpu_topology": [],
    "jax_cpu_enable_async_dispatch": [],  # slower
    "jax_force_dcn_cross_host_transfers": [],
    "jax_sort_devices_by_process_index": [],
    "jax_cross_host_transfer_socket_address": [],
    "jax_cross_host_transport_addresses": [],
    "jax_cross_host_transfer_timeout_seconds": [],
    "jax_cross_host_transfer_transfer_size": [],
    "jax_num_cpu_devices": [],
    "jax_cpu_get_local_topology_timeout_minutes": [],
    "jax_cpu_get_global_topology_timeout_minutes": [],
    "jax_pprint_use_color": [],
    "jax_tracer_error_num_traceback_frames": [],
    "jax_compiler_detailed_logging_min_ops": [],
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return load_checkpoint(tiny_llama(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="module")
def settings(native_cache: Path) -> EngineSettings:
    return replace(SETTINGS, compilation_cache=native_cache)


def answered(checkpoint: Checkpoint, settings: EngineSettings) -> tuple[str, list[str]]:
    """The fingerprint of a new engine, and every event of two requests."""
    engine = JaxEngine(checkpoint, settings)
    try:
        prompts = [[(7 * i + 5) % engine.vocab_size for i in range(20)], [1, 2, 3]]
        jobs = [engine.submit(JobRequest(prompts, [7, -1], params, 2, 5, True)) for params in (GREEDY, SAMPLED)]
        return engine.fingerprint, sorted(repr(event) for job in jobs for event in job.events())
    finally:
        engine.stop()


@pytest.fixture(scope="module")
def plain(tiny: Checkpoint, settings: EngineSettings) -> tuple[str, list[str]]:
    found = answered(tiny, settings)
    assert not any("Failed" in event for event in found[1])
    return found


@contextmanager
def set_to(name: str, value: Any) -> Iterator[None]:
    """jax has this option for the whole process."""
    names = [name, *(each for each in jax.config.values if name == "jax_transfer_guard" and each.startswith(name))]
    before = {each: jax.config.values[each] for each in names}
    jax.config.update(name, value)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for each, old in before.items():
            jax.config.update(each, old)  # type: ignore[no-untyped-call]


def cases() -> Iterator[Any]:
    for table in (FEW, MORE, HARMLESS):
        for name, values in table.items():
            for value in values:
                yield pytest.param(name, value, marks=pytest.mark.slow if table is FEW else pytest.mark.weekly)


@pytest.mark.parametrize(("name", "value"), list(cases()))
def test_the_bytes_are_the_same_whatever_jax_is_set_to(
    tiny: Checkpoint, settings: EngineSettings, plain: tuple[str, list[str]], name: str, value: Any
) -> None:
    if name not in jax.config.values:
        pytest.skip(f"this jax has no {name}")
    with set_to(name, value):
        try:
            found = answered(tiny, settings)
        except Exception as error:
            pytest.fail(f"the engine does not start: {error}")
        assert found == plain


def test_an_option_of_the_process_that_changes_numbers_is_refused_by_name(
    tiny: Checkpoint, settings: EngineSettings
) -> None:
    with (
        set_to("jax_disable_most_optimizations", True),
        pytest.raises(
            ValueError, match=r"^JAX_DISABLE_MOST_OPTIMIZATIONS=True changes what is computed; allowed: False$"
        ),
    ):
        JaxEngine(tiny, settings)


@pytest.mark.slow
def test_nothing_that_jax_is_set_to_is_changed_for_others(tiny: Checkpoint, settings: EngineSettings) -> None:
    with set_to("jax_enable_x64", True):
        before = dict(jax.config.values)
        answered(tiny, settings)
        assert dict(jax.config.values) == before
        assert jnp.zeros(1, np.float64).dtype == np.float64


@pytest.mark.skipif(jax.__version__ != "0.10.2", reason="the options of jax 0.10.2 are sorted")
def test_every_option_of_jax_is_pinned_refused_or_known_to_be_harmless() -> None:
    tables = [set(pins.PINS), set(pins.REFUSED), set(HARMLESS)]
    assert set(jax.config.values) - {"jax_transfer_guard"} == set().union(*tables)  # it stands for the other three
    assert sum(map(len, tables)) == len(set().union(*tables))
    assert set(pins.PINS) - {"jax_default_device"} <= set(FEW) | set(MORE)
