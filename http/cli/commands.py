"""The command `gnomon`. The composition root, and the only file that names an engine.

    serve      address → model → application → server; whatever can fail before the server is up is one line and exit 1
    complete   options → the request, read as if it had come over HTTP → the text as it is made, or the JSON
    doctor     a model → an examination of the JAX engine, line by line, and a report
    verify     any server's address → what it does of the law, and a report
    export-model   a directory → the embedded model in it, for other engines to load

The request's fields, their help, defaults and bounds come from the table in `gnomon.reference.request`; nothing about
them is repeated here but their names. Everything heavy is imported where it is used: `gnomon --help` needs none of it.
"""

from __future__ import annotations

import errno
import gc
import inspect
import json
import logging
import os
import re
import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, NoReturn

import typer

from gnomon.http.cli.console import Records, as_utf8, discard, guarded, printable, record, tell, wants_json
from gnomon.http.cli.environment import service_links
from gnomon.http.cli.toml import assignment, fitting
from gnomon.http.settings import AuthMode, AuthSettings, LogFormat, Option, Settings, option, options
from gnomon.http.verify.report.profiles import ProfileName
from gnomon.reference.errors import RequestError
from gnomon.reference.request import BY_NAME, CompletionRequest
from gnomon.reference.text.infill import InfillOptions, Order

if TYPE_CHECKING:
    from gnomon.http.verify.report.report import MakeSection
    from gnomon.reference.checkpoint.load import Checkpoint
    from gnomon.reference.engine import ServedEngine
    from gnomon.reference.response import Choice, Completion
    from gnomon.reference.tokenizer import Tokenizer

DEFAULTS = Settings()


class EngineName(StrEnum):
    reference = "reference"
    jax = "jax"


