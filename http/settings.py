"""What whoever starts a server may choose, in one place.

The command line fills it in, the application reads it; it looks nothing up by itself. What a *request* may ask for is
`Limits`, derived here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from gnomon.reference.request import Limits


@dataclass(frozen=True, slots=True)
class Settings:
    host: str = "127.0.0.1"  # a loopback address: nobody is asked who they are yet
    port: int = 8000  # 0: any free one
    served_model_name: str = "gnomon-stories"  # the id that requests name
    max_body_bytes: int = 8 * 2**20  # a longer body is a 413
    openai_limits: bool = False  # the published API's bounds on logprobs and stop instead of the law's
    max_candidates: int = 2048  # prompts × candidates of one request
    reader_threads: int = 128  # requests whose answers are read from the engine at one time; more wait their turn
    shutdown_seconds: int = 3  # how long a connection may take to close once its answer has been ended

    @property
    def limits(self) -> Limits:
        return replace(Limits.openai() if self.openai_limits else Limits(), candidates=self.max_candidates)
