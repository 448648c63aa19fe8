"""The table of engines not written here says what the reports say."""

from __future__ import annotations

import peer_table
import pytest

from gnomon.http.verify.cases import CASES


def test_the_table_is_made_from_the_reports() -> None:
    assert peer_table.TABLE.read_text(encoding="utf-8") == peer_table.table()


@pytest.mark.parametrize("peer", peer_table.PEERS, ids=lambda peer: peer.file)
def test_a_report_is_whole_and_of_our_cases(peer: peer_table.Peer) -> None:
    report = peer_table.reports()[peer.file]
    assert (report["schema"], report["ended"]) == ("gnomon-verify-report", None)
    assert [finding["case"] for finding in report["findings"]] == [case.name for case in CASES]
