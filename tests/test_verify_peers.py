"""The table of engines not written here says what the reports say."""

from __future__ import annotations

import peer_run
import peer_table
import pytest

from gnomon.http.verify.cases import CASES

NEWER = {"body.all_unknown_fields", "body.null_is_absent", "stream_options.unknown", "errors.context_length"}
"""Cases that were written after the engines were asked: they have no verdict until these are asked again."""


def test_the_table_is_made_from_the_reports() -> None:
    assert peer_table.TABLE.read_text(encoding="utf-8") == peer_table.table()


@pytest.mark.parametrize("peer", peer_table.PEERS, ids=lambda peer: peer.file)
def test_a_report_is_whole_and_of_our_cases(peer: peer_table.Peer) -> None:
    report = peer_table.reports()[peer.file]
    assert (report["schema"], report["ended"]) == ("gnomon-verify-report", None)
    assert [finding["case"] for finding in report["findings"]] == [
        case.name for case in CASES if case.name not in NEWER
    ]


def test_every_engine_of_the_table_can_be_run_again() -> None:
    assert list(peer_run.ENGINES) == [peer.file for peer in peer_table.PEERS]


@pytest.mark.peers
@pytest.mark.parametrize("name", peer_run.ENGINES)
def test_the_engine_of_that_version_is_judged_as_its_stored_report_says(name: str) -> None:
    if not peer_run.SCRIPTS.is_dir():
        pytest.skip(f"no scripts to start the engines in {peer_run.SCRIPTS}; set GNOMON_PEER_SCRIPTS")
    assert peer_run.differences(peer_table.reports()[name], peer_run.judged(name)) == []
