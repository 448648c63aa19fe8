"""The command `gnomon`: serve, complete, doctor. The composition root, and the only file that names an engine.

    serve      address → model → application → server; whatever can fail before the server is up is one line and exit 1
    complete   options → the request, read as if it had come over HTTP → the text as it is made, or the JSON
    doctor     a model → an examination of the JAX engine, line by line, and a report

The request's fields, their help, defaults and bounds come from the table in `gnomon.reference.request`; nothing about
them is repeated here but their names. Everything heavy is imported where it is used: `gnomon --help` needs none of it.
"""

from __future__ import annotations

import io
import json
import os
import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from gnomon.http.settings import Settings
from gnomon.reference.request import BY_NAME, CompletionRequest, RequestError

if TYPE_CHECKING:
    from gnomon.reference.checkpoint import Checkpoint
    from gnomon.reference.engine import Engine
    from gnomon.reference.response import Choice, Completion
    from gnomon.reference.tokenizer import Tokenizer

DEFAULTS = Settings()


class EngineName(StrEnum):
    reference = "reference"
    jax = "jax"


class DtypeName(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"


@dataclass(frozen=True, slots=True)
class JaxOptions:
    """What the JAX engine alone is told."""

    slots: int = 8
    dtype: DtypeName = DtypeName.float32
    kv_cache_memory: int | None = None  # MiB
    tensor_parallel: int = 1
    native: bool = True


JAX_DEFAULTS = JaxOptions()


def main() -> None:
    """The entry point of the command."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.callback(no_args_is_help=True)(gnomon)
    app.command()(serve)
    app.command()(complete)
    app.command()(doctor)
    app(prog_name="gnomon")


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"gnomon {version('gnomon')}")
        raise typer.Exit


def gnomon(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """What POST /v1/completions means, exactly."""


def fail(message: str, status: int) -> NoReturn:
    print(f"gnomon: {message}", file=sys.stderr)
    raise typer.Exit(status)


def open_model(
    engine: EngineName, model: str | None, options: JaxOptions | None = None
) -> tuple[Engine, Tokenizer, str]:
    """The engine, its tokenizer and the name it is served under by default; the embedded model if none is named."""
    from gnomon.reference.checkpoint import CheckpointError, default_model_path, load_checkpoint
    from gnomon.reference.engine import ReferenceEngine
    from gnomon.reference.tokenizer import load_tokenizer

    if model == "":
        fail("the model's directory is an empty string; leave it out for the embedded model", 1)
    path = default_model_path() if model is None else Path(model)
    try:
        checkpoint = load_checkpoint(path)
        tokenizer = load_tokenizer(path, checkpoint.config.vocab_size)
    except (CheckpointError, OSError) as error:
        fail(str(error), 1)
    name = DEFAULTS.served_model_name if model is None else path.resolve().name
    match engine:
        case EngineName.reference:
            return ReferenceEngine(checkpoint), tokenizer, name
        case EngineName.jax:
            return _jax_engine(checkpoint, options or JAX_DEFAULTS), tokenizer, name


def _cache() -> Path:
    """Where the JAX engine keeps what it builds for this machine."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gnomon" / "jax"


def _jax_engine(checkpoint: Checkpoint, options: JaxOptions) -> Engine:
    from gnomon.jax_engine.engine import EngineSettings, JaxEngine, bytes_per_token

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    started = time.monotonic()
    settings = EngineSettings(
        slots=options.slots,
        dtype=options.dtype,
        tensor_parallel=options.tensor_parallel,
        native=options.native,
        compilation_cache=_cache(),
    )
    per_token = bytes_per_token(checkpoint.config, settings)
    if options.kv_cache_memory is not None:
        settings = replace(settings, pool_tokens=options.kv_cache_memory * 2**20 // per_token)
    try:
        engine = JaxEngine(checkpoint, settings, say)
    except ValueError as error:
        fail(str(error), 1)
    tokens, taken = engine.pool_tokens, engine.pool_tokens * per_token / 2**20
    say(f"key/value pool: {tokens:,} tokens, {taken:,.1f} MiB; ready in {time.monotonic() - started:.1f} s")
    return engine


# ---- serve


def serve(
    model: Annotated[
        str | None,
        typer.Argument(help="A model's directory on this machine; left out, the embedded model.", show_default=False),
    ] = None,
    host: Annotated[str, typer.Option(help="The loopback address to serve on.")] = DEFAULTS.host,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free one.")] = DEFAULTS.port,
    served_model_name: Annotated[
        str | None,
        typer.Option(
            help=f"The id that requests name. Default: the directory's name; {DEFAULTS.served_model_name} "
            "for the embedded model.",
            show_default=False,
        ),
    ] = None,
    engine: Annotated[
        EngineName, typer.Option(help="What runs the model; jax keeps its compiled programs in ~/.cache/gnomon.")
    ] = EngineName.jax,
    slots: Annotated[
        int, typer.Option(min=1, help="Sequences decoded at a time; only with --engine jax.")
    ] = JAX_DEFAULTS.slots,
    dtype: Annotated[
        DtypeName, typer.Option(help="The dtype of the weights; only with --engine jax.")
    ] = JAX_DEFAULTS.dtype,
    kv_cache_memory: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="MIB",
            help="Memory for keys and values in MiB; only with --engine jax. Default: room for four contexts a slot, "
            "in at most a quarter of the device's memory.",
            show_default=False,
        ),
    ] = None,
    tensor_parallel: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Cut the model over N devices of this host; only with --engine jax."),
    ] = JAX_DEFAULTS.tensor_parallel,
    native: Annotated[
        bool,
        typer.Option(
            help="On a CPU, multiply by the kernel that is built with this machine's C++ compiler, if it has one, "
            "and not by XLA; only with --engine jax."
        ),
    ] = JAX_DEFAULTS.native,
    openai_limits: Annotated[
        bool, typer.Option("--openai-limits", help="Allow no more than the published API: logprobs 5, stop 4.")
    ] = DEFAULTS.openai_limits,
    max_candidates: Annotated[
        int, typer.Option(min=1, help="The most candidates of one request, over all its prompts.")
    ] = DEFAULTS.max_candidates,
    max_body_bytes: Annotated[
        int, typer.Option(min=1, help="The longest body of a request.")
    ] = DEFAULTS.max_body_bytes,
) -> None:
    """Serve a model over HTTP.

    POST /v1/completions, GET /v1/models, GET /health.
    """
    options = JaxOptions(slots, dtype, kv_cache_memory, tensor_parallel, native)
    if engine is not EngineName.jax and options != JAX_DEFAULTS:
        fail("--slots, --dtype, --kv-cache-memory, --tensor-parallel and --no-native: only with --engine jax", 2)
    from gnomon.http.app import create_app
    from gnomon.http.server import CannotListen, Server, bind, log_to_stderr, url

    try:
        with bind(host, port) as listener:
            opened, tokenizer, name = open_model(engine, model, options)
            settings = Settings(
                host=host,
                port=port,
                served_model_name=name if served_model_name is None else served_model_name,
                max_body_bytes=max_body_bytes,
                openai_limits=openai_limits,
                max_candidates=max_candidates,
            )
            app = create_app(opened, tokenizer, settings)
            log_to_stderr()
            Server(app, settings, lambda: announce(settings.served_model_name, url(listener))).run(sockets=[listener])
    except CannotListen as error:
        fail(str(error), 1)
    except OSError as error:  # another process took the port while the model was loading
        fail(f"{host} port {port}: {error.strerror or error}", 1)


