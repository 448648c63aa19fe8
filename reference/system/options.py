"""What a user may choose, a row an option: one type for every command of the project.

A row is a field of the dataclass that uses the value, and that field holds its default. `http/cli/options.py` makes of
rows what a user sees of them: flags, variables, `--help`, `--print-config` and the tables of the documents.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import MISSING, field, fields
from typing import Any, NamedTuple, get_type_hints

MOST_SECONDS = 365 * 24 * 3600
"""A year, for whoever means "for ever". What is not finite, or near the end of a clock's range, is no time limit."""

NO_DEFAULT: Any = MISSING
"""In place of a default: the option has none, and must be given."""


def option(default: Any, help: str, group: str = "", **more: Any) -> Any:
    """A field that is an option. more: any other member of `Option`. No repr shows a secret."""
    return field(default=default, repr=not more.get("secret"), metadata={"help": help, "group": group, **more})


class Option(NamedTuple):
    """A row: an option as it is given, described and bounded."""

    name: str
    type: Any  # of a tuple of strings: it may be given several times
    default: Any
    help: str
    group: str = ""
    min: float | None = None
    max: float | None = None
    metavar: str | None = None
    env: str | None = None  # the variable that sets it too
    argument: bool = False  # given by its place, and not by a flag
    short: str | None = None  # a flag of one letter
    file: bool = False  # the name of a file or a directory, whose bytes are kept as they came
    secret: bool = False  # has a variable alone: a command line can be read by every process of the machine

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def said(self) -> str:
        """How a user gives it."""
        return self.env if self.secret and self.env else self.flag

    @property
    def is_repeatable(self) -> bool:
        return bool(self.type == tuple[str, ...])


def options(of: type, prefix: str = "", env: bool = True) -> list[Option]:
    """The rows of a class, in order; those of a nested one are asked for by themselves. env: each has a variable that
    is named like it, if the row names no other."""
    types = get_type_hints(of)
    rows = []
    for f in fields(of):
        if f.metadata:
            more, name = dict(f.metadata), prefix + f.name
            if types[f.name] is float:  # each is a number of seconds
                more.setdefault("max", MOST_SECONDS)
            if env:
                more.setdefault("env", f"GNOMON_{name.upper()}")
            rows.append(Option(name, types[f.name], f.default, **more))
    return rows


def named(rows: Iterable[Option], name: str) -> Option:
    return next(row for row in rows if row.name == name)
