"""Our own server honours every case, and every case is turned red by a fault of its own sentence.

A fault is tried here against its case and what that needs; against all cases, in test_verify_faults.py.
"""

from __future__ import annotations

import httpx
import pytest

from gnomon.http.app import create_app
from gnomon.http.settings import Settings
from gnomon.http.verify.cases import CASES
from gnomon.http.verify.verdict import Verdict
from helpers.fault_table import FAULTS, closure, label
from helpers.faults import Fault, InProcessServer, Model, judged
from helpers.live import serving


def test_our_own_server_honours_every_sentence(model: Model) -> None:
    with serving(create_app(*model, Settings())) as base:
        for findings in (judged(httpx.AsyncHTTPTransport(), base=base), judged(InProcessServer(model))):
            assert len(findings) == len(CASES)
            assert {
                name: found.judgement for name, found in findings.items() if found.judgement.verdict != Verdict.honoured
            } == {}
            silent = {name for name, found in findings.items() if not found.exchanges}
            assert silent == {"logit_bias.forces"}  # told by what all cases know of the model


def test_the_cases_have_names_of_their_own_and_need_each_other_in_no_circle() -> None:
    by_name = {case.name: case for case in CASES}
    assert len(by_name) == len(CASES)
    assert {name for case in CASES for name in case.needs} <= by_name.keys()
    settled: set[str] = set()
    while len(settled) < len(by_name):
        free = {name for name in by_name.keys() - settled if settled.issuperset(by_name[name].needs)}
        assert free, by_name.keys() - settled
        settled |= free


def test_every_case_has_a_fault() -> None:
    missing = {case.name for case in CASES} - {fault.case for fault in FAULTS}
    assert missing == {"load.seeded"}  # the same loop as load.greedy


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=label)
def test_a_fault_turns_its_case_red_and_none_that_it_needs(
    model: Model, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    fault.apply(monkeypatch)
    found = judged(InProcessServer(model), closure(fault.case))
    assert found[fault.case].judgement.verdict.is_finding, found[fault.case].judgement
    red = {one.case.param for one in found.values() if one.judgement.verdict.is_finding}
    assert red == {found[fault.case].case.param}
    assert Verdict.refused not in {one.judgement.verdict for one in found.values()}
