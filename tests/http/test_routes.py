"""A route is declared once: what else knows of routes is made of the list, or held against it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from starlette.applications import Starlette

from gnomon.http.app import create_app
from gnomon.http.schema.route import DescribedRoute
from gnomon.http.settings import AuthMode, AuthSettings, Settings
from gnomon.reference.errors import RequestError
from helpers.described import application, facts_of
from helpers.live import MODEL, call, check_error

README = Path(__file__).parents[2] / "http" / "README.md"


@pytest.fixture(scope="module")
def app() -> Starlette:
    return application(Settings())


def routes_of(app: Starlette) -> list[DescribedRoute]:
    routes = [route for route in app.routes if isinstance(route, DescribedRoute)]
    assert len(routes) == len(app.routes) > 0
    return routes


def test_the_readmes_table_has_every_route_once_and_no_other(app: Starlette) -> None:
    section = README.read_text("utf-8").split("## Routes\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (.+?) \|", section, re.MULTILINE)[1:]
    named = [name for row in rows for name in re.findall(r"`([A-Z]+ /.*?)`", row)]
    assert sorted(named) == sorted(map(str, routes_of(app)))


def test_a_path_that_is_none_is_told_all_routes_in_their_order(app: Starlette) -> None:
    message = check_error(call(app, "GET", "/nothing/like/it"), 404)
    assert message.endswith("; this server has " + ", ".join(map(str, routes_of(app))))


@pytest.mark.parametrize("opened", [False, True])
def test_what_says_that_it_is_open_is_and_nothing_else(opened: bool) -> None:
    auth = AuthSettings(mode=AuthMode.api_key, api_keys=("0" * 32,), open_probes=opened, open_metrics=opened)
    app = create_app(None, None, Settings(auth=auth))
    for route in routes_of(app):
        path = route.path_format.replace("{model}", MODEL)
        assert (call(app, route.method, path).status_code != 401) == route.operation.is_open, path


def test_every_error_that_a_route_names_is_one_of_its_own_kind(app: Starlette) -> None:
    """Two errors of one route that look alike would be one example in the document."""
    for route in routes_of(app):
        errors = route.operation.errors(facts_of(Settings()))
        assert all(isinstance(error, RequestError) and error.message for error in errors)
        assert len({error.message for error in errors}) == len(errors), str(route)
