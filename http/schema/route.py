"""What a route says of itself beside its path, its method and its endpoint: all that the OpenAPI document, the table of
endpoints and the messages of a 404 know of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from starlette.routing import Route

from gnomon.http.settings import AuthMode, Settings
from gnomon.reference.errors import RequestError

JSON = "application/json"
EVENTS = "text/event-stream"


class Facts(NamedTuple):
    """What a description depends on, beside the routes. auth: the mode in force, since settings may leave it to the
    address · context, vocab_size: None while no model is loaded."""

    settings: Settings
    model: str
    context: int | None
    auth: AuthMode
    vocab_size: int | None


def no_errors(facts: Facts) -> Sequence[RequestError]:
    return ()


@dataclass(frozen=True, slots=True)
class Operation:
    """name: its operationId · answers: media type → schema of the 200, None for a text · errors: one of each kind that
    the endpoint raises, as this server would raise it; those of the connection, of credentials and of faults are known
    without being named · answer: the 200 in words, where the summary is not enough · is_open: no credential is asked
    for · can_fail: whether anything in it can."""

    name: str
    summary: str
    answers: Mapping[str, str | None]
    errors: Callable[[Facts], Sequence[RequestError]] = no_errors
    description: str = ""
    answer: str = ""
    body: str | None = None
    body_description: str = ""
    is_open: bool = False
    can_fail: bool = True


class DescribedRoute(Route):
    def __init__(self, method: str, path: str, endpoint: Callable[..., Any], operation: Operation) -> None:
        super().__init__(path, endpoint, methods=[method], name=operation.name)
        self.method = method
        self.operation = operation

    def __str__(self) -> str:
        """As messages and tables have it."""
        return f"{self.method} {self.path_format}"


def error_of(call: Callable[[], object]) -> RequestError:
    """What a call raises: an example of an error, from where the error comes from."""
    try:
        call()
    except RequestError as error:
        return error
    raise AssertionError("the call was to be refused")
