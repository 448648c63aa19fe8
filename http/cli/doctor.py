"""`gnomon doctor`: a model → an examination of the JAX engine, line by line, and a report."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import typer

from gnomon.http.cli.console import fail, say, warn
from gnomon.http.cli.model import ModelOptions, cache_dir, read_model, require_jax
from gnomon.http.cli.options import Chosen, command, made
from gnomon.http.observe.text import as_utf8
from gnomon.reference.system.options import named, option, options


@dataclass(frozen=True, slots=True)
class DoctorOptions:
    model: str | None = option(
        None,
        "A model's directory or hub id, small enough for float64; left out, the embedded model.",
        argument=True,
        file=True,
    )
    json: str | None = option(
        None,
        "Write the report here, to attach to a bug; - is standard output, and the lines go to standard error.",
        metavar="FILE",
        file=True,
    )
    quick: bool = option(False, "A short examination, without the speed of a 135M model.")


OWN, MODEL_ROWS = options(DoctorOptions, env=False), options(ModelOptions, env=False)
DOCTOR_ROWS = (OWN[0], *(named(MODEL_ROWS, name) for name in ("revision", "max_model_len")), *OWN[1:])


def doctor_command() -> Callable[..., None]:
    doc = """Examine the JAX engine on the device that is here.

    Tokens against the reference, the same bytes under load, speed: some four minutes on two CPU cores.
    Status 0: sound; 1: unsound, with the reasons.
    """
    return command(doctor, DOCTOR_ROWS, doc)


def doctor(chosen: Chosen) -> None:
    asked = made(DoctorOptions, chosen)
    from gnomon.reference.checkpoint.errors import CheckpointError
    from gnomon.reference.checkpoint.load import silently
    from gnomon.reference.system.files import check_writable

    try:
        checkpoint, tokenizer = read_model(asked.model, made(ModelOptions, chosen), silently)
        checkpoint.params  # noqa: B018 - read now: what is wrong with the weights is no fault of the engine
    except (CheckpointError, OSError) as error:
        fail(str(error), 1)
    file = None if asked.json in (None, "-") else Path(asked.json)
    try:
        if file is not None:
            check_writable(file)  # minutes later would be a bad time to find that it cannot be
    except OSError as error:
        fail(f"--json: {as_utf8(str(asked.json))!r}: {error.strerror}", 1)
    say("starting the examination: importing jax")
    require_jax(warn)
    from gnomon.jax_engine.runtime import store
    from gnomon.jax_engine.tools.doctor import examine

    lines = sys.stderr if asked.json == "-" else sys.stdout
    with store.opened(cache_dir(), os.environ, say) as directory:
        report = examine(
            checkpoint, tokenizer, lambda line: print(line, file=lines, flush=True), asked.quick, directory, say
        )
    text = json.dumps(report, indent=2)
    if file is not None:
        try:
            file.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            fail(f"--json: {as_utf8(str(file))!r}: {error.strerror}", 1)
    elif asked.json == "-":
        print(text)
    raise typer.Exit(report["verdict"] != "sound")
