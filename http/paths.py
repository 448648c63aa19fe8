"""A path that is not served: which route its sender may have meant, for the message of the 404.

Nothing is served under a second name and nothing redirected: a redirect loses the body of a POST with some clients, and
a proxy that guards a path by its name would not know the other. So the answer is a 404 that says the right route.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches

COMPLETIONS = "POST /v1/completions"
LONGEST = 64  # characters of a path that can be a route's with a slip
LONGEST_MEANT = 1024  # of one that is looked at

OTHERS: tuple[tuple[str, str], ...] = (
    (r"/chat/completions", f"chat is not served here; send its text as the prompt of {COMPLETIONS}"),
    (r"/(engines|deployments)/.+/completions", f"use {COMPLETIONS}, and name the model in the body"),
    (r"/(generate|generate_stream|complete)", f"use {COMPLETIONS}"),
    (r"/engines", "use GET /v1/models"),
    (
        r"/(embeddings|responses|messages|moderations|rerank|score|edits|images/.+|audio/.+)",
        f"only completions of texts are served here, by {COMPLETIONS}",
    ),
    (r"", "it is what clients call the base URL; {routes}"),
    (r"/(ping|healthz|live|liveness)", "use GET /livez, or GET /readyz"),
    (r"/(ready|readiness)", "use GET /readyz"),
    (r"/(docs|redoc|swagger(/.*)?|openapi(\.ya?ml)?)", "use GET /openapi.json"),
)
"""Paths of other servers of models, without the prefixes of PREFIX: the whole of one, and what to do here."""

PREFIX = re.compile(r"(/(v1|api|openai)(?=/|$))+")


def meant(path: str, routes: Mapping[str, str]) -> str | None:
    """What to do instead, in words; None if nothing is like it. routes: path → "GET /livez"."""
    if len(path) > LONGEST_MEANT:
        return None
    bare = bare_path(path)
    served = {bare_path(route): words for route, words in routes.items() if "{" not in route and bare_path(route)}
    if bare in served:
        return f"use {served[bare]}"
    for pattern, words in OTHERS:
        if re.fullmatch(pattern, bare):
            return words.format(routes=f"this server has {', '.join(routes.values())}")
    near = get_close_matches(bare, served, 1, 0.85) if len(bare) <= LONGEST else []
    return f"use {served[near[0]]}" if near else None


def bare_path(path: str) -> str:
    """In lower case, single slashes, none at the end, and without the prefixes that APIs have."""
    single = re.sub("/+", "/", path.lower()).rstrip("/")
    return PREFIX.sub("", single, count=1) if PREFIX.match(single) else single
