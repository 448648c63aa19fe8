"""Faults that the cases of requests, texts, sampling, seeds and choices must find: a row each, and how it is made."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NoReturn

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from gnomon.http.errors import NotFound
from gnomon.http.verify.cases import accepted
from gnomon.reference import completion, sampler
from gnomon.reference import prompt as prompt_module
from gnomon.reference import request as reading
from gnomon.reference.body import reading as body_reading
from gnomon.reference.body.shown import Unreadable
from gnomon.reference.body.strict_json import Object
from gnomon.reference.completion import Candidate, Run
from gnomon.reference.engine import ReferenceJob
from gnomon.reference.errors import InvalidRequest, RequestError
from gnomon.reference.prompt import EncodedPrompt
from gnomon.reference.request import CompletionRequest
from gnomon.reference.response import Completion
from gnomon.reference.stop import StopMatcher
from helpers import faults
from helpers.fake import EOT
from helpers.faults import Apply, Fault, InProcessServer, Patch
from helpers.live import MODEL


def read(**changes: Any) -> Apply:
    """Reads these fields always so, where a value is a function of the request made of it."""

    def change(sent: CompletionRequest) -> CompletionRequest:
        return replace(sent, **{name: value(sent) if callable(value) else value for name, value in changes.items()})

    return faults.request(change)


def sent(change: Any) -> Apply:
    return faults.body(change)


def without(*names: str) -> Apply:
    return sent(lambda body: {name: value for name, value in body.items() if name not in names})


def stage(name: str, function: Any) -> Apply:
    """Another function for a stage of the sampler; it is given the original first."""

    def apply(patch: Patch) -> None:
        original = getattr(sampler, name)
        patch.setattr(sampler, name, lambda *arguments: function(original, *arguments))

    return apply


def clamped(name: str, low: float, high: float) -> Apply:
    """A number out of range becomes the nearest in it."""

    def change(body: dict[str, Any]) -> dict[str, Any]:
        value = body.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return {**body, name: min(max(value, low), high)}
        return body

    return sent(change)


def lenient(name: str, into: Any) -> Apply:
    """A value of another type is taken for one of the right type."""

    def apply(patch: Patch) -> None:
        original = reading.BY_NAME[name]

        def lenient_read(param: str, value: Any) -> Any:
            try:
                return original.read(param, value)
            except InvalidRequest as error:
                try:
                    return original.read(param, into(value))
                except (InvalidRequest, TypeError, ValueError, KeyError):
                    raise error from None

        loose = replace(original, read=lenient_read)
        patch.setattr(reading, "FIELDS", tuple(loose if field is original else field for field in reading.FIELDS))

    return apply


def number(value: Any) -> Any:
    return int(value) if float(value).is_integer() else float(value)


def anonymous(name: str) -> Apply:
    """Refuses without saying what."""

    def apply(patch: Patch) -> None:
        to_json = RequestError.to_json

        def shown(self: RequestError) -> dict[str, Any]:
            error = to_json(self)["error"]
            if str(error["param"]).split(".")[0].split("[")[0] == name:
                error = {**error, "param": None, "message": "something is wrong"}
            return {"error": error}

        patch.setattr(RequestError, "to_json", shown)

    return apply


def failing(name: str) -> Apply:
    """An error of the server's own where a field is at fault."""

    def apply(patch: Patch) -> None:
        status = InvalidRequest.status

        class Status:
            def __get__(self, error: RequestError | None, owner: type) -> int:
                odd = error is None or "NaN" in error.message or "characters" in error.message
                return 500 if error is not None and not odd and str(error.param).startswith(name) else status

        patch.setattr(InvalidRequest, "status", Status())

    return apply


def errors(change: Any) -> Apply:
    def apply(patch: Patch) -> None:
        to_json = RequestError.to_json
        patch.setattr(RequestError, "to_json", lambda self: change(to_json(self)))

    return apply


def usage(change: Any) -> Apply:
    """Bills otherwise; the change is told the run and the true usage."""

    def apply(patch: Patch) -> None:
        true = vars(Run)["usage"].fget
        patch.setattr(Run, "usage", property(lambda self: change(self, true(self))))

    return apply


def bincount(ids: Sequence[int], size: int) -> NDArray[np.int64]:
    return np.bincount(np.array(ids, np.int64), minlength=size)


