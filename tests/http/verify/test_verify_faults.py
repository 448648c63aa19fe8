"""A fault of a server turns cases of one parameter red, and no other: faults against every case.

All of them are a `weekly` run (eight minutes). A tenth is a `slow` one: that of the day (helpers/today.py), and always
those whose case stands in a file that was touched.
That each fault is found at all is the default run's business: test_verify_cases.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gnomon.http.verify.cases import CASES
from gnomon.http.verify.verdict import Verdict
from helpers.fault_table import DAYS, FAULTS, MOST, chosen, file_of, label
from helpers.faults import Fault, InProcessServer, Model, judged
from helpers.today import DAY, TOUCHED

ROOT = Path(__file__).parents[3]
PARAM = {case.name: case.param for case in CASES}
TODAY = chosen(DAY, TOUCHED)


def _rows() -> list[Any]:
    marks = [pytest.mark.slow if fault in TODAY else pytest.mark.weekly for fault in FAULTS]
    return [pytest.param(fault, id=label(fault), marks=mark) for fault, mark in zip(FAULTS, marks, strict=True)]


def test_the_tenths_of_ten_days_are_all_faults_each_once() -> None:
    days = [chosen(day, ()) for day in range(DAYS)]
    assert sorted(label(fault) for some in days for fault in some) == sorted(map(label, FAULTS))
    assert chosen(DAYS, ()) == days[0]


def test_a_touched_file_of_cases_chooses_all_its_faults() -> None:
    assert all((ROOT / file_of(fault)).is_file() for fault in FAULTS)
    echo = "http/verify/cases/echo.py"
    more = [fault for fault in chosen(3, {echo, "http/app.py"}) if fault not in chosen(3, ())]
    assert more
    assert {file_of(fault) for fault in more} == {echo}
    assert {fault.case for fault in FAULTS if file_of(fault) == echo} == {
        case.name for case in CASES if case.name.startswith("echo.") and case.judge.__module__.endswith("cases.echo")
    }


def test_a_change_of_every_file_chooses_no_more_than_a_days_run_has_time_for() -> None:
    everything = {file_of(fault) for fault in FAULTS}
    assert all(len(chosen(day, everything)) == MOST for day in range(DAYS))
    assert set(map(label, chosen(4, ()))) <= set(map(label, chosen(4, everything)))


@pytest.mark.parametrize("fault", _rows())
def test_a_fault_is_blamed_on_its_own_parameter(model: Model, monkeypatch: pytest.MonkeyPatch, fault: Fault) -> None:
    fault.apply(monkeypatch)
    findings = judged(InProcessServer(model))
    red = {name: found.judgement.reason for name, found in findings.items() if found.judgement.verdict.is_finding}
    assert fault.case in red, findings[fault.case].judgement
    assert {PARAM[name] for name in red} == {PARAM[fault.case]}, red
    assert Verdict.refused not in {found.judgement.verdict for found in findings.values()}
