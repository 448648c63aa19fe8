"""No case of `gnomon verify` accuses a server that keeps the law, whatever its model: every case on every odd model.

What a fault would be is not lost on such models either: where it could be seen, it is not called honoured.
"""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from gnomon.http.app import create_app
from gnomon.http.settings import Settings
from gnomon.http.verify.cases import CASES
from gnomon.http.verify.verdict import Verdict
from helpers.fault_table import FAULTS, closure, label
from helpers.faults import Fault, InProcessServer, judged
from helpers.live import serving
from helpers.odd_models import ODD
from helpers.today import is_todays, share_of_the_day

QUICK = ("ends at once", "no text", "half of a character, whatever the bias", "SentencePiece")
"""Of each kind one: they are run every day, and a sixth of the others."""

NOTHING_TO_SEE = "form that this case cannot read"


@pytest.mark.parametrize("name", share_of_the_day(ODD, days=6, always=QUICK))
def test_no_case_accuses_a_sound_server_of_its_model(tmp_path: Path, name: str) -> None:
    findings = judged(InProcessServer(ODD[name].serve(tmp_path)))
    assert len(findings) == len(CASES)
    accused = {case: found.judgement.reason for case, found in findings.items() if found.judgement.verdict.is_finding}
    assert accused == {}
    refused = [case for case, found in findings.items() if found.judgement.verdict is Verdict.refused]
    assert refused == (["prompt.empty"] if "without an end of text" in name else [])
    odd = {case: found.judgement.reason for case, found in findings.items() if NOTHING_TO_SEE in found.judgement.reason}
    assert odd == {}
    honoured = sum(found.judgement.verdict is Verdict.honoured for found in findings.values())
    assert honoured >= ODD[name].least, {case: found.judgement.reason for case, found in findings.items()}


@pytest.mark.weekly
@pytest.mark.parametrize("salt", [1, 2, 3])
@pytest.mark.parametrize("name", ODD)
def test_no_case_accuses_a_sound_server_of_other_weights(tmp_path: Path, name: str, salt: int) -> None:
    findings = judged(InProcessServer(ODD[name].of(salt).serve(tmp_path)))
    assert {
        case: found.judgement.reason for case, found in findings.items() if found.judgement.verdict.is_finding
    } == {}


@pytest.mark.slow
def test_no_case_accuses_our_own_server_of_a_model_that_ends_at_once(tmp_path: Path) -> None:
    """Over the wire, as whoever asks about such a server does."""
    with serving(create_app(*ODD["ends at once"].serve(tmp_path), Settings())) as base:
        findings = judged(httpx.AsyncHTTPTransport(), base=base)
    assert {
        case: found.judgement.reason for case, found in findings.items() if found.judgement.verdict.is_finding
    } == {}


# ---- a fault is not acquitted

UNSEEN = (
    "values of the place before",  # texts of one token have one place: `echo.scores` sees it
    "another completion with echo",  # a fault that a request with a bias does not have
)


def _faults() -> list[object]:
    rows: list[object] = []
    for name in ("ends at once", "no text", "one token"):
        for i, fault in enumerate(fault for fault in FAULTS if fault.name not in UNSEEN):
            marks = pytest.mark.slow if is_todays(i, days=12) else pytest.mark.weekly
            rows.append(pytest.param(name, fault, id=f"{name}: {label(fault)}", marks=marks))
    return rows


@pytest.mark.parametrize(("name", "fault"), _faults())
def test_a_fault_is_not_acquitted_on_such_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, fault: Fault
) -> None:
    model = ODD[name].serve(tmp_path)
    fault.apply(monkeypatch)
    judgement = judged(InProcessServer(model), closure(fault.case))[fault.case].judgement
    assert judgement.verdict is not Verdict.honoured, judgement.reason