def drawn(change: Any) -> Apply:
    """Another (seed, candidate, step) for the noise; the change is told the job, the prompt's number and these."""

    def apply(patch: Patch) -> None:
        original = ReferenceJob._sample

        def _sample(self: ReferenceJob, j: int, c: int, prompt_ids: tuple[int, ...], sampled: list[int]) -> Any:
            kept = self.request
            at, number = change(self, j, kept.seeds[j], c)
            self.request = replace(kept, seeds=[at if i == j else value for i, value in enumerate(kept.seeds)])
            try:
                token = original(self, j, number, prompt_ids, sampled)
            finally:
                self.request = kept
            return replace(token, candidate=c)

        patch.setattr(ReferenceJob, "_sample", _sample)

    return apply


def penalty(function: Any) -> Apply:
    return stage("penalize", lambda original, z, c, frequency, presence: function(z, c, frequency, presence))


def matched(kind: type[StopMatcher]) -> Apply:
    return lambda patch: patch.setattr(completion, "StopMatcher", kind)


def token_by_token_stops(patch: Patch) -> None:
    push = Candidate.push

    def fresh(self: Candidate, token: Any) -> None:
        self._matcher = StopMatcher(self._matcher._stops)
        push(self, token)

    patch.setattr(Candidate, "push", fresh)


class FirstOfTheList(StopMatcher):
    """The first string of the list that occurs wins, though another ends sooner."""

    def push(self, char: str) -> int:
        self._text = getattr(self, "_text", "") + char
        for one in self._stops:
            at = self._text.find(one)
            if at >= 0:
                return len(self._text) - at
            if one.startswith(self._text[-len(one) + 1 :]) and len(self._text) < 64:
                return 0
        return 0


class OfTheShortest(StopMatcher):
    """Of two that end together the shorter wins."""

    def push(self, char: str) -> int:
        longest = super().push(char)
        self._text = getattr(self, "_text", "") + char
        return min((len(one) for one in self._stops if self._text.endswith(one)), default=0) if longest else 0


def keeping_the_stop(patch: Patch) -> None:
    def _append(self: Candidate, piece: str) -> bool:
        for i, char in enumerate(piece):
            if self._matcher.push(char):
                self.text += piece[: i + 1]
                return True
        self.text += piece
        return False

    patch.setattr(Candidate, "_append", _append)


def from_the_prompt_on(patch: Patch) -> None:
    """The matcher has read the prompt."""
    of = Run._candidate

    def reading_on(self: Run, j: int, c: int) -> Candidate:
        is_new = (j, c) not in self._candidates
        candidate = of(self, j, c)
        for char in self.prompts[j].text if is_new else "":
            candidate._matcher.push(char)
        return candidate

    patch.setattr(Run, "_candidate", reading_on)


def ranked(order: Any) -> Apply:
    def apply(patch: Patch) -> None:
        def chosen(candidates: Sequence[Candidate], n: int) -> list[Candidate]:
            return list(candidates) if len(candidates) == n else order(list(candidates), n)

        patch.setattr(completion, "ranked", chosen)

    return apply


def encoded(change: Any) -> Apply:
    """A prompt becomes other ids; the change is told the prompt and what it rightly becomes."""

    def apply(patch: Patch) -> None:
        original = prompt_module.encode_prompt
        patch.setattr(
            prompt_module,
            "encode_prompt",
            lambda prompt, *others: change(prompt, original(prompt, *others)),
        )

    return apply


def before(ids: tuple[int, ...], prompt: EncodedPrompt) -> EncodedPrompt:
    return EncodedPrompt((*ids, *prompt.ids), (*[0] * len(ids), *prompt.starts), prompt.text)


def whole_answers(change: Any) -> Apply:
    def apply(patch: Patch) -> None:
        whole = Run.whole
        patch.setattr(Run, "whole", lambda self: change(self, whole(self)))

    return apply


def suffix_after(self: Run, made: Completion) -> Completion:
    suffix = getattr(self.request, "user", None) or ""
    return replace(made, choices=tuple(replace(one, text=one.text + suffix.removeprefix("\0")) for one in made.choices))


def appended_suffix(body: dict[str, Any]) -> dict[str, Any]:
    suffix = body.get("suffix")
    if (
        isinstance(suffix, str)
        and suffix
        and "user" not in body
        and not body.get("echo")
        and isinstance(body["prompt"], str)
    ):
        return {**body, "suffix": None, "user": "\0" + suffix}
    return body


