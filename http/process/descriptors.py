"""How many files this process may have open, and how many of them are left for connections.

1 the limit   the soft one is raised as far as it has to be, at most to the hard one
2 ours        what the server itself has open, and what it may have to open at any moment: files of the model, of
              keys and certificates, the log, connections to the identity service and to a collector
3 refused     connections beyond the bound that are told so with a 503
4 the bound   what is left; a bound of connections that is more than that is lowered to it, and a line says so
"""

from __future__ import annotations

import resource
from dataclasses import replace
from typing import NamedTuple

from gnomon.http.identity.options import ASKING
from gnomon.http.settings import Settings
from gnomon.http.wire import REFUSED_AT_ONCE

OURS = 40
"""Open at one time at most: standard streams, the loop, the listener, what jax keeps, the model's files, and some more
for what is opened for a moment. Seven are open at rest."""
COLLECTOR = 4
UNLIMITED = 2**31


class TooFew(Exception):
    """Not even one client could be served, with the numbers."""


class Descriptors(NamedTuple):
    """The settings in force, how many connections may be refused at a time, and what was lowered, if anything was."""

    settings: Settings
    refused: int
    lowered: str | None


def ours(settings: Settings) -> int:
    """Descriptors that are not for connections of clients."""
    asking = 2 * settings.auth.max_parallel + 1 if settings.auth.mode in ASKING else 0  # twice: while they are renewed
    return OURS + asking + (COLLECTOR if settings.otlp_endpoint is not None else 0)


def raised(need: int) -> int:
    """Raises the soft limit to what is needed, as far as the system lets us; the limit then."""
    soft, hard = (UNLIMITED if limit == resource.RLIM_INFINITY else limit for limit in _limits())
    if soft < need:
        soft = min(need, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, _limits()[1]))
    return soft


def _limits() -> tuple[int, int]:
    return resource.getrlimit(resource.RLIMIT_NOFILE)


def allowed(settings: Settings) -> Descriptors:
    """Raises TooFew."""
    own, wanted = ours(settings), settings.max_connections
    limit = raised(own + wanted + REFUSED_AT_ONCE)
    left = limit - own
    if left >= wanted + REFUSED_AT_ONCE:
        return Descriptors(settings, REFUSED_AT_ONCE, None)
    if left < 2:
        raise TooFew(
            f"this process may have {limit} open files (ulimit -Hn), and the server itself needs {own}: "
            f"allow {own + 2} at least"
        )
    refused = min(REFUSED_AT_ONCE, max(1, left // 4))
    bound = min(wanted, left - refused)
    lowered = (
        f"--max-connections {wanted} is lowered to {bound}: this process may have {limit} open files (ulimit -Hn), "
        f"of which the server itself needs {own}, and {refused} are for connections that are refused"
    )
    return Descriptors(replace(settings, max_connections=bound), refused, lowered if bound < wanted else None)
