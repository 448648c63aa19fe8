"""One request as ids: what was asked, what was sampled, every number that was reported; and how far numbers are off."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from gnomon.reference.arrays import F64

ROUNDING = 1e-4
"""What float32 may come to, in nats: of 50,680 log-probabilities that the float32 engine computed for the embedded
model the worst was off by 7.8e-5 (jax_engine/MEASURED.md). A deeper model may exceed it: `float32 arithmetic` is
tried."""


@dataclass(frozen=True, slots=True)
class ComparedPlace:
    """What was reported of one token. row: of the logits that it is drawn from, those after sequence[: row + 1] · top:
    what is listed, by id · listed: how long rankings are on this server · step: tokens sampled before it; None: it is
    the prompt's"""

    row: int
    token: int
    label: str
    value: float | None
    top: Mapping[int, float]
    listed: int
    step: int | None

    @property
    def values(self) -> dict[int, float]:
        return dict(self.top) if self.value is None else {**self.top, self.token: self.value}


@dataclass(frozen=True, slots=True)
class Trial:
    """text: the prompt, if it was a string · prompt: as the reference encodes it · echoed: as the server's echo shows
    it, where that can be read and is another."""

    name: str
    text: str | None
    prompt: tuple[int, ...]
    sampled: tuple[int, ...]
    places: tuple[ComparedPlace, ...]
    temperature: float = 0.0
    bias: Mapping[int, float] | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    prompt_tokens: int | None = None  # as billed
    echoed: tuple[int, ...] | None = None


class Fit(NamedTuple):
    """The largest and the mean size of the deviations of so many values, in nats; lean: their mean with signs."""

    worst: float
    mean: float
    values: int
    lean: float = 0.0

    @classmethod
    def of(cls, off: F64) -> Fit:
        if not len(off):
            return cls(0.0, 0.0, 0)
        return cls(float(abs(off).max()), float(abs(off).mean()), len(off), float(off.mean()))
