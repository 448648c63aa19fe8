"""`gnomon serve`: address → model → application → server; whatever can fail before the server is up is one line, and
status 1 or 2.

An option of `serve` is one row, in the dataclass that uses its value: `Start` here, ModelOptions, JaxOptions, Settings
or AuthSettings.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gnomon.http.cli.console import Records, discard_output, fail, record, warn
from gnomon.http.cli.model import (
    ENGINE_GROUP,
    MODEL_GROUP,
    EngineName,
    JaxOptions,
    ModelOptions,
    model_name,
    open_model,
)
from gnomon.http.cli.options import Chosen, Setting, command, config_lines, made
from gnomon.http.cli.toml import fitting
from gnomon.http.settings import AuthMode, AuthSettings, LogFormat, Settings
from gnomon.reference.system.options import option, options

if TYPE_CHECKING:
    from gnomon.reference.checkpoint.load import Checkpoint
    from gnomon.reference.engine import ServedEngine
    from gnomon.reference.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Start:
    """What is served, and by what."""

    model: str | None = option(
        None,
        "A model's directory on this machine, or its id on the Hugging Face hub; left out, the embedded model.",
        MODEL_GROUP,
        argument=True,
        file=True,
    )
    engine: EngineName = option(
        EngineName.jax, "What runs the model; jax keeps its compiled programs: see --cache-dir.", ENGINE_GROUP
    )


SERVE_ROWS = (
    *options(Start),
    *options(ModelOptions),
    *options(JaxOptions),
    *options(Settings),
    *options(AuthSettings, "auth_"),
)


@dataclass(frozen=True, slots=True)
class Instead:
    """What is done in place of serving."""

    print_config: bool = option(False, "Show what is in force, where it comes from, and exit.")


def serve(chosen: Chosen) -> None:
    """Serves until it is told to end."""
    print_config = chosen.pop("print_config").value
    check_environment(os.environ)
    check_engine(chosen)
    from gnomon.http.run import CannotListen, is_loopback, resolved, signals_held

    start = made(Start, chosen)
    if chosen["served_model_name"].source == "default":
        chosen["served_model_name"] = Setting(model_name(start.model), "default, by the model")
    try:
        loopback = is_loopback(resolved(chosen["host"].value, chosen["port"].value))
    except CannotListen as error:
        fail(str(error), 1)
    chosen["auth_mode"] = _auth_mode(chosen, loopback)
    name = chosen["served_model_name"].value
    if not name or not name.isprintable():
        fail(f"--served-model-name: {name!r} is not allowed; give printable characters, one at least", 2)
    which, jax_options = made(ModelOptions, chosen), made(JaxOptions, chosen)
    which.told()
    settings = made(Settings, chosen, auth=check_auth(made(AuthSettings, chosen, "auth_")))
    check_tls(settings)
    for origin in settings.cors_origins:
        if origin != "*" and not re.fullmatch(r"https?://[^/\s?#@]+", origin):
            fail(f"--cors-origins: {origin!r} is no origin; give scheme, host and port, such as https://example.org", 2)
    if print_config:
        for line in config_lines(chosen, SERVE_ROWS):
            print(fitting(line, sys.stdout.encoding or "ascii"))
    else:
        with signals_held():
            run_server(start, which, jax_options, settings, loopback)


def serve_command() -> Callable[..., None]:
    secret = " ".join(row.said for row in SERVE_ROWS if row.secret)
    doc = f"""Serve a model over HTTP: POST /v1/completions, and what belongs to it.

    Every option can be set by an environment variable too: GNOMON_PORT for --port. The command line goes first.
    A secret has a variable only: {secret}.
    """
    return command(serve, (*SERVE_ROWS, *options(Instead, env=False)), doc)


# ---- what can be refused before anything is opened


def check_environment(environment: Mapping[str, str]) -> None:
    """An empty variable would count as none, and a misspelt one is none: both leave open what they were to close."""
    known = {row.env for row in SERVE_ROWS}
    others = {"GNOMON_DATA", "GNOMON_PEERS", "GNOMON_PEER_SCRIPTS"}  # the tests' and the bench's own
    others |= {"GNOMON_KEY"}  # what `gnomon verify` reads
    for name in sorted(name for name in environment if name.startswith("GNOMON_") and name not in others):
        if name in known and not environment[name].strip():
            fail(f"{name} is set and empty; give it a value, or unset it", 2)
        if name not in known and name.startswith("GNOMON_AUTH_"):
            fail(f"{name} is no option's variable; gnomon serve --help lists them", 2)
        if name not in known:
            warn(f"{name} is no option's variable, and does nothing")


def check_engine(chosen: Chosen) -> None:
    """An option of the JAX engine is refused with another, not ignored."""
    given = [row for row in options(JaxOptions) if chosen[row.name].source != "default"]
    if chosen["engine"].value is not EngineName.jax and given:
        flags = [row.flag.replace("--", "--no-", chosen[row.name].value is False) for row in given]
        fail(f"{', '.join(flags)}: only with --engine jax", 2)


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
    from gnomon.http.auth import authenticator
    from gnomon.http.identity.options import ConfigError, api_keys, check_settings

    try:
        check_settings(auth)
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


# ---- the server


def run_server(start: Start, which: ModelOptions, jax_options: JaxOptions, settings: Settings, loopback: bool) -> None:
    from logging.config import dictConfig

    from gnomon.http.identity.options import ConfigError
    from gnomon.http.observe.logs import logging_config
    from gnomon.http.observe.otel import CannotSendSpans
    from gnomon.http.process.descriptors import TooFew, allowed
    from gnomon.http.run import CannotListen, Server, bind, url

    started, log = time.monotonic(), logging.getLogger("gnomon.start")
    say = log.info

    def load() -> tuple[ServedEngine, Tokenizer, Checkpoint]:
        opened = open_model(start.engine, start.model, which, jax_options, say, say, log.warning)
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
            say(_first_line(settings.served_model_name, start.engine))
            from gnomon.http.app import create_app  # no sooner: the first line is not to wait for it

            app = create_app(None, None, settings)
            base = url(listener, scheme)
            if lowered is not None:
                log.warning(lowered)
            server = Server(app, settings, lambda: announce(settings, base), load, refused)
            server.run(sockets=[listener])
    except (CannotListen, CannotSendSpans, ConfigError, TooFew) as error:
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
        discard_output(sys.stdout)
        logging.getLogger("gnomon.http").warning("served at %s, which standard output did not take: %s", base, error)
