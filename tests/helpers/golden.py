"""What the tests of the golden vectors share: a reference that works ahead, and a case's own answer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gnomon.reference.checkpoint.load import Checkpoint
from gnomon.reference.engine import ReferenceEngine, go_on
from gnomon.reference.golden import MODEL, GoldenCase


class Foresight(ReferenceEngine):
    """The reference's engine, told beforehand which sequences are likely to come: each is evaluated in one pass.

    What it answers are the logits of the tokens it is asked about, whatever was foretold: a wrong prophecy costs time.
    """

    def __init__(self, checkpoint: Checkpoint, cases: Sequence[GoldenCase]) -> None:
        super().__init__(checkpoint)
        self._rows: dict[tuple[int, ...], NDArray[np.float64]] = {}  # tokens → the logits after them
        sequences = {
            (*case.prompt_ids[candidate.prompt], *candidate.ids[:-1]) for case in cases for candidate in case.candidates
        }
        for sequence in sorted(sequences, key=len, reverse=True):
            self.all_logits(sequence)

    def all_logits(self, tokens: Sequence[int], check: Callable[[], None] = go_on) -> NDArray[np.float64]:
        begun = [tuple(tokens[: i + 1]) for i in range(len(tokens))]
        if not all(prefix in self._rows for prefix in begun):
            self._rows.update(zip(begun, super().all_logits(tokens, check), strict=True))
        return np.stack([self._rows[prefix] for prefix in begun])

    def last_logits(self, tokens: Sequence[int], check: Callable[[], None] = go_on) -> NDArray[np.float64]:
        row = self._rows.get(tuple(tokens))
        return super().last_logits(tokens, check) if row is None else row


def right_answer(case: GoldenCase) -> Any:
    """What a server that is right to the last digit would answer, to be broken: an error, an answer, or chunks."""
    if case.error is not None:
        return {"error": {"message": "it is wrong", **case.error}}
    answer = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": MODEL}
    choices: list[Any] = copy.deepcopy(list(case.choices))
    if not case.is_streamed:
        return {**answer, "choices": choices, "usage": dict(case.usage or {})}
    usage = {} if case.usage is None else {"usage": None}
    chunks: list[Any] = [{**answer, **usage, "choices": [piece]} for choice in choices for piece in pieces(choice)]
    return chunks if case.usage is None else [*chunks, {**answer, "choices": [], "usage": dict(case.usage)}]


def pieces(choice: dict[str, Any]) -> list[dict[str, Any]]:
    """A choice in two: a beginning without tokens, and the rest."""
    begin, rest = {**choice, "finish_reason": None}, dict(choice)
    begin["text"], rest["text"] = choice["text"][:3], choice["text"][3:]
    if choice["logprobs"] is not None:
        begin["logprobs"] = {name: [] for name in choice["logprobs"]}
    return [begin, rest]