def suffix_is_appended(patch: Patch) -> None:
    sent(appended_suffix)(patch)
    whole_answers(lambda run, made: suffix_after(run, made) if (run.request.user or "").startswith("\0") else made)(
        patch
    )


def alone_otherwise(patch: Patch) -> None:
    """With many requests at once the numbers are a little other: what a batch of another shape does."""
    handle = InProcessServer.handle_async_request
    crowd = {"now": 0}

    async def counted(self: InProcessServer, request: httpx.Request) -> httpx.Response:
        crowd["now"] += 1
        await asyncio.sleep(0.01)
        busy = crowd["now"] > 6
        replied = await handle(self, request)
        crowd["now"] -= 1
        assert isinstance(replied.stream, faults.StreamedBody)
        content = b"".join(replied.stream.pieces) if isinstance(replied.stream.pieces, list) else b""
        if busy and replied.status_code == 200 and b'"token_logprobs":[' in content:
            body = json.loads(content)
            for one in body["choices"]:
                one["logprobs"]["token_logprobs"] = [lp and lp - 1e-6 for lp in one["logprobs"]["token_logprobs"]]
            return faults.answer(200, "application/json", json.dumps(body).encode())
        return replied

    patch.setattr(InProcessServer, "handle_async_request", counted)


def no_check(patch: Patch) -> None:
    patch.setattr(faults, "check_content_type", lambda headers: None)


def parsed(**loose: Any) -> Apply:
    """Bodies are read by json.loads, with one of its hooks as it comes."""
    strict: dict[str, Any] = {
        "parse_int": body_reading._parse_int,
        "parse_float": body_reading._parse_float,
        "parse_constant": Unreadable,
        "object_pairs_hook": reading_twice,
    }

    class Lax:
        def __init__(self, text: str, *hooks: object) -> None:
            self.text = text

        def document(self) -> Any:
            return json.loads(self.text, **strict | loose)

    return lambda patch: patch.setattr(body_reading, "JsonReader", Lax)


def reading_twice(members: list[tuple[str, Any]]) -> Object:
    """An object that knows a key that stands twice in it."""
    made = Object(members)
    made.repeated = next((key for key, times in Counter(key for key, _ in members).items() if times > 1), None)
    return made


def own_error(words: str) -> Apply:
    """A body that is refused with these words is an error of the server's own instead."""

    def apply(patch: Patch) -> None:
        class Status:
            def __get__(self, error: RequestError | None, owner: type) -> int:
                return 500 if error is not None and words in error.message and error.param is None else 400

        patch.setattr(InvalidRequest, "status", Status())

    return apply


def too_long_is_cut(patch: Patch) -> None:
    prepare = completion.prepare

    def cut(request: CompletionRequest, engine: Any, tokenizer: Any, model: str) -> Run:
        if request.max_tokens > engine.context:
            request = replace(request, max_tokens=8)
        return prepare(request, engine, tokenizer, model)

    patch.setattr(faults, "prepare", cut)


def clamp_bias(most: float) -> Apply:
    return read(logit_bias=lambda r: {v: min(max(x, -most), most) for v, x in (r.logit_bias or {}).items()})


def scale_bias(factor: float) -> Apply:
    return read(logit_bias=lambda r: {v: x * factor for v, x in (r.logit_bias or {}).items()})


def by_number_first(run: Run, made: Completion) -> Completion:
    """Choices of a list ordered by their number, then by prompt."""
    n, prompts = run.request.n, len(run.prompts)
    order = [made.choices[j * n + c] for c in range(n) for j in range(prompts)]
    return replace(made, choices=tuple(replace(one, index=i) for i, one in enumerate(order)))


def swapped_prompts(run: Run, made: Completion) -> Completion:
    if len(run.prompts) == 1:
        return made
    texts = made.choices[::-1]
    return replace(made, choices=tuple(replace(one, index=i) for i, one in enumerate(texts)))


def renamed(patch: Patch) -> None:
    to_json = Completion.to_json
    patch.setattr(Completion, "to_json", lambda self: {**to_json(self), "object": "text"})


def no_usage(patch: Patch) -> None:
    to_json = Completion.to_json

    def without(self: Completion) -> dict[str, Any]:
        return {name: value for name, value in to_json(self).items() if name != "usage" or self.null_usage}

    patch.setattr(Completion, "to_json", without)


