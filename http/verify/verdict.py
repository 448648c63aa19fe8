"""A case: one sentence of the law that can be seen from outside. And a finding: what became of it on one server.

    honoured   the server does what the sentence says (also where it says that something must be refused)
    refused    a legal value was refused, with an error that names the field
    ignored    a 200 as if the field had not been sent, or as if a value out of range had been in it
    wrong      an effect, but another one; or no sound answer at all
    unclear    cannot be told on this model or server, with the reason

A case that needs another one's sentence is judged only if that one is honoured, so that a fault is found where it is
and nowhere else. A verdict comes from what was observed, never from a vendor's name.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gnomon.http.verify.exchange import Exchange
    from gnomon.http.verify.probe import Probe


class Verdict(StrEnum):
    honoured = "honoured"
    refused = "refused"
    ignored = "ignored"
    wrong = "wrong"
    unclear = "unclear"

    @property
    def is_finding(self) -> bool:
        """Whether it departs from the law without saying so."""
        return self in (Verdict.ignored, Verdict.wrong)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A verdict with its reason in one line; evidence: the values seen, as JSON."""

    verdict: Verdict
    reason: str
    evidence: Mapping[str, Any] = field(default_factory=dict)


def honoured(reason: str, **evidence: Any) -> Outcome:
    return Outcome(Verdict.honoured, reason, evidence)


def ignored(reason: str, **evidence: Any) -> Outcome:
    return Outcome(Verdict.ignored, reason, evidence)


def wrong(reason: str, **evidence: Any) -> Outcome:
    return Outcome(Verdict.wrong, reason, evidence)


def unclear(reason: str, **evidence: Any) -> Outcome:
    return Outcome(Verdict.unclear, reason, evidence)


class Unclear(Exception):
    """Raised within a case where it cannot go on; the reason becomes the finding's."""


Judge = Callable[["Probe"], Awaitable[Outcome]]


@dataclass(frozen=True, slots=True)
class Case:
    """One sentence of the law, and how to see from outside whether it is kept."""

    name: str  # "seed.repeats": the group, then the claim
    param: str  # the field, or the part of the answer, that a finding is about
    law: str  # the section of LAW.md
    says: str  # the sentence, in the present tense
    judge: Judge
    needs: tuple[str, ...] = ()  # names of cases that must be honoured first
    alone: bool = False  # runs when nothing else does, since it makes load of its own
    odds: str = ""  # of a statistical case: how often it would accuse a server that keeps the law

    @property
    def group(self) -> str:
        return self.name.split(".")[0]


def case(
    name: str, param: str, law: str, says: str, needs: tuple[str, ...] = (), alone: bool = False, odds: str = ""
) -> Callable[[Judge], Case]:
    """Makes a case of the function that judges it."""

    def made(judge: Judge) -> Case:
        return Case(name, param, law, says, judge, needs, alone, odds)

    return made


@dataclass(frozen=True, slots=True)
class Finding:
    """What became of a case on one server. exchanges: all it sent, in order; the last one shows the matter."""

    case: Case
    outcome: Outcome
    exchanges: tuple[Exchange, ...]
    seconds: float

    @property
    def tokens(self) -> int:
        """What the case cost: prompt and completion tokens, as billed, or as estimated where no usage is shown."""
        return sum(exchange.tokens for exchange in self.exchanges)
