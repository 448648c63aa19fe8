"""Sections 1 and 12: what is no request, and how a server says so. What must be refused costs nothing where it is."""

from __future__ import annotations

import json
import re
from typing import Any

from gnomon.http.verify.ask.exchange import Exchange, Streamed
from gnomon.http.verify.ask.probe import PROMPT, Probe
from gnomon.http.verify.verdict import Case, Judgement, SharedFault, Verdict, case, honoured, ignored, unclear, wrong

OUT_OF_RANGE: tuple[tuple[str, str, tuple[dict[str, Any], ...]], ...] = (
    ("temperature", "0 to 2", ({"temperature": 2.01}, {"temperature": -0.01})),
    ("top_p", "0 to 1", ({"top_p": 1.01}, {"top_p": -0.01})),
    ("frequency_penalty", "−2 to 2", ({"frequency_penalty": 2.01}, {"frequency_penalty": -2.01})),
    ("presence_penalty", "−2 to 2", ({"presence_penalty": 2.01}, {"presence_penalty": -2.01})),
    ("max_tokens", "0 or more", ({"max_tokens": -1},)),
    ("n", "1 to 128", ({"n": 0}, {"n": -1}, {"n": 129, "temperature": 1})),
    (
        "best_of",
        "0 to 20",
        ({"best_of": -1}, {"best_of": 21, "temperature": 1}),
    ),
    ("logprobs", "0 to 20", ({"logprobs": -1}, {"logprobs": 21})),
    ("seed", "the signed 64-bit integers", ({"seed": 2**63}, {"seed": -(2**63) - 1})),
    (
        "logit_bias",
        "ids of the vocabulary, −100 to 100",
        (
            {"logit_bias": {"5": 100.5}},
            {"logit_bias": {"5": -101}},
            {"logit_bias": {"x": 1}},
            {"logit_bias": {"-1": 1}},
            {"logit_bias": {"999999999": 1}},
        ),
    ),
    ("stop", "up to 64 strings, none empty in a list", ({"stop": ["a", ""]}, {"stop": [str(i) for i in range(65)]})),
)
"""Field, its range in words, and values outside it, each legal JSON of the right type."""

READ_BY = {
    "temperature": "temperature.divides",
    "top_p": "top_p.drops",
    "frequency_penalty": "frequency_penalty.each",
    "presence_penalty": "presence_penalty.once",
    "max_tokens": "max_tokens.bounds",
    "n": "n.count",
    "best_of": "best_of.returns_the_best",
    "logprobs": "logprobs.lists",
    "seed": "seed.repeats",
    "logit_bias": "logit_bias.forces",
    "echo": "echo.text",
    "stop": "stop.cuts",
    "suffix": "suffix.honoured_or_refused",
}
"""The case of each field that tells whether it has an effect: what is not read is not checked either."""

WRONG_TYPES: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("temperature", ("1", True, [1])),
    ("top_p", ("1", True)),
    ("frequency_penalty", ("1", True)),
    ("presence_penalty", ("1", False)),
    ("max_tokens", ("2", 1.5, True)),
    ("n", ("1", 1.5, True)),
    ("best_of", ("1", 1.5, True)),
    ("logprobs", ("1", 0.5, True)),
    ("seed", ("1", 1.5, True)),
    ("logit_bias", ([5], "5", {"5": "1"}, {"5": True})),
    ("echo", ("true", 1)),
    ("stop", (5, [5], {"a": 1})),
    ("stream", ("true", 1)),
    ("user", (5,)),
    ("suffix", (5,)),
)


def says_error(exchange: Exchange) -> bool:
    """Whether a stream begins with an error: a refusal all the same; whether it may come so is a case of streams."""
    if not exchange.headers.get("content-type", "").startswith("text/event-stream"):
        return False
    events = Streamed.read(exchange).events
    return bool(events) and isinstance(events[0], dict) and bool(events[0].get("error"))


def not_refused(exchange: Exchange, param: str, what: str) -> Judgement | None:
    """None if the request was refused as the law has it: an error of 400 to 499 that names the field."""
    if exchange.status == 200 and not says_error(exchange):
        return ignored(f"{what} is accepted")
    if exchange.status is None or exchange.status >= 500:
        return broken(exchange, f"{what}: {exchange.trouble}")
    if not 400 <= exchange.status < 500 and exchange.status != 200:
        return wrong(f"{what}: HTTP {exchange.status}")
    if not exchange.names(param):
        return wrong(f"{what} is refused without naming {param}: HTTP {exchange.status}: {exchange.message}")
    return None