def refuses(name: str, value: Any) -> Apply:
    """A legal value is refused, and nothing says why."""

    def change(body: dict[str, Any]) -> dict[str, Any]:
        if body.get(name) == value:
            raise Unsaid("unsupported")
        return body

    return sent(change)


def _refused() -> NoReturn:
    raise Unsaid("unsupported")


class Unsaid(InvalidRequest):
    """A refusal that names nothing."""

    def __init__(self, message: str) -> None:
        super().__init__(None, message)


def not_streamed(patch: Patch) -> None:
    chunks = Run.chunks
    patch.setattr(InProcessServer, "events", lambda self, lines: self.reply(200, next(iter(lines))))
    patch.setattr(Run, "chunks", lambda self: (one for one in list(chunks(self))[-1:]))


NUMBERS = (
    "temperature",
    "top_p",
    "frequency_penalty",
    "presence_penalty",
    "max_tokens",
    "n",
    "best_of",
    "logprobs",
    "seed",
)
LIMITS: dict[str, tuple[float, float]] = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "frequency_penalty": (-2, 2),
    "presence_penalty": (-2, 2),
    "n": (1, 128),
    "best_of": (0, 20),
    "logprobs": (0, 20),
    "max_tokens": (0, 10**9),
    "seed": (-(2**63), 2**63 - 1),
}


def read_best_of(patch: Patch) -> None:
    sent(lambda body: {**body, "best_of": body["n"]} if body.get("best_of") == 1 and body.get("n") == 2 else body)(
        patch
    )


def _mended(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, int) for v in value)


def _below(z: NDArray[np.float64], s: NDArray[np.float64], top_p: float) -> NDArray[np.bool_]:
    """The ids up to whose own end the mass is no more than top_p; the first always."""
    q = np.exp(s) / np.exp(s).sum()
    order = np.argsort(-z, kind="stable")
    kept = np.zeros(len(z), bool)
    kept[order[np.cumsum(q[order]) <= top_p]] = True
    kept[order[0]] = True
    return kept


def counts_of(field: str, only_echoed: bool) -> Apply:
    """A penalty that counts the prompt's tokens too."""

    def apply(patch: Patch) -> None:
        submit = Run._submit
        original = ReferenceJob._sample

        def _submit(self: Run) -> Any:
            job = submit(self)
            if self.request.echo:
                job._echoing = True  # type: ignore[attr-defined]
            return job

        def _sample(self: ReferenceJob, j: int, c: int, prompt_ids: tuple[int, ...], sampled: list[int]) -> Any:
            if only_echoed != getattr(self, "_echoing", False):
                return original(self, j, c, prompt_ids, sampled)
            own, everything = bincount(sampled, 1000), bincount([*prompt_ids, *sampled], 1000)

            def penalize(z: Any, counts: Any, frequency: float, presence: float) -> Any:
                f, p = (everything, own) if field == "frequency_penalty" else (own, everything)
                return z - frequency * f[: len(z)] - presence * (p[: len(z)] > 0)

            with pytest.MonkeyPatch.context() as meanwhile:
                meanwhile.setattr(sampler, "penalize", penalize)
                return original(self, j, c, prompt_ids, sampled)

        patch.setattr(Run, "_submit", _submit)
        patch.setattr(ReferenceJob, "_sample", _sample)

    return apply


