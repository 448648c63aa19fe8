"""What a compiled program may cost at most: AIMS, and REACHED where a program is not there yet.

A program's kind is its name up to the first space: "step 8" and "step 32" are steps, for tables of other widths. What
is bounded is named after the columns of the table in gpu_aot.py.

In force is the aim, or what REACHED says where that is more: so a program may come nearer to its aim, and not go away
from it. Whoever brings one nearer lowers its number in REACHED, or takes it out; the table says which can be lowered.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

Costs = Mapping[str, float]

NO_HOST = {"unknown loops": 0, "conditionals": 0, "sorts": 0, "custom calls": 0}
NO_COPIES = {"copied": 0.01}
FEW_KERNELS = {"kernels a layer": 8, "kernels outside": 20}
AIMS: Mapping[str, Costs] = {
    "step": {**NO_HOST, **NO_COPIES, **FEW_KERNELS, "bytes": 1.3},
    "prefill": {**NO_HOST, **NO_COPIES},
    "score": {**NO_HOST, **NO_COPIES},
    "begin": {**NO_HOST, **NO_COPIES, "kernels": 4},
    # the two halves of a step, as long as they are programs of their own
    "decode": {**NO_HOST, **NO_COPIES, **FEW_KERNELS, "bytes": 1.3},
    "sample": {**NO_HOST, **NO_COPIES, **FEW_KERNELS},
}
# of a program of any other kind
AIMS_OF_OTHERS: Costs = NO_HOST

# of large models, whatever the program: temporaries as a part of the weights
LARGE: Costs = {"temporaries": 0.02}
# of models on several devices: the sums after o_proj and down_proj; hidden states and logits, and no weight, are
# exchanged
PARALLEL: Costs = {"all-reduces a layer": 2, "other collectives a layer": 0, "exchanged": 0.1}
# outside the layers: the rows of the embedding that other devices have are summed, the logits gathered for the sampler
PARALLEL_OUTSIDE = {"step": 2, "prefill": 1, "decode": 1, "sample": 1, "score": 1, "begin": 0}

MOST_PROGRAMS = 12  # that a server compiles at its start

# What programs cost today where that is above the aim: (model, kind) → column → at most, of gfx942 and sm_90 the more.
# To be lowered by whoever brings a program nearer to its aim; not to be raised.
REACHED: Mapping[tuple[str, str], Costs] = {
    ("embedded", "prefill"): {"unknown loops": 4, "copied": 1.081},
    ("embedded", "decode"): {"unknown loops": 4, "kernels a layer": 24},
    ("embedded", "sample"): {"kernels outside": 45},
    ("embedded", "begin"): {"kernels": 34},
    ("llama-135m", "prefill"): {"unknown loops": 30, "copied": 1.411},
    ("llama-135m", "decode"): {"unknown loops": 30, "kernels a layer": 24},
    ("llama-135m", "sample"): {"kernels outside": 61},
    ("llama-135m", "begin"): {"kernels": 138},
    ("llama-8b", "prefill"): {"unknown loops": 32, "copied": 0.536, "temporaries": 0.022},
    ("llama-8b", "decode"): {"unknown loops": 32, "kernels a layer": 26},
    ("llama-8b", "sample"): {"kernels outside": 60},
    ("llama-8b", "begin"): {"kernels": 146},
    ("llama-8b x8", "prefill"): {"unknown loops": 32},
    ("llama-8b x8", "decode"): {"unknown loops": 32, "kernels a layer": 27},
    ("llama-8b x8", "sample"): {"kernels outside": 61, "temporaries": 0.526, "exchanged": 0.524},
    ("llama-8b x8", "score"): {"temporaries": 0.557, "exchanged": 0.524},
    ("llama-8b x8", "begin"): {"kernels": 146},
}


class Bound(NamedTuple):
    aim: float
    in_force: float

    def is_kept(self, cost: float) -> bool:
        return cost <= self.in_force


def bounds(model: str, kind: str, is_large: bool, is_parallel: bool) -> Mapping[str, Bound]:
    """Column → bound."""
    aims = {**AIMS.get(kind, AIMS_OF_OTHERS), **(LARGE if is_large else {}), **(PARALLEL if is_parallel else {})}
    if is_parallel:
        aims["collectives outside"] = PARALLEL_OUTSIDE.get(kind, 0)
    reached = REACHED.get((model, kind), {})
    return {column: Bound(aim, max(aim, reached.get(column, aim))) for column, aim in aims.items()}


def broken(costs: Costs, of: Mapping[str, Bound]) -> Iterator[str]:
    """Every bound that a program is above, by name."""
    for column, bound in of.items():
        if column in costs and not bound.is_kept(costs[column]):
            yield f"{column} {shown(costs[column])} > {shown(bound.in_force)}"


def shown(cost: float) -> str:
    return f"{cost:,}" if isinstance(cost, int) else f"{cost:.3g}"


def kind_of(program: str) -> str:
    return program.split(" ", 1)[0]
