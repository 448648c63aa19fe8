"""Faults that the cases of log-probabilities, echo, offsets and streams must find: a row each, and how it is made."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gnomon.reference import engine, sampler
from gnomon.reference.completion import Candidate, Run
from gnomon.reference.engine import PromptScored, ReferenceJob, Token, ranking
from gnomon.reference.response import Choice, Completion, Logprobs
from gnomon.reference.sampler import add_bias, nucleus, penalize, report, temper
from gnomon.reference.stop import StopMatcher
from gnomon.reference.text.utf8 import Decoder
from helpers.faults import (
    Apply,
    Draw,
    Fault,
    InProcessServer,
    Listed,
    Patch,
    body,
    choice,
    chunks,
    draw,
    echoed,
    lists,
    made_of,
    of_streams,
    offsets,
    pieces,
    relabelled,
    request,
    scored,
    sliced,
    top,
)


def unnormalised(patch: Patch) -> None:
    patch.setattr(sampler, "report", np.copy)
    patch.setattr(engine, "report", np.copy)


def renormalised(drawn: Draw) -> Token:
    total = np.log(sum(np.exp(value) for _, value in drawn.token.top) or 1)
    values = tuple((v, float(value - total)) for v, value in drawn.token.top)
    return replace(drawn.token, logprob=dict(values).get(drawn.token.id, drawn.token.logprob), top=values)


def from_the_nucleus(drawn: Draw) -> Token:
    params, z = drawn.job.request.params, drawn.logits
    kept = nucleus(z, temper(z, params.temperature or 1), params.top_p)
    with np.errstate(divide="ignore"):
        return drawn.reported(report(np.where(kept, z, -1e4)))


def with_penalties(drawn: Draw) -> Token:
    params = drawn.job.request.params
    counts = np.bincount(np.array(drawn.sampled, np.int64), minlength=len(drawn.logits))
    return drawn.reported(report(penalize(drawn.logits, counts, params.frequency_penalty, params.presence_penalty)))


def of_the_first_prompt(drawn: Draw) -> Token:
    return drawn.reported(report(drawn.job._engine.last_logits([*drawn.job.request.prompts[0], *drawn.sampled])))


def cut_off(listed: Listed) -> Listed:
    """Without the tokens that a stop string cut."""
    if not listed.is_last or not listed.run.request.stop or listed.candidate.finish_reason != "stop":
        return listed
    shown = sum(start < len(listed.candidate.text) for start in listed.candidate.starts)
    return listed._replace(tokens=range(listed.tokens.start, max(listed.tokens.start, shown)))


def encoded_length(encoding: str, unit: int) -> Callable[[Listed, list[int]], list[int]]:
    def changed(listed: Listed, starts: list[int]) -> list[int]:
        text = listed.prompt.text + listed.candidate.text
        return [len(text[:start].encode(encoding)) // unit for start in starts]

    return changed


def last_piece_after(listed: Listed, starts: list[int]) -> list[int]:
    return [
        start + 1 if 0 < i < len(starts) - 1 and starts[i - 1] == start != starts[i + 1] else start
        for i, start in enumerate(starts)
    ]


def shifted(scores: PromptScored) -> PromptScored:
    _, *lps = scores.logprobs
    return lists_shifted(replace(scores, logprobs=(None, *lps[1:], *lps[-1:])))


def lists_shifted(scores: PromptScored) -> PromptScored:
    _, *tops = scores.tops
    return replace(scores, tops=(None, *tops[1:], *tops[-1:]))


def rescored(
    logits: Callable[[ReferenceJob, NDArray[np.float64]], NDArray[np.float64]],
) -> Callable[[ReferenceJob, tuple[int, ...], PromptScored], PromptScored]:
    def changed(job: ReferenceJob, ids: tuple[int, ...], scores: PromptScored) -> PromptScored:
        if len(ids) < 2:
            return scores
        values = report(logits(job, job._engine.all_logits(ids[:-1])))
        return replace(scores, logprobs=(None, *(float(values[i, v]) for i, v in enumerate(ids[1:]))))

    return changed


def forgotten(patch: Patch) -> None:
    """Of a prompt that was seen before, blocks of 16 come from a cache, which has no scores."""
    seen: set[tuple[int, ...]] = set()

    def changed(job: ReferenceJob, ids: tuple[int, ...], scores: PromptScored) -> PromptScored:
        known = ids[:16] in seen
        seen.update([ids[:16]] if len(ids) >= 16 else [])
        return replace(scores, logprobs=(*[None] * 16, *scores.logprobs[16:])) if known else scores

    scored(changed)(patch)


def trimmed(patch: Patch) -> None:
    original = Run._choice

    def _choice(self: Run, index: int, j: int, candidate: Candidate, text: str, tokens: range, first: bool) -> Choice:
        return original(self, index, j, candidate, text if tokens.start else text.lstrip(" "), tokens, first)

    patch.setattr(Run, "_choice", _choice)


def stopped_in_the_prompt(run: Run, made: Choice, j: int, prompt: str) -> Choice:
    found = [at for at in map(made.text.find, run.request.stop) if at >= 0]
    return replace(made, text=made.text[: min(found)]) if found else made


def own_text(made: Choice, prompt: str) -> Choice:
    return replace(made, text=made.text.removeprefix(prompt))


def new_ids(run: Run, events: Iterator[Completion]) -> Iterator[Completion]:
    return (replace(event, id=f"{event.id}-{number}") for number, event in enumerate(events))


def in_pairs(run: Run, events: Iterator[Completion]) -> Iterator[Completion]:
    waiting = list(events)
    while waiting:
        event, *waiting = waiting
        following = waiting[0].choices if waiting else ()
        if event.choices and following and event.choices[0].index != following[0].index:
            event, waiting = replace(event, choices=(*event.choices, *following)), waiting[1:]
        yield event


def without_the_first(run: Run, events: Iterator[Completion]) -> Iterator[Completion]:
    first = next(events)
    yield replace(first, choices=tuple(replace(made, text="") for made in first.choices))
    yield from events


def lists_late(run: Run, events: Iterator[Completion]) -> Iterator[Completion]:
    """A chunk has the lists of the chunk before it, and the last has its own too."""
    late: dict[int, list[Logprobs]] = {}
    for event in events:
        for made in event.choices:
            if made.logprobs is None:
                yield event
                continue
            waiting = [*late.get(made.index, []), made.logprobs]
            ready = waiting if made.finish_reason else waiting[:-1]
            late[made.index] = [] if made.finish_reason else waiting[-1:]
            yield replace(event, choices=(replace(made, logprobs=joined_lists(ready)),))
        if not event.choices:
            yield event


def joined_lists(parts: Sequence[Logprobs]) -> Logprobs:
    return Logprobs(
        tuple(label for part in parts for label in part.tokens),
        tuple(value for part in parts for value in part.token_logprobs),
        tuple(found for part in parts for found in part.top_logprobs),
        tuple(offset for part in parts for offset in part.text_offset),
    )


def none_of(unwanted: Callable[[Run], bool]) -> Apply:
    """No chunk at all for some requests."""
    return chunks(lambda run, events: iter(()) if unwanted(run) else events)


def token_by_token(patch: Patch) -> None:
    """In a stream every token is decoded by itself."""
    original = Run._choice

    def _choice(self: Run, index: int, j: int, candidate: Candidate, text: str, tokens: range, first: bool) -> Choice:
        if self.request.stream and not self.request.stop:
            ids = [v for v in candidate.ids[tokens.start : tokens.stop] if v not in self.params.end_ids]
            text = "".join(self._tokenizer.token_bytes[v].decode(errors="replace") for v in ids)
        return original(self, index, j, candidate, text, tokens, first)

    patch.setattr(Run, "_choice", _choice)


def usage_with_the_last(run: Run, events: Iterator[Completion]) -> Iterator[Completion]:
    held: Completion | None = None
    for event in events:
        if held is not None:
            if not event.choices:
                yield replace(held, usage=event.usage)
                return
            yield held
        held = event
    if held is not None:
        yield held


def billed_one_more(run: Run, events: Iterator[Completion]) -> Iterator[Completion]:
    for event in events:
        more = event.usage and replace(event.usage, completion_tokens=event.usage.completion_tokens + 1)
        yield replace(event, usage=more)


def only_without(name: str, sent: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in sent.items() if key != name}


USAGE = {"stream_options": {"include_usage": True}}

ANSWER_FAULTS = (
    # ---- logprobs
    Fault("logprobs.lists", "logprobs are ignored", request(lambda sent: replace(sent, logprobs=None))),
    Fault("logprobs.lists", "a list is missing", lists(lambda arrays: only_without("top_logprobs", arrays))),
    Fault(
        "logprobs.off",
        "logprobs are always there",
        request(lambda sent: replace(sent, logprobs=1 if sent.logprobs is None else sent.logprobs)),
    ),
    Fault("logprobs.zero", "0 is off", request(lambda sent: replace(sent, logprobs=sent.logprobs or None))),
    Fault(
        "logprobs.zero",
        "0 is 1",
        request(lambda sent: replace(sent, logprobs=1 if sent.logprobs == 0 else sent.logprobs)),
    ),
    Fault(
        "logprobs.length",
        "the last token has no place",
        made_of(lambda of: of._replace(tokens=of.tokens[:-1]) if of.is_last and len(of.candidate.ids) > 1 else of),
    ),
    Fault(
        "logprobs.empty",
        "no lists where nothing is sampled",
        choice(lambda made: made if made["logprobs"] and made["logprobs"]["tokens"] else {**made, "logprobs": None}),
    ),
    Fault(
        "logprobs.end_token",
        "the end token has no place",
        made_of(
            lambda of: (
                of._replace(tokens=of.tokens[:-1])
                if of.is_last and of.tokens and of.candidate.ids[-1] in of.run.params.end_ids
                else of
            )
        ),
    ),
    Fault("logprobs.keeps_the_cut", "the lists are cut with the text", made_of(cut_off)),
    Fault("logprobs.count", "the sampled token is not added", top(lambda found, label, lp: found)),
    Fault(
        "logprobs.count",
        "the sampled token takes a place",
        top(lambda found, label, lp: dict([*list(found.items())[: max(len(found) - 1, 0)], (label, lp)])),
    ),
    Fault(
        "logprobs.count",
        "always one more",
        lambda patch: patch.setattr(engine, "ranking", lambda l, lp, k: ranking(l, lp, k and k + 1)),
    ),
    Fault(
        "logprobs.order",
        "the sampled token is listed first",
        top(lambda found, label, lp: {label: lp} | found),
    ),
    Fault(
        "logprobs.same_number",
        "one of the two is rounded",
        lists(lambda arrays: {**arrays, "token_logprobs": [lp and round(lp, 3) for lp in arrays["token_logprobs"]]}),
    ),
    Fault("logprobs.values", "logits are reported", unnormalised),
    Fault(
        "logprobs.greedy_is_first",
        "values of the place before",
        draw(lambda drawn: drawn.reported(report(drawn.job._engine.last_logits(drawn.context[:-1] or [1])))),
    ),
    Fault("logprobs.larger_k", "probabilities among the listed ones", draw(renormalised)),
    Fault(
        "logprobs.no_effect",
        "logprobs turn greedy off",
        request(lambda sent: replace(sent, temperature=2, seed=1) if sent.logprobs and not sent.temperature else sent),
    ),
    Fault(
        "logprobs.repeats",
        "the last digits are noise",
        draw(lambda drawn: drawn.reported(report(drawn.logits) - 1e-6 * random.random())),
    ),
    Fault(
        "logprobs.not_of_temperature",
        "values after the temperature",
        draw(lambda drawn: drawn.reported(report(drawn.logits / (drawn.job.request.params.temperature or 1)))),
    ),
    Fault("logprobs.not_of_top_p", "values after top_p", draw(from_the_nucleus)),
    Fault(
        "logprobs.not_of_logit_bias",
        "values after the bias",
        draw(lambda drawn: drawn.reported(report(add_bias(drawn.logits, drawn.job.request.params.logit_bias)))),
    ),
    Fault("logprobs.not_of_penalties", "values after the penalties", draw(with_penalties)),
    Fault(
        "logprobs.each_choice",
        "only the first choice has lists",
        choice(lambda made: {**made, "logprobs": None} if made["index"] else made),
    ),
    Fault("logprobs.each_prompt", "every prompt has the first one's values", draw(of_the_first_prompt)),
    Fault("logprobs.labels_are_texts", "labels as the vocabulary writes them", relabelled(lambda label: f"▁{label}")),
    Fault(
        "logprobs.labels_differ",
        "pieces of characters all have one label",
        relabelled(lambda label: "\ufffd" if label.startswith("bytes:") else label),
    ),
    Fault(
        "text.whole_characters",
        "every token is decoded by itself",
        lambda patch: patch.setattr(Decoder, "push", lambda self, data: data.decode(errors="replace")),
    ),
    Fault("text.keeps_spaces", "the text is trimmed at its beginning", trimmed),
    # ---- echo
    Fault("echo.text", "echo is ignored", request(lambda sent: replace(sent, echo=False))),
    Fault(
        "echo.text",
        "the echo has single spaces",
        echoed(lambda run, made, j, prompt: replace(made, text=made.text.replace("  ", " "))),
    ),
    Fault(
        "echo.edges",
        "the echo is trimmed",
        echoed(lambda run, made, j, prompt: replace(made, text=prompt.strip() + own_text(made, prompt).text)),
    ),
    Fault(
        "echo.text",
        "another completion with echo",
        request(lambda sent: replace(sent, temperature=2, seed=1) if sent.echo and not sent.logit_bias else sent),
    ),
    Fault("echo.off", "echo is always on", request(lambda sent: replace(sent, echo=True))),
    Fault(
        "echo.max_tokens_zero",
        "one token in place of none",
        request(lambda sent: replace(sent, max_tokens=max(sent.max_tokens, int(sent.echo)))),
    ),
    Fault(
        "echo.ids",
        "ids are not echoed",
        echoed(
            lambda run, made, j, prompt: made if isinstance(run.request.prompts[j], str) else own_text(made, prompt)
        ),
    ),
    Fault(
        "echo.each_choice",
        "only the first choice is echoed to",
        echoed(lambda run, made, j, prompt: own_text(made, prompt) if made.index % run.request.n else made),
    ),
    Fault(
        "echo.each_prompt",
        "the first prompt before every choice",
        echoed(lambda run, made, j, prompt: replace(made, text=run.prompts[0].text + made.text.removeprefix(prompt))),
    ),
    Fault("echo.stop", "the prompt is searched for stop strings", echoed(stopped_in_the_prompt)),
    Fault("echo.lengths", "no entries of the prompt", made_of(lambda of: of._replace(echo=False))),
    Fault("echo.lengths", "the first entry is missing", sliced(lambda of: slice(1 if of.echo else 0, None))),
    Fault(
        "echo.first_is_null",
        "0 and {} in place of null",
        lists(
            lambda arrays: {
                **arrays,
                "token_logprobs": [lp or 0.0 for lp in arrays["token_logprobs"]],
                "top_logprobs": [found or {} for found in arrays["top_logprobs"]],
            }
        ),
    ),
    Fault("echo.scores", "scores are shifted by one", scored(lambda job, ids, scores: shifted(scores))),
    Fault("echo.tops", "lists are shifted by one", scored(lambda job, ids, scores: lists_shifted(scores))),
    Fault(
        "echo.raw",
        "scores after the temperature",
        scored(rescored(lambda job, logits: logits / (job.request.params.temperature or 1))),
    ),
    Fault(
        "echo.raw",
        "scores after the bias",
        scored(rescored(lambda job, logits: np.array([add_bias(z, job.request.params.logit_bias) for z in logits]))),
    ),
    Fault("echo.repeats", "a cached prompt has no scores", forgotten),
    Fault(
        "echo.nothing",
        "no entry for an empty prompt",
        sliced(lambda of: slice(1 if of.echo and not of.prompt.text else 0, None)),
    ),
    # ---- text_offset
    Fault("text_offset.list", "no offsets", lists(lambda arrays: {**arrays, "text_offset": None})),
    Fault(
        "text_offset.lengths",
        "it counts tokens",
        offsets(lambda of, starts: [len(of.prompt.text) + i for i in of.tokens] if not of.run.request.echo else starts),
    ),
    Fault(
        "text_offset.from_the_prompt",
        "it counts from the completion's start",
        offsets(
            lambda of, starts: [start - len(of.prompt.text) for start in starts] if not of.run.request.echo else starts
        ),
    ),
    Fault("text_offset.code_points", "it counts bytes", offsets(encoded_length("utf-8", 1))),
    Fault("text_offset.code_points", "it counts UTF-16 units", offsets(encoded_length("utf-16-le", 2))),
    Fault(
        "text_offset.after_ids",
        "ids count as nothing",
        offsets(
            lambda of, starts: (
                starts
                if isinstance(of.run.request.prompts[of.j], str)
                else [start - len(of.prompt.text) for start in starts]
            )
        ),
    ),
    Fault(
        "text_offset.each_prompt",
        "it goes on from prompt to prompt",
        offsets(lambda of, starts: [start + sum(len(one.text) for one in of.run.prompts[: of.j]) for start in starts]),
    ),
    Fault(
        "text_offset.echoed",
        "with echo it counts from the completion's start",
        offsets(
            lambda of, starts: [start - len(of.prompt.text) for start in starts] if of.run.request.echo else starts
        ),
    ),
    Fault("text_offset.split_character", "the last piece stands after its character", offsets(last_piece_after)),
    Fault(
        "text_offset.after_the_cut",
        "0 beyond the text's end",
        offsets(
            lambda of, starts: [
                start if not of.run.request.stop or start <= len(of.prompt.text + of.candidate.text) else 0
                for start in starts
            ]
        ),
    ),
    # ---- stream
    Fault("stream.as_it_is_made", "held back", lambda patch: patch.setattr(InProcessServer, "holds_back", True)),
    Fault("stream.done", "no [DONE]", lambda patch: patch.setattr(InProcessServer, "last", b"")),
    Fault("stream.one_answer", "an id a chunk", chunks(new_ids)),
    Fault("stream.one_choice", "two choices a chunk", chunks(in_pairs)),
    Fault(
        "stream.finish_reason",
        "finish_reason in every chunk",
        pieces(lambda made: replace(made, finish_reason=made.finish_reason or "length")),
    ),
    Fault("stream.text", "the first token is lost", chunks(without_the_first)),
    Fault("stream.text", "no finish_reason", pieces(lambda made: replace(made, finish_reason=None))),
    Fault("stream.logprobs", "no lists in streams", pieces(lambda made: replace(made, logprobs=None))),
    Fault("stream.forced", "no bias in streams", of_streams(lambda sent: replace(sent, logit_bias=None))),
    Fault("stream.seeded", "no seed in streams", of_streams(lambda sent: replace(sent, seed=None))),
    Fault("stream.each_prompt", "every index is 0", pieces(lambda made: replace(made, index=0))),
    Fault("stream.echo", "no echo in streams", of_streams(lambda sent: replace(sent, echo=False))),
    Fault(
        "stream.echo_logprobs",
        "no entries of the prompt in streams",
        made_of(lambda of: of._replace(echo=of.echo and not of.run.request.stream)),
    ),
    Fault(
        "stream.echo_alone",
        "no chunk for an echo alone",
        none_of(lambda run: run.request.echo and not run.request.max_tokens),
    ),
    Fault(
        "stream.nothing",
        "no chunk where nothing is sampled",
        none_of(lambda run: not run.request.echo and not run.request.max_tokens),
    ),
    Fault("stream.stop", "nothing is held back", lambda patch: patch.setattr(StopMatcher, "held", 0)),
    Fault(
        "stream.stop_logprobs",
        "the lists are cut in streams",
        made_of(lambda of: cut_off(of) if of.run.request.stream else of),
    ),
    Fault("stream.tokens_with_text", "lists come a chunk late", chunks(lists_late)),
    Fault("stream.whole_characters", "tokens are decoded one by one", token_by_token),
    Fault(
        "stream.refusal", "errors come as events", lambda patch: patch.setattr(InProcessServer, "streams_errors", True)
    ),
    Fault(
        "stream.best_of",
        "best_of is dropped in streams",
        body(lambda sent: only_without("best_of", sent) if sent.get("stream") else sent),
    ),
    # ---- stream_options
    Fault("stream_options.off", "always a usage", of_streams(lambda sent: replace(sent, include_usage=True))),
    Fault(
        "stream_options.false",
        "any options mean a usage",
        body(lambda sent: {**sent, **USAGE} if sent.get("stream") and sent.get("stream_options") is not None else sent),
    ),
    Fault("stream_options.include_usage", "it is ignored", request(lambda sent: replace(sent, include_usage=False))),
    Fault(
        "stream_options.include_usage",
        "no null on the chunks",
        chunks(lambda run, events: (replace(event, null_usage=False) for event in events)),
    ),
    Fault("stream_options.include_usage", "the usage has no chunk of its own", chunks(usage_with_the_last)),
    Fault("stream_options.same_usage", "a stream bills one more", chunks(billed_one_more)),
)
