"""Every case once, each after those it needs; the rest side by side; those that make load of their own at the end.

A fault is blamed on one case: a case that needs another's sentence says `unclear` where that one is not honoured.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from gnomon.http.verify.ask.answer import Refused, Unclear, UnsoundAnswer
from gnomon.http.verify.ask.client import Busy, CannotReach, OutOfBudget
from gnomon.http.verify.ask.exchange import Exchange
from gnomon.http.verify.ask.probe import Probe, Subject
from gnomon.http.verify.verdict import Case, Finding, Judgement, Verdict, unclear, wrong

OnFinding = Callable[[Finding], None]


async def judge_all(cases: Sequence[Case], subject: Subject, progress: OnFinding) -> list[Finding]:
    """A finding a case, in the order of the cases. Raises CannotReach if the server is gone."""
    futures: dict[str, asyncio.Future[Finding]] = {}

    async def after_its_needs(case: Case) -> Finding:
        for name in case.needs:
            if name not in futures:
                continue
            needed = await asyncio.shield(futures[name])
            if needed.judgement.verdict is not Verdict.honoured:
                why = f"needs “{needed.case.says}”, which is {needed.judgement.verdict} here"
                return done(Finding(case, unclear(why), (), 0.0, lacks=name))
        return done(await judge_case(case, subject))

    def done(finding: Finding) -> Finding:
        progress(finding)
        return finding

    try:
        for case in (case for case in cases if not case.alone):
            futures[case.name] = asyncio.ensure_future(after_its_needs(case))
        await asyncio.gather(*futures.values())
        for case in (case for case in cases if case.alone):
            futures[case.name] = asyncio.ensure_future(after_its_needs(case))
            await futures[case.name]
    except BaseException:
        for future in futures.values():
            future.cancel()
        await asyncio.gather(*futures.values(), return_exceptions=True)
        raise
    return [futures[case.name].result() for case in cases]


async def judge_case(case: Case, subject: Subject) -> Finding:
    """One case. Whatever the server does becomes a judgement; only CannotReach passes."""
    probe = Probe(subject)
    began = time.monotonic()
    shown: Exchange | None = None
    try:
        judgement = await case.judge(probe)
    except Refused as refused:
        shown, judgement = refused.exchange, judge_refusal(case, refused.exchange)
    except UnsoundAnswer as broken:
        shown, judgement = broken.exchange, wrong(broken.reason)
    except Unclear as reason:
        judgement = unclear(str(reason))
    except OutOfBudget:
        judgement = unclear("the budget of tokens is spent")
    except Busy as busy:
        judgement = unclear(str(busy))
    except CannotReach:
        raise
    except Exception as fault:  # an answer of a form that nobody thought of, such as a number for a text
        frame = traceback.extract_tb(fault.__traceback__)[-1]
        judgement = unclear(
            f"an answer has a form that this case cannot read: {type(fault).__name__}: {fault}",
            place=f"{Path(frame.filename).name}:{frame.lineno}",
        )
    exchanges = [exchange for exchange in probe.exchanges if exchange is not shown]
    return Finding(case, judgement, (*exchanges, *([shown] if shown else [])), time.monotonic() - began)


def is_beyond_the_context(exchange: Exchange) -> bool:
    """Whether a refusal says that prompt and completion do not fit: by its code, or in the words of other servers."""
    words = re.search(r"\bcontext (length|size|window)\b", exchange.message, re.IGNORECASE)
    return exchange.error.get("code") == "context_length_exceeded" or words is not None


def judge_refusal(case: Case, exchange: Exchange) -> Judgement:
    """A legal request of a case was refused: by the name of its field, of another one that it has, or of none.

    What the case needs is honoured by then, so a refusal that names nothing is about what the case alone sends.
    """
    said = f"HTTP {exchange.status}: {exchange.message}"
    if is_beyond_the_context(exchange):
        return unclear(f"this model's context is too short for what this case asks: {said}")
    if exchange.names(case.param):
        return Judgement(Verdict.refused, said)
    try:
        sent = json.loads(exchange.body or b"{}")
    except ValueError:
        sent = {}
    if exchange.status in (401, 403, 408, 429) or any(exchange.names(name) for name in sent):
        return unclear(f"a request that this needs was refused: {said}")
    return wrong(f"a legal request was refused, and the error does not name {case.param}: {said}")
