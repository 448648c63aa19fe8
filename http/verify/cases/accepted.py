"""Every field of the request is honoured or refused by name: here, whether one legal value of it alone is accepted.

All cases about a field need its case of these, so a server without the field is told so once.
"""

from __future__ import annotations

from typing import Any

from gnomon.http.verify.ask.probe import ABSENT, PROMPT, Probe
from gnomon.http.verify.verdict import Case, Judgement, case, honoured, wrong

LEGAL: tuple[tuple[str, str, Any], ...] = (
    ("max_tokens", "3", 2),
    ("n", "8", 2),
    ("best_of", "8", 2),
    ("temperature", "4", 0.5),
    ("top_p", "4", 0.5),
    ("frequency_penalty", "4", 0.5),
    ("presence_penalty", "4", 0.5),
    ("logit_bias", "4", {"5": 1}),
    ("logprobs", "6", 1),
    ("echo", "7", True),
    ("stop", "5", ["\n\n\n\n"]),
    ("seed", "4", 7),
    ("user", "1", "gnomon-verify"),
)
"""Field, section of the law, a value that any server which has the field takes."""

SENT_ALWAYS = ("max_tokens", "temperature")
"""What `Probe.body` puts into every request: small answers, and the same ones each time."""


@case("answer.is_a_completion", "answer", law="10", says="an answer has the members of the API, with their types")
async def answer_is_a_completion(p: Probe) -> Judgement:
    answer = await p.complete(max_tokens=ABSENT, temperature=ABSENT)
    body, choice = answer.body, answer.choices[0]
    problems = [
        *([] if isinstance(body.get("id"), str) and body["id"] else ["id is no string"]),
        *([] if body.get("object") == "text_completion" else [f"object is {body.get('object')!r:.40}"]),
        *([] if isinstance(body.get("created"), int) else ["created is no integer"]),
        *([] if isinstance(body.get("model"), str) else ["model is no string"]),
        *([] if choice.get("index") == 0 else [f"index is {choice.get('index')!r:.40}"]),
        *(f"a choice has no {name}" for name in ("logprobs", "finish_reason") if name not in choice),
    ]
    if problems:
        return wrong("; ".join(problems), answer=dict(body))
    return honoured("id, object, created, model, choices with index, text, logprobs and finish_reason")


@case(
    "usage.present",
    "usage",
    law="10",
    says="an answer has a usage of three integers, and the total is the sum",
    needs=("prompt.accepted",),
)
async def usage_present(p: Probe) -> Judgement:
    usage = (await p.complete(max_tokens=2)).usage
    prompt, sampled, total = (usage.get(name) for name in ("prompt_tokens", "completion_tokens", "total_tokens"))
    if not isinstance(prompt, int) or not isinstance(sampled, int) or not isinstance(total, int):
        return wrong(f"usage is {dict(usage)!r:.100}")
    if prompt + sampled != total:
        return wrong(f"{prompt} + {sampled} is not {total}")
    return honoured(f"{prompt} + {sampled} = {total}")


def accepted(field: str, law: str, value: Any) -> Case:
    """max_tokens and temperature are tried alone, since all further requests have both."""
    alone = {"max_tokens": ABSENT, "temperature": ABSENT} if field in SENT_ALWAYS else {}
    needs = () if field in SENT_ALWAYS else ("prompt.accepted",)

    @case(f"{field}.accepted", field, law=law, says=f"{field} is a field: a legal value of it is accepted", needs=needs)
    async def judge(p: Probe) -> Judgement:
        given: dict[str, Any] = {**alone, field: value}
        if field in ("n", "best_of"):
            given["temperature"] = 1
        await p.complete(**given)
        return honoured(f"{value!r} is accepted")

    return judge


@case(
    "stream.accepted",
    "stream",
    law="11",
    says="stream is a field: true answers with events",
    needs=("prompt.accepted",),
)
async def stream_accepted(p: Probe) -> Judgement:
    answer = await p.stream(max_tokens=2)
    return honoured(f"an event stream with {len(answer.choices)} choice")


@case(
    "stream_options.accepted",
    "stream_options",
    law="11",
    says="stream_options is a field of streamed requests",
    needs=("stream.accepted",),
)
async def stream_options_accepted(p: Probe) -> Judgement:
    await p.stream(stream_options={"include_usage": True})
    return honoured("accepted with stream")


SINGLE_FIELDS = tuple(accepted(*row) for row in LEGAL)


@case(
    "prompt.accepted",
    "prompt",
    law="2",
    says="prompt is a string that is continued",
    needs=("max_tokens.accepted", "temperature.accepted"),
)
async def prompt_accepted(p: Probe) -> Judgement:
    answer = await p.complete(prompt=PROMPT, max_tokens=2)
    if len(answer.choices) != 1:
        return wrong(f"one prompt has {len(answer.choices)} choices")
    return honoured("one string, one choice")


CASES = (
    answer_is_a_completion,
    usage_present,
    prompt_accepted,
    *SINGLE_FIELDS,
    stream_accepted,
    stream_options_accepted,
)
