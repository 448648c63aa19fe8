"""Holds a fast engine against the reference, teacher-forced (reference/parity.py), and everything above its tokens
too."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

from gnomon.reference.completion import prepare
from gnomon.reference.engine import Engine, Event, Failed, JobRequest, PromptScored, ReferenceEngine
from gnomon.reference.parity import Recording, RecordingEngine, Tally, judge_recording
from gnomon.reference.request import CompletionRequest
from gnomon.reference.response import Completion
from gnomon.reference.tokenizer import Tokenizer
from helpers.fake import StubJob


class ReplayEngine:
    """Gives a recorded job's events again, in another order: prompt by prompt, candidate by candidate."""

    def __init__(self, engine: Engine, recording: Recording) -> None:
        self.vocab_size, self.context = engine.vocab_size, engine.context
        self.eos_ids, self.fingerprint = engine.eos_ids, engine.fingerprint
        self.recording = recording

    def submit(self, request: JobRequest) -> ReplayJob:
        return ReplayJob(self.recording.events)


class ReplayJob(StubJob):
    def __init__(self, events: list[Event]) -> None:
        self._events = events

    def events(self) -> Iterator[Event]:
        def place(event: Event) -> tuple[int, int]:
            assert not isinstance(event, Failed)
            return event.prompt, -1 if isinstance(event, PromptScored) else event.candidate

        yield from sorted(self._events, key=place)


def held_against(
    reference: ReferenceEngine,
    engine: Engine,
    tokenizer: Tokenizer,
    request: CompletionRequest,
    tally: Tally,
    logit_error: float,
    tolerance: float,
) -> Completion:
    """Runs a request on `engine` and judges every token, every log-probability and every ranking of it."""
    recorder = RecordingEngine(engine)
    answer = prepare(request, recorder, tokenizer, request.model).whole()
    recording = recorder.recordings[0]
    judge_recording(reference, recording, tally, logit_error, tolerance)
    replayed = prepare(request, ReplayEngine(engine, recording), tokenizer, request.model).whole()
    if (replayed.choices, replayed.usage) != (answer.choices, answer.usage) and answer.usage is not None:
        uncached = replayed.usage is not None and replayed.usage.completion_tokens == answer.usage.completion_tokens
        if replayed.choices != answer.choices or not uncached:
            tally.faults.append(f"{request}: the answer is not what its own tokens come to")
    return answer


def random_request(rng: random.Random, vocab_size: int, context: int, infill: bool = True) -> dict[str, Any]:
    """A request's body from the whole parameter space, prompts of 1 token up to the context's end."""

    def length() -> int:
        return min(rng.choice([1, 2, 3, rng.randint(1, 40), rng.randint(1, context)]), context)

    def text() -> str:
        return "".join(rng.choice("abc the é界😀\n<|endoftext|>.,") for _ in range(rng.randint(0, 60)))

    def ids() -> list[int]:
        return [rng.randrange(vocab_size) for _ in range(length())]

    forms: list[Callable[[], Any]] = [
        text,
        ids,
        lambda: [text() for _ in range(rng.randint(1, 3))],
        lambda: [ids() for _ in range(rng.randint(1, 3))],
    ]
    prompt = rng.choice(forms)()
    lengths = [len(p) * 4 for p in prompt if isinstance(p, str)] if isinstance(prompt, list) else []
    if isinstance(prompt, str):
        lengths = [len(prompt) * 4]
    elif isinstance(prompt[0], int):
        lengths = [len(prompt)]
    elif isinstance(prompt[0], list):
        lengths = [len(p) for p in prompt]
    room = max(context - max(lengths) - 4, 0)
    body: dict[str, Any] = {
        "model": "m",
        "prompt": prompt,
        "max_tokens": min(rng.choice([0, 1, 2, rng.randint(1, 24), rng.randint(1, 64)]), room),
        "temperature": rng.choice([0, 0, 1, 0.3, 2, rng.random() * 2, 1e-3, 1e-300]),
        "top_p": rng.choice([1, 1, 0, 0.5, 0.9, 0.95, rng.random()]),
        "frequency_penalty": rng.choice([0, 0, rng.uniform(-2, 2)]),
        "presence_penalty": rng.choice([0, 0, rng.uniform(-2, 2)]),
        "n": rng.choice([1, 1, 2, 3]),
        "echo": rng.random() < 0.3,
        "logprobs": rng.choice([None, 0, 1, 5, 20]),
        "seed": rng.choice([rng.randint(-(2**63), 2**63 - 1), rng.randint(-3, 3)]),
        "stop": rng.choice([None, ["a"], ["the", "b"], ["\n"]]),
    }
    if rng.random() < 0.3:
        body["logit_bias"] = {str(rng.randrange(vocab_size)): rng.uniform(-100, 100) for _ in range(rng.randint(1, 8))}
    if rng.random() < 0.2:
        body["best_of"] = body["n"] + rng.randint(0, 3)
    if infill and isinstance(prompt, str) and not body["echo"] and rng.random() < 0.3:
        body["suffix"] = "the end"
        body["max_tokens"] = max(0, body["max_tokens"] - 12)
    return body