def broken(exchange: Exchange, reason: str) -> Judgement:
    """What should have been refused had no sound answer: one fault, if it is the server's own error."""
    judgement = wrong(reason)
    return (
        judgement if exchange.status is None or exchange.status < 500 else judgement.showing(SharedFault.server_error)
    )


def accepted_as(fault: SharedFault, judgement: Judgement) -> Judgement:
    """The finding of a case of types or ranges, which is this fault if the value was accepted."""
    return judgement.showing(fault) if judgement.verdict is Verdict.ignored else judgement


def fields_shown(fields: dict[str, Any]) -> str:
    text = json.dumps(fields, ensure_ascii=False)[1:-1]
    return text if len(text) <= 60 else text[:59] + "…"


async def _try(p: Probe, fields: dict[str, Any]) -> Exchange:
    """Without a sound max_tokens the answer is streamed and left after two events: it could fill the whole context."""
    if "max_tokens" not in fields:
        return await p.send(p.body(**fields))
    return await p.send(p.body(**fields, stream=True), cost=64, first_events=2)


def out_of_range(field: str, allowed: str, tries: tuple[dict[str, Any], ...]) -> Case:
    @case(
        f"{field}.range",
        field,
        law="1",
        says=f"{field} is {allowed}; anything else is refused by name, never clamped",
        needs=(f"{field}.accepted",),
        follows=READ_BY.get(field, ""),
    )
    async def judge(p: Probe) -> Judgement:
        for fields in tries:
            fault = not_refused(await _try(p, fields), field, fields_shown(fields))
            if fault is not None:
                return accepted_as(SharedFault.no_bounds, fault)
        return honoured(
            "; ".join(fields_shown(fields) for fields in tries)
            + (" are" if len(tries) > 1 else " is")
            + " refused by name"
        )

    return judge


def wrong_type(field: str, values: tuple[Any, ...]) -> Case:
    needs = () if field == "suffix" else (f"{field}.accepted",)

    @case(
        f"{field}.type",
        field,
        law="1",
        says=f"types are strict: what is no {field} is refused by name",
        needs=needs,
        follows=READ_BY.get(field, ""),
    )
    async def judge(p: Probe) -> Judgement:
        for value in values:
            fault = not_refused(await _try(p, {field: value}), field, fields_shown({field: value}))
            if fault is not None:
                return accepted_as(SharedFault.lax_types, fault)
        return honoured(f"{', '.join(json.dumps(value) for value in values)}: refused by name")

    return judge


RANGES = tuple(out_of_range(*row) for row in OUT_OF_RANGE)
STRICT_TYPES = tuple(wrong_type(*row) for row in WRONG_TYPES)


@case(
    "prompt.type",
    "prompt",
    law="2",
    says="an empty list, a mixed one, and ids outside the vocabulary are refused by name",
    needs=("prompt.accepted",),
)
async def prompt_type(p: Probe) -> Judgement:
    prompts: tuple[Any, ...] = ([], [[]], [1, "a"], [True], [-1], [999999999], [[1], "a"], {"text": "a"}, 5)
    for prompt in prompts:
        fault = not_refused(await p.send(p.body(prompt=prompt)), "prompt", fields_shown({"prompt": prompt}))
        if fault is not None:
            return fault
    return honoured("[], [[]], mixed lists, −1, 999999999 and no prompts at all are refused by name")


@case("model.unknown", "model", law="1", says="a model that is not served is not found", needs=("prompt.accepted",))
async def model_unknown(p: Probe) -> Judgement:
    exchange = await p.send(p.body(model="no-such-model-anywhere"))
    if exchange.status == 200:
        return ignored("a model that does not exist answers")
    if exchange.status != 404:
        return wrong(f"HTTP {exchange.status}, not 404: {exchange.trouble or exchange.message}")
    return honoured(f"HTTP 404: {exchange.message}")


@case(
    "model.required",
    "model",
    law="1",
    says="model must be given",
    needs=("prompt.accepted",),
    follows="model.unknown",
)
async def model_required(p: Probe) -> Judgement:
    exchange = await p.send({"prompt": PROMPT, "max_tokens": 1, "temperature": 0})
    return not_refused(exchange, "model", "a request without model") or honoured(
        "a request without it is refused by name"
    )


@case("prompt.required", "prompt", law="1", says="prompt must be given", needs=("prompt.accepted",))
async def prompt_required(p: Probe) -> Judgement:
    exchange = await p.send({"model": p.subject.model, "max_tokens": 1, "temperature": 0})
    return not_refused(exchange, "prompt", "a request without prompt") or honoured(
        "a request without it is refused by name"
    )


