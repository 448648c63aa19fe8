"""The table of families, measured: `python tests/family_table.py` writes reference/FAMILIES.md again.

For every variant a random tiny checkpoint, made and saved by transformers, is loaded by all three: transformers in
float64, the reference in float64, the JAX engine in float32. Texts have 150 tokens, beyond every window and every
original context.
"""

from __future__ import annotations

import datetime
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gnomon.reference.checkpoint.load import load_checkpoint
from gnomon.reference.engine import JobRequest, PromptScored, ReferenceEngine, Token
from gnomon.reference.sampler import SamplingParams
from gnomon.reference.transformer import forward

sys.path.insert(0, str(Path(__file__).resolve().parent))
from helpers.families import LENGTH, VARIANTS, VOCAB, Variant, architecture_in, save_random

FILE = Path(__file__).resolve().parent.parent / "reference" / "FAMILIES.md"
BEGIN, END = "<!-- table: written by tests/family_table.py -->", "<!-- end of table -->"
TOKENS = 20


class Row(NamedTuple):
    name: str
    architecture: str
    scale: float  # the standard deviation of the logits
    reference: float  # the largest difference of a logit, reference against transformers
    jax: float  # the largest difference of a log-probability, JAX against the reference
    tokens_equal: bool  # greedy ones, and sampled ones


def text(seed: int) -> list[int]:
    return [int(v) for v in np.random.default_rng(seed).integers(0, VOCAB, LENGTH)]


def theirs(directory: Path, ids: list[int]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """transformers' logits [T, V], in float64 where it lets one."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float64, attn_implementation="eager", experts_implementation="eager"
    )
    with torch.inference_mode():
        logits: np.ndarray[Any, np.dtype[np.float64]] = model(torch.tensor([ids])).logits[0].double().numpy()
    return logits


def against_transformers(directory: Path, ids: list[int]) -> tuple[float, float]:
    """The largest difference of a logit, and the logits' standard deviation."""
    checkpoint = load_checkpoint(directory)
    expected = theirs(directory, ids)
    return float(abs(forward(checkpoint.config, checkpoint.params, ids) - expected).max()), float(expected.std())


def events(engine: Any, ids: list[int], temperature: float) -> tuple[list[float], list[int]]:
    """All log-probabilities of a job, the prompt's first, and the sampled ids."""
    params = SamplingParams(max_tokens=TOKENS, temperature=temperature, end_ids=frozenset())
    lps, tokens = [], []
    for event in engine.submit(JobRequest([ids], [7], params, candidates=1, top=0, score=True)).events():
        if isinstance(event, PromptScored):
            lps += [lp for lp in event.logprobs if lp is not None]
        elif isinstance(event, Token):
            lps.append(event.logprob)
            tokens.append(event.id)
    return lps, tokens


def against_jax(directory: Path, ids: list[int], devices: int = 1, native: Path | None = None) -> tuple[float, bool]:
    """The largest difference of a log-probability, and whether greedy and sampled tokens are the same.

    Margins settle what floats leave open (section 4 of the law); texts here are such that none is needed. native: the
    cache of the native library, which computes then.
    """
    from gnomon.jax_engine.engine import JaxEngine
    from gnomon.jax_engine.runtime.settings import EngineSettings

    checkpoint = load_checkpoint(directory)
    settings = EngineSettings(slots=2, page_size=16, chunk=32, tensor_parallel=devices)
    engine = JaxEngine(checkpoint, replace(settings, native=native is not None, compilation_cache=native))
    assert engine.device.kernels.are_native == (native is not None)
    try:
        worst, equal = 0.0, True
        for temperature in (0.0, 1.0):
            (own, tokens), (lps, expected) = (
                events(e, ids, temperature) for e in (engine, ReferenceEngine(checkpoint))
            )
            equal = equal and tokens == expected
            worst = max(worst, max(abs(a - b) for a, b in zip(own, lps, strict=True)))
    finally:
        engine.stop()
    return worst, equal


def measured(name: str, variant: Variant, seed: int) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        directory = save_random(Path(folder), variant, seed)
        ids = text(seed)
        difference, scale = against_transformers(directory, ids)
        return Row(name, architecture_in(directory), scale, difference, *against_jax(directory, ids))


def table(rows: list[Row]) -> str:
    from importlib.metadata import version

    lines = [
        f"{datetime.date.today()}, transformers {version('transformers')}, torch {version('torch')}, "
        f"jax {version('jax')} on a CPU.",
        "",
        "| variant | architecture | logits' scale | reference against transformers, float64 | JAX float32 against the "
        "reference | same tokens |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row.name} | `{row.architecture}` | {row.scale:.2f} | {row.reference:.0e} | {row.jax:.0e} | "
            f"{'yes' if row.tokens_equal else 'no'} |"
        )
    return "\n".join(lines)


def main() -> None:
    rows = []
    for seed, (name, variant) in enumerate(VARIANTS.items()):
        rows.append(measured(name, variant, seed))
        print(rows[-1], flush=True)
    before, rest = FILE.read_text(encoding="utf-8").split(BEGIN)
    FILE.write_text(f"{before}{BEGIN}\n{table(rows)}\n{END}{rest.split(END)[1]}", encoding="utf-8")


def cut(arguments: list[str]) -> None:
    """For the tests: `seed=directory` for each of some checkpoints, computed by two devices."""
    for argument in arguments:
        seed, directory = argument.split("=", 1)
        print("cut", *against_jax(Path(directory), text(int(seed)), devices=2), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--tensor-parallel"]:
        cut(sys.argv[2:])
    else:
        main()
