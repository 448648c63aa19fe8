"""A row an option: what a class of options says of each, and where a row says less."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from gnomon.reference.system.options import MOST_SECONDS, named, option, options


@dataclass(frozen=True)
class Chosen:
    seconds: float = option(1.5, "How long.", "times", min=0.1)
    names: tuple[str, ...] = option((), "Who.", short="n")
    key: str | None = option(None, "A key.", secret=True, env="THE_KEY")
    counted: int = 0  # no option: nothing describes it


def test_a_field_with_a_description_is_a_row_with_all_that_it_says() -> None:
    rows = options(Chosen)
    assert [row.name for row in rows] == ["seconds", "names", "key"]
    seconds, names, key = rows
    assert (seconds.type, seconds.default, seconds.group, seconds.min) == (float, 1.5, "times", 0.1)
    assert (seconds.flag, seconds.env, seconds.said) == ("--seconds", "GNOMON_SECONDS", "--seconds")
    assert names.is_repeatable
    assert not seconds.is_repeatable
    assert (key.said, "secret" in repr(Chosen(key="secret"))) == ("THE_KEY", False)
    assert named(rows, "key") is key


def test_seconds_end_at_a_year_unless_their_row_says_where() -> None:
    assert named(options(Chosen), "seconds").max == MOST_SECONDS


@pytest.mark.parametrize(("given", "name", "env"), [({}, "key", "THE_KEY"), ({"env": False}, "names", None)])
def test_a_row_has_the_variable_it_names_and_without_variables_none(given: Any, name: str, env: str | None) -> None:
    assert named(options(Chosen, **given), name).env == env


def test_a_nested_class_is_told_apart_by_its_prefix() -> None:
    row = options(Chosen, "auth_")[0]
    assert (row.flag, row.env) == ("--auth-seconds", "GNOMON_AUTH_SECONDS")