def announce(model: str, base: str) -> None:
    example = shlex.quote(json.dumps({"model": model, "prompt": "Once upon a time"}))
    print(
        f"{model} is served at {base}/v1 - try: "
        f"curl {base}/v1/completions -H 'Content-Type: application/json' -d {example}",
        flush=True,
    )


# ---- complete


def _field(name: str) -> Any:
    """The option of a request's field, described by the table."""
    field = BY_NAME[name]
    flag = field.schema.get("type") == "boolean"
    bounds = "" if flag else f" Allowed: {field.allowed}."
    default = "" if flag or not field.default else f" Default: {json.dumps(field.default)}."
    return typer.Option(
        "--" + name.replace("_", "-"),
        help=f"{field.meaning[:1].upper()}{field.meaning[1:]}.{bounds}{default}",
        metavar=None if flag else field.type.split()[0].strip(":,").upper(),
        show_default=False,
    )


def complete(
    prompt: Annotated[
        str | None,
        typer.Argument(
            help="The text to continue; - reads it from standard input, to the last byte. "
            "Left out: the beginning of a document.",
            show_default=False,
        ),
    ] = None,
    prompt_ids: Annotated[
        str | None,
        typer.Option(
            metavar="JSON", help="Token ids instead of a text: [1, 2, 3], or [[1, 2], [3]] for several prompts."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="A model's directory. Default: the embedded model.", show_default=False),
    ] = None,
    engine: Annotated[EngineName, typer.Option(help="What runs the model.")] = EngineName.reference,
    max_tokens: Annotated[str | None, _field("max_tokens")] = None,
    temperature: Annotated[str | None, _field("temperature")] = None,
    top_p: Annotated[str | None, _field("top_p")] = None,
    seed: Annotated[str | None, _field("seed")] = None,
    n: Annotated[str | None, _field("n")] = None,
    best_of: Annotated[str | None, _field("best_of")] = None,
    stop: Annotated[list[str] | None, _field("stop")] = None,
    echo: Annotated[bool, _field("echo")] = False,
    logprobs: Annotated[str | None, _field("logprobs")] = None,
    logit_bias: Annotated[str | None, _field("logit_bias")] = None,
    frequency_penalty: Annotated[str | None, _field("frequency_penalty")] = None,
    presence_penalty: Annotated[str | None, _field("presence_penalty")] = None,
    suffix: Annotated[str | None, _field("suffix")] = None,
    user: Annotated[str | None, _field("user")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the whole response as JSON, as the server would send it.")
    ] = False,
) -> None:
    """Complete a prompt and print the text as it is made. Every field that shapes a completion is an option."""
    from gnomon.reference.completion import prepare

    if prompt is not None and prompt_ids is not None:
        fail("prompt: give a text or --prompt-ids, not both", 2)
    if prompt_ids is not None and not _typed(prompt_ids).lstrip().startswith("["):
        fail(f"--prompt-ids: {prompt_ids!r} is not allowed; give a JSON list of token ids, or a list of those", 2)
    for stream in (sys.stdout, sys.stderr):  # a terminal that cannot show a character gets its escape
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if prompt == "-":
        prompt = sys.stdin.buffer.read().decode(errors="surrogateescape")  # bytes that are no UTF-8 are refused below
    members = {
        "prompt": json.dumps(prompt) if prompt_ids is None else _typed(prompt_ids),
        "max_tokens": _typed(max_tokens),
        "temperature": _typed(temperature),
        "top_p": _typed(top_p),
        "seed": _typed(seed),
        "n": _typed(n),
        "best_of": _typed(best_of),
        "stop": json.dumps(stop[0] if stop and len(stop) == 1 else stop),
        "echo": json.dumps(echo),
        "logprobs": _typed(logprobs),
        "logit_bias": _typed(logit_bias),
        "frequency_penalty": _typed(frequency_penalty),
        "presence_penalty": _typed(presence_penalty),
        "suffix": json.dumps(suffix),
        "user": json.dumps(user),
    }
    try:
        request = CompletionRequest.from_json(_body(members))
        opened, tokenizer, name = open_model(engine, model)
        request = replace(request, model=name, stream=not as_json and request.candidates == request.n)
        with closing(prepare(request, opened, tokenizer, name)) as run:
            if request.logprobs is not None and not as_json:
                fail("--logprobs: a text has no place for them; give --json too", 2)
            if as_json:
                print(run.whole().to_bytes().decode())
            else:
                show(run.chunks() if request.stream else [run.whole()], len(request.prompts) * request.n)
    except RequestError as error:
        fail(error.message, 2 if error.status < 500 else 1)


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
    fields = {"model": json.dumps(DEFAULTS.served_model_name), **members}
    return ("{" + ",".join(f"{json.dumps(name)}:{value}" for name, value in fields.items()) + "}").encode()


