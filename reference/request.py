"""The request: every field's type, default, range and meaning, in one table.

`FIELDS` is the table. The reading of a body, the command line, the README and the tests all go by it, so a field cannot
mean one thing here and another there. How strictly a value is read is in body/reading.py.

What needs a model to judge (ids below the vocabulary's size, the context's length, `suffix`) is judged in
completion.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from gnomon.reference.body.reading import (
    boolean,
    check_names,
    integer,
    members,
    not_allowed,
    number,
    parse_json,
    string,
)
from gnomon.reference.body.shown import key_of, shown
from gnomon.reference.errors import InvalidRequest

Prompt = str | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Limits:
    """How far a server lets a request go. The defaults are the law's; `openai()` is the published API's."""

    logprobs: int = 20
    stop: int = 64
    candidates: int = 2048
    prompts: int = 2048
    answer_bytes: int = 128 * 2**20  # as answer_size.py counts them

    @classmethod
    def openai(cls) -> Limits:
        return cls(logprobs=5, stop=4)


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """A valid request. Fields carry the API's names; null and absent have become the default.

    prompts: one or more, each a string or a tuple of ids; `null` has become "". `seed` None means: draw one.
    `best_of` None means: `n` candidates. `suffix` "" and `stop` () mean none.
    """

    model: str
    prompts: tuple[Prompt, ...]
    suffix: str = ""
    max_tokens: int = 16
    n: int = 1
    best_of: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    logprobs: int | None = None
    echo: bool = False
    stop: tuple[str, ...] = ()
    seed: int | None = None
    stream: bool = False
    include_usage: bool = False
    user: str | None = None

    @property
    def candidates(self) -> int:
        """B of the law: how many candidates are generated for every prompt."""
        return self.best_of or self.n

    @classmethod
    def from_json(cls, body: bytes, limits: Limits | None = None) -> CompletionRequest:
        """Reads a request's body. Raises InvalidRequest for whatever the law does not allow."""
        return cls.from_fields(parse_json(body), limits)

    @classmethod
    def from_fields(cls, body: Mapping[str, Any], limits: Limits | None = None) -> CompletionRequest:
        """Reads a request from JSON values under the API's own names. Raises InvalidRequest."""
        limits = limits or Limits()
        given = members(body)
        check_names(given, BY_NAME, STREAM_OPTIONS)
        if "prompt" in body:
            given.setdefault("prompt", None)  # the one null that says something
        values: dict[str, Any] = {}
        for field in FIELDS:
            if field.name in given:
                if field.name == "prompt":
                    _check_count(given["prompt"], limits)
                values[field.attribute] = field.read(field.name, given[field.name])
            elif field.required:
                raise InvalidRequest(field.name, f"{field.name}: required; give {field.allowed}")
        request = cls(**values)
        _check_together(request, given, limits)
        return request


def _check_count(prompt: object, limits: Limits) -> None:
    """How many prompts there are, before each of them is read: a body can hold millions."""
    if isinstance(prompt, list) and len(prompt) > limits.prompts and not _is_id(prompt[0]):
        raise InvalidRequest("prompt", f"prompt: {len(prompt)} prompts; at most {limits.prompts} on this server")


def _check_together(request: CompletionRequest, given: Mapping[str, Any], limits: Limits) -> None:
    """What no field decides alone."""
    if request.logprobs is not None and request.logprobs > limits.logprobs:
        raise not_allowed(
            "logprobs", request.logprobs, f"an integer from 0 to {limits.logprobs} on this server, {_OFF}"
        )
    if len(request.stop) > limits.stop:
        raise InvalidRequest("stop", f"stop: {len(request.stop)} strings; at most {limits.stop} on this server")
    if request.candidates < request.n:
        raise InvalidRequest(
            "best_of", f"best_of: {request.best_of} is less than n = {request.n}; give at least n, or null"
        )
    if request.stream and request.candidates > request.n:
        raise InvalidRequest(
            "best_of",
            f"best_of: {request.best_of} with stream needs all candidates before the first can be sent; "
            f"give at most n = {request.n}, or stream false",
        )
    if members(given.get("stream_options", {})) and not request.stream:
        raise InvalidRequest(
            "stream_options", "stream_options: only with stream true; leave it out, or give null or {}"
        )
    total = len(request.prompts) * request.candidates
    if total > limits.candidates:
        raise InvalidRequest(
            "prompt",
            f"prompt: {len(request.prompts)} prompts with {request.candidates} candidates each are {total}; "
            f"at most {limits.candidates} on this server",
        )


