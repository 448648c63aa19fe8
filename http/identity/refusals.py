"""Why a caller is not let in: five reasons, each with its answer, its word for metrics, and one sentence for everybody.

    Missing           401, a bare challenge   no Authorization field, or one of another scheme
    BadToken          401, invalid_token      unreadable, unknown, badly signed, expired or revoked
    MalformedHeader   400, invalid_request    two fields, or a credential beyond the limit
    Denied            403, insufficient_scope we know who it is, and the answer is no
    Away              503, Retry-After        the identity service cannot be asked, or cannot be understood

The sentence never says which check failed: that would be an oracle for whoever tries tokens. `reason` does, for the
log; it is made of fixed words and holds nothing of what was sent.
"""

from __future__ import annotations

from gnomon.http.errors import BadAuthorization, Forbidden, HttpError, Unauthorized, Unavailable

RETRY_SECONDS = 2  # an identity service that is away comes back in seconds, or somebody is called


class Refusal(HttpError):
    """Any of the five."""

    outcome: str  # its word for metrics
    reason: str  # for the log
    caller: str | None = None  # 8 hex digits, where a credential could be read


class Missing(Refusal, Unauthorized):
    outcome = "missing"

    def __init__(self, reason: str) -> None:
        super().__init__("no token was sent; send one in the header Authorization: Bearer <token>", error=None)
        self.reason = reason


class BadToken(Refusal, Unauthorized):
    outcome = "invalid"

    def __init__(self, reason: str) -> None:
        super().__init__("the token or key is refused: it is malformed, unknown, expired or revoked; send a valid one")
        self.reason = reason


class MalformedHeader(Refusal, BadAuthorization):
    outcome = "malformed"

    def __init__(self, reason: str, most: int) -> None:
        super().__init__(f"send exactly one Authorization header, with a token of at most {most} bytes")
        self.reason = reason


class Denied(Refusal, Forbidden):
    outcome = "forbidden"

    def __init__(self, reason: str) -> None:
        super().__init__("the token is valid, but its account has no right to use this server")
        self.reason = reason


class Away(Refusal, Unavailable):
    outcome = "unavailable"

    def __init__(self, reason: str) -> None:
        super().__init__(
            "the token cannot be checked at this moment; send the request again", "identity_unavailable", RETRY_SECONDS
        )
        self.reason = reason
