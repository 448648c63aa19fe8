"""`gnomon verify`: any server's address → what it does of the law, and a report.

The judge itself, and its options, are in `gnomon.http.verify`; what of it needs a model is opened here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import typer

from gnomon.http.cli.console import fail, say
from gnomon.http.cli.model import ModelOptions, read_model
from gnomon.http.cli.options import Chosen, command, made
from gnomon.http.verify.options import Options
from gnomon.reference.system.options import options

if TYPE_CHECKING:
    from gnomon.http.verify.report.report import MakeSection


def verify_command() -> Callable[..., None]:
    law = "Judge any server of POST /v1/completions from outside, by the law:"
    doc = f"""{law} what it honours, refuses, ignores, gets wrong.

    Status 0: all honoured, refused or unclear; 1: findings; 2: could not run to its end.
    """
    return command(verify, options(Options, env=False), doc)


def verify(chosen: Chosen) -> None:
    from gnomon.http.verify.cases import CASES
    from gnomon.http.verify.command import run_verify, show_list

    asked = made(Options, chosen)
    if asked.list:
        raise typer.Exit(show_list(asked.only, CASES))
    if asked.url is None:
        fail("give the server's URL, such as http://127.0.0.1:8000", 2)
    sections: list[MakeSection] = []
    if asked.reference is not None:
        sections.append(_compared_with(asked.reference))
    if asked.golden:
        from gnomon.http.verify.golden import replay

        sections.append(replay)
    raise typer.Exit(run_verify(asked, CASES, sections))


def _compared_with(reference: str) -> MakeSection:
    from gnomon.http.verify.weights.compare import compared_with
    from gnomon.reference.checkpoint.errors import CheckpointError
    from gnomon.reference.engine import ReferenceEngine

    try:
        checkpoint, tokenizer = read_model(None if reference == "default" else reference, ModelOptions(), say)
        return compared_with(ReferenceEngine(checkpoint), tokenizer)
    except (CheckpointError, OSError) as error:
        fail(f"--reference: {error}", 2)
