"""Holds the answer of any server against a golden case: what differs, and what of it rounding explains.

Text, labels, offsets, finish reasons, usage and errors must be equal; log-probabilities within a tolerance. A sampled
token may differ only where the reference's own decision was so close that an error of the logits within the tolerance
gives this very token (the case's `rivals`, made by parity.py). That step is excused and counted, and of this choice
nothing that comes after it is compared: from there on the two tell different stories, and both are right.

What is judged is parsed JSON and may be anything at all: nothing here raises because of it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

from gnomon.reference.body.writing import ARRAYS
from gnomon.reference.golden.answers import FLOAT32_TOLERANCE, REACH, GoldenCase, SampledCandidate, Tolerance
from gnomon.reference.golden.cases import MODEL


class Difference(NamedTuple):
    """path: where in the answer, `choices[0].logprobs.tokens[3]` · got: NOT_THERE for what is not there."""

    path: str
    expected: Any
    got: Any
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """What is not there is told by the word `absent`."""
        values = {"path": self.path, "expected": self.expected, "got": self.got, "note": self.note}
        return {name: "absent" if value is NOT_THERE else value for name, value in values.items()}

    def __str__(self) -> str:
        note = f" ({self.note})" if self.note else ""
        return f"{self.path}: expected {_short(self.expected)}, got {_short(self.got)}{note}"


class _Absent:
    def __repr__(self) -> str:
        return "nothing"


NOT_THERE = _Absent()


def _short(value: Any) -> str:
    try:
        text = repr(value) if value is NOT_THERE else json.dumps(value, default=repr)
    except (RecursionError, ValueError):
        text = type(value).__name__
    return text if len(text) <= 100 else text[:80] + f"… ({len(text)} characters)"


@dataclass(slots=True)
class AnswerCheck:
    """What one answer came to."""

    differences: list[Difference] = field(default_factory=list)
    excused: int = 0  # choices that took another way at a step that rounding may decide
    tokens: int = 0  # sampled tokens that were compared, the excused ones included
    logprobs: int = 0  # log-probabilities that were compared
    worst_logprob: float = 0.0  # the largest of their differences, in nats

    @property
    def passed(self) -> bool:
        return not self.differences


def judge_answer(
    case: GoldenCase, status: int, answer: Any, tolerance: Tolerance = FLOAT32_TOLERANCE, model: str = MODEL
) -> AnswerCheck:
    """Judges one answer.

    answer: the body as parsed JSON; of a case that `is_streamed`, answered with 200, the list of its events, each
    parsed, without [DONE] · model: what the server calls the embedded model. Raises ValueError for a tolerance beyond
    REACH, and for nothing that a server may have sent.
    """
    if not 0 <= tolerance.logit_error <= REACH:
        raise ValueError(f"the logit error {tolerance.logit_error} is not from 0 to {REACH}")
    judgement = _Judgement(case, tolerance, model)
    judgement.answer(status, answer)
    return judgement.check


class _Judgement:
    """One case, one answer."""

    def __init__(self, case: GoldenCase, tolerance: Tolerance, model: str) -> None:
        self.case, self.tolerance, self.model = case, tolerance, model
        self.check = AnswerCheck()
        self.parted = False  # whether a choice went another way, so that token counts may differ

    def differ(self, path: str, expected: Any, got: Any, note: str = "") -> None:
        self.check.differences.append(Difference(path, expected, got, note))

    def equal(self, path: str, expected: Any, got: Any) -> bool:
        """Whether they are equal; if not, it is noted. `true` is not 1."""
        same = type(expected) is type(got) and bool(expected == got)
        if not same:
            self.differ(path, expected, got)
        return same

    def answer(self, status: int, answer: Any) -> None:
        if status != self.case.status:
            message = _get(_get(answer, "error"), "message")
            self.differ("status", self.case.status, status, message if isinstance(message, str) else "")
        elif self.case.error is not None:
            self.error(self.case.error, answer)
        else:
            if self.case.is_streamed:
                answer = self.joined(answer)
            elif not isinstance(answer, Mapping):
                self.differ("", "an object", answer)
                return
            self.equal("object", "text_completion", _get(answer, "object"))
            self.equal("model", self.model, _get(answer, "model"))
            self.choices(_get(answer, "choices"))
            self.usage(_get(answer, "usage"))

    def error(self, expected: Mapping[str, Any], answer: Any) -> None:
        got = _get(answer, "error")
        for name in ("type", "param", "code"):
            self.equal(f"error.{name}", expected[name], _get(got, name))
        message = _get(got, "message")
        if not isinstance(message, str) or not message:
            self.differ("error.message", "a text", message)

    # ---- streams

    def joined(self, chunks: Any) -> dict[str, Any]:
        """The answer that the chunks of a stream come to; faults of their form are noted."""
        if not isinstance(chunks, Sequence) or isinstance(chunks, str):
            self.differ("", "a list of events", chunks)
            return {}
        with_usage = self.case.usage is not None
        choices: dict[Any, dict[str, Any]] = {}
        answer: dict[str, Any] = {}
        for i, chunk in enumerate(chunks):
            at = f"chunks[{i}]"
            if not isinstance(chunk, Mapping):
                self.differ(at, "an object", chunk)
                continue
            if "error" in chunk:
                self.differ(at, "a chunk", chunk)
                continue
            for name in ("id", "object", "created", "model"):
                if answer.setdefault(name, _get(chunk, name)) != _get(chunk, name):
                    self.differ(f"{at}.{name}", answer[name], _get(chunk, name))
            is_last = with_usage and i == len(chunks) - 1
            if is_last:
                self.equal(f"{at}.choices", [], _get(chunk, "choices"))
                answer["usage"] = _get(chunk, "usage")
                continue
            usage = _get(chunk, "usage")
            if usage is not (None if with_usage else NOT_THERE):
                self.differ(f"{at}.usage", None if with_usage else NOT_THERE, usage)
            pieces = _get(chunk, "choices")
            if not isinstance(pieces, list) or len(pieces) != 1 or not isinstance(pieces[0], Mapping):
                self.differ(f"{at}.choices", "a list of one choice", pieces)
                continue
            self.append(choices, pieces[0], f"{at}.choices[0]")
        in_order = sorted(choices, key=lambda index: (index is None, index or 0))
        return {**answer, "choices": [choices[index] for index in in_order]}

    def append(self, choices: dict[Any, dict[str, Any]], piece: Mapping[str, Any], at: str) -> None:
        """Adds a piece to its choice."""
        index = _get(piece, "index")
        whole = choices.setdefault(index if isinstance(index, int) else None, {
            "index": index, "text": "", "logprobs": None, "finish_reason": None,
        })  # fmt: skip
        if whole["finish_reason"] is not None:
            self.differ(at, "nothing after finish_reason", dict(piece))
        text = _get(piece, "text")
        if isinstance(text, str):
            whole["text"] += text
        else:
            self.differ(f"{at}.text", "a text", text)
        whole["finish_reason"] = _get(piece, "finish_reason")
        arrays = _get(piece, "logprobs")
        if isinstance(arrays, Mapping):
            whole["logprobs"] = whole["logprobs"] or {name: [] for name in ARRAYS}
            for name in ARRAYS:
                part = _get(arrays, name)
                if isinstance(part, list):
                    whole["logprobs"][name] += part
                else:
                    self.differ(f"{at}.logprobs.{name}", "a list", part)

    # ---- choices

    def choices(self, got: Any) -> None:
        if not isinstance(got, list):
            self.differ("choices", "a list", got)
            return
        if len(got) != len(self.case.choices):
            self.differ("choices", f"{len(self.case.choices)} choices", f"{len(got)} choices")
        for i, (expected, choice) in enumerate(zip(self.case.choices, got, strict=False)):
            self.choice(f"choices[{i}]", expected, choice, self.case.candidate_of(expected["index"]))

    def choice(self, at: str, expected: Mapping[str, Any], got: Any, candidate: SampledCandidate) -> None:
        self.equal(f"{at}.index", expected["index"], _get(got, "index"))
        arrays = expected["logprobs"]
        if arrays is None:
            if _get(got, "logprobs") is not None:
                self.differ(f"{at}.logprobs", None, _get(got, "logprobs"))
            parted = self.parted_in_text(expected["text"], _get(got, "text"), candidate)
        else:
            parted = self.arrays(f"{at}.logprobs", arrays, _get(got, "logprobs"), candidate)
        self.check.tokens += len(candidate.ids) if parted is None else parted.step + 1
        if parted is None:
            self.equal(f"{at}.text", expected["text"], _get(got, "text"))
            self.equal(f"{at}.finish_reason", expected["finish_reason"], _get(got, "finish_reason"))
            return
        self.parted = True
        if parted.excused:
            self.check.excused += 1
            text, begins = _get(got, "text"), expected["text"][: candidate.starts[parted.step]]
            if not isinstance(text, str) or not (text.startswith(begins) or self.case.is_ranked):
                self.differ(f"{at}.text", f"{begins}…", text)
            if _get(got, "finish_reason") not in ("stop", "length"):
                self.differ(f"{at}.finish_reason", "stop or length", _get(got, "finish_reason"))

    def arrays(self, at: str, expected: Mapping[str, Any], got: Any, candidate: SampledCandidate) -> _Parted | None:
        """Compares the four arrays up to where the choice parts from the reference's, if it does."""
        if not isinstance(got, Mapping):
            self.differ(at, "an object", got)
            return _Parted(0, excused=False)
        lists = {name: _get(got, name) for name in ARRAYS}
        for name, values in lists.items():
            if not isinstance(values, list):
                self.differ(f"{at}.{name}", "a list", values)
        if not all(isinstance(values, list) for values in lists.values()):
            return _Parted(0, excused=False)
        prompt = len(expected["tokens"]) - len(candidate.ids)
        parted = None
        whole = end = min(len(expected["tokens"]), *map(len, lists.values()))
        for i in range(whole):
            if lists["tokens"][i] != expected["tokens"][i]:
                parted = self.part(
                    f"{at}.tokens[{i}]", expected["tokens"][i], lists["tokens"][i], i - prompt, candidate
                )
                end = i
                break
        length = len(expected["tokens"] if parted is None else lists["tokens"])
        for name, values in lists.items():
            if len(values) != length:
                self.differ(f"{at}.{name}", f"{length} entries", f"{len(values)} entries")
        for i in range(end):
            self.entry(at, i, expected, lists)
        if parted is None and whole < len(expected["tokens"]):
            return _Parted(max(whole - prompt, 0), excused=False)
        return parted

    def entry(self, at: str, i: int, expected: Mapping[str, Any], got: Mapping[str, list[Any]]) -> None:
        """One place of the arrays, whose token is the reference's."""
        self.equal(f"{at}.text_offset[{i}]", expected["text_offset"][i], got["text_offset"][i])
        mine, theirs = expected["token_logprobs"][i], got["token_logprobs"][i]
        self.logprob(f"{at}.token_logprobs[{i}]", mine, theirs)
        top, their_top = expected["top_logprobs"][i], got["top_logprobs"][i]
        place = f"{at}.top_logprobs[{i}]"
        if top is None or not isinstance(their_top, Mapping):
            if top is not None or their_top is not None:
                self.differ(place, top, their_top)
            return
        label = expected["tokens"][i]
        if label in their_top and their_top[label] != theirs:
            self.differ(f"{place}[{json.dumps(label)}]", theirs, their_top[label], "the number in token_logprobs")
        if label not in their_top:
            self.differ(place, f"{json.dumps(label)} among them", their_top)
        self.ranking(place, top, their_top, label)

    def ranking(self, at: str, top: Mapping[str, float], got: Mapping[str, Any], label: str) -> None:
        """The same labels, but for those that are level with the k-th; `label`, the token's own, comes beside them."""
        slack = 2 * self.tolerance.logprob
        k = self.case.fields["logprobs"]
        kth = list(top.values())[k - 1] if k else math.inf
        for name in top:
            if name in got:
                self.logprob(f"{at}[{json.dumps(name)}]", top[name], got[name])
            elif name != label and top[name] > kth + slack:
                self.differ(f"{at}[{json.dumps(name)}]", top[name], NOT_THERE)
        for name in got:
            if name not in top and not abs(_number(got[name]) - kth) <= slack:
                self.differ(f"{at}[{json.dumps(name)}]", NOT_THERE, got[name])
        one_more_or_less = abs(top[label] - kth) <= slack  # the token itself may be among the k, or come after them
        if abs(len(got) - len(top)) > one_more_or_less:
            self.differ(at, f"{len(top)} entries", f"{len(got)} entries")

    def logprob(self, at: str, expected: float | None, got: Any) -> None:
        if expected is None or isinstance(got, bool) or not isinstance(got, float | int):
            self.equal(at, expected, got)
            return
        off = abs(expected - _number(got))
        self.check.logprobs += 1
        if not off <= self.tolerance.logprob:
            self.differ(at, expected, got, f"off by {off:.2g}, more than {self.tolerance.logprob:g}")
        if off > self.check.worst_logprob:
            self.check.worst_logprob = off

    # ---- where a choice parts from the reference's

    def part(self, at: str, expected: str, got: Any, step: int, candidate: SampledCandidate) -> _Parted:
        """Whether another token may stand here. step: below 0 in an echoed prompt."""
        allowed = self.tolerance.logit_error
        if self.case.is_ranked and self.ranking_is_close(candidate.prompt):
            return _Parted(max(step, 0), excused=True)
        for s, _, label, error in candidate.rivals:
            if s == step and label == got and error <= allowed:
                return _Parted(step, excused=True)
        note = ""
        if step >= 0:
            known = [error for s, _, label, error in candidate.rivals if s == step and label == got]
            needed = f"{known[0]:g}" if known else f"more than {REACH:g}"
            note = f"needs logits off by {needed}; {allowed:g} is granted"
        self.differ(at, expected, got, note)
        return _Parted(max(step, 0), excused=False)

    def parted_in_text(self, expected: str, got: Any, candidate: SampledCandidate) -> _Parted | None:
        """The same where an answer has no arrays: a step with a rival, whose token begins no later than the
        difference."""
        if not isinstance(got, str) or got == expected:
            return None
        if self.case.is_ranked and self.ranking_is_close(candidate.prompt):
            return _Parted(0, excused=True)
        same = next((i for i, (a, b) in enumerate(zip(expected, got, strict=False)) if a != b), None)
        same = min(len(expected), len(got)) if same is None else same
        for step, _, _, error in candidate.rivals:
            if error <= self.tolerance.logit_error and candidate.starts[step] <= same:
                return _Parted(step, excused=True)
        return None

    def ranking_is_close(self, prompt: int) -> bool:
        """Whether rounding may decide which candidates of a prompt are the best."""
        candidates = [candidate for candidate in self.case.candidates if candidate.prompt == prompt]
        if any(error <= self.tolerance.logit_error for candidate in candidates for *_, error in candidate.rivals):
            return True
        means = sorted(candidate.mean_logprob for candidate in candidates)
        return any(b - a <= 2 * self.tolerance.logprob for a, b in pairwise(means) if a != b)

    # ---- usage

    def usage(self, got: Any) -> None:
        expected = self.case.usage
        if expected is None:
            if got is not NOT_THERE:
                self.differ("usage", NOT_THERE, got)
            return
        if not isinstance(got, Mapping):
            self.differ("usage", dict(expected), got)
            return
        prompt, made, total = (_get(got, name) for name in ("prompt_tokens", "completion_tokens", "total_tokens"))
        self.equal("usage.prompt_tokens", expected["prompt_tokens"], prompt)
        if not self.parted:
            self.equal("usage.completion_tokens", expected["completion_tokens"], made)
        if isinstance(prompt, int) and isinstance(made, int):
            self.equal("usage.total_tokens", prompt + made, total)
        else:
            self.differ("usage", dict(expected), dict(got))


class _Parted(NamedTuple):
    """From this step on a choice is another than the reference's."""

    step: int
    excused: bool


def _number(value: Any) -> float:
    """NaN for what is no number of ours."""
    try:
        return math.nan if isinstance(value, bool) or not isinstance(value, float | int) else float(value)
    except OverflowError:
        return math.nan


def _get(value: Any, name: str) -> Any:
    """A member, or NOT_THERE where there is none to be had."""
    return value.get(name, NOT_THERE) if isinstance(value, Mapping) else NOT_THERE
