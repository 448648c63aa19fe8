"""gnomon's reference: what every parameter of `POST /v1/completions` means, in NumPy, readable and exact.

Start with `sampler.py` (one token), then `model.py` (where logits come from), `completion.py` (all above token ids) and
`request.py` (the table of fields). Nothing here needs jax.

    from gnomon.reference import CompletionRequest, load, prepare

    engine, tokenizer = load()
    request = CompletionRequest.from_fields({"model": "stories", "prompt": "Once upon a time", "seed": 1})
    print(prepare(request, engine, tokenizer, "stories").whole().choices[0].text)
"""

from __future__ import annotations

from pathlib import Path

from gnomon.reference.checkpoint.errors import CheckpointError, UnsupportedModel
from gnomon.reference.checkpoint.hub import locate
from gnomon.reference.checkpoint.load import default_model_path, load_checkpoint
from gnomon.reference.completion import prepare
from gnomon.reference.engine import Engine, JobRequest, ReferenceEngine
from gnomon.reference.errors import InvalidRequest, RequestError
from gnomon.reference.prng import DrawKey
from gnomon.reference.request import FIELDS, CompletionRequest, Limits
from gnomon.reference.response import Completion
from gnomon.reference.sampler import SamplingParams, Trace, sample, trace_draw
from gnomon.reference.tokenizer import Tokenizer, load_tokenizer
from gnomon.reference.trace.explain import explain
from gnomon.reference.trace.picture import picture, show

__all__ = [
    "FIELDS",
    "CheckpointError",
    "Completion",
    "CompletionRequest",
    "DrawKey",
    "Engine",
    "InvalidRequest",
    "JobRequest",
    "Limits",
    "ReferenceEngine",
    "RequestError",
    "SamplingParams",
    "Tokenizer",
    "Trace",
    "UnsupportedModel",
    "default_model_path",
    "explain",
    "load",
    "load_checkpoint",
    "load_tokenizer",
    "locate",
    "picture",
    "prepare",
    "sample",
    "show",
    "trace_draw",
]


def load(model: str | Path | None = None, revision: str | None = None) -> tuple[ReferenceEngine, Tokenizer]:
    """The reference engine and the tokenizer of a model directory or hub id; of the embedded model if none is named."""
    checkpoint = load_checkpoint(default_model_path() if model is None else locate(model, revision))
    return ReferenceEngine(checkpoint), load_tokenizer(checkpoint.path, checkpoint.config.vocab_size)
