"""The commands of `gnomon`, each in a file of its own; typer's application."""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated, Any

import typer

from gnomon.http.cli.complete import complete_command
from gnomon.http.cli.console import tell, wants_json, warn
from gnomon.http.cli.doctor import doctor_command
from gnomon.http.cli.environment import service_links
from gnomon.http.cli.export_model import export_command
from gnomon.http.cli.serve import serve_command
from gnomon.http.cli.verify import verify_command

COMMANDS = {
    "serve": serve_command,
    "complete": complete_command,
    "doctor": doctor_command,
    "export-model": export_command,
    "verify": verify_command,
}

# What is raised of a wrong command line; typer has no name of its own for it.
USAGE: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


def run_command() -> None:
    """Runs what the command line says; raises SystemExit."""
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
    for name, make in COMMANDS.items():
        app.command(name)(make())
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
