"""Which findings are folded under which: by what a case declares and what was seen, and no finding is lost."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from rich.console import Console

from gnomon.http.verify.ask.safe import Secret
from gnomon.http.verify.cases import CASES
from gnomon.http.verify.report.junit import junit
from gnomon.http.verify.report.page import page
from gnomon.http.verify.report.report import Cost, Law, Report, ReportedFinding, Section, Table, part, with_needs
from gnomon.http.verify.report.terminal import show_report
from gnomon.http.verify.roots import rooted
from gnomon.http.verify.verdict import Case, Finding, Judgement, SharedFault, Verdict
from helpers.browser import chromium
from helpers.faults import InProcessServer, Model, Patch, body, judged

BY_NAME = {case.name: case for case in CASES}
IGNORED, WRONG, UNCLEAR, HONOURED = Verdict.ignored, Verdict.wrong, Verdict.unclear, Verdict.honoured


def one(name: str, verdict: Verdict, fault: SharedFault | None = None, lacks: str | None = None) -> Finding:
    case = BY_NAME.get(name) or Case(name, "a", "1", f"the sentence of {name}", None)  # type: ignore[arg-type]
    return Finding(case, Judgement(verdict, f"reason of {name}", {}, fault), (), 0.0, lacks)


def roots(*findings: Finding) -> dict[str, str | None]:
    return {found.case.name: found.root for found in rooted(findings)}


def made_report(findings: Sequence[Finding], sections: Sequence[Section] = ()) -> Report:
    secret = Secret(None)
    entries = tuple(ReportedFinding.of(found, secret, None) for found in rooted(findings))
    parts = tuple(part(section, secret, None) for section in sections)
    return Report("http://server/v1", "m", "2026-11-29T12:00:00Z", Law.read(), {}, entries, parts, Cost(1, 2, 3.0))


def printed(report: Report, width: int = 80, **how: bool) -> str:
    out = io.StringIO()
    show_report(report, Console(file=out, width=width), **how)
    return out.getvalue()


# ---- the rules


def test_what_a_case_follows_exists_and_follows_nothing_itself() -> None:
    followed = {case.follows for case in CASES if case.follows}
    assert followed <= BY_NAME.keys()
    assert all(BY_NAME[name].follows == "" for name in followed)
    assert all(BY_NAME[case.follows].param == case.param for case in CASES if case.follows)


def test_a_field_that_is_ignored_explains_that_it_takes_any_value() -> None:
    found = roots(one("n.count", IGNORED), one("n.range", IGNORED, SharedFault.no_bounds), one("n.type", WRONG))
    assert found == {"n.count": None, "n.range": "n.count", "n.type": None}


@pytest.mark.parametrize("verdict", [HONOURED, WRONG, UNCLEAR, Verdict.refused])
def test_nothing_is_folded_under_a_case_that_does_not_say_ignored(verdict: Verdict) -> None:
    assert roots(one("n.count", verdict), one("n.range", IGNORED))["n.range"] is None


@pytest.mark.parametrize("fault", SharedFault)
def test_a_fault_is_folded_only_where_as_many_cases_see_it_as_it_takes(fault: SharedFault) -> None:
    names = [f"case.{k}" for k in range(fault.least)]
    few = roots(*(one(name, WRONG, fault) for name in names[1:]))
    assert set(few.values()) == {None}
    enough = roots(*(one(name, WRONG, fault) for name in names))
    assert enough == {names[0]: None, **dict.fromkeys(names[1:], names[0])}


def test_findings_of_two_faults_are_not_mixed() -> None:
    lax = [one(f"lax.{k}", IGNORED, SharedFault.lax_types) for k in range(4)]
    server = [one(f"server.{k}", WRONG, SharedFault.server_error) for k in range(3)]
    other = [one("other.a", WRONG)]
    found = roots(*lax, *server, *other)
    assert [name for name, root in found.items() if root is None] == ["lax.0", "server.0", "other.a"]
    assert all((root or name).split(".")[0] == name.split(".")[0] for name, root in found.items())


def test_a_case_that_cannot_be_told_follows_the_last_of_what_it_needs() -> None:
    found = roots(
        one("echo.text", IGNORED), one("a.b", UNCLEAR, lacks="echo.text"), one("c.d", UNCLEAR, lacks="a.b"),
        one("e.f", UNCLEAR), one("g.h", UNCLEAR, lacks="e.f"),
    )  # fmt: skip
    assert found == {"echo.text": None, "a.b": "echo.text", "c.d": "echo.text", "e.f": None, "g.h": "e.f"}


# ---- on a server


def test_a_server_that_ignores_echo_has_one_root_and_all_else_follows(model: Model, monkeypatch: Patch) -> None:
    body(lambda sent: {name: value for name, value in sent.items() if name != "echo"})(monkeypatch)
    about_echo = [case for case in CASES if "echo.text" in {needed.name for needed in with_needs([case], CASES)}]
    about_echo += [case for case in CASES if case.follows == "echo.text"]
    findings = list(judged(InProcessServer(model), with_needs(about_echo, CASES)).values())
    report = made_report(findings)
    [root] = report.roots
    assert root.entry.case == "echo.text"
    assert {entry.case for entry in root.also} == {"echo.type", "echo.lengths"}
    assert len(root.untold) >= 15
    assert {entry.root for entry in report.untold} == {"echo.text"}


# ---- in the reports


MIXED = (
    one("n.count", IGNORED), one("n.range", IGNORED), one("n.type", IGNORED),
    *(one(f"lax.{k}", IGNORED, SharedFault.lax_types) for k in range(5)),
    *(one(f"needs.{k}", UNCLEAR, lacks="n.count") for k in range(7)),
    one("own.reason", UNCLEAR), one("kept.a", HONOURED), one("alone.a", WRONG),
)  # fmt: skip
TABLES = (
    Table("Log-probabilities", ("what", "values", "max", "mean", "top in common"),
          tuple((name, "1,234", "1.2e-05", "2.4e-06", "100.0%") for name in ("greedy", "temperature"))),
    Table("Where they are off most", ("what", "at", "server", "reference"),
          (("temperature", "letters beyond ASCII echoed, place 16, 'U' and a word", "-3.353634", "-17.527056"),)),
)  # fmt: skip


def test_no_finding_is_lost_or_told_twice() -> None:
    report = made_report(MIXED)
    told = [entry.case for root in report.roots for entry in (root.entry, *root.also)]
    assert sorted(told) == sorted(entry.case for entry in report.entries if entry.is_finding)
    assert [root.entry.case for root in report.roots] == ["n.count", "lax.0", "alone.a"]
    assert (report.totals["roots"], report.totals["ignored"], report.totals["wrong"]) == (3, 8, 1)


def test_a_root_that_is_not_in_the_report_hides_nothing() -> None:
    """As with --only n.range, where n.count is run for it and not reported."""
    report = made_report(MIXED)
    some = [entry for entry in report.entries if entry.case in ("n.range", "needs.1")]

    alone = replace(report, entries=tuple(some))
    assert [root.entry.case for root in alone.roots] == ["n.range"]
    assert alone.untold_by_reason() == [("reason of needs.1", [some[1]])]


def test_the_terminal_shows_roots_with_the_names_of_what_follows_and_counts_the_unclear() -> None:
    text = printed(made_report(MIXED))
    assert "findings  9, of 3 root causes" in text
    assert "also 2 findings that follow: n.range, n.type" in text
    assert "also 4 findings for the same reason (a value of another type is" in text
    assert "and 7 cases cannot be told for it" in text
    assert "unclear  8 cases cannot be told; --verbose shows them" in text
    words = " ".join(text.split())
    assert f"7 since “{BY_NAME['n.count'].says}” is ignored: n.count 1 reason of own.reason" in words
    assert "reason of n.range" not in text
    assert "reason of needs.3" not in text


def test_verbose_shows_what_is_folded_and_what_is_unclear_one_by_one() -> None:
    text = printed(made_report(MIXED), verbose=True)
    for found in MIXED:
        assert f"reason of {found.case.name}" in text, found.case.name


def test_findings_alone_are_shown_where_that_is_asked_for() -> None:
    section = Section("Beside", (one("weights.a", WRONG), one("weights.b", HONOURED)), TABLES)
    text = printed(made_report(MIXED, (section,)), findings=True)
    assert "reason of weights.a" in text
    assert "reason of alone.a" in text
    for absent in ("weights.b", "kept.a", "since “", "Where they are off most"):
        assert absent not in text
    assert "20 cases: 2 honoured, 8 IGNORED, 2 WRONG, 8 unclear" in " ".join(text.split())


def test_json_and_junit_have_every_finding_and_json_its_root() -> None:
    report = made_report(MIXED)
    value = json.loads(report.text())
    by_case = {entry["case"]: entry for entry in value["findings"]}
    assert by_case["n.range"]["root"] == by_case["needs.0"]["root"] == "n.count"
    assert by_case["lax.3"]["fault"] == "a value of another type is accepted"
    assert by_case["alone.a"]["root"] is None
    assert len(by_case) == len(MIXED)
    assert value["exit_code"] == 1
    assert junit(report).count(b"<failure") == 9


def test_tables_of_figures_fit_80_columns_without_breaking_a_number_or_a_name() -> None:
    text = printed(made_report((), (Section("With the weights", (), TABLES),)))
    assert all(len(row) <= 80 for row in text.splitlines())
    for word in ("temperature", "-17.527056", "2.4e-06", "1,234", "100.0%"):
        assert word in text


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_does_not_scroll_sideways_at_390_pixels(scheme: Literal["light", "dark"], tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(page(made_report(MIXED, (Section("With the weights", (one("weights.a", WRONG),), TABLES),))))
    with chromium() as browser:
        for width in (390, 1200):
            window = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
            window.goto(file.as_uri())
            window.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
            assert window.evaluate("document.documentElement.scrollWidth") == width
            inner = (
                "[...document.querySelectorAll('.figures, table')].filter(e => e.scrollWidth > e.clientWidth).length"
            )
            assert window.evaluate(inner) == 0