def show(answers: Iterable[Completion], choices: int) -> None:
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


# ---- doctor


def doctor(
    model: Annotated[
        str | None,
        typer.Argument(
            help="A model's directory on this machine, small enough for float64; left out, the embedded model.",
            show_default=False,
        ),
    ] = None,
    json_file: Annotated[
        str | None,
        typer.Option(
            "--json",
            metavar="FILE",
            help="Write the report here, to attach to a bug; - is standard output, and the lines go to standard error.",
            show_default=False,
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A short examination, without the speed of a 135M model.")] = (
        False
    ),
) -> None:
    """Examine the JAX engine on the device that is here.

    Tokens against the reference, the same bytes under load, speed. Status 0: sound; 1: unsound, with the reasons.
    """
    from gnomon.reference.checkpoint import CheckpointError, default_model_path, load_checkpoint
    from gnomon.reference.tokenizer import load_tokenizer

    if model == "":
        fail("the model's directory is an empty string; leave it out for the embedded model", 1)
    path = default_model_path() if model is None else Path(model)
    try:
        checkpoint = load_checkpoint(path)
        tokenizer = load_tokenizer(path, checkpoint.config.vocab_size)
    except (CheckpointError, OSError) as error:
        fail(str(error), 1)
    file = None if json_file in (None, "-") else Path(json_file)
    try:
        if file is not None:
            file.open("a").close()  # minutes later would be a bad time to find that it cannot be written
    except OSError as error:
        fail(f"--json: {json_file!r}: {error.strerror}", 1)
    from gnomon.jax_engine.doctor import examine

    lines = sys.stderr if json_file == "-" else sys.stdout
    report = examine(checkpoint, tokenizer, lambda line: print(line, file=lines, flush=True), quick, _cache())
    text = json.dumps(report, indent=2)
    if file is not None:
        file.write_text(text + "\n", encoding="utf-8")
    elif json_file == "-":
        print(text)
    raise typer.Exit(report["verdict"] != "sound")
