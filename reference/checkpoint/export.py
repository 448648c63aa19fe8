"""The embedded model as a directory of its own, where another engine can load it.

Nothing that is there is ever overwritten: the directory must be missing, or empty, or hold these very files already.
A copy that fails half-way takes back what it wrote; one that has ended is on the disk.
"""

from __future__ import annotations

import filecmp
import os
import shutil
from pathlib import Path
from typing import NamedTuple

from gnomon.reference.checkpoint.load import default_model_path
from gnomon.reference.system.atomic import sync_directory


class CannotExport(Exception):
    """One line: what is in the way, and where."""


class Exported(NamedTuple):
    """files: all of the model's, in the directory · written: whether they have been now, or were there."""

    files: tuple[Path, ...]
    written: bool


def export_model(directory: Path) -> Exported:
    """Writes the embedded model's files. Raises CannotExport, or OSError from the file system."""
    sources = sorted(file for file in default_model_path().iterdir() if file.is_file())
    targets = tuple(directory / source.name for source in sources)
    if directory.is_dir() and any(directory.iterdir()):
        _must_be_the_model(directory, sources)
        return Exported(targets, written=False)
    directory.mkdir(parents=True, exist_ok=True)
    begun: list[Path] = []
    try:
        for source, target in zip(sources, targets, strict=True):
            with source.open("rb") as reader, target.open("xb") as writer:
                begun.append(target)
                shutil.copyfileobj(reader, writer)
                writer.flush()
                os.fsync(writer.fileno())
    except OSError:
        for target in begun:
            target.unlink(missing_ok=True)
        raise
    sync_directory(directory)
    return Exported(targets, written=True)


def _must_be_the_model(directory: Path, sources: list[Path]) -> None:
    """Whether a directory holds exactly the model's files, or what of it is otherwise."""
    there, wanted = {file.name for file in directory.iterdir()}, {source.name for source in sources}
    for name in sorted(there - wanted):
        raise CannotExport(f"{directory} is not empty: it holds {name!r}; give a new or an empty directory")
    for source in sources:
        other = directory / source.name
        if not other.is_file() or not filecmp.cmp(source, other, shallow=False):
            state = "differs from the model's" if source.name in there else "is missing"
            raise CannotExport(f"{directory} is not empty, and {source.name} in it {state}; give a new directory")