@case(
    "body.unknown_field",
    "unknown field",
    law="1",
    says="a field that the API does not have is refused by name",
    needs=("prompt.accepted",),
)
async def unknown_field(p: Probe) -> Judgement:
    for field in ("max_token", "x_gnomon_verify"):
        fault = not_refused(await p.send(p.body(**{field: 1})), field, f'"{field}": 1')
        if fault is not None:
            return fault
    return honoured("max_token and x_gnomon_verify are refused by name")


@case(
    "body.all_unknown_fields",
    "unknown field",
    law="1",
    says="all unknown names are listed at once",
    needs=("body.unknown_field",),
)
async def all_unknown_fields(p: Probe) -> Judgement:
    exchange = await p.send(p.body(max_token=1, x_gnomon_verify=1))
    for field in ("max_token", "x_gnomon_verify"):
        fault = not_refused(exchange, field, '"max_token": 1, "x_gnomon_verify": 1')
        if fault is not None:
            return fault
    return honoured("max_token and x_gnomon_verify are refused by name in one answer")


BODIES: tuple[tuple[str, str, bytes], ...] = (
    ("no_json", "a body that is no JSON is refused", b'{"model": '),
    ("no_object", "a body that is no object is refused", b"[1, 2]"),
    ("nan", "NaN and Infinity are no JSON", b'{%s, "top_p": NaN}'),
    ("twice", "a key that stands twice is refused", b'{%s, "n": 1, "n": 1}'),
    ("surrogate", "half of a surrogate pair is refused", b'{%s, "user": "\\ud800"}'),
    ("utf8", "a body that is no UTF-8 is refused", b'{%s, "user": "\xff"}'),
    (
        "nested",
        "absurd nesting is refused, not an error of the server",
        b'{%s, "user": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    ),
    (
        "digits",
        "a number of thousands of digits is refused, not an error of the server",
        b'{%s, "seed": ' + b"9" * 5000 + b"}",
    ),
)


def body(name: str, says: str, text: bytes) -> Case:
    @case(f"body.{name}", "body", law="1", says=says, needs=("prompt.accepted",))
    async def judge(p: Probe) -> Judgement:
        plain = json.dumps(p.body())[1:-1].encode()
        exchange = await p.send(text.replace(b"%s", plain, 1))
        if exchange.status == 200:
            return ignored("it is accepted")
        if exchange.status is None or not 400 <= exchange.status < 500:
            return broken(exchange, exchange.trouble or f"HTTP {exchange.status}")
        return honoured(f"HTTP {exchange.status}: {exchange.message}")

    return judge


@case(
    "body.content_type",
    "body",
    law="12",
    says="a body that is not announced as JSON is refused with 415",
    needs=("prompt.accepted",),
)
async def content_type(p: Probe) -> Judgement:
    exchange = await p.send(p.body(), content_type="text/plain")
    if exchange.status == 200:
        return ignored("text/plain is accepted")
    if exchange.status != 415:
        return broken(exchange, f"HTTP {exchange.status}, not 415: {exchange.trouble or exchange.message}")
    return honoured("HTTP 415")


@case(
    "errors.form",
    "errors",
    law="12",
    says="an error is 400, in the API's form: an object of message, type, param and code",
    needs=("prompt.accepted",),
)
async def errors_form(p: Probe) -> Judgement:
    faults: tuple[dict[str, Any], ...] = ({"temperature": 3}, {"max_tokens": -1}, {"prompt": []})
    for fields in faults:
        exchange = await p.send(p.body(**fields))
        if exchange.status == 200:
            continue
        if exchange.status != 400:
            said = exchange.trouble or exchange.message
            return broken(exchange, f"{fields_shown(fields)}: HTTP {exchange.status}, not 400: {said}")
        missing = [key for key in ("message", "type", "param", "code") if key not in exchange.error]
        if missing:
            return wrong(f"the error has no {', '.join(missing)}", answer=exchange.message)
        if not isinstance(exchange.error["message"], str) or not exchange.error["message"]:
            return wrong("the error's message is no sentence")
        return honoured(f"HTTP 400: {exchange.message}")
    return unclear("none of three faulty requests is refused")


@case(
    "errors.param",
    "errors",
    law="12",
    says="an error carries the field at fault in param",
    needs=(
        "temperature.range",
        "logit_bias.range",
        "errors.form",
    ),
)
async def errors_param(p: Probe) -> Judgement:
    faults: tuple[tuple[dict[str, Any], str], ...] = (
        ({"temperature": 3}, "temperature"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
    )
    for fields, param in faults:
        exchange = await p.send(p.body(**fields))
        if exchange.status == 200:
            continue
        if exchange.error.get("param") != param:
            return wrong(f"{fields_shown(fields)}: param is {exchange.error.get('param')!r:.60}, not {param!r}")
    return honoured("param is the field, and logit_bias.5 for an entry")


@case(
    "errors.unknown_path",
    "errors",
    law="12",
    says="a path that does not exist is 404 in the API's form",
    needs=("prompt.accepted",),
)
async def unknown_path(p: Probe) -> Judgement:
    exchange = await p.get("/no-such-path")
    if exchange.status != 404:
        return wrong(f"HTTP {exchange.status}, not 404")
    missing = [key for key in ("message", "type", "param", "code") if key not in exchange.error]
    return (
        wrong(f"HTTP 404, and the error has no {', '.join(missing)}") if missing else honoured("HTTP 404 in its form")
    )


@case(
    "errors.context_length",
    "errors",
    law="12",
    says="a prompt beyond the context has its code and says the maximum context length",
    needs=("max_tokens.never_clamped", "errors.form", "stream.refusal"),
)
async def errors_context_length(p: Probe) -> Judgement:
    exchange = await p.send(p.body(max_tokens=10_000_000, stream=True), cost=64, first_events=2)
    if exchange.error.get("code") != "context_length_exceeded":
        return wrong(f"code is {exchange.error.get('code')!r:.60}, not 'context_length_exceeded'")
    if not re.search(r"maximum context length is \d+ tokens", exchange.message):
        return wrong(f'"maximum context length is N tokens" is not said: {exchange.message}')
    return honoured(f"code context_length_exceeded: {exchange.message}")


@case(
    "stream_options.unknown",
    "stream_options",
    law="1",
    says="an unknown key inside stream_options is refused by name",
    needs=("stream_options.accepted",),
)
async def stream_options_unknown(p: Probe) -> Judgement:
    for key in ("include_usages", "x_gnomon_verify"):
        options = {"stream_options": {"include_usage": True, key: True}}
        exchange = await p.send(p.body(stream=True, **options), cost=64, first_events=2)
        fault = not_refused(exchange, key, fields_shown(options))
        if fault is not None:
            return fault
    return honoured("include_usages and x_gnomon_verify are refused by name")


@case(
    "body.null_is_absent",
    "body",
    law="1",
    says="a key whose value is null is as good as absent, whatever its name",
    needs=("body.empty_objects", "logit_bias.accepted"),
)
async def null_is_absent(p: Probe) -> Judgement:
    nulls = {"x_gnomon_verify": None}
    legal: tuple[dict[str, Any], ...] = (nulls, {"stream_options": nulls}, {"logit_bias": {"5": None}})
    for fields in legal:
        exchange = await p.send(p.body(**fields))
        if exchange.status != 200:
            return wrong(f"{fields_shown(fields)}: HTTP {exchange.status}: {exchange.trouble or exchange.message}")
    return honoured("an unknown name, a key of stream_options and one of logit_bias")


@case(
    "stream_options.only_streamed",
    "stream_options",
    law="1",
    says="stream_options without stream is refused by name",
    needs=("stream_options.accepted",),
    follows="stream_options.include_usage",
)
async def stream_options_only_streamed(p: Probe) -> Judgement:
    exchange = await p.send(p.body(stream_options={"include_usage": True}))
    return not_refused(exchange, "stream_options", "stream_options without stream") or honoured("refused by name")


@case(
    "body.empty_objects",
    "body",
    law="1",
    says="logit_bias {}, stream_options {} and null for an optional field are legal",
    needs=("logit_bias.accepted", "stop.accepted", "best_of.accepted", "logprobs.accepted", "seed.accepted"),
)
async def empty_objects(p: Probe) -> Judgement:
    nulls = dict.fromkeys(("suffix", "best_of", "logprobs", "stop", "seed", "stream_options", "user", "logit_bias"))
    legal: tuple[dict[str, Any], ...] = ({"logit_bias": {}}, {"stream_options": {}}, nulls)
    for fields in legal:
        exchange = await p.send(p.body(**fields))
        if exchange.status != 200:
            return wrong(f"{fields_shown(fields)}: HTTP {exchange.status}: {exchange.trouble or exchange.message}")
    return honoured("accepted, as if they were left out")


CASES = (
    *RANGES,
    *STRICT_TYPES,
    prompt_type,
    model_unknown,
    model_required,
    prompt_required,
    unknown_field,
    all_unknown_fields,
    *(body(*row) for row in BODIES),
    content_type,
    empty_objects,
    null_is_absent,
    stream_options_only_streamed,
    stream_options_unknown,
    errors_form,
    errors_param,
    errors_context_length,
    unknown_path,
)
