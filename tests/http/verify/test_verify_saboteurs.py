"""A mistake in a server turns cases of one parameter red, and no other: breaks against every case.

That each break is found at all is the default run's business (test_verify_cases.py, test_verify_logprobs.py).
"""

from __future__ import annotations

from typing import Any

import pytest
import test_verify_cases
import test_verify_logprobs

from gnomon.http.verify.cases import CASES
from gnomon.http.verify.verdict import Verdict
from helpers.saboteurs import Break, Model, Wireless, judged, small_model

BREAKS = (*test_verify_cases.BREAKS, *test_verify_logprobs.BREAKS)
PARAM = {case.name: case.param for case in CASES}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return small_model(tmp_path_factory.mktemp("tokenizer"))


def test_the_cases_have_names_of_their_own_and_need_each_other_in_no_circle() -> None:
    by_name = {case.name: case for case in CASES}
    assert len(by_name) == len(CASES)
    assert {name for case in CASES for name in case.needs} <= by_name.keys()
    settled: set[str] = set()
    while len(settled) < len(by_name):
        free = {name for name in by_name.keys() - settled if settled.issuperset(by_name[name].needs)}
        assert free, by_name.keys() - settled
        settled |= free


def _parameters() -> list[Any]:
    """Every fifth is in CI's slice; all of them are the long run."""
    return [
        pytest.param(broken, id=f"{broken.red}: {broken.name}", marks=pytest.mark.weekly if i % 5 else pytest.mark.slow)
        for i, broken in enumerate(BREAKS)
    ]


@pytest.mark.parametrize("broken", _parameters())
def test_a_break_is_blamed_on_its_own_parameter(model: Model, monkeypatch: pytest.MonkeyPatch, broken: Break) -> None:
    broken.make(monkeypatch)
    findings = judged(Wireless(model))
    red = {name: found.outcome.reason for name, found in findings.items() if found.outcome.verdict.is_finding}
    assert broken.red in red, findings[broken.red].outcome
    assert {PARAM[name] for name in red} == {PARAM[broken.red]}, red
    assert Verdict.refused not in {found.outcome.verdict for found in findings.values()}