# ---- reading the values that are not one string, number or boolean


def _optional_string(param: str, sent: object) -> str:
    return string(param, sent, "a string, or null")


# Bounds of what is no part of the prompt, and so not bounded by the context. Each is far beyond what clients send:
STOP_CHARACTERS = 1024  # of one string; a line of a program, at the most
USER_CHARACTERS = 1024  # an identifier; the longest string that the published API takes as one has 512
BIAS_ENTRIES = 65_536  # enough to ban every token of a script; the published API takes some hundreds


def _short(param: str, text: str, most: int, which: str = "the string") -> str:
    """The text, if it has no more than so many characters."""
    if len(text) > most:
        raise InvalidRequest(param, f"{param}: {which} has {len(text)} characters; at most {most} are allowed")
    return text


def _user(param: str, sent: object) -> str:
    return _short(param, _optional_string(param, sent), USER_CHARACTERS)


_PROMPT = "a string, a non-empty list of strings, a non-empty list of token ids, a non-empty list of those, or null"


def _prompt(param: str, sent: object) -> tuple[Prompt, ...]:
    if sent is None:
        return ("",)
    if isinstance(sent, str):
        return (string(param, sent, _PROMPT),)
    if not isinstance(sent, list) or not sent:
        raise not_allowed(param, sent, _PROMPT)
    if _is_id(sent[0]):
        return (_ids(param, sent),)
    if isinstance(sent[0], list):
        return tuple(_ids(f"{param}[{j}]", ids) for j, ids in enumerate(sent))
    return tuple(string(param, text, f"{_PROMPT} (element {j} of the list)") for j, text in enumerate(sent))


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _ids(place: str, sent: object) -> tuple[int, ...]:
    """Token ids; the vocabulary's size is checked where it is known."""
    if not isinstance(sent, list) or not sent:
        raise InvalidRequest("prompt", f"{place}: {shown(sent)} is not allowed; give a non-empty list of token ids")
    for i, v in enumerate(sent):
        if not _is_id(v) or v < 0:
            raise InvalidRequest("prompt", f"{place}: {shown(v)} at {i} is no token id; give integers of at least 0")
    return tuple(sent)


ID_DIGITS = 8
"""Of the largest id: no vocabulary is larger than 2^24 (entries.py). Integers of 18 digits can be chosen so that a dict
of them takes a time that grows with the square."""


def _logit_bias(param: str, sent: object) -> dict[int, float]:
    if not isinstance(sent, dict):
        raise not_allowed(param, sent, "an object of token id → number from -100 to 100")
    read = number(-100, 100)
    bias: dict[int, float] = {}
    given = members(sent, f"{param}.")
    if len(given) > BIAS_ENTRIES:
        raise InvalidRequest(param, f"{param}: {len(given)} entries; at most {BIAS_ENTRIES} are allowed")
    for key, value in given.items():
        if not isinstance(key, str):
            raise not_allowed(param, key, "ids as strings of digits, as JSON has them")
        if not re.fullmatch(r"0|[1-9][0-9]*", key, re.ASCII):
            message = f"{param}.{key_of(key)}: no token id; keys are 0 or digits without a leading 0"
            raise InvalidRequest(f"{param}.{key}", message)
        if len(key) > ID_DIGITS:
            raise InvalidRequest(f"{param}.{key}", f"{param}.{key_of(key)}: no vocabulary is so large")
        bias[int(key)] = read(f"{param}.{key}", value)
    return bias


