"""What is served and whether it can be: loading, ready, failing, draining.

    loading     until `open` is told the engine; every request for a completion is a 503
    ready
    failing     the engine has failed FAULTS times in a row, however many requests it took along each time. Requests
                are still tried, since the next may well work; readiness says 503, so that whoever balances loads
                looks elsewhere. Each look at it lets the engine try one token, at most every PROBE_SECONDS, so that a
                server nobody sends to finds back by itself
    draining    the process is to end: what has been admitted is finished, nothing new is

Who is admitted is decided in admission.py, when the process ends in run.py.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version

from gnomon.http.errors import Draining, Unavailable
from gnomon.http.schema.route import Facts
from gnomon.http.settings import AuthMode
from gnomon.http.threads import NoThread, start
from gnomon.reference.checkpoint.load import Checkpoint
from gnomon.reference.completion import system_fingerprint
from gnomon.reference.engine import Failed, JobRequest, Load, ServedEngine
from gnomon.reference.errors import RequestError
from gnomon.reference.sampler import SamplingParams
from gnomon.reference.tokenizer import Tokenizer

SERVER_VERSION = version("gnomon")  # once: it is read from a file
FAULTS = 3
PROBE_SECONDS = 5.0

log = logging.getLogger("gnomon.http")


class Loading(Unavailable):
    def __init__(self) -> None:
        super().__init__("the model is still being loaded; send the request again", "loading", retry_after=5)


class IdentityAway(Unavailable):
    """Its code is that of identity/refusals.py: what a caller is told who asks for a completion meanwhile."""

    def __init__(self) -> None:
        message = "the identity service has not answered yet, so nobody can be told apart"
        super().__init__(message, "identity_unavailable", retry_after=5)


class Failing(Unavailable):
    def __init__(self, faults: int) -> None:
        super().__init__(f"the engine failed {faults} times in a row", "failing", retry_after=int(PROBE_SECONDS))


def not_serving(facts: Facts) -> list[RequestError]:
    """What `model` raises, one of each kind."""
    return [Loading(), Draining()]


def not_ready(facts: Facts) -> list[RequestError]:
    """What `trouble` gives, one of each kind."""
    vouched_for = facts.auth not in (AuthMode.none, AuthMode.api_key)
    return [Loading(), Draining(), Failing(FAULTS), *([IdentityAway()] if vouched_for else [])]


class Service:
    """An engine and its tokenizer, or None for both while they are being loaded. `checkpoint`: what the engine was made
    from, for a reference beside it; None if nobody said.

    identity_ready: whether callers can be told apart yet · on_fault: told of every fault of the engine.
    """

    def __init__(
        self,
        engine: ServedEngine | None,
        tokenizer: Tokenizer | None,
        identity_ready: Callable[[], bool],
        on_fault: Callable[[], None],
    ) -> None:
        self._engine, self._tokenizer = engine, tokenizer
        self.checkpoint: Checkpoint | None = None
        self._identity_ready = identity_ready
        self._on_fault = on_fault
        self._faults = 0
        self._failed = 0.0  # when it did so last
        self._probed = 0.0
        self._probing: threading.Thread | None = None
        self.draining = False

    def open(self, engine: ServedEngine, tokenizer: Tokenizer, checkpoint: Checkpoint | None = None) -> None:
        self.checkpoint = checkpoint  # first: with the engine, requests are let in
        self._engine, self._tokenizer = engine, tokenizer

    @property
    def engine(self) -> ServedEngine | None:
        return self._engine

    def model(self) -> tuple[ServedEngine, Tokenizer]:
        """What answers a new request. Raises Loading, or Draining."""
        if self.draining:
            raise Draining
        if self._engine is None or self._tokenizer is None:
            raise Loading
        return self._engine, self._tokenizer

    @property
    def engine_name(self) -> str | None:
        return None if self._engine is None else self._engine.name

    def fingerprint(self) -> str | None:
        """What decides the bytes of an answer, as answers say it; None while there is no model."""
        if self._engine is None or self._tokenizer is None:
            return None
        return system_fingerprint(self._engine, self._tokenizer)

    def load(self) -> Load:
        return Load(0, 0, 0, 0) if self._engine is None else self._engine.load()

    # ---- the engine's health

    def sound(self) -> None:
        """The engine has answered."""
        self._faults = 0

    def fault(self, begun: float) -> None:
        """The engine has failed a request that began at that time. What was under way when it failed last was hit by
        that same fault."""
        if begun <= self._failed:
            return
        self._failed = time.monotonic()
        self._faults += 1
        self._on_fault()
        if self._faults == FAULTS:
            log.error("the engine failed %d times in a row: not ready until it answers again", FAULTS)

    def trouble(self) -> Unavailable | None:
        """Why this server is not ready; None if it is."""
        if self.draining:
            return Draining()
        if self._engine is None:
            return Loading()
        if not self._identity_ready():
            return IdentityAway()
        if self._faults >= FAULTS:
            self._probe(self._engine)
            return Failing(self._faults)
        return None

    def _probe(self, engine: ServedEngine) -> None:
        still_trying = self._probing is not None and self._probing.is_alive()
        if time.monotonic() - self._probed >= PROBE_SECONDS and not still_trying:
            self._probed = time.monotonic()
            self._probing = threading.Thread(target=self._try_one_token, args=[engine], name="probe", daemon=True)
            with suppress(NoThread):  # the next look tries again
                start(self._probing)

    def _try_one_token(self, engine: ServedEngine) -> None:
        try:
            job = engine.submit(JobRequest([[0]], [0], SamplingParams(max_tokens=1), candidates=1, top=0, score=False))
            if not any(isinstance(event, Failed) for event in job.events()):
                self.sound()
                log.info("the engine answers again")
        except Exception:
            log.exception("the engine still fails")
