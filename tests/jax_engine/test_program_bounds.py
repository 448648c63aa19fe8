"""A program that costs more than it may is named, with the bound: of the forms that make a GPU wait for its host each
is put into a program and found in what the compiler made of it. On a GPU: test_gpu_aot.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from gpu_aot import COLUMNS, Compiled, cell, costs, least_bytes, table_entries
from jax import Array
from spoiled_programs import SPOILS, spoiled

from gnomon.jax_engine.runtime.settings import EngineSettings
from helpers import hlo, program_bounds
from helpers.abstract_device import abstract_device, llama_config
from helpers.program_bounds import AIMS, REACHED, Bound, bounds, broken, kind_of


def cost_of(function: Callable[..., Any], *arguments: Any) -> dict[str, float]:
    text = jax.jit(function).lower(*arguments).compile().as_text()
    assert text is not None
    return costs(Compiled({"cpu"}, 0, hlo.count(hlo.parse(text)), 1.0, 0, 0, 0.0), weights=1)


def twice(x: Array) -> Array:
    return x * 2


X = jnp.arange(256, dtype=jnp.float32)


def test_a_program_without_any_of_them_is_within_its_bounds() -> None:
    assert list(broken(cost_of(twice, X), bounds("any", "step", is_large=True, is_parallel=True))) == []


@pytest.mark.parametrize("column", SPOILS)
def test_a_program_with_one_of_them_is_named_with_the_bound(column: str) -> None:
    [fault] = broken(cost_of(spoiled(twice, column), X), bounds("any", "step", is_large=False, is_parallel=False))
    assert fault == f"{column} 1 > 0"


def test_a_loop_whose_length_is_known_is_none_that_the_host_waits_for() -> None:
    def looped(x: Array) -> Array:
        return jax.lax.fori_loop(0, 7, lambda i, y: jnp.sin(y) + i, x)

    found = cost_of(looped, X)
    assert (found["loops"], found["unknown loops"]) == (1, 0)
    assert found["kernels"] >= 7


def test_programs_of_one_kind_have_one_bound() -> None:
    assert kind_of("step 32") == kind_of("step 8") == "step"
    assert kind_of("begin") == "begin"


def test_a_kind_that_nobody_knows_may_not_wait_for_the_host_either() -> None:
    found = {"unknown loops": 1, "conditionals": 2, "sorts": 3, "custom calls": 4, "kernels": 10_000}
    faults = list(broken(found, bounds("any", "new", is_large=False, is_parallel=False)))
    assert faults == ["unknown loops 1 > 0", "conditionals 2 > 0", "sorts 3 > 0", "custom calls 4 > 0"]


def test_what_is_reached_may_not_grow_and_the_aim_stands_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program_bounds, "REACHED", {("model", "step"): {"kernels a layer": 12, "kernels outside": 3}})
    of = bounds("model", "step", is_large=False, is_parallel=False)
    assert of["kernels a layer"] == Bound(aim=8, in_force=12)
    assert of["kernels outside"] == Bound(aim=20, in_force=20), "nearer than the aim: that is the aim's"
    found = {"kernels a layer": 12, "kernels outside": 20}
    assert list(broken(found, of)) == []
    assert cell("kernels a layer", found, of["kernels a layer"]) == "12 (8)"
    assert cell("kernels outside", found, of["kernels outside"]) == "20"
    assert list(broken({"kernels a layer": 13}, of)) == ["kernels a layer 13 > 12"]
    assert bounds("another", "step", is_large=False, is_parallel=False)["kernels a layer"].in_force == 8


def test_only_what_is_above_an_aim_is_in_reached() -> None:
    for (model, kind), reached in REACHED.items():
        aims = bounds(model, kind, is_large=True, is_parallel=True)
        for column, most in reached.items():
            assert column in aims, f"{model}, {kind}: {column} has no aim"
            assert most > aims[column].aim, f"{model}, {kind}: {column} is no better than its aim"


def test_every_bound_is_of_a_column() -> None:
    for kind in AIMS:
        assert bounds("any", kind, is_large=True, is_parallel=True).keys() <= COLUMNS.keys()


ARGUMENTS = """ENTRY %main (a: f32[]) -> f32[] {
  %a.1 = bf16[512,576]{1,0} parameter(0), metadata={op_name="params['embed_tokens']"}
  %a.2 = bf16[512,576]{1,0} parameter(1), metadata={op_name="params['lm_head']"}
  %a.3 = f32[576]{0} parameter(2), metadata={op_name="params['layers'][0]['input_layernorm']"}
  %a.4 = bf16[9,32,3,64]{3,2,1,0} parameter(3), metadata={op_name="cache[0][0]"}
  %a.5 = bf16[9,32,3,64]{3,2,1,0} parameter(4), metadata={op_name="cache[0][1]"}
  ROOT %a.7 = f32[8,512]{1,0} parameter(5), metadata={op_name="slots.bias"}
}"""


def test_the_least_that_a_program_reads_is_its_weights_and_the_pages_of_its_tables() -> None:
    weights, page = 2 * 512 * 576 + 4 * 576, 2 * 2 * 32 * 3 * 64
    assert least_bytes(hlo.parse(ARGUMENTS), entries=40) == weights + 40 * page
    without = hlo.parse(ARGUMENTS.replace("params", "slots"))
    assert least_bytes(without, entries=40) == 0, "no weights: nothing to hold it to"


def test_the_width_of_a_programs_tables_is_in_its_name() -> None:
    settings = EngineSettings(slots=8, page_size=8, chunk=16, pool_tokens=256, native=False)
    device = abstract_device(llama_config(max_position_embeddings=128), settings, jax.devices()[:1])
    assert table_entries(device, "step") == 8 * 17
    assert table_entries(device, "step 32") == 8 * 4
    assert table_entries(device, "prefill 32") == 4
