"""What is asked of a server whose checkpoint is at hand, and what it answered.

A handful of prompts, greedy, with log-probabilities; some echoed; one at another temperature, one with a bias, one with
penalties; each small, all within the run's budget.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from gnomon.http.verify.ask.answer import Refused, SoundAnswer, UnsoundAnswer
from gnomon.http.verify.ask.client import OutOfBudget
from gnomon.http.verify.ask.exchange import Exchange
from gnomon.http.verify.ask.probe import Probe
from gnomon.http.verify.weights.labels import LabelledPlace, places_of
from gnomon.reference.engine import ReferenceEngine
from gnomon.reference.errors import InvalidRequest
from gnomon.reference.prompt import encode_prompt
from gnomon.reference.tokenizer import Tokenizer

ANSWER_TOKENS = 16

COUNTS = (20, 5, 1)
"""How many log-probabilities are asked for a place: what this API's servers mostly take, what OpenAI's takes, any."""

STORY = "Once upon a time there was a little"
FOREIGN = "Zoë and François drank tea. 界"
DIGITS = "1, 2, 3, 4, 5, 6,"
LOOP = "the cat and the cat and the cat and the"


class Question(NamedTuple):
    group: str
    name: str
    prompt: str | tuple[int, ...]
    fields: Mapping[str, Any]
    echo: bool = False


@dataclass(slots=True)
class Answered:
    """A question with its answer."""

    question: Question
    answer: SoundAnswer
    places: list[LabelledPlace]
    exchange: Exchange
    prompt: tuple[int, ...]


@dataclass(slots=True)
class AnswersSoFar:
    """What has come of asking so far."""

    asked: list[Answered] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    without: list[Exchange] = field(default_factory=list)  # sound answers that had no log-probabilities


async def most_logprobs(probe: Probe, answers: AnswersSoFar) -> int | None:
    """The most log-probabilities a place, of those of COUNTS, that the server takes."""
    reason = ""
    for count in COUNTS:
        try:
            answer = await probe.complete(prompt=STORY, logprobs=count)
        except Refused as refused:
            reason = f"logprobs {count} is refused: {refused}"
            continue
        except UnsoundAnswer as broken:
            reason = broken.reason
            continue
        except OutOfBudget:
            reason = "the budget of tokens is spent"
            break
        if places_of(answer.choices[0]):
            return count
        reason = "the server gives no log-probabilities"
    answers.notes.append(reason)
    return None


def questions(reference: ReferenceEngine, tokenizer: Tokenizer) -> list[Question]:
    story = tokenizer.encode(STORY).ids
    likely = np.argsort(-reference.last_logits(story), kind="stable")[:4]
    bias = {str(v): b for v, b in zip(likely.tolist(), (-1.5, 2.0, 1.0, -2.0), strict=False)}
    return [
        Question("greedy", "a story", STORY, {}),
        Question("greedy", "letters beyond ASCII", FOREIGN, {}),
        Question("greedy", "digits", DIGITS, {}),
        Question("empty", "an empty prompt", "", {}),
        Question("ids", "a prompt of ids", tuple(story[::-1]), {}),
        Question("echo", "the story echoed", STORY, {}, echo=True),
        Question("echo", "letters beyond ASCII echoed", FOREIGN, {}, echo=True),
        Question("echo", "digits echoed", DIGITS, {}, echo=True),
        Question("temperature", "at temperature 0.5", STORY, {"temperature": 0.5, "seed": 1}),
        Question("bias", "with a bias", STORY, {"logit_bias": bias}),
        Question("penalties", "with penalties", LOOP, {"frequency_penalty": 0.75, "presence_penalty": 0.5}),
    ]


async def ask(
    probe: Probe,
    question: Question,
    count: int,
    reference: ReferenceEngine,
    tokenizer: Tokenizer,
    answers: AnswersSoFar,
) -> bool:
    """Whether to go on asking."""
    try:
        prompt = encode_prompt(question.prompt, reference, tokenizer).ids
    except InvalidRequest as error:
        answers.notes.append(f"{question.name}: not asked, as the reference refuses it: {error}")
        return True
    tokens = min(1 if question.echo else ANSWER_TOKENS, reference.context - len(prompt))
    if tokens < 1:
        answers.notes.append(f"{question.name}: not asked, as the reference's context has no room for it")
        return True
    sent = question.prompt if isinstance(question.prompt, str) else list(question.prompt)
    fields = {**question.fields, **({"echo": True} if question.echo else {})}
    try:
        answer = await probe.complete(prompt=sent, max_tokens=tokens, logprobs=count, **fields)
    except Refused as refused:
        answers.notes.append(f"{question.name}: refused: {refused}")
    except UnsoundAnswer as broken:
        answers.notes.append(f"{question.name}: {broken.reason}")
    except OutOfBudget:
        answers.notes.append("the budget of tokens is spent")
        return False
    else:
        places = places_of(answer.choices[0])
        if not places:
            answers.without.append(answer.exchange)
            answers.notes.append(f"{question.name}: no log-probabilities")
        else:
            answers.asked.append(Answered(question, answer, places, answer.exchange, prompt))
    return True
