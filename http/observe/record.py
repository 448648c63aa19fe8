"""What is known of one HTTP request, gathered on its way and read when it has ended: by log, metrics and OpenTelemetry.

access.py makes one for every request and keeps it in the ASGI scope; auth.py and completions.py fill in what they know.
It holds counts, times and fixed words; never a prompt, a text, a token or a key.

Times are `time.monotonic`, in seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from starlette.types import Scope

RequestOutcome = Literal["answered", "refused", "cancelled", "timed_out", "drained", "failed"]
"""answered: a whole 200 · refused: any error that is not our fault, load and auth too · cancelled: the client went away
· timed_out: ended by --request-seconds · drained: ended because draining was over before it was · failed: 500, an
engine's fault, or an answer broken off. The status of a stream is 200 whatever ended it."""

RECORD_KEY = "gnomon.record"


@dataclass(slots=True)
class Record:
    request_id: str
    method: str
    route: str  # the path of a known route, or "other": few values, whatever is asked
    arrived: float = field(default_factory=time.monotonic)
    status: int | None = None  # None: nothing was sent
    bytes_sent: int = 0
    auth: str | None = None  # the outcome of authentication, one of a few words
    caller: str | None = None  # the first 8 hex digits of the credential's SHA-256
    reason: str | None = None  # why it was not let in, in fixed words; for the log, never for the caller
    outcome: RequestOutcome | None = None
    # ---- of a completion, from here on
    completion_id: str | None = None
    stream: bool = False
    prompts: int = 0
    candidates: int = 0  # of each prompt
    max_tokens: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    finish_reasons: tuple[str, ...] = ()  # one a candidate that ended
    queued: float | None = None  # when its body was whole: from then on it waits for the engine
    started: float | None = None  # when the engine began; None: it never did
    first_token: float | None = None
    ended: float | None = None  # when the last byte was sent, or the request was given up
    on_gap: Callable[[float], None] | None = None  # told the seconds between two tokens of one candidate
    last_tokens: dict[tuple[int, int], float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """From its arrival to its end, or until now."""
        return (time.monotonic() if self.ended is None else self.ended) - self.arrived

    @property
    def queue_seconds(self) -> float | None:
        """None: the engine never began."""
        if self.started is None:
            return None
        return self.started - (self.arrived if self.queued is None else self.queued)

    @property
    def first_token_seconds(self) -> float | None:
        """From its arrival, as its caller feels it."""
        return None if self.first_token is None else self.first_token - self.arrived

    def token(self, prompt: int, candidate: int, made: float) -> None:
        """A token was made; called in the thread that reads the engine."""
        if self.first_token is None:
            self.first_token = made
        last = self.last_tokens.get((prompt, candidate))
        if last is not None and self.on_gap is not None:
            self.on_gap(made - last)
        self.last_tokens[prompt, candidate] = made


def record_of(scope: Scope) -> Record:
    """The request's record; a new one if nobody keeps any."""
    record: Record = scope.setdefault(RECORD_KEY, Record("", scope["method"], "other"))
    return record
