"""A case: one sentence of the law that can be seen from outside. And a finding: what became of it on one server.

    honoured   the server does what the sentence says (also where it says that something must be refused)
    refused    a legal value was refused, with an error that names the field
    ignored    a 200 as if the field had not been sent, or as if a value out of range had been in it
    wrong      an effect, but another one; or no sound answer at all
    unclear    cannot be told on this model or server, with the reason

A case that needs another one's sentence is judged only if that one is honoured, so that a fault is found where it is
and nowhere else. Where one fault can still be seen in several cases, `roots.py` folds them under the first, by what is
declared here: `Case.follows` and `Fault`. A verdict comes from what was observed, never from a vendor's name.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, StrEnum
from typing import Any

from gnomon.http.verify.ask.exchange import Exchange
from gnomon.http.verify.ask.probe import Probe


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


class SharedFault(Enum):
    """One fault that several cases can see: what was seen, and in how many cases it has to be to be taken for one."""

    lax_types = "a value of another type is accepted", 4
    no_bounds = "a value out of range is accepted", 4
    server_error = "a faulty request is answered with an error of the server's own, HTTP 500", 3
    counts_the_prompt = "a penalty counts the prompt's tokens", 2
    varies_with_load = "other requests at the same time change the answer", 2

    def __init__(self, says: str, least: int) -> None:
        self.says, self.least = says, least


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict with its reason in one line; evidence: the values seen, as JSON."""

    verdict: Verdict
    reason: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    fault: SharedFault | None = None

    def showing(self, fault: SharedFault) -> Judgement:
        """This finding, as one that other cases can have for the same fault."""
        return replace(self, fault=fault)


def honoured(reason: str, **evidence: Any) -> Judgement:
    return Judgement(Verdict.honoured, reason, evidence)


def ignored(reason: str, **evidence: Any) -> Judgement:
    return Judgement(Verdict.ignored, reason, evidence)


def wrong(reason: str, **evidence: Any) -> Judgement:
    return Judgement(Verdict.wrong, reason, evidence)


def unclear(reason: str, **evidence: Any) -> Judgement:
    return Judgement(Verdict.unclear, reason, evidence)


Judge = Callable[[Probe], Awaitable[Judgement]]


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
    follows: str = ""  # the case that tells whether the field is read at all: if it is not, this one's is no fault more

    @property
    def group(self) -> str:
        return self.name.split(".")[0]


def case(
    name: str,
    param: str,
    law: str,
    says: str,
    needs: tuple[str, ...] = (),
    alone: bool = False,
    odds: str = "",
    follows: str = "",
) -> Callable[[Judge], Case]:
    """Makes a case of the function that judges it."""

    def made(judge: Judge) -> Case:
        return Case(name, param, law, says, judge, needs, alone, odds, follows)

    return made


@dataclass(frozen=True, slots=True)
class Finding:
    """What became of a case on one server.

    exchanges: all it sent, in order; the last one shows the matter · lacks: the case it needs that is not honoured ·
    root: the case whose fault it shows, if that is another one (`roots.py`)
    """

    case: Case
    judgement: Judgement
    exchanges: tuple[Exchange, ...]
    seconds: float
    lacks: str | None = None
    root: str | None = None

    @property
    def tokens(self) -> int:
        """What the case cost: prompt and completion tokens, as billed, or as estimated where no usage is shown."""
        return sum(exchange.tokens for exchange in self.exchanges)
