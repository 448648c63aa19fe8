"""`gnomon verify --golden`: the golden vectors (gnomon.reference.golden) put to a server of the embedded model."""

from __future__ import annotations

import time
from collections.abc import Sequence

from gnomon.http.verify.ask.exchange import Streamed
from gnomon.http.verify.ask.probe import Probe, Subject
from gnomon.http.verify.report.report import Section, Table
from gnomon.http.verify.verdict import Case, Finding, Judgement, honoured, wrong
from gnomon.reference.golden import AnswerCheck, judge_answer, load_cases
from gnomon.reference.golden import GoldenCase as Vector


async def replay(subject: Subject) -> Section:
    """Every vector once; a finding for each that differs, and one for all of them if none does."""
    began = time.monotonic()
    vectors = load_cases()
    findings: list[Finding] = []
    verdicts: list[AnswerCheck] = []
    for vector in vectors:
        probe = Probe(subject)
        verdict = await _judged(probe, vector, subject.model)
        verdicts.append(verdict)
        if not verdict.passed:
            first = verdict.differences[0]
            judgement = wrong(str(first), differences=[difference.to_json() for difference in verdict.differences])
            findings.append(_finding(vector.name, vector.shows, judgement, probe, began))
    if not findings:
        findings = [_finding("all", "every golden vector is answered as written", _passed(verdicts), None, began)]
    return Section("Golden vectors", tuple(findings), (_table(verdicts),))


async def _judged(probe: Probe, vector: Vector, model: str) -> AnswerCheck:
    body = vector.payload(model)
    sampled = sum(len(candidate.ids) for candidate in vector.candidates)
    exchange = await probe.send(body, cost=sum(map(len, vector.prompt_ids)) + sampled)
    answer = list(Streamed.read(exchange).events) if vector.is_streamed and exchange.status == 200 else exchange.json
    return judge_answer(vector, exchange.status or 0, answer, model=model)


def _finding(name: str, says: str, judgement: Judgement, probe: Probe | None, began: float) -> Finding:
    async def replayed(probe: Probe) -> Judgement:
        return judgement

    case = Case(f"golden.{name.replace(' ', '_')}", "golden", "10", says, replayed)
    exchanges = () if probe is None else tuple(probe.exchanges)
    return Finding(case, judgement, exchanges, time.monotonic() - began)


def _passed(verdicts: Sequence[AnswerCheck]) -> Judgement:
    worst = max(verdict.worst_logprob for verdict in verdicts)
    return honoured(f"{len(verdicts)} of {len(verdicts)}; the worst log-probability is off by {worst:.1e}")


def _table(verdicts: Sequence[AnswerCheck]) -> Table:
    numbers = (
        len(verdicts),
        sum(verdict.passed for verdict in verdicts),
        sum(verdict.tokens for verdict in verdicts),
        sum(verdict.excused for verdict in verdicts),
        sum(verdict.logprobs for verdict in verdicts),
    )
    worst = max(verdict.worst_logprob for verdict in verdicts)
    header = ("vectors", "as written", "tokens", "excused", "log-probabilities", "worst off by")
    return Table("What was compared", header, ((*map(str, numbers), f"{worst:.1e}"),))
