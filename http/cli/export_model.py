"""`gnomon export-model`: a directory → the embedded model in it, for other engines to load."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gnomon.http.cli.console import fail
from gnomon.http.cli.options import Chosen, command, made
from gnomon.http.observe.text import as_utf8, printable_line
from gnomon.reference.system.options import NO_DEFAULT, option, options


@dataclass(frozen=True, slots=True)
class ExportOptions:
    directory: str = option(NO_DEFAULT, "A new or an empty directory.", metavar="DIR", argument=True, file=True)


def export_command() -> Callable[..., None]:
    doc = """Write the embedded model where another engine can load it: a Hugging Face directory.

    A directory that holds these very files already is left as it is; any other that is not empty is refused.
    """
    return command(write_model, options(ExportOptions, env=False), doc)


def write_model(chosen: Chosen) -> None:
    directory = made(ExportOptions, chosen).directory
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
        print(f"{file.stat().st_size:>10,}  {printable_line(as_utf8(str(file)))}")
    print(f"{len(files)} files, {'written' if written else 'already there'}")
