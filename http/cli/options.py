"""What a user sees of rows (`gnomon.reference.system.options`), the same way for every command.

command       a command of typer: flags, variables, `--help`; it gets every value with its source
made          the dataclass of the values
config_lines  `--print-config`
table         the table of a document
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, TypeAlias, TypeVar

import typer

from gnomon.http.cli.toml import assignment
from gnomon.http.observe.text import as_utf8
from gnomon.reference.system.options import NO_DEFAULT, Option, options

D = TypeVar("D")


class Setting(NamedTuple):
    """A value in force, and where it came from."""

    value: Any
    source: str


Chosen: TypeAlias = dict[str, Setting]
"""Every row of a command by its name."""


def command(run: Callable[[Chosen], None], rows: Sequence[Option], doc: str) -> Callable[..., None]:
    """For typer: a function whose parameters are the rows that a command line may have."""

    def called(context: typer.Context, **given: Any) -> None:
        run({row.name: _chosen(context, row, given) for row in rows})

    parameters = [_parameter("context", typer.Context, inspect.Parameter.empty)]
    parameters += [_parameter(row.name, *_typer_parameter(row)) for row in rows if not row.secret]
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__doc__ = doc
    return called


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _typer_parameter(row: Option) -> tuple[Any, Any]:
    """A type with its description, and a default."""
    if row.argument:
        argument = typer.Argument(help=row.help, envvar=row.env, metavar=row.metavar, show_default=False)
        return Annotated[row.type, argument], inspect.Parameter.empty if row.default is NO_DEFAULT else row.default
    flag = f"{row.flag}/--no-{row.flag[2:]}" if row.type is bool and row.default else row.flag
    several = row.is_repeatable
    option = typer.Option(
        *(flag, row.short) if row.short else (flag,),
        envvar=row.env,
        help=row.help + (" May be given several times." if several else ""),
        min=row.min,
        max=row.max,
        metavar=row.metavar,
        show_default="Default:" not in row.help,
    )
    return Annotated[list[str] if several else row.type, option], list(row.default) if several else row.default


def _chosen(context: typer.Context, row: Option, given: Mapping[str, Any]) -> Setting:
    if row.secret:
        values = tuple(os.environ.get(row.env or "", "").split())
        return Setting(values, f"environment {row.env}" if values else "default")
    value = given[row.name]
    if row.is_repeatable:
        value = tuple(map(as_utf8, value))
    elif type(value) is str and not row.file:  # and not one of an enumeration
        value = as_utf8(value)
    source = context.get_parameter_source(row.name)
    words = {"COMMANDLINE": "command line", "ENVIRONMENT": f"environment {row.env}"}
    return Setting(value, words.get("" if source is None else source.name, "default"))


def made(of: type[D], chosen: Chosen, prefix: str = "", **more: Any) -> D:
    """The dataclass of the rows, as chosen; a row that the command does not have keeps its default."""
    values = {row.name: chosen[row.name].value for row in options(of, prefix) if row.name in chosen}
    return of(**{name.removeprefix(prefix): value for name, value in values.items()}, **more)


def config_lines(chosen: Chosen, rows: Iterable[Option]) -> Iterator[str]:
    """A line a setting, in TOML: its name, its value, and where that came from. What has no value, or none that TOML
    can have, is a comment."""
    secret = {row.name for row in rows if row.secret}
    texts = []
    for name, (value, source) in chosen.items():
        shown = (f"{len(value)} values, not shown" if value else None) if name in secret else value
        texts.append((assignment(name, shown), source))
    width = min(max(len(text) for text, _ in texts), 60)
    return (f"{text:{width}}  # {source}" for text, source in texts)


def markdown_table(rows: Iterable[Option]) -> str:
    """In Markdown, a row an option; the variable of `--max-queue` is `GNOMON_MAX_QUEUE`."""
    groups: dict[str, list[str]] = {}
    for row in rows:
        name = row.name.upper() if row.argument else row.said
        groups.setdefault(row.group, []).append(f"| `{name}` | {_default(row)} | {row.help} |")
    lines = ["| option | default | what it does |", "|---|---|---|"]
    for group, members in groups.items():
        lines += [f"| **{group}** | | |", *members]
    return "\n".join(lines)


def _default(row: Option) -> str:
    if row.default in (None, (), False) or "Default:" in row.help:
        return ""
    return f"`{' '.join(row.default) if isinstance(row.default, tuple) else json.dumps(row.default)}`"
