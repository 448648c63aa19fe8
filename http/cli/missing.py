"""A package that is not here, or cannot be imported, in one line: its name, the reason, and how to install it.

Imports nothing but the standard library, since any other package may be the one that is missing.
"""

from __future__ import annotations

import re
import shlex
import sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from types import TracebackType

OURS = "gnomon"


def explained(error: ImportError) -> str:
    """The line. `numpy: libopenblas.so.0: cannot open shared object file` is the first cause of what was raised."""
    package, cause = _package(error), _cause(error)
    if package == OURS:
        return f"this installation of gnomon is not whole ({_line(cause)}); install it anew"
    requirement = _requirement(package)
    if isinstance(cause, ModuleNotFoundError) and (cause.name or "").split(".")[0] == package:
        if cause.name == package:
            return f"the package {package} is not installed here; install it: {_pip(requirement)}"
        return f"the package {package} is not whole ({_line(cause)}); install it anew: {_pip(requirement, again=True)}"
    return f"the package {package} cannot be imported: {_line(cause)}; install it anew: {_pip(requirement, again=True)}"


def _cause(error: ImportError) -> ImportError:
    """The first of those that were raised of one another: a package often says much about what one line explains."""
    cause: BaseException | None = error.__cause__ or error.__context__
    return _cause(cause) if isinstance(cause, ImportError) else error


def _package(error: ImportError) -> str:
    """The missing one, else the one that our own code was importing."""
    cause = _cause(error)
    if isinstance(cause, ModuleNotFoundError) and cause.name:
        return cause.name.split(".")[0]
    names = [name for name in _modules(error.__traceback__) if name not in ("importlib", "_frozen_importlib")]
    while OURS in names:
        names = names[names.index(OURS) + 1 :]
    return names[0] if names else (error.name or OURS).split(".")[0]


def _modules(traceback: TracebackType | None) -> list[str]:
    names = []
    while traceback is not None:
        names.append(str(traceback.tb_frame.f_globals.get("__name__", "")).split(".")[0])
        traceback = traceback.tb_next
    return names


def _requirement(package: str) -> str:
    """As our own metadata asks for it; else the distribution's name, or the package's."""
    names = {name.lower() for name in packages_distributions().get(package, [])} | {package.lower()}
    names |= {name.replace("_", "-") for name in names} | ({"pyjwt"} if package == "jwt" else set())
    try:
        asked = requires(OURS) or []
    except PackageNotFoundError:
        asked = []
    for line in asked:
        requirement, _, marker = line.partition(";")
        if not marker and re.split(r"[<>=!~\[ ]", requirement)[0].lower().replace("_", "-") in names:
            return requirement.strip()
    return package


def _pip(requirement: str, again: bool = False) -> str:
    return f"{sys.executable} -m pip install {'--force-reinstall ' if again else ''}{shlex.quote(requirement)}"


def _line(error: ImportError) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