def _stop(param: str, sent: object) -> tuple[str, ...]:
    if isinstance(sent, str):
        return (_short(param, string(param, sent), STOP_CHARACTERS),) if sent else ()
    allowed = "a string, or a list of up to 64 non-empty strings, or null"
    if not isinstance(sent, list) or len(sent) > 64:
        raise not_allowed(param, sent, allowed)
    strings = tuple(string(param, s, allowed) for s in sent)
    if "" in strings:
        raise not_allowed(param, sent, f"{allowed}; an empty string in the list would stop before the first character")
    return tuple(_short(param, s, STOP_CHARACTERS, f"string {i} of the list") for i, s in enumerate(strings))


def _stream_options(param: str, sent: object) -> bool:
    if not isinstance(sent, dict):
        raise not_allowed(param, sent, 'an object such as {"include_usage": true}, or null')
    include_usage = members(sent, f"{param}.").get("include_usage")  # check_names has seen to all others
    return False if include_usage is None else boolean(f"{param}.include_usage", include_usage)


# ---- the table

INT64 = (-(2**63), 2**63 - 1)
STREAM_OPTIONS = {"stream_options": ("include_usage",)}
_OFF = "or null to leave it off (0 does not: it reports the sampled tokens)"


@dataclass(frozen=True, slots=True)
class Field:
    """One field of the request, for the parser, the command line, the documentation and the tests."""

    name: str
    type: str  # as documents show it
    default: Any  # as JSON; REQUIRED where there is none
    allowed: str  # the range, in words
    meaning: str
    section: str  # of LAW.md
    where: str  # the function that gives it its meaning
    schema: Mapping[str, Any]  # JSON Schema of the value, null aside
    read: Callable[[str, Any], Any]
    attribute: str  # of CompletionRequest
    stages: tuple[int, ...]  # of the sampler's numbered law, those in which the field acts; see STAGES

    @property
    def required(self) -> bool:
        return self.default is REQUIRED


REQUIRED = object()

STAGES = ("report", "bias", "penalties", "greedy", "temperature", "nucleus", "draw")
"""What sampler.py does to the logits of one draw; number 1 is the first."""


def _field(
    name: str, type: str, default: Any, allowed: str, meaning: str, section: str, where: str,
    schema: Mapping[str, Any], read: Callable[[str, Any], Any], attribute: str = "", stages: tuple[int, ...] = (),
) -> Field:  # fmt: skip
    return Field(name, type, default, allowed, meaning, section, where, schema, read, attribute or name, stages)


def _bounded(kind: str, low: float, high: float) -> dict[str, Any]:
    return {"type": kind, "minimum": low, "maximum": high}


_ID_LIST = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}
_STRING_LIST = {"type": "array", "minItems": 1, "items": {"type": "string"}}

