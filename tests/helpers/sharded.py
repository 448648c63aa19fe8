"""What an engine cut over several devices does, as JSON on the last line; run in a process of its own, whose
XLA_FLAGS give it eight virtual CPU devices. Arguments: a model's directory and, for each engine, how many devices."""

from __future__ import annotations

import json
import random
import sys
import threading
from pathlib import Path
from typing import Any

from gnomon.jax_engine.engine import JaxEngine
from gnomon.jax_engine.runtime.settings import EngineSettings
from gnomon.reference.checkpoint.load import Checkpoint, load_checkpoint
from gnomon.reference.completion import prepare
from gnomon.reference.engine import ReferenceEngine
from gnomon.reference.parity import Tally
from gnomon.reference.request import CompletionRequest
from gnomon.reference.tokenizer import Tokenizer, load_tokenizer
from helpers.judge import held_against, random_request

REQUESTS = 15


def answer(engine: JaxEngine, tokenizer: Tokenizer, body: dict[str, Any]) -> str:
    run = prepare(CompletionRequest.from_fields(body), engine, tokenizer, "m")
    return json.dumps([choice.to_json() for choice in run.whole().choices])


def under_load(engine: JaxEngine, tokenizer: Tokenizer, bodies: list[dict[str, Any]]) -> list[str]:
    over = threading.Event()

    def neighbour(number: int) -> None:
        rng = random.Random(number)
        while not over.is_set():
            answer(engine, tokenizer, random_request(rng, engine.vocab_size, engine.context))

    threads = [threading.Thread(target=neighbour, args=(i,)) for i in range(5)]
    for thread in threads:
        thread.start()
    answers = [answer(engine, tokenizer, body) for body in bodies]
    over.set()
    for thread in threads:
        thread.join()
    return answers


def examine(checkpoint: Checkpoint, tokenizer: Tokenizer, devices: int) -> dict[str, Any]:
    reference, tally, rng = ReferenceEngine(checkpoint), Tally(), random.Random(devices)
    engine = JaxEngine(
        checkpoint, EngineSettings(slots=4, page_size=8, chunk=32, pool_tokens=1024, tensor_parallel=devices)
    )
    try:
        bodies = [random_request(rng, engine.vocab_size, engine.context) for _ in range(REQUESTS)]
        alone = [answer(engine, tokenizer, body) for body in bodies]
        loaded = under_load(engine, tokenizer, bodies)
        for body in bodies:
            request = CompletionRequest.from_fields(body)
            held_against(reference, engine, tokenizer, request, tally, logit_error=5e-5, tolerance=1e-4)
        layer = engine.device.params["layers"][0]
        arrays = {**layer["self_attn"], **layer["mlp"], "embed_tokens": engine.device.params["embed_tokens"]}
        arrays["keys"] = engine.device.cache[0][0]
        arrays["counts"] = engine.device.slots.counts
        return {
            "faults": tally.faults[:3],
            "tokens": tally.tokens,
            "excused": tally.excused,
            "differing": sum(one != other for one, other in zip(alone, loaded, strict=True)),
            "parts": {name: array.size // array.addressable_shards[0].data.size for name, array in arrays.items()},
            "fingerprint": engine.fingerprint,
        }
    finally:
        engine.stop()


def main(directory: str, *devices: str) -> None:
    checkpoint = load_checkpoint(Path(directory))
    tokenizer = load_tokenizer(Path(directory), checkpoint.config.vocab_size)
    print(json.dumps([examine(checkpoint, tokenizer, int(n)) for n in devices]))


if __name__ == "__main__":
    main(*sys.argv[1:])
