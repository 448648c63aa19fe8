"""lm-evaluation-harness, as its users run it, against a live server: every number must be the one transformers gives.

The harness's `local-completions` model sends `echo`, `logprobs: 1`, `max_tokens: 1`, `temperature: 0` and a seed, adds
up `token_logprobs` past the context and without the last entry (the sampled token), and calls a continuation greedy if
each of its values *is* the largest of its `top_logprobs` (compared with `==`). So it sees a shift by one, a value that
is not raw, a lost entry, a number written in two ways, and choices out of order; batches come as lists of prompts.

    pytest -m slow -rP        (needs the extra `parity`)
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gnomon.http.app import create_app
from gnomon.http.settings import Settings
from gnomon.reference.checkpoint.load import default_model_path, load_checkpoint
from gnomon.reference.engine import ReferenceEngine
from gnomon.reference.tokenizer import Tokenizer, load_tokenizer
from helpers.extras import extra
from helpers.live import MODEL, serving
from helpers.lm_eval_task import Doc, tasks
from helpers.models import tiny_llama

for switch in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
    os.environ[switch] = "1"  # everything is local; nothing may be looked up
os.environ["TQDM_DISABLE"] = "1"
torch = extra("parity", "torch")
transformers = extra("parity", "transformers")
lm_eval = extra("parity", "lm_eval")

pytestmark = pytest.mark.slow
Samples = dict[str, list[dict[str, Any]]]

TOLERANCE = 1e-4  # on the log-likelihood of a continuation, in nats; transformers' RMSNorm and angles are float32
CLEAR = 1e-3  # a token is surely (not) greedy if the best other logit is this far away


class Served(NamedTuple):
    """One directory: served by us, loaded by transformers."""

    url: str
    directory: Path
    context: int
    model: Any
    tokenizer: Any
    more: list[Doc]
    """Items whose continuation is what the model itself would say, and one that is too long for the context."""
    judged: dict[tuple[int, ...], Judged]
    """What transformers said already."""


class Judged(NamedTuple):
    logprob: float
    is_greedy: bool
    margin: float
    """How far the least certain of the yes-or-no comparisons behind `is_greedy` was from the other answer."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    directory = ascii_llama(tmp_path_factory.mktemp("tiny")) if request.param == "tiny" else default_model_path()
    checkpoint = load_checkpoint(directory)
    context = checkpoint.config.max_position_embeddings
    tokenizer = load_tokenizer(directory, checkpoint.config.vocab_size)
    engine = ReferenceEngine(checkpoint)
    app = create_app(engine, tokenizer, Settings())
    own_words = [greedy_item(engine, tokenizer, text) for text in ("The big bear said", "A boy named Tim had a")]
    long = " ".join(["One day it rained."] * (context // 4))
    with serving(app) as url:
        yield Served(
            url,
            directory,
            context,
            transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64).eval(),
            transformers.AutoTokenizer.from_pretrained(directory),
            [*own_words, {"context": long, "continuation": " Then the sun came out."}],
            {},
        )


def ascii_llama(directory: Path) -> Path:
    """A tiny random Llama that never says anything but ASCII, so that what it says can be sent back as text."""
    tiny_llama(directory, max_position_embeddings=192)
    file = directory / "model.safetensors"
    tensors = load_file(file)
    for v, content in enumerate(load_tokenizer(directory, len(tensors["lm_head.weight"])).token_bytes):
        if not (content.isascii() and content.decode().isprintable() and content):
            tensors["lm_head.weight"][v] = 0
    save_file(tensors, file)
    return directory


def greedy_item(engine: ReferenceEngine, tokenizer: Tokenizer, context: str) -> Doc:
    """A context with the model's own four next tokens, whose text must encode to just these."""
    prompt = list(tokenizer.encode(context).ids)
    ids = list(prompt)
    for _ in range(4):
        ids.append(int(np.argmax(engine.last_logits(ids))))
    continuation = b"".join(tokenizer.token_bytes[v] for v in ids[len(prompt) :]).decode()
    assert list(tokenizer.encode(context + continuation).ids) == ids
    return {"context": context, "continuation": continuation}


WAYS: dict[str, dict[str, Any]] = {
    "ids": {},
    "ids-by-4": {"batch_size": 4},
    "text": {"tokenized_requests": False},
    "text-by-4": {"tokenized_requests": False, "batch_size": 4},
    "ids-by-2-concurrent": {"batch_size": 2, "num_concurrent": 3},
}
RUNS = [*(("tiny", way) for way in WAYS), ("embedded", "ids-by-4"), ("embedded", "text")]  # the embedded one is slow
runs = pytest.mark.parametrize(("served", "samples"), RUNS, indirect=True, ids=["-".join(run) for run in RUNS])


@pytest.fixture(scope="module")
def samples(request: pytest.FixtureRequest, served: Served) -> Samples:
    return evaluate(served, **WAYS[request.param])


def evaluate(served: Served, **options: Any) -> Samples:
    """Runs the harness as `lm_eval --model local-completions --model_args … --log_samples` does: task → samples."""
    model_args = {
        "model": MODEL,
        "base_url": served.url + "/v1/completions",
        "tokenizer": str(served.directory),
        "tokenizer_backend": "huggingface",
        "max_length": served.context,
        "max_retries": 1,
        **options,
    }
    batch_size = model_args.pop("batch_size", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the harness's own and its libraries'
        results = lm_eval.simple_evaluate(
            model="local-completions",
            model_args=model_args,
            tasks=tasks(served.more),
            batch_size=batch_size,
            task_manager=lm_eval.tasks.TaskManager(include_defaults=False),  # else thousands of its own are read
            bootstrap_iters=0,
            log_samples=True,
        )
    samples: Samples = results["samples"]
    return samples


def judge(served: Served, context: list[int], continuation: list[int]) -> Judged:
    """transformers on the ids that the harness sends: the last `context` − 1 of them, to leave room for one token."""
    ids = (context + continuation)[-(served.context - 1) :]
    key = (len(continuation), *ids)
    if key in served.judged:
        return served.judged[key]
    with torch.inference_mode():
        logits = served.model(torch.tensor([ids])).logits[0]
    rows = torch.log_softmax(logits, dim=-1)[-len(continuation) - 1 : -1]
    said = rows[torch.arange(len(continuation)), torch.tensor(continuation)]
    others = rows.scatter(1, torch.tensor(continuation)[:, None], -torch.inf).max(dim=-1).values
    lead = said - others
    margin = lead.min() if (lead > 0).all() else -lead.min()
    served.judged[key] = Judged(float(said.sum()), bool((lead > 0).all()), float(margin))
    return served.judged[key]


def encode_pair(served: Served, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """The pair is encoded as a whole and divided where the context's own encoding ends; an empty context is the
    end-of-text token."""
    end_of_text = served.tokenizer.eos_token_id
    if not context:
        return [end_of_text], served.tokenizer(continuation).input_ids
    whole, own = served.tokenizer(context + continuation).input_ids, served.tokenizer(context).input_ids
    return whole[: len(own)], whole[len(own) :]


@runs
def test_every_log_likelihood_is_the_one_transformers_gives(served: Served, samples: Samples) -> None:
    seen = {True: 0, False: 0}
    largest = 0.0
    for task in ("last_words", "which_end"):
        for sample in samples[task]:
            for (context, continuation), [(logprob, is_greedy)] in zip(
                sample["arguments"], sample["resps"], strict=True
            ):
                judged = judge(served, *encode_pair(served, context, continuation))
                largest = max(largest, abs(logprob - judged.logprob))
                seen[is_greedy] += 1
                print(f"{task:14} {logprob:10.4f} {logprob - judged.logprob:+.1e} {is_greedy!s:5} {continuation!r}")
                assert judged.margin > CLEAR, "nearly a tie; use another item"
                assert is_greedy == judged.is_greedy
    for sample in samples["whole_stories"]:
        [(text,)], [[logprob]] = sample["arguments"], sample["resps"]
        judged = judge(served, [served.tokenizer.eos_token_id], served.tokenizer(text).input_ids)
        largest = max(largest, abs(logprob - judged.logprob))
        print(f"{'whole_stories':14} {logprob:10.4f} {logprob - judged.logprob:+.1e}       {text[:20]!r}…")
    print(f"largest difference {largest:.1e}; greedy {seen[True]}, not greedy {seen[False]}")
    assert largest < TOLERANCE
    assert min(seen.values()) >= 2


@runs
def test_greedy_generations_are_those_of_generate_up_to_the_stop_string(served: Served, samples: Samples) -> None:
    assert samples["go_on"]
    for sample in samples["go_on"]:
        [(context, options)], [[text]] = sample["arguments"], sample["resps"]
        given = torch.tensor([served.tokenizer(context).input_ids])
        count = options["max_gen_toks"]
        made = served.model.generate(
            given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=count, pad_token_id=0
        )
        theirs = served.tokenizer.decode(made[0, given.shape[1] :], skip_special_tokens=True)
        for stop in options["until"]:
            theirs = theirs.split(stop)[0]
        assert text == theirs
