"""The stored cases: what was asked, what the reference answered, and how close each of its decisions was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from gnomon.reference.body.reading import parse_json
from gnomon.reference.errors import InvalidRequest
from gnomon.reference.golden.cases import MODEL

REACH = 0.05
"""The largest error of a logit for which a case knows its rivals."""


class Tolerance(NamedTuple):
    """What is granted to an engine: δ₀ and τ of parity.py."""

    logit_error: float  # the most by which any of its logits may be off; at most REACH
    logprob: float  # the most by which a log-probability may be, in nats


FLOAT32_TOLERANCE = Tolerance(2e-4, 4e-4)


@dataclass(frozen=True, slots=True)
class SampledCandidate:
    """How the reference sampled one candidate. index: of the choice it became; None if best_of left it out.

    starts: where each token begins in the choice's text · margins: how far each was ahead, None if alone ·
    rivals: (step, id, label, error): what would have been sampled there, were the logits off by `error`.
    """

    prompt: int
    candidate: int
    index: int | None
    mean_logprob: float
    ids: tuple[int, ...]
    starts: tuple[int, ...]
    margins: tuple[float | None, ...]
    rivals: tuple[tuple[int, int, str, float], ...]

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> SampledCandidate:
        return cls(
            entry["prompt"],
            entry["candidate"],
            entry["index"],
            entry["mean_logprob"],
            tuple(entry["ids"]),
            tuple(entry["starts"]),
            tuple(entry["margins"]),
            tuple((step, v, label, error) for step, v, label, error in entry["rivals"]),
        )


@dataclass(frozen=True, slots=True)
class GoldenCase:
    """One golden request and its answer. Either `error` is there, or choices (and usage, unless it is not to be)."""

    name: str
    shows: str
    sent: Mapping[str, Any] | str  # the object, or the characters of the body
    status: int
    error: Mapping[str, Any] | None
    choices: tuple[Mapping[str, Any], ...]
    usage: Mapping[str, int] | None
    prompt_ids: tuple[tuple[int, ...], ...]
    candidates: tuple[SampledCandidate, ...]

    @classmethod
    def from_json(cls, case: Mapping[str, Any]) -> GoldenCase:
        return cls(
            case["name"],
            case["shows"],
            case["body"] if "body" in case else case["request"],
            case["status"],
            case.get("error"),
            tuple(case.get("choices", ())),
            case.get("usage"),
            tuple(map(tuple, case.get("prompt_ids", ()))),
            tuple(SampledCandidate.from_json(entry) for entry in case.get("candidates", ())),
        )

    def payload(self, model: str = MODEL) -> bytes:
        """The body to send to a server that calls the embedded model so."""
        if isinstance(self.sent, str):
            return self.sent.replace(json.dumps(MODEL), json.dumps(model)).encode()
        request = dict(self.sent)
        if request.get("model") == MODEL:
            request["model"] = model
        return json.dumps(request).encode()

    @property
    def fields(self) -> Mapping[str, Any]:
        """The request's members, as far as the body has any."""
        if not isinstance(self.sent, str):
            return self.sent
        try:
            return parse_json(self.sent.encode())
        except InvalidRequest:
            return {}

    @property
    def is_streamed(self) -> bool:
        """Whether the answer is a stream of events."""
        return self.status == 200 and self.fields.get("stream") is True

    @property
    def is_ranked(self) -> bool:
        """Whether best_of chose among the candidates."""
        return any(candidate.index is None for candidate in self.candidates)

    def candidate_of(self, index: int) -> SampledCandidate:
        return next(candidate for candidate in self.candidates if candidate.index == index)


def golden_path() -> Path:
    """The directory of the golden files."""
    return Path(str(files("gnomon.reference") / "golden"))


def load_cases(directory: Path | None = None) -> tuple[GoldenCase, ...]:
    """The cases of requests.json."""
    document = json.loads(((directory or golden_path()) / "requests.json").read_text(encoding="utf-8"))
    return tuple(GoldenCase.from_json(case) for case in document["cases"])