class DtypeName(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"


MODEL, ENGINE = "Model", "Engine"


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """Which form of a model is meant."""

    revision: str | None = option(None, "A branch, tag or commit of a hub id. Default: main.", MODEL, metavar="NAME")
    max_model_len: int | None = option(
        None,
        "Positions of a prompt and its completion together, no more than the model was made for. Default: that.",
        MODEL,
        min=1,
        metavar="N",
    )
    fim_prefix: str | None = option(
        None,
        "The fill-in-the-middle token before the prompt, as its literal; with --fim-suffix. "
        "Default: as the model's files say.",
        MODEL,
        metavar="TOKEN",
    )
    fim_suffix: str | None = option(
        None, "The one before the suffix. Default: as the files say.", MODEL, metavar="TOKEN"
    )
    fim_middle: str | None = option(
        None,
        "The one before the middle, which the order spm can do without. Default: as the files say.",
        MODEL,
        metavar="TOKEN",
    )
    fim_order: Order | None = option(
        None,
        "Their order: psm is PREFIX prompt SUFFIX suffix MIDDLE, spm is SUFFIX suffix PREFIX prompt MIDDLE, "
        "spm-joined is PREFIX SUFFIX suffix MIDDLE prompt. Default: what is known of the tokens, which a line at the "
        "start tells.",
        MODEL,
        metavar="ORDER",
    )

    def told(self) -> InfillOptions:
        """What they say of the fill-in-the-middle tokens. One without those it needs ends the command."""
        given = {_flag(name): getattr(self, name) for name in ("fim_prefix", "fim_suffix", "fim_middle")}
        needed = list(given)[:2] if self.fim_middle is None and self.fim_order in (None, Order.spm) else list(given)
        missing = [flag for flag in needed if given[flag] is None]
        if missing and any(literal is not None for literal in given.values()):
            fail(f"{', '.join(needed)} go together; missing: {', '.join(missing)}", 2)
        return InfillOptions(_text(self.fim_prefix), _text(self.fim_suffix), _text(self.fim_middle), self.fim_order)


@dataclass(frozen=True, slots=True)
class JaxOptions:
    """What the JAX engine alone is told."""

    slots: int = option(8, "Sequences decoded at a time; only with --engine jax.", ENGINE, min=1, max=65536)
    dtype: DtypeName = option(DtypeName.float32, "The dtype of the weights; only with --engine jax.", ENGINE)
    kv_cache_memory: int | None = option(
        None,
        "Memory for keys and values in MiB; only with --engine jax. Default: room for four contexts a slot, "
        "in at most a quarter of the device's memory.",
        ENGINE,
        min=1,
        metavar="MIB",
    )
    tensor_parallel: int = option(
        1, "Cut the model over N devices of this host; only with --engine jax.", ENGINE, min=1, metavar="N"
    )
    native: bool = option(
        True,
        "On a CPU, multiply by the kernel that is built with this machine's C++ compiler, if it has one, "
        "and not by XLA; only with --engine jax.",
        ENGINE,
    )
    cache_dir: str | None = option(
        None,
        "Where that kernel and the compiled programs are kept for the next start; only with --engine jax. "
        "Default: gnomon in $XDG_CACHE_HOME, or in ~/.cache.",
        ENGINE,
        metavar="DIR",
    )


JAX_DEFAULTS = JaxOptions()


# What is raised of a wrong command line; typer has no name of its own for it.
USAGE: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


def main() -> None:
    """The command, from its arguments to its status."""
    guarded(run, 2 if sys.argv[1:2] == ["verify"] else 1)


def run() -> None:
    links = service_links(os.environ)
    for name in links:
        del os.environ[name]
    if links and sys.argv[1:2] == ["serve"]:
        warn(
            f"ignored, since they stand for a Kubernetes Service and not for options: {', '.join(links)}; "
            "enableServiceLinks: false in the pod's spec leaves them out"
        )
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.callback(no_args_is_help=True)(gnomon)
    app.command("serve")(serve_command())
    app.command()(complete)
    app.command()(doctor)
    app.command()(export_model)
    app.command()(verify)
    try:
        raise SystemExit(app(prog_name="gnomon", standalone_mode=False))
    except USAGE as error:
        if wants_json(sys.argv[1:], os.environ):
            tell(logging.ERROR, error.format_message())
        else:
            error.show()
        raise SystemExit(error.exit_code) from None


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
    tell(logging.ERROR, message)
    raise typer.Exit(status)


Say = Callable[[str], None]


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _model_name(model: str | None) -> str:
    """The name a model is served under by default: a hub id itself, of a directory its name."""
    from gnomon.reference.checkpoint.hub import is_hub_id

    if model is None:
        return DEFAULTS.served_model_name
    if is_hub_id(model):
        return model
    try:
        return as_utf8(os.path.basename(os.path.realpath(model)))  # of links in a circle too
    except OSError:  # relative to a directory that has been removed
        return as_utf8(os.path.basename(model))


def read_model(
    model: str | None, which: ModelOptions, say: Say, warned: Say | None = None
) -> tuple[Checkpoint, Tokenizer]:
    """The embedded model if none is named. `warned` gets a line for whatever of the files is not taken as it says; left
    out, it is printed as a warning. Raises CheckpointError or OSError."""
    from gnomon.reference.checkpoint.hub import locate
    from gnomon.reference.checkpoint.load import default_model_path, load_checkpoint
    from gnomon.reference.tokenizer import load_tokenizer

    if model == "":
        fail("the model's directory is an empty string; leave it out for the embedded model", 1)
    path = locate(default_model_path() if model is None else model, which.revision, say)
    checkpoint = load_checkpoint(path, which.max_model_len, say, warned or warn)
    return checkpoint, load_tokenizer(path, checkpoint.config.vocab_size, which.told())


def open_model(
    engine: EngineName,
    model: str | None,
    which: ModelOptions,
    jax_options: JaxOptions,
    say: Say,
    announce: Say,
    warned: Say | None = None,
) -> tuple[ServedEngine, Tokenizer, Checkpoint]:
    """The engine, its tokenizer, and what both were made from. `say` gets a line for every step of the start, and
    `announce` one before those that take long, and what is not kept for the next start."""
    from gnomon.reference.checkpoint.errors import CheckpointError
    from gnomon.reference.engine import ReferenceEngine

    try:
        checkpoint, tokenizer = read_model(model, which, say, warned)
        say(f"fill-in-the-middle: {tokenizer.infill_note}")
        match engine:
            case EngineName.reference:
                return ReferenceEngine(checkpoint, say), tokenizer, checkpoint
            case EngineName.jax:
                return _jax_engine(checkpoint, jax_options, say, announce), tokenizer, checkpoint
    except (CheckpointError, OSError) as error:  # weights are read by the engine
        fail(str(error), 1)


def _require_devices(announce: Say) -> None:
    """Ends the command if jax cannot run here: before modules are imported whose tracebacks tell a user nothing."""
    from gnomon.jax_engine.runtime.backend import NoDevice, require_devices

    try:
        require_devices(announce)
    except NoDevice as error:
        fail(str(error), 1)


def _cache_dir() -> str | None:
    """The directory of GNOMON_CACHE_DIR, for commands without the option; None: the default one."""
    named = os.environ.get(_variable("cache_dir"))
    if named is not None and not named.strip():
        fail(f"{_variable('cache_dir')} is set and empty; give it a value, or unset it", 2)
    return named


def _jax_engine(checkpoint: Checkpoint, jax_options: JaxOptions, say: Say, announce: Say) -> ServedEngine:
    _require_devices(announce)
    from gnomon.jax_engine.engine import EngineSettings, JaxEngine, bytes_per_token
    from gnomon.jax_engine.runtime import store

    settings = EngineSettings(
        slots=jax_options.slots,
        dtype=jax_options.dtype,
        tensor_parallel=jax_options.tensor_parallel,
        native=jax_options.native,
    )
    per_token = bytes_per_token(checkpoint.config, settings)
    if jax_options.kv_cache_memory is not None:
        settings = replace(settings, pool_tokens=jax_options.kv_cache_memory * 2**20 // per_token)
    with store.opened(jax_options.cache_dir, os.environ, announce) as directory:
        try:
            engine = JaxEngine(checkpoint, replace(settings, compilation_cache=directory), say, announce)
        except (ValueError, MemoryError) as error:
            fail(str(error) or "there is not enough memory", 1)
    tokens, taken = engine.pool_tokens, engine.pool_tokens * per_token / 2**20
    say(f"key/value pool: {tokens:,} tokens, {taken:,.1f} MiB")
    return engine


# ---- serve


class Setting(NamedTuple):
    """A value in force, and where it came from."""

    value: Any
    source: str


ROWS = (*options(ModelOptions), *options(JaxOptions), *options(Settings), *options(AuthSettings, "auth_"))


def serve_command() -> Callable[..., None]:
    """The command `serve`, with an option for every row of the tables."""

    def command(
        context: typer.Context, model: str | None, engine: EngineName, print_config: bool, **given: Any
    ) -> None:
        chosen = {"model": _from(context, "model", model), "engine": _from(context, "engine", engine)}
        chosen |= {row.name: _chosen(context, row, given) for row in ROWS}
        serve(chosen, print_config)

    secret = " ".join(_variable(row.name) for row in ROWS if row.more.get("secret"))
    command.__doc__ = f"""Serve a model over HTTP: POST /v1/completions, and what belongs to it.

    Every option can be set by an environment variable too: GNOMON_PORT for --port. The command line goes first.
    A secret has a variable only: {secret}.
    """
    named = [
        _parameter("context", typer.Context, inspect.Parameter.empty),
        _parameter(
            "model",
            Annotated[
                str | None,
                typer.Argument(
                    help="A model's directory on this machine, or its id on the Hugging Face hub; left out, the "
                    "embedded model.",
                    show_default=False,
                    envvar="GNOMON_MODEL",
                ),
            ],
            None,
        ),
        _parameter(
            "engine",
            Annotated[
                EngineName,
                typer.Option(
                    help="What runs the model; jax keeps its compiled programs: see --cache-dir.",
                    envvar="GNOMON_ENGINE",
                ),
            ],
            EngineName.jax,
        ),
        _parameter(
            "print_config",
            Annotated[
                bool, typer.Option("--print-config", help="Show what is in force, where it comes from, and exit.")
            ],
            False,
        ),
    ]
    rows = [_parameter(row.name, *_typer_option(row)) for row in ROWS if not row.more.get("secret")]
    command.__signature__ = inspect.Signature(named[:3] + rows + named[3:])  # type: ignore[attr-defined]
    return command


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _variable(name: str) -> str:
    return f"GNOMON_{name.upper()}"


def _text(value: str | None) -> str | None:
    """The value of an option that is a text, and no file's name."""
    return None if value is None else as_utf8(value)


def _typer_option(row: Option) -> tuple[Any, Any]:
    """A row as typer wants it: a type with its description, and a default."""
    flag, several = _flag(row.name), row.type == tuple[str, ...]
    if row.type is bool:
        flag = f"{flag}/--no-{flag[2:]}" if row.default else flag
    option = typer.Option(
        flag,
        envvar=_variable(row.name),
        help=row.help + (" May be given several times." if several else ""),
        min=row.more.get("min"),
        max=row.more.get("max"),
        metavar=row.more.get("metavar"),
        show_default="Default:" not in row.help,
    )
    return Annotated[list[str] if several else row.type, option], list(row.default) if several else row.default


def _chosen(context: typer.Context, row: Option, given: Mapping[str, Any]) -> Setting:
    if row.more.get("secret"):  # never on a command line, which every process of the machine can read
        values = tuple(os.environ.get(_variable(row.name), "").split())
        return Setting(values, f"environment {_variable(row.name)}" if values else "default")
    value = given[row.name]
    if isinstance(value, list):
        value = tuple(map(as_utf8, value))
    elif isinstance(value, str) and row.more.get("metavar") != "DIR":
        value = as_utf8(value) if type(value) is str else value  # and not one of an enumeration
    return _from(context, row.name, value)


def _from(context: typer.Context, name: str, value: Any) -> Setting:
    source = context.get_parameter_source(name)
    words = {"COMMANDLINE": "command line", "ENVIRONMENT": f"environment {_variable(name)}"}
    return Setting(value, words.get("" if source is None else source.name, "default"))


def check_environment(environment: Mapping[str, str]) -> None:
    """An empty variable would count as none, and a misspelt one is none: both leave open what they were to close."""
    known = {_variable(name) for name in ("model", "engine", *(row.name for row in ROWS))}
    others = {"GNOMON_DATA", "GNOMON_PEERS", "GNOMON_PEER_SCRIPTS"}  # the tests' own
    others |= {"GNOMON_KEY"}  # what `gnomon verify` reads
    for name in sorted(name for name in environment if name.startswith("GNOMON_") and name not in others):
        if name in known and not environment[name].strip():
            fail(f"{name} is set and empty; give it a value, or unset it", 2)
        if name not in known and name.startswith("GNOMON_AUTH_"):
            fail(f"{name} is no option's variable; gnomon serve --help lists them", 2)
        if name not in known:
            warn(f"{name} is no option's variable, and does nothing")


def serve(chosen: dict[str, Setting], print_config: bool) -> None:
    """Serves until it is told to end; whatever can fail before the server is up is one line and status 1 or 2."""
    check_environment(os.environ)
    model, engine = chosen["model"].value, chosen["engine"].value
    given_for_jax = [row.name for row in options(JaxOptions) if chosen[row.name].source != "default"]
    if engine is not EngineName.jax and given_for_jax:
        flags = ", ".join(
            ("--no-" if chosen[name].value is False else "--") + name.replace("_", "-") for name in given_for_jax
        )
        fail(f"{flags}: only with --engine jax", 2)
    from gnomon.http.run import CannotListen, is_loopback, resolved

    if chosen["served_model_name"].source == "default":
        chosen["served_model_name"] = Setting(_model_name(model), "default, by the model")
    try:
        loopback = is_loopback(resolved(chosen["host"].value, chosen["port"].value))
    except CannotListen as error:
        fail(str(error), 1)
    chosen["auth_mode"] = _auth_mode(chosen, loopback)
    name = chosen["served_model_name"].value
    if not name or not name.isprintable():
        fail(f"--served-model-name: {name!r} is not allowed; give printable characters, one at least", 2)
    which = ModelOptions(**{row.name: chosen[row.name].value for row in options(ModelOptions)})
    jax_options = JaxOptions(**{row.name: chosen[row.name].value for row in options(JaxOptions)})
    which.told()
    auth = AuthSettings(**{row.name[5:]: chosen[row.name].value for row in options(AuthSettings, "auth_")})
    settings = Settings(**{row.name: chosen[row.name].value for row in options(Settings)}, auth=check_auth(auth))
    check_tls(settings)
    for origin in settings.cors_origins:
        if origin != "*" and not re.fullmatch(r"https?://[^/\s?#@]+", origin):
            fail(f"--cors-origins: {origin!r} is no origin; give scheme, host and port, such as https://example.org", 2)
    if print_config:
        show_config(chosen)
    else:
        from gnomon.http.run import signals_held

        with signals_held():
            run_server(model, engine, which, jax_options, settings, loopback)


def _auth_mode(chosen: Mapping[str, Setting], loopback: bool) -> Setting:
    """Nobody is let in by oversight: beyond this machine, a mode is a decision."""
    mode, host = chosen["auth_mode"], chosen["host"].value
    modes = ", ".join(AuthMode)
    if mode.value is None and not loopback:
        fail(
            f"{host} is no loopback address, so whoever reaches it could use it: choose --auth-mode (one of {modes})", 2
        )
    if mode.value is AuthMode.none and not loopback and not chosen["auth_allow_none_anywhere"].value:
        fail(
            f"{host} is no loopback address: --auth-mode none would let in whoever reaches it. "
            "If that is wanted, say so with --auth-allow-none-anywhere",
            2,
        )
    return Setting(AuthMode.none, "default on a loopback address") if mode.value is None else mode


def check_auth(auth: AuthSettings) -> AuthSettings:
    """The settings with their keys read, if they are in a pipe, such as a shell's <(...), which can be read once."""
    from gnomon.http.auth import ConfigError, authenticator
    from gnomon.http.identity.options import api_keys, check

    try:
        check(auth)
        if auth.mode is AuthMode.api_key and not (auth.api_key_file and os.path.isfile(auth.api_key_file)):
            auth = replace(auth, api_keys=api_keys(auth), api_key_file=None)
        authenticator(auth)
    except ConfigError as error:
        fail(str(error), 2)
    return auth


def check_tls(settings: Settings) -> None:
    certificate, key = settings.tls_certificate, settings.tls_key
    if (certificate is None) != (key is None):
        fail("--tls-certificate and --tls-key: give both, or neither", 2)
    if certificate is None:
        return
    assert key is not None
    from gnomon.http.process.certificate import BadFile, check_pair

    try:
        check_pair("--tls-certificate", certificate, "--tls-key", key)
    except BadFile as error:
        fail(str(error), 2)


def show_config(chosen: Mapping[str, Setting]) -> None:
    """A line a setting, in TOML: its name, its value, and where that came from. What has no value, or none that TOML
    can have, is a comment."""
    secret = {row.name for row in ROWS if row.more.get("secret")}
    texts = []
    for name, (value, source) in chosen.items():
        shown = (f"{len(value)} values, not shown" if value else None) if name in secret else value
        texts.append((assignment(name, shown), source))
    width = min(max(len(text) for text, _ in texts), 60)
    for text, source in texts:
        print(fitting(f"{text:{width}}  # {source}", sys.stdout.encoding or "ascii"))


def run_server(
    model: str | None,
    engine: EngineName,
    which: ModelOptions,
    jax_options: JaxOptions,
    settings: Settings,
    loopback: bool,
) -> None:
    import logging
    from logging.config import dictConfig

    from gnomon.http.auth import ConfigError
    from gnomon.http.observe.logs import logging_config
    from gnomon.http.observe.otel import CannotTrace
    from gnomon.http.process.descriptors import TooFew, allowed
    from gnomon.http.run import CannotListen, Server, bind, url

    started, log = time.monotonic(), logging.getLogger("gnomon.start")
    say = log.info

    def load() -> tuple[ServedEngine, Tokenizer, Checkpoint]:
        opened = open_model(engine, model, which, jax_options, say, say, log.warning)
        set_aside()
        say(f"started in {time.monotonic() - started:.1f} s")
        return opened

    scheme = "http" if settings.tls_certificate is None else "https"
    try:
        with bind(settings.host, settings.port) as listener:
            if not loopback and scheme == "http":
                warn(f"{settings.host} is served without TLS; use --tls-certificate, or a proxy that ends TLS")
            settings, refused, lowered = allowed(settings)
            dictConfig(logging_config(settings))
            say(_first_line(settings.served_model_name, engine))
            from gnomon.http.app import create_app  # no sooner: the first line is not to wait for it

            app = create_app(None, None, settings)
            base = url(listener, scheme)
            if lowered is not None:
                log.warning(lowered)
            server = Server(app, settings, lambda: announce(settings, base), load, refused)
            server.run(sockets=[listener])
    except (CannotListen, CannotTrace, ConfigError, TooFew) as error:
        fail(str(error), 1)
    except OSError as error:  # another process took the port meanwhile
        fail(f"{settings.host} port {settings.port}: {error.strerror or error}", 1)
    if server.failure is not None:
        raise server.failure
    if server.is_loading:  # that thread cannot be told to stop, and nobody waits for it
        if Records.current is not None:
            Records.current.end()
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):  # nothing was promised on it
                stream.flush()
        os._exit(0)


def set_aside() -> None:
    """What a start has made is there until the end. A pass of the garbage collector over it stops every thread, for
    70 ms with JAX and its modules, so none is to look at it again."""
    gc.collect()
    gc.freeze()


def _first_line(name: str, engine: EngineName) -> str:
    """What a start begins with, before anything heavy is imported."""
    return f"starting {name} with --engine {engine}" + (": importing jax" if engine is EngineName.jax else "")


def warn(message: str) -> None:
    tell(logging.WARNING, message)


def announce(settings: Settings, base: str) -> None:
    example = shlex.quote(json.dumps({"model": settings.served_model_name, "prompt": "Once upon a time"}))
    token = "" if settings.auth.mode in (None, AuthMode.none) else "-H 'Authorization: Bearer YOUR_TOKEN' "
    said = (
        f"{settings.served_model_name} is served at {base}/v1 - see it in a browser: {base}/ - try: "
        f"curl {base}/v1/completions -H 'Content-Type: application/json' {token}-d {example}"
    )
    if settings.log_format is LogFormat.json:
        said = record(logging.INFO, said, model=settings.served_model_name, url=f"{base}/v1")
    try:
        print(said, flush=True)
    except (OSError, UnicodeEncodeError) as error:  # it serves all the same
        discard(sys.stdout)
        logging.getLogger("gnomon.http").warning("served at %s, which standard output did not take: %s", base, error)


# ---- complete


def _plain(of: type, name: str) -> Any:
    """The option of a row, for a command without variables."""
    [row] = (row for row in options(of) if row.name == name)
    return typer.Option(
        "--" + name.replace("_", "-"), help=row.help, min=row.more.get("min"), metavar=row.more.get("metavar"),
        show_default=False,
    )  # fmt: skip


REVISION = Annotated[str | None, _plain(ModelOptions, "revision")]
MAX_MODEL_LEN = Annotated[int | None, _plain(ModelOptions, "max_model_len")]


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


def _infill_option(name: str) -> Any:
    """The option of `serve` of that name, for a command whose options are written out."""
    row = next(row for row in options(ModelOptions) if row.name == name)
    return typer.Option(
        _flag(name), envvar=_variable(name), help=row.help, metavar=row.more.get("metavar"), show_default=False
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
        typer.Option(
            metavar="MODEL", help="A model's directory or hub id. Default: the embedded model.", show_default=False
        ),
    ] = None,
    revision: REVISION = None,
    max_model_len: MAX_MODEL_LEN = None,
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
    fim_prefix: Annotated[str | None, _infill_option("fim_prefix")] = None,
    fim_suffix: Annotated[str | None, _infill_option("fim_suffix")] = None,
    fim_middle: Annotated[str | None, _infill_option("fim_middle")] = None,
    fim_order: Annotated[Order | None, _infill_option("fim_order")] = None,
    user: Annotated[str | None, _field("user")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the whole response as JSON, as the server would send it.")
    ] = False,
) -> None:
    """Complete a prompt and print the text as it is made. Every field that shapes a completion is an option."""
    from gnomon.reference.checkpoint.load import silently
    from gnomon.reference.completion import prepare

    if prompt is not None and prompt_ids is not None:
        fail("prompt: give a text or --prompt-ids, not both", 2)
    if prompt_ids is not None and not _typed(prompt_ids).lstrip().startswith("["):
        fail(f"--prompt-ids: {prompt_ids!r} is not allowed; give a JSON list of token ids, or a list of those", 2)
    if prompt == "-":
        try:
            prompt = sys.stdin.buffer.read().decode(errors="surrogateescape")  # what is no UTF-8 is refused below
        except OSError as error:
            fail(f"prompt: standard input: {'closed' if error.errno == errno.EBADF else error.strerror}", 2)
    stops = [as_utf8(text) for text in stop or ()]
    members = {
        "prompt": json.dumps(_text(prompt)) if prompt_ids is None else _typed(prompt_ids),
        "max_tokens": _typed(max_tokens),
        "temperature": _typed(temperature),
        "top_p": _typed(top_p),
        "seed": _typed(seed),
        "n": _typed(n),
        "best_of": _typed(best_of),
        "stop": json.dumps(stops[0] if len(stops) == 1 else stops or None),
        "echo": json.dumps(echo),
        "logprobs": _typed(logprobs),
        "logit_bias": _typed(logit_bias),
        "frequency_penalty": _typed(frequency_penalty),
        "presence_penalty": _typed(presence_penalty),
        "suffix": json.dumps(_text(suffix)),
        "user": json.dumps(_text(user)),
    }
    try:
        request = CompletionRequest.from_json(_body(members))
        which = ModelOptions(revision, max_model_len, fim_prefix, fim_suffix, fim_middle, fim_order)
        jax_options = JAX_DEFAULTS
        if engine is EngineName.jax:
            from gnomon.jax_engine.runtime import store

            jax_options = replace(JAX_DEFAULTS, cache_dir=_cache_dir())
            if store.is_new(jax_options.cache_dir, os.environ):
                say("importing jax")
        opened, tokenizer, _ = open_model(engine, model, which, jax_options, silently, say)
        name = _model_name(model)
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
    text = as_utf8(text)
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
            help="A model's directory or hub id, small enough for float64; left out, the embedded model.",
            show_default=False,
        ),
    ] = None,
    revision: REVISION = None,
    max_model_len: MAX_MODEL_LEN = None,
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

    Tokens against the reference, the same bytes under load, speed: some four minutes on two CPU cores.
    Status 0: sound; 1: unsound, with the reasons.
    """
    from gnomon.reference.checkpoint.errors import CheckpointError
    from gnomon.reference.checkpoint.load import silently
    from gnomon.reference.system.files import check_writable

    try:
        checkpoint, tokenizer = read_model(model, ModelOptions(revision, max_model_len), silently)
        checkpoint.params  # noqa: B018 - read now: what is wrong with the weights is no fault of the engine
    except (CheckpointError, OSError) as error:
        fail(str(error), 1)
    file = None if json_file in (None, "-") else Path(json_file)
    try:
        if file is not None:
            check_writable(file)  # minutes later would be a bad time to find that it cannot be
    except OSError as error:
        fail(f"--json: {as_utf8(str(json_file))!r}: {error.strerror}", 1)
    say("starting the examination: importing jax")
    _require_devices(warn)
    from gnomon.jax_engine.runtime import store
    from gnomon.jax_engine.tools.doctor import examine

    lines = sys.stderr if json_file == "-" else sys.stdout
    with store.opened(_cache_dir(), os.environ, say) as directory:
        report = examine(checkpoint, tokenizer, lambda line: print(line, file=lines, flush=True), quick, directory, say)
    text = json.dumps(report, indent=2)
    if file is not None:
        try:
            file.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            fail(f"--json: {as_utf8(str(file))!r}: {error.strerror}", 1)
    elif json_file == "-":
        print(text)
    raise typer.Exit(report["verdict"] != "sound")


# ---- export-model


def export_model(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="A new or an empty directory.", show_default=False)],
) -> None:
    """Write the embedded model where another engine can load it: a Hugging Face directory.

    A directory that holds these very files already is left as it is; any other that is not empty is refused.
    """
    from gnomon.reference.checkpoint import export

    if not directory:
        fail("the directory is an empty string; give a new or an empty one", 1)
    try:
        files, written = export.export_model(Path(directory))
    except export.CannotExport as error:
        fail(str(error), 1)
    except OSError as error:
        fail(f"{error.filename or directory}: {error.strerror}", 1)
    for file in files:
        print(f"{file.stat().st_size:>10,}  {printable(as_utf8(str(file)))}")
    print(f"{len(files)} files, {'written' if written else 'already there'}")


# ---- verify


def verify(
    url: Annotated[
        str | None,
        typer.Argument(
            metavar="URL",
            help="The server's address, with or without /v1: http://127.0.0.1:8000.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The model to ask for. Default: the first of GET /v1/models.", show_default=False
        ),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            envvar="GNOMON_KEY",
            help="The server's key. Prefer the variable: a command line can be read by others on this machine. "
            "No report has it.",
            show_default=False,
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GROUP",
            help="Report this group of cases, parameter or single case; what it needs is run too. "
            "May be given several times.",
            show_default=False,
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Then compare log-probabilities with the reference's on this checkpoint, which the server must serve: "
            "a directory, a hub id, or default for the embedded model.",
            show_default=False,
        ),
    ] = None,
    golden: Annotated[
        bool,
        typer.Option("--golden", help="Then replay the golden vectors: for a server of the embedded model only."),
    ] = False,
    list_cases: Annotated[
        bool, typer.Option("--list", help="Show the cases, with their sections of the law and odds, and exit.")
    ] = False,
    json_file: Annotated[
        str | None,
        typer.Option(
            "--json",
            metavar="FILE",
            help="Write the report as JSON; - is standard output, and the table goes to standard error.",
            show_default=False,
        ),
    ] = None,
    junit: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write it as JUnit XML.", show_default=False)
    ] = None,
    html: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write it as one HTML page.", show_default=False)
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Say what changed since this report, written by --json.", show_default=False),
    ] = None,
    profile: Annotated[
        ProfileName | None,
        typer.Option(help="Mark what this vendor documents. It stays a finding.", show_default=False),
    ] = None,
    accept_documented: Annotated[
        bool, typer.Option("--accept-documented", help="Leave documented deviations out of the exit code.")
    ] = False,
    concurrency: Annotated[
        int, typer.Option(min=1, max=64, metavar="N", help="Requests at a time; the cases of load send more.")
    ] = 4,
    budget_tokens: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="Tokens that the run may cost, prompts included; it never exceeds them. A full run took about 8,800, "
            "and is charged about 22,700 where the server shows no usage.",
        ),
    ] = 50_000,
    timeout: Annotated[
        float, typer.Option(min=0.1, max=3600, metavar="SECONDS", help="Seconds for one answer, to its last byte.")
    ] = 60,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show reason, evidence and command of every case.")
    ] = False,
    findings: Annotated[
        bool,
        typer.Option(
            "--findings", help="Show the findings alone, each root cause with the number of those that follow from it."
        ),
    ] = False,
) -> None:
    """Judge any server of POST /v1/completions from outside, by the law: what it honours, refuses, ignores, gets wrong.

    Status 0: all honoured, refused or unclear; 1: findings; 2: could not run to its end.
    """
    from gnomon.http.verify.cases import CASES
    from gnomon.http.verify.command import Options, show_list
    from gnomon.http.verify.command import verify as judge

    if list_cases:
        raise typer.Exit(show_list(only or (), CASES))
    if url is None:
        fail("give the server's URL, such as http://127.0.0.1:8000", 2)
    options = Options(
        as_utf8(url),
        _text(model),
        api_key,
        tuple(map(as_utf8, only or ())),
        json_file,
        junit,
        html,
        baseline,
        profile,
        accept_documented,
        concurrency,
        budget_tokens,
        timeout,
        verbose,
        findings,
    )
    sections: list[MakeSection] = []
    if reference is not None:
        sections.append(_compared_with(reference))
    if golden:
        from gnomon.http.verify.golden import replay

        sections.append(replay)
    raise typer.Exit(judge(options, CASES, sections))


def _compared_with(reference: str) -> MakeSection:
    from gnomon.http.verify.weights.weights import compared_with
    from gnomon.reference.checkpoint.errors import CheckpointError
    from gnomon.reference.engine import ReferenceEngine

    try:
        checkpoint, tokenizer = read_model(None if reference == "default" else reference, ModelOptions(), say)
        return compared_with(ReferenceEngine(checkpoint), tokenizer)
    except (CheckpointError, OSError) as error:
        fail(f"--reference: {error}", 2)


if __name__ == "__main__":
    main()