FIELDS: tuple[Field, ...] = (
    _field("model", "string", REQUIRED, "the id of a served model", "which model answers; any other id is a 404",
           "1", "completion.prepare", {"type": "string"}, string),
    _field("prompt", "string, string[], int[], int[][], null", REQUIRED, _PROMPT,
           "the text to continue; ids are used verbatim; null and \"\" are the beginning of a document",
           "2", "prompt.encode_prompt",
           {"anyOf": [{"type": "string"}, _STRING_LIST, _ID_LIST, {"type": "array", "minItems": 1, "items": _ID_LIST}]},
           _prompt, "prompts"),
    _field("suffix", "string", None, "a string; \"\" means none; needs a model with fill-in-the-middle tokens",
           "the text after the gap: the completion is what goes between prompt and suffix",
           "9", "prompt.InfillEncoder", {"type": "string"}, _optional_string),
    _field("max_tokens", "integer", 16, "0 or more; prompt and max_tokens must fit the context",
           "how many tokens to sample at most; 0 samples nothing; never clamped",
           "1, 3", "engine.ReferenceJob", {"type": "integer", "minimum": 0}, integer(0, None)),
    _field("n", "integer", 1, "1 to 128", "how many choices to return for each prompt",
           "8", "completion.Run", _bounded("integer", 1, 128), integer(1, 128)),
    _field("best_of", "integer", None, "0 to 20, at least n; 0 and null mean n; more than n not with stream",
           "how many candidates to sample; the n of highest mean log-probability are returned",
           "8", "completion.ranked", _bounded("integer", 0, 20), integer(0, 20, "or null")),
    _field("temperature", "number", 1, "0 to 2", "divides the logits' distances from the maximum; 0 is greedy",
           "4", "sampler.temper", _bounded("number", 0, 2), number(0, 2), stages=(4, 5)),
    _field("top_p", "number", 1, "0 to 1, both ends legal",
           "draws only from the most probable tokens: one is kept if the mass before it is below top_p; 0 keeps one",
           "4", "sampler.nucleus", _bounded("number", 0, 1), number(0, 1), stages=(6,)),
    _field("frequency_penalty", "number", 0, "-2 to 2",
           "is subtracted from a token's logit once for every time it was sampled",
           "4", "sampler.penalize", _bounded("number", -2, 2), number(-2, 2), stages=(3,)),
    _field("presence_penalty", "number", 0, "-2 to 2",
           "is subtracted from a token's logit once if it was sampled at all",
           "4", "sampler.penalize", _bounded("number", -2, 2), number(-2, 2), stages=(3,)),
    _field("logit_bias", "object: id → number", {},
           "up to 65,536 ids of the vocabulary as decimal keys, values -100 to 100",
           "is added to the logits of these tokens; -100 is minus 100, not never",
           "4", "sampler.add_bias",
           {"type": "object",
            "patternProperties": {"^(0|[1-9][0-9]*)$": {**_bounded("number", -100, 100), "type": ["number", "null"]}},
            "additionalProperties": {"type": "null"}}, _logit_bias, stages=(2,)),
    _field("logprobs", "integer", None, "0 to 20; 0 is not off",
           "reports every token's raw log-probability and the k most probable tokens at its place",
           "4, 6", "sampler.report", _bounded("integer", 0, 20), integer(0, 20, _OFF), stages=(1,)),
    _field("echo", "boolean", False, "true or false",
           "puts the prompt before the completion, with its log-probabilities",
           "7", "completion.Run", {"type": "boolean"}, boolean),
    _field("stop", "string or string[]", None,
           "up to 64 strings of up to 1,024 characters, none empty in a list; \"\" and [] mean none",
           "ends a completion where one of them is complete in its text, and cuts the text before it; one that is a "
           "special token's literal also ends it on that token",
           "5", "stop.StopMatcher",
           {"anyOf": [{"type": "string", "maxLength": STOP_CHARACTERS},
                      {"type": "array", "maxItems": 64,
                       "items": {"type": "string", "minLength": 1, "maxLength": STOP_CHARACTERS}}]},
           _stop),
    _field("seed", "integer", None, "any signed 64-bit integer, -1 is an ordinary one",
           "makes the draws a function of (seed, candidate, step); without it every prompt draws its own",
           "4", "prng.token_words", _bounded("integer", *INT64), integer(*INT64, "or null"), stages=(7,)),
    _field("stream", "boolean", False, "true or false", "sends the answer as server-sent events while it is made",
           "11", "completion.Run.chunks", {"type": "boolean"}, boolean),
    _field("stream_options", "object", None, "only with stream; include_usage: true or false",
           "include_usage adds a last chunk with the usage",
           "11", "completion.Run.chunks",
           {"type": "object", "properties": {"include_usage": {"type": ["boolean", "null"]}},
            "additionalProperties": {"type": "null"}},
           _stream_options, "include_usage"),
    _field("user", "string", None, "a string of up to 1,024 characters", "accepted, has no effect", "1",
           "request.CompletionRequest", {"type": "string", "maxLength": USER_CHARACTERS}, _user),
)  # fmt: skip

BY_NAME: dict[str, Field] = {field.name: field for field in FIELDS}

assert {f.attribute for f in FIELDS} == {f.name for f in fields(CompletionRequest)}
