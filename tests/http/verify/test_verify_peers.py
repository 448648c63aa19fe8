"""The table of engines not written here says what the reports say."""

from __future__ import annotations

import peer_run
import peer_table
import pytest

from gnomon.http.verify.cases import CASES
from gnomon.jax_engine.tools.peers import SCRIPTS


def test_the_table_is_made_from_the_reports() -> None:
    assert peer_table.TABLE.read_text(encoding="utf-8") == peer_table.table()


@pytest.mark.parametrize("peer", peer_table.PEERS, ids=lambda peer: peer.file)
def test_a_report_is_whole_and_of_our_cases(peer: peer_table.Peer) -> None:
    report = peer_table.reports()[peer.file]
    assert (report["schema"], report["ended"]) == ("gnomon-verify-report", None)
    asked = [case.name for case in CASES if case.name not in peer_table.LATER]
    assert [finding["case"] for finding in report["findings"]] == asked


def test_a_case_that_is_said_to_be_younger_than_the_reports_is_one_of_ours() -> None:
    assert set(peer_table.LATER) <= {case.name for case in CASES}


def test_every_engine_of_the_table_can_be_run_again() -> None:
    assert list(peer_run.ENGINES) == [peer.file for peer in peer_table.PEERS]


@pytest.mark.weekly
@pytest.mark.parametrize("name", peer_run.ENGINES)
def test_the_engine_of_that_version_is_judged_as_its_stored_report_says(name: str) -> None:
    if not SCRIPTS.is_dir():
        pytest.skip(f"no scripts to start the engines in {SCRIPTS}; set GNOMON_PEER_SCRIPTS")
    assert peer_run.differences(peer_table.reports()[name], peer_run.judged(name)) == []