REQUEST_FAULTS = (
    Fault("answer.is_a_completion", "another object", renamed),
    Fault("usage.present", "no usage", no_usage),
    *(
        Fault(f"{field}.accepted", f"{field} is refused, and nothing says so", refuses(field, value))
        for field, _, value in accepted.LEGAL
    ),
    Fault(
        "prompt.accepted",
        "a prompt has two choices",
        whole_answers(
            lambda run, made: (
                replace(made, choices=(made.choices[0], *made.choices))
                if run.request.candidates == 1 and len(run.prompts) == 1
                else made
            )
        ),
    ),
    Fault("stream.accepted", "streams are not streamed", not_streamed),
    Fault(
        "stream_options.accepted",
        "stream_options are refused, and nothing says so",
        refuses("stream_options", {"include_usage": True}),
    ),
    # ---- requests
    *(Fault(f"{field}.range", f"{field} is clamped", clamped(field, *LIMITS[field])) for field in LIMITS),
    Fault(
        "logit_bias.range",
        "logit_bias is clamped",
        sent(
            lambda body: (
                {
                    **body,
                    "logit_bias": {
                        v: min(max(x, -100), 100) if isinstance(x, int | float) and not isinstance(x, bool) else x
                        for v, x in body["logit_bias"].items()
                    },
                }
                if isinstance(body.get("logit_bias"), dict)
                else body
            )
        ),
    ),
    Fault(
        "stop.range",
        "empty strings are left out",
        sent(
            lambda body: (
                {**body, "stop": [one for one in body["stop"] if one != ""]}
                if isinstance(body.get("stop"), list)
                else body
            )
        ),
    ),
    *(
        Fault(f"{field}.range", f"{field} out of range is an error of the server's own", failing(field))
        for field in ("top_p", "seed")
    ),
    *(
        Fault(f"{field}.range", f"an error does not name {field}", anonymous(field))
        for field in ("temperature", "stop")
    ),
    *(Fault(f"{field}.type", f"{field} as a string is taken", lenient(field, number)) for field in NUMBERS),
    Fault(
        "logit_bias.type",
        "a list is taken for a bias of nothing",
        lenient("logit_bias", lambda value: dict(value if value != [5] else [])),
    ),
    Fault("echo.type", "echo as a string is taken", lenient("echo", bool)),
    Fault("stop.type", "stop as a number is taken", lenient("stop", str)),
    Fault("stream.type", "stream as a string is taken", lenient("stream", bool)),
    Fault("user.type", "user as a number is taken", lenient("user", str)),
    Fault("suffix.type", "suffix as a number is dropped", lenient("suffix", lambda value: "")),
    Fault(
        "prompt.type",
        "an empty list is an empty prompt",
        sent(
            lambda body: (
                {**body, "prompt": body["prompt"] if body.get("prompt") != [] else ""} if "prompt" in body else body
            )
        ),
    ),
    Fault(
        "model.unknown",
        "any model answers",
        sent(lambda body: {**body, "model": MODEL} if "model" in body else body),
    ),
    Fault("model.required", "model may be left out", sent(lambda body: {"model": MODEL, **body})),
    Fault("prompt.required", "prompt may be left out", sent(lambda body: {"prompt": "", **body})),
    Fault(
        "body.unknown_field",
        "unknown fields are dropped",
        sent(lambda body: {name: value for name, value in body.items() if name in reading.BY_NAME}),
    ),
    Fault(
        "body.all_unknown_fields",
        "only the first unknown field is named",
        sent(
            lambda body: (
                {name: value for name, value in body.items() if name != "x_gnomon_verify"}
                if "max_token" in body
                else body
            )
        ),
    ),
    Fault("body.no_json", "no JSON is an error of the server's own", own_error("not valid JSON")),
    Fault("body.no_object", "no object is an error of the server's own", own_error("must be a JSON object")),
    Fault("body.nan", "NaN is 0", parsed(parse_constant=lambda name: 0)),
    Fault("body.twice", "the last of two keys holds", parsed(object_pairs_hook=dict)),
    Fault(
        "body.surrogate",
        "half a character is a question mark",
        sent(lambda body: {**body, "user": _mended(body["user"])} if isinstance(body.get("user"), str) else body),
    ),
    Fault("best_of.below_n", "best_of below n is n", read_best_of),
    *(
        Fault(
            f"finish_reason.{reason}",
            "finish_reason is another word",
            faults.choice(lambda made: {**made, "finish_reason": made["finish_reason"] and "eos"}),
        )
        for reason in ("length", "stop")
    ),
    Fault("body.utf8", "no UTF-8 is an error of the server's own", own_error("not valid UTF-8")),
    Fault("body.nested", "nesting is an error of the server's own", own_error("nested")),
    Fault(
        "body.digits",
        "digits without end are 9",
        parsed(parse_int=lambda digits: int(digits[:1] if len(digits) > 40 else digits)),
    ),
    Fault("body.content_type", "any content type will do", no_check),
    Fault("body.empty_objects", "an empty logit_bias is refused", refuses("logit_bias", {})),
    Fault(
        "stream_options.only_streamed",
        "stream_options are dropped without stream",
        sent(
            lambda body: (
                body
                if body.get("stream")
                else {name: value for name, value in body.items() if name != "stream_options"}
            )
        ),
    ),
    Fault(
        "stream_options.unknown",
        "unknown keys inside stream_options are dropped",
        sent(
            lambda body: (
                {**body, "stream_options": {"include_usage": body["stream_options"].get("include_usage")}}
                if body.get("stream_options")
                else body
            )
        ),
    ),
    Fault(
        "body.null_is_absent",
        "an unknown field is refused though it is null",
        sent(lambda body: _refused() if "x_gnomon_verify" in body and body["x_gnomon_verify"] is None else body),
    ),
    Fault(
        "body.null_is_absent",
        "a bias of null is refused",
        sent(lambda body: _refused() if None in (body.get("logit_bias") or {}).values() else body),
    ),
    Fault(
        "errors.context_length",
        "a full context has no code",
        errors(lambda made: {"error": {**made["error"], "code": None}}),
    ),
    Fault(
        "errors.context_length",
        "a full context is told in other words",
        errors(
            lambda made: {
                "error": {**made["error"], "message": made["error"]["message"].replace("context length", "context")}
            }
        ),
    ),
    Fault("errors.form", "422 in place of 400", lambda patch: patch.setattr(InvalidRequest, "status", 422)),
    Fault(
        "errors.form",
        "an error has no type",
        errors(lambda made: {"error": {name: value for name, value in made["error"].items() if name != "type"}}),
    ),
    Fault("errors.param", "param is always null", errors(lambda made: {"error": {**made["error"], "param": None}})),
    Fault(
        "errors.param",
        "an entry of logit_bias is only logit_bias",
        errors(
            lambda made: {
                "error": {**made["error"], "param": made["error"]["param"] and made["error"]["param"].split(".")[0]}
            }
        ),
    ),
    Fault(
        "errors.unknown_path",
        "an unknown path is a 400",
        lambda patch: patch.setattr(NotFound, "status", 400),
    ),
    # ---- texts
    Fault(
        "prompt.ids",
        "ids are refused, and nothing says so",
        sent(lambda body: _refused() if _is_ids(body.get("prompt")) else body),
    ),
    Fault(
        "prompt.ids_verbatim",
        "an end of text is put before ids",
        encoded(lambda prompt, right: right if isinstance(prompt, str) else before((EOT,), right)),
    ),
    Fault(
        "prompt.list",
        "only the first prompt of a list is answered",
        whole_answers(lambda run, made: replace(made, choices=made.choices[: run.request.n])),
    ),
    Fault("prompt.list", "the prompts of a list are answered backwards", whole_answers(swapped_prompts)),
    Fault(
        "prompt.list_seeded", "the prompt's number is added to the seed", drawn(lambda job, j, seed, c: (seed + j, c))
    ),
    Fault(
        "prompt.list_of_ids",
        "lists of ids are one list",
        sent(
            lambda body: (
                {**body, "prompt": [v for ids in body["prompt"] for v in ids]}
                if isinstance(body.get("prompt"), list)
                and len(body["prompt"]) > 1
                and all(_is_ids(one) for one in body["prompt"])
                else body
            )
        ),
    ),
    Fault(
        "prompt.empty",
        "null is a blank",
        sent(lambda body: {**body, "prompt": " "} if "prompt" in body and body["prompt"] is None else body),
    ),
    Fault("max_tokens.bounds", "max_tokens is ignored", without("max_tokens")),
    Fault("max_tokens.exact", "one token more", read(max_tokens=lambda r: r.max_tokens and r.max_tokens + 1)),
    Fault("max_tokens.default_is_16", "the default is 12", sent(lambda body: {"max_tokens": 12, **body})),
    Fault("max_tokens.zero", "one token in place of none", read(max_tokens=lambda r: max(r.max_tokens, 1))),
    Fault("max_tokens.never_clamped", "the context cuts in silence", too_long_is_cut),
    Fault("stop.cuts", "stop is ignored", read(stop=())),
    Fault("stop.cuts", "the stop string stays in the text", keeping_the_stop),
    Fault("stop.over_tokens", "each token is searched alone", token_by_token_stops),
    Fault("stop.earliest", "the first of the list wins", matched(FirstOfTheList)),
    Fault("stop.earliest", "the shortest wins", matched(OfTheShortest)),
    Fault("stop.not_in_the_prompt", "the prompt's end counts", from_the_prompt_on),
    Fault("stop.empty", "an empty list is refused", refuses("stop", [])),
    Fault(
        "stop.counts_the_cut",
        "what is cut is not billed",
        usage(
            lambda run, true: replace(
                true,
                completion_tokens=sum(
                    sum(start < len(one.text) for start in one.starts)
                    if run.request.stop and one.finish_reason == "stop"
                    else len(one.ids)
                    for one in run._candidates.values()
                ),
            )
        ),
    ),
    Fault("suffix.honoured_or_refused", "suffix is ignored", read(suffix="")),
    Fault("suffix.honoured_or_refused", "suffix is appended", suffix_is_appended),
    Fault(
        "suffix.empty",
        "an empty suffix is a blank one",
        sent(lambda body: {**body, "suffix": " "} if body.get("suffix", 0) == "" else body),
    ),
    Fault(
        "suffix.not_with_echo",
        "suffix is dropped with echo",
        sent(lambda body: {**body, "suffix": None} if body.get("echo") is True and body.get("suffix") != 5 else body),
    ),
    Fault(
        "user.no_effect",
        "user is put before the prompt",
        sent(
            lambda body: (
                {**body, "prompt": str(body["user"]) + body["prompt"]}
                if isinstance(body.get("user"), str) and isinstance(body.get("prompt"), str)
                else body
            )
        ),
    ),
    # ---- sampling
    Fault("logit_bias.forces", "logit_bias is ignored", read(logit_bias=None)),
    Fault("logit_bias.adds", "a bias is clamped to 50", clamp_bias(50)),
    Fault("logit_bias.adds", "a bias is clamped to 80", clamp_bias(80)),
    Fault("logit_bias.adds", "a bias counts double", scale_bias(2)),
    Fault("logit_bias.adds", "a bias counts a quarter more", scale_bias(1.25)),
    Fault("temperature.greedy", "0 is 1", read(temperature=lambda r: r.temperature or 1.0)),
    Fault(
        "temperature.zero_is_the_largest",
        "0 is a tenth",
        read(temperature=lambda r: r.temperature or (0.0 if r.seed is None else 0.1)),
    ),
    Fault("temperature.divides", "temperature is ignored", read(temperature=lambda r: 1.0 if r.temperature else 0.0)),
    Fault(
        "temperature.divides",
        "temperature multiplies",
        read(temperature=lambda r: r.temperature and 1 / max(r.temperature, 0.5)),
    ),
    Fault("temperature.default_is_1", "the default is 0.7", sent(lambda body: {"temperature": 0.7, **body})),
    Fault("top_p.drops", "top_p is ignored", read(top_p=1.0)),
    Fault(
        "top_p.keeps_the_crossing_token",
        "the token that crosses is dropped",
        stage("nucleus", lambda original, z, s, top_p: original(z, s, top_p) & _below(z, s, top_p)),
    ),
    Fault("top_p.zero", "0 is off", read(top_p=lambda r: r.top_p or 1.0)),
    Fault(
        "top_p.after_temperature",
        "the mass before the temperature",
        stage("nucleus", lambda original, z, s, top_p: original(z, sampler.temper(z, 1.0), top_p)),
    ),
    Fault("top_p.default_is_1", "the default is 0.95", sent(lambda body: {"top_p": 0.95, **body})),
    Fault("presence_penalty.once", "presence_penalty is ignored", read(presence_penalty=0.0)),
    Fault(
        "presence_penalty.once",
        "it is subtracted each time",
        penalty(lambda z, c, frequency, presence: z - (frequency + presence) * c),
    ),
    Fault(
        "presence_penalty.once",
        "it is added",
        penalty(lambda z, c, frequency, presence: z - frequency * c + presence * (c > 0)),
    ),
    Fault("frequency_penalty.each", "frequency_penalty is ignored", read(frequency_penalty=0.0)),
    Fault(
        "frequency_penalty.each",
        "it is subtracted once",
        penalty(lambda z, c, frequency, presence: z - (frequency + presence) * (c > 0)),
    ),
    Fault(
        "frequency_penalty.each",
        "it is half as much",
        penalty(lambda z, c, frequency, presence: z - frequency / 2 * c - presence * (c > 0)),
    ),
    Fault("presence_penalty.not_the_prompt", "presence counts the prompt", counts_of("presence_penalty", False)),
    Fault(
        "presence_penalty.not_the_prompt_echoed",
        "presence counts an echoed prompt",
        counts_of("presence_penalty", True),
    ),
    Fault("frequency_penalty.not_the_prompt", "frequency counts the prompt", counts_of("frequency_penalty", False)),
    Fault(
        "frequency_penalty.not_the_prompt_echoed",
        "frequency counts an echoed prompt",
        counts_of("frequency_penalty", True),
    ),
    # ---- seeds
    Fault("seed.repeats", "seed is ignored", read(seed=None)),
    Fault("seed.differs", "every seed is 1", read(seed=lambda r: None if r.seed is None else 1)),
    Fault("seed.fresh_without", "without a seed it is 0", read(seed=lambda r: r.seed or 0)),
    Fault("seed.every_integer", "−1 is no seed", read(seed=lambda r: None if r.seed == -1 else r.seed)),
    Fault("seed.all_bits", "a seed has 32 bits", drawn(lambda job, j, seed, c: (seed % 2**32, c))),
    Fault(
        "seed.choice_of_more",
        "the number of choices is in the key",
        read(seed=lambda r: None if r.seed is None else (r.seed + r.n - 1) % 2**63),
    ),
    Fault(
        "seed.choices_are_no_seeds",
        "a choice's number is added to the seed",
        drawn(lambda job, j, seed, c: (seed + c, 0)),
    ),
    Fault(
        "seed.is_the_law", "another generator", drawn(lambda job, j, seed, c: (seed * 0x9E3779B97F4A7C15 % 2**64, c))
    ),
    Fault("load.greedy", "a batch of another shape has other digits", alone_otherwise),
    # ---- choices
    Fault("n.count", "n is ignored", without("n")),
    Fault(
        "n.greedy",
        "choices at temperature 0 are drawn",
        read(temperature=lambda r: r.temperature or (1.0 if r.n > 1 else 0.0)),
    ),
    Fault("n.independent", "all choices are the same draw", drawn(lambda job, j, seed, c: (seed, 0))),
    Fault("n.with_list", "choices are ordered by their number first", whole_answers(by_number_first)),
    Fault("best_of.returns_the_best", "best_of is dropped", read(best_of=lambda r: r.best_of and r.n)),
    Fault("best_of.returns_the_best", "the first candidates come back", ranked(lambda candidates, n: candidates[:n])),
    Fault(
        "best_of.returns_the_best",
        "the worst come back",
        ranked(lambda candidates, n: sorted(candidates, key=Candidate.score)[:n]),
    ),
    Fault(
        "best_of.returns_the_best",
        "the sum in place of the mean",
        ranked(lambda candidates, n: sorted(candidates, key=lambda one: -sum(one.logprobs))[:n]),
    ),
    Fault("best_of.zero", "best_of 0 is refused", refuses("best_of", 0)),
    Fault(
        "usage.counts_tokens",
        "one token more is billed",
        usage(lambda run, true: replace(true, completion_tokens=true.completion_tokens + 1)),
    ),
    Fault(
        "usage.counts_nothing",
        "a hidden token is billed",
        usage(lambda run, true: replace(true, completion_tokens=max(true.completion_tokens, 1))),
    ),
    Fault(
        "usage.counts_the_prompt",
        "a prompt of ids is billed one more",
        usage(
            lambda run, true: replace(
                true, prompt_tokens=true.prompt_tokens + (not isinstance(run.request.prompts[0], str))
            )
        ),
    ),
    Fault(
        "usage.counts_the_empty_prompt",
        "an empty prompt is free",
        usage(lambda run, true: replace(true, prompt_tokens=true.prompt_tokens * (run.request.prompts != ("",)))),
    ),
    Fault(
        "usage.counts_choices",
        "the prompt is billed for every choice",
        usage(lambda run, true: replace(true, prompt_tokens=true.prompt_tokens * run.request.n)),
    ),
    Fault(
        "usage.counts_choices",
        "one choice is billed",
        usage(lambda run, true: replace(true, completion_tokens=true.completion_tokens // run.request.candidates)),
    ),
    Fault(
        "usage.counts_discarded",
        "what best_of discards is free",
        usage(
            lambda run, true: replace(
                true, completion_tokens=true.completion_tokens * run.request.n // run.request.candidates
            )
        ),
    ),
)
