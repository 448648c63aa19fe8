"""`gnomon complete`: options → the request, read as if it had come over HTTP → the text as it is made, or the JSON.

The request's fields, their help, defaults and bounds come from the table in `gnomon.reference.request`; nothing about
them is repeated here but their names.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gnomon.http.cli.console import fail, say
from gnomon.http.cli.model import EngineName, JaxOptions, ModelOptions, cache_dir, model_name, open_model
from gnomon.http.cli.options import Chosen, command, made
from gnomon.http.settings import Settings
from gnomon.reference.errors import RequestError
from gnomon.reference.request import BY_NAME, CompletionRequest
from gnomon.reference.system.options import Option, named, option, options

if TYPE_CHECKING:
    from gnomon.reference.response import Choice, Completion


@dataclass(frozen=True, slots=True)
class CompleteOptions:
    """What is asked beside the request's fields, and of what."""

    prompt: str | None = option(
        None,
        "The text to continue; - reads it from standard input, to the last byte. "
        "Left out: the beginning of a document.",
        argument=True,
    )
    prompt_ids: str | None = option(
        None, "Token ids instead of a text: [1, 2, 3], or [[1, 2], [3]] for several prompts.", metavar="JSON"
    )
    model: str | None = option(
        None, "A model's directory or hub id. Default: the embedded model.", metavar="MODEL", file=True
    )
    engine: EngineName = option(EngineName.reference, "What runs the model.")
    json: bool = option(False, "Print the whole response as JSON, as the server would send it.")


TEXT_FIELDS = ("stop", "suffix", "user")  # fields whose option is a text; what is given for another is JSON
SWITCHES = ("echo",)
BEFORE, AFTER = ("max_tokens", "temperature", "top_p", "seed", "n", "best_of", "stop", "echo", "logprobs", "logit_bias",
                 "frequency_penalty", "presence_penalty", "suffix"), ("user",)  # fmt: skip
"""The fields, before the options of fill-in-the-middle tokens and after them."""


def field_row(name: str) -> Option:
    """The row of a request's field, described by the table."""
    field = BY_NAME[name]
    switch = name in SWITCHES
    bounds = "" if switch else f" Allowed: {field.allowed}."
    default = "" if switch or not field.default else f" Default: {json.dumps(field.default)}."
    help = f"{field.meaning[:1].upper()}{field.meaning[1:]}.{bounds}{default}"
    if switch:
        return Option(name, bool, False, help)
    metavar = field.type.split()[0].strip(":,").upper()
    if name == "stop":
        return Option(name, tuple[str, ...], (), help, metavar=metavar)
    return Option(name, str | None, None, help, metavar=metavar)


OWN, OF_MODEL, INFILL = options(CompleteOptions, env=False), options(ModelOptions, env=False), options(ModelOptions)
COMPLETE_ROWS = (
    *OWN[:3],
    *(named(OF_MODEL, name) for name in ("revision", "max_model_len")),
    OWN[3],
    *map(field_row, BEFORE),
    *(row for row in INFILL if row.name.startswith("fim_")),
    *map(field_row, AFTER),
    OWN[4],
)


def complete_command() -> Callable[..., None]:
    doc = "Complete a prompt and print the text as it is made. Every field that shapes a completion is an option."
    return command(complete, COMPLETE_ROWS, doc)


def complete(chosen: Chosen) -> None:
    from gnomon.reference.checkpoint.load import silently
    from gnomon.reference.completion import prepare

    asked = made(CompleteOptions, chosen)
    try:
        request = CompletionRequest.from_json(_body(_members(asked, chosen)))
        jax_options = JaxOptions()
        if asked.engine is EngineName.jax:
            from gnomon.jax_engine.runtime import store

            jax_options = replace(jax_options, cache_dir=cache_dir())
            if store.is_new(jax_options.cache_dir, os.environ):
                say("importing jax")
        which = made(ModelOptions, chosen)
        opened, tokenizer, _ = open_model(asked.engine, asked.model, which, jax_options, silently, say)
        name = model_name(asked.model)
        request = replace(request, model=name, stream=not asked.json and request.candidates == request.n)
        with closing(prepare(request, opened, tokenizer, name)) as run:
            if request.logprobs is not None and not asked.json:
                fail("--logprobs: a text has no place for them; give --json too", 2)
            if asked.json:
                print(run.whole().to_bytes().decode())
            else:
                print_choices(run.chunks() if request.stream else [run.whole()], len(request.prompts) * request.n)
    except RequestError as error:
        fail(error.message, 2 if error.status < 500 else 1)


def _members(asked: CompleteOptions, chosen: Chosen) -> dict[str, str]:
    """The request's members in JSON, as they were typed."""
    prompt, prompt_ids = asked.prompt, asked.prompt_ids
    if prompt is not None and prompt_ids is not None:
        fail("prompt: give a text or --prompt-ids, not both", 2)
    if prompt_ids is not None and not _typed(prompt_ids).lstrip().startswith("["):
        fail(f"--prompt-ids: {prompt_ids!r} is not allowed; give a JSON list of token ids, or a list of those", 2)
    if prompt == "-":
        try:
            prompt = sys.stdin.buffer.read().decode(errors="surrogateescape")  # what is no UTF-8 is refused below
        except OSError as error:
            fail(f"prompt: standard input: {'closed' if error.errno == errno.EBADF else error.strerror}", 2)
    members = {"prompt": json.dumps(prompt) if prompt_ids is None else _typed(prompt_ids)}
    for name in (*BEFORE, *AFTER):
        value = chosen[name].value
        if name == "stop":
            value = value[0] if len(value) == 1 else value or None
        members[name] = json.dumps(value) if name in (*TEXT_FIELDS, *SWITCHES) else _typed(value)
    return members


def _typed(text: str | None) -> str:
    """What was typed for a value that is no text: as JSON if it is JSON, else as a string, to be refused by name."""
    if text is None:
        return "null"
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return json.dumps(text)
    return text if text.isascii() else json.dumps(text)


def _body(members: Mapping[str, str]) -> bytes:
    """A request's body. Written as text, so that numbers and repeated keys reach the reader as they were typed."""
    fields = {"model": json.dumps(Settings().served_model_name), **members}
    return ("{" + ",".join(f"{json.dumps(name)}:{value}" for name, value in fields.items()) + "}").encode()


def print_choices(answers: Iterable[Completion], choices: int) -> None:
    """Prints text as it comes; several choices one after the other, each under a line with its index."""
    begun = -1
    for choice in in_order(answers):
        if choices > 1 and choice.index != begun:
            print(f"--- choice {choice.index} ---")
            begun = choice.index
        print(choice.text, end="" if choice.finish_reason is None else "\n", flush=True)


def in_order(answers: Iterable[Completion]) -> Iterator[Choice]:
    """Choices, or pieces of them, as soon as all of the choices before them have come."""
    waiting: defaultdict[int, list[Choice]] = defaultdict(list)
    turn = 0
    for answer in answers:
        for choice in answer.choices:
            waiting[choice.index].append(choice)
        while waiting[turn]:
            choice = waiting[turn].pop(0)
            yield choice
            turn += choice.finish_reason is not None
