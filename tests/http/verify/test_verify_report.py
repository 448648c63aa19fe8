"""The report of `gnomon verify` in all its forms, from made-up findings: what it has, counts, and compares."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from gnomon.http.verify.ask.exchange import Exchange
from gnomon.http.verify.ask.probe import Probe
from gnomon.http.verify.ask.safe import KEY_PLACEHOLDER, Secret, escaped, line, plain
from gnomon.http.verify.options import ProfileName
from gnomon.http.verify.report import baseline
from gnomon.http.verify.report.changes import TITLES
from gnomon.http.verify.report.junit import junit
from gnomon.http.verify.report.page import page
from gnomon.http.verify.report.profiles import PROFILES, Documented, documented
from gnomon.http.verify.report.report import (
    Cost,
    Law,
    NoSuchCase,
    Report,
    ReportedFinding,
    Section,
    Table,
    chosen,
    part,
    with_needs,
)
from gnomon.http.verify.report.terminal import list_cases, show_report
from gnomon.http.verify.verdict import Case, Finding, Judgement, Verdict

README = Path(__file__).resolve().parents[3] / "http" / "verify" / "README.md"
NASTY = "a \x1b[31m\x00\ud800\u202e <b>&amp;\"'] ]]> \ufffe end"


async def never(p: Probe) -> Judgement:
    raise AssertionError("no case is judged here")


def made_case(name: str, needs: tuple[str, ...] = (), odds: str = "") -> Case:
    return Case(name, name.split(".")[0], "4.2", f"the sentence of {name}", never, needs, False, odds)


def sent(body: Mapping[str, Any] | bytes, with_key: bool = False) -> Exchange:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    url = "http://server/v1/completions"
    return Exchange("POST", url, content, "application/json", with_key, 200, {}, b"{}", None, 0.5, 7)


def finding(name: str, verdict: Verdict, reason: str = "so it was", **evidence: Any) -> Finding:
    exchanges = () if verdict is Verdict.unclear else (sent({"prompt": name}), sent({"prompt": name, "seed": 1}))
    return Finding(made_case(name, odds="1 in 10,000"), Judgement(verdict, reason, evidence), exchanges, 1.25)


ONE_OF_EACH = tuple(finding(f"{verdict}.case", verdict) for verdict in Verdict)


def made_report(
    *findings: Finding,
    profile: ProfileName | None = None,
    key: str | None = None,
    sections: tuple[Section, ...] = (),
    **more: Any,
) -> Report:
    secret = Secret(key)
    options: dict[str, Any] = {
        "only": [],
        "profile": None if profile is None else str(profile),
        "accept_documented": False,
    }
    options |= {"concurrency": 4, "budget_tokens": 50_000, "timeout": 60, "with_key": key is not None}
    return Report(
        "http://server/v1",
        "a-model",
        "2026-11-26T12:00:00Z",
        Law.read(),
        {**options, **more.pop("options", {})},
        tuple(ReportedFinding.of(one, secret, profile) for one in findings),
        tuple(part(section, secret, profile) for section in sections),
        Cost(12, 3456, 7.8),
        **more,
    )


def printed(report: Report, width: int = 80, verbose: bool = False, **how: Any) -> str:
    out = io.StringIO()
    show_report(report, Console(file=out, width=width, **how), verbose)
    return out.getvalue()


# ---- exit code and totals


@pytest.mark.parametrize("verdict", Verdict)
def test_the_exit_code_is_1_for_ignored_and_wrong_alone(verdict: Verdict) -> None:
    expected = 1 if verdict in ("ignored", "wrong") else 0
    assert made_report(finding("a.b", verdict)).status == expected


def test_a_run_that_did_not_come_to_its_end_is_2_whatever_was_found() -> None:
    assert made_report(*ONE_OF_EACH, ended="the server is gone", not_run=3).status == 2


def test_totals_count_every_verdict_and_the_findings_of_sections() -> None:
    section = Section("Beside", (finding("weights.dtype", Verdict.wrong),))
    totals = made_report(*ONE_OF_EACH, sections=(section,)).totals
    assert totals == {
        "cases": 6,
        "honoured": 1,
        "refused": 1,
        "ignored": 1,
        "wrong": 2,
        "unclear": 1,
        "documented": 0,
        "roots": 3,
        "not_run": 0,
    }


def test_a_finding_of_a_section_alone_makes_the_exit_code_1() -> None:
    section = Section("Beside", (finding("weights.dtype", Verdict.wrong),))
    assert made_report(finding("a.b", Verdict.honoured), sections=(section,)).status == 1


# ---- profiles


def test_a_documented_deviation_keeps_its_verdict_and_is_counted_apart() -> None:
    report = made_report(finding("best_of.returns_the_best", Verdict.ignored), profile=ProfileName.vllm)
    [entry] = report.entries
    assert entry.verdict is Verdict.ignored
    assert entry.documented is not None
    assert entry.documented.profile == "vllm"
    assert report.totals["documented"] == 1
    assert report.totals["ignored"] == 1
    assert report.status == 1


def test_documented_deviations_are_left_out_of_the_exit_code_only_where_that_was_asked_for() -> None:
    known, other = finding("best_of.returns_the_best", Verdict.ignored), finding("seed.differs", Verdict.wrong)
    accept = {"accept_documented": True}
    assert made_report(known, profile=ProfileName.vllm, options=accept).status == 0
    assert made_report(known, other, profile=ProfileName.vllm, options=accept).status == 1
    assert made_report(known, options=accept).status == 1


def test_a_document_about_ignoring_does_not_excuse_a_wrong_answer() -> None:
    assert documented(ProfileName.vllm, "best_of.returns_the_best", Verdict.ignored) is not None
    assert documented(ProfileName.vllm, "best_of.returns_the_best", Verdict.wrong) is None
    assert documented(ProfileName.openai, "best_of.returns_the_best", Verdict.ignored) is None
    assert documented(None, "best_of.returns_the_best", Verdict.ignored) is None


def test_no_profile_speaks_of_what_is_honoured_or_unclear() -> None:
    spoken = {verdict for rows in PROFILES.values() for row in rows for verdict in row.verdicts}
    assert spoken <= {Verdict.refused, Verdict.ignored, Verdict.wrong}
    assert set(PROFILES) == set(ProfileName)


def test_every_entry_of_a_profile_is_for_a_case_that_exists_and_no_case_has_two() -> None:
    from gnomon.http.verify.cases import CASES

    names = {case.name for case in CASES}
    for profile, rows in PROFILES.items():
        listed = [name for row in rows for name in row.cases]
        assert set(listed) <= names, (profile, set(listed) - names)
        assert len(set(listed)) == len(listed), profile
        assert all(row.reason and row.source for row in rows)


# ---- what is fit to be shown


def test_a_key_is_hidden_whole_cut_and_escaped() -> None:
    secret = Secret("sk-ab/cd+ef'gh0123456789")
    for form in ("sk-ab/cd+ef'gh0123456789", "sk-ab\\/cd+ef'gh0123456789", "sk-ab%2Fcd%2Bef%27gh0123456789"):
        assert secret.out_of(f"Bearer {form}!") == f"Bearer {KEY_PLACEHOLDER}!"
    assert secret.out_of("key sk-ab/cd+e…") == f"key {KEY_PLACEHOLDER}…"
    assert secret.out_of("…f'gh0123456789 is wrong") == f"…{KEY_PLACEHOLDER} is wrong"
    assert secret.out_of_bytes(b"\xff sk-ab/cd+ef'gh0123456789") == b"\xff [key]"


def test_a_short_key_is_hidden_as_a_word_and_in_no_other() -> None:
    assert (
        Secret("none").out_of("none of the two, nonetheless: 'none'")
        == f"{KEY_PLACEHOLDER} of the two, nonetheless: '{KEY_PLACEHOLDER}'"
    )
    assert Secret(None).out_of("none") == "none"
    assert Secret("").out_of("none") == "none"


def test_what_a_terminal_would_obey_is_written_as_an_escape() -> None:
    assert escaped("a\x1b[2J\x07\x9b\u202e\ud800\u2028é😀") == "a\\x1b[2J\\x07\\x9b\\u202e\\ud800\\u2028é😀"
    assert escaped("a\tb\nc", keep="\n") == "a\\tb\nc"
    assert line("  two \r\n lines\x1b ", Secret(None)) == "two lines\\x1b"
    assert line("x" * 700, Secret(None)) == "x" * 599 + "…"


def test_any_evidence_is_a_bounded_json_value() -> None:
    deep: Any = "bottom"
    for _ in range(50):
        deep = [deep]
    value = {
        "nan": math.nan,
        "infinite": [math.inf, -math.inf],
        "large": 10**30,
        "bytes": b"\x00",
        "set": {1},
        "named": Documented("a", "b", "c"),
        "long": "x" * 10_000,
        "many": list(range(1000)),
        "members": {str(k): k for k in range(1000)},
        "deep": deep,
        5: None,
        "true": True,
        "object": object,
    }
    shown = plain(value, Secret(None))
    text = json.dumps(shown, allow_nan=False)
    assert len(text) < 10_000
    assert shown["nan"] == "nan"
    assert shown["infinite"] == ["inf", "-inf"]
    assert shown["5"] is None
    assert shown["true"] is True
    assert shown["many"][-1] == "… 900 more"
    assert shown["members"]["…"] == "900 more"


# ---- JSON


def test_the_json_has_the_keys_that_the_readme_lists_and_no_others() -> None:
    text = README.read_text(encoding="utf-8")
    table, of_a_finding = (
        {name for row in re.findall(r"^\| (`.+?) \|", part, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
        for part in text.split("### The JSON")[1].split("## Profiles")[0].split("| key of a finding |")
    )
    value = json.loads(made_report(*ONE_OF_EACH).text())
    assert set(value) == table
    assert all(set(entry) == of_a_finding for entry in value["findings"])
    for name in ("options", "totals", "cost"):
        [row] = re.findall(rf"^\| `{name}` \| (.*) \|$", text, re.MULTILINE)
        assert set(value[name]) == set(re.findall(r"`(\w+)`", row)), name


def test_the_json_says_what_was_judged_by_what_and_at_which_cost() -> None:
    value = json.loads(made_report(*ONE_OF_EACH).text())
    assert (value["schema"], value["version"]) == ("gnomon-verify-report", 1)
    assert value["server"] == {"url": "http://server/v1", "model": "a-model"}
    assert value["cost"] == {"requests": 12, "tokens": 3456, "seconds": 7.8}
    assert re.fullmatch("[0-9a-f]{64}", value["law"]["sha256"])
    assert value["exit_code"] == 1
    wrong = next(entry for entry in value["findings"] if entry["verdict"] == "wrong")
    assert wrong["case"] == "wrong.case"
    assert (wrong["requests"], wrong["tokens"], wrong["seconds"]) == (2, 14, 1.25)
    assert [('"seed"' in command) for command in wrong["curl"]] == [False, True]


def test_the_json_is_ascii_and_sound_whatever_a_server_said() -> None:
    nasty = finding("a.b", Verdict.wrong, NASTY, said=NASTY, number=math.nan, **{"key \x1b": 1})
    text = made_report(nasty).text()
    assert text.isascii()
    assert "\x1b" not in text
    value = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert value["findings"][0]["evidence"]["said"] == NASTY


def test_the_last_different_requests_are_kept_in_their_order() -> None:
    bodies = [{"n": k % 20} for k in range(40)]
    many = Finding(made_case("a.b"), Judgement(Verdict.wrong, "so"), tuple(sent(body) for body in bodies), 1)
    [entry] = made_report(many).entries
    assert [re.findall(r'"n": (\d+)', command) for command in entry.curl] == [[str(k)] for k in range(8, 20)]
    assert entry.requests == 40


# ---- curl


def test_a_curl_line_sends_the_same_bytes_and_has_no_key(tmp_path: Path) -> None:
    for body in (b'{"a": "it\'s $HOME `x` \\\\ !"}', b'{"a": "\xff\x00%s\\"}', '{"a": "é\u202e\x1b"}'.encode()):
        command = sent(body, with_key=True).curl()
        assert escaped(command) == command
        assert command.count("$GNOMON_KEY") == 1
        assert played(command, tmp_path) == body


def test_a_key_that_a_case_sent_on_is_in_no_command() -> None:
    key = "sk-0123456789abcdef"
    judged = Finding(made_case("a.b"), Judgement(Verdict.wrong, "so"), (sent({"prompt": f"said {key}"}),), 1)
    report = made_report(judged, key=key)
    assert key not in report.text() + printed(report) + page(report)
    assert f"said {KEY_PLACEHOLDER}" in report.entries[0].curl[0]


def played(command: str, directory: Path) -> bytes:
    """What a shell would have curl send: curl is a script here that keeps its standard input or its --data-raw."""
    import os
    import subprocess

    script = directory / "curl"
    script.write_text(
        '#!/bin/sh\nwhile [ $# -gt 0 ]; do case "$1" in --data-raw) printf %s "$2"; exit;; '
        "--data-binary) cat; exit;; esac; shift; done\n"
    )
    script.chmod(0o755)
    environment = {**os.environ, "PATH": f"{directory}:{os.environ['PATH']}"}
    return subprocess.run(["bash", "-c", command], env=environment, capture_output=True, check=True).stdout


# ---- terminal


def test_the_terminal_shows_what_departs_in_capitals_with_reason_law_and_command() -> None:
    text = printed(made_report(*ONE_OF_EACH))
    for verdict in ("IGNORED", "WRONG"):
        block = text.split(f"  {verdict}")[1].split("\n\n")[0].splitlines()
        name = f"{verdict.lower()}.case"
        assert block[0].strip() == f"the sentence of {name}"
        assert block[1].strip() == "so it was"
        assert block[2].strip() == f"{name}, law 4.2, One draw; the last of 2 requests"
        assert block[3].strip().startswith("curl -sS http://server/v1/completions ")
        assert '"seed": 1' in block[3]
    assert "HONOURED" not in text
    assert "5 cases: 1 honoured, 1 refused, 1 IGNORED, 1 WRONG, 1 unclear" in text
    assert "12 requests, 3,456 tokens of at most 50,000, 7.8 s" in text


def test_a_command_is_shown_for_what_is_not_honoured_and_for_all_with_verbose() -> None:
    assert printed(made_report(*ONE_OF_EACH)).count("curl ") == 3
    verbose = printed(made_report(*ONE_OF_EACH, finding("more.case", Verdict.honoured, text="seen")), verbose=True)
    assert verbose.count("curl ") == 5
    assert '{"text": "seen"}' in verbose
    assert "1 in 10,000" in verbose


@pytest.mark.parametrize("width", [40, 80, 200])
def test_lines_fit_the_terminal_but_for_commands_and_none_ends_in_spaces(width: int) -> None:
    long = finding("long.case", Verdict.wrong, "many words " * 30)
    lines = printed(made_report(*ONE_OF_EACH, long, sections=(Section("Notes", notes=("a note " * 30,)),)), width)
    for text in lines.splitlines():
        assert len(text) <= width or "curl " in text
        assert not text.endswith(" ")


def test_figures_fit_the_terminal() -> None:
    section = Section("Figures", (), (Table("of", ("name", "value"), (("a", "b" * 200),)),))
    text = printed(made_report(sections=(section,)))
    assert all(len(one) <= 80 for one in text.splitlines())
    assert text.count("b") >= 200


def test_colour_is_for_terminals_and_says_nothing_that_words_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    report = made_report(*ONE_OF_EACH)
    for name in ("NO_COLOR", "FORCE_COLOR", "TERM", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    coloured = printed(report, force_terminal=True, color_system="standard")
    assert "\x1b[" in coloured
    assert "\x1b[" not in printed(report)
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == printed(report)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[31m" not in printed(report, force_terminal=True, color_system="standard")


def test_nothing_that_a_server_said_is_markup_or_obeyed() -> None:
    text = printed(
        made_report(finding("a.b", Verdict.wrong, f"[bold red]{NASTY}[/] :smile:", said=NASTY)), verbose=True
    )
    assert "[bold red]a \\x1b[31m\\x00\\ud800\\u202e" in text
    assert ":smile:" in text
    assert text.isprintable() or set(text) - {"\n"} == {char for char in text if char.isprintable()}


def test_an_interrupted_run_says_so_and_how_many_cases_were_not_run() -> None:
    text = printed(made_report(*ONE_OF_EACH, ended="interrupted", not_run=9))
    assert "9 not run" in text
    assert "The run did not come to its end: interrupted" in text


def test_a_documented_finding_names_the_document_beside_it() -> None:
    report = made_report(finding("best_of.returns_the_best", Verdict.ignored), profile=ProfileName.vllm)
    text = " ".join(printed(report).split())
    assert "documented by vllm: best_of is no longer supported (vLLM documentation, “vLLM V1” user guide" in text
    assert "1 of 1 findings documented by vllm, in the exit code like others" in text


def test_the_list_of_cases_has_sentence_law_needs_and_odds() -> None:
    out = io.StringIO()
    list_cases((made_case("a.b", ("c.d",), "1 in 7"),), Law.read(), Console(file=out, width=120))
    text = " ".join(out.getvalue().split())
    assert (
        "a.b the sentence of a.b law 4.2, One draw; odds against a server that keeps the law: 1 in 7; needs c.d" in text
    )


# ---- JUnit


def test_junit_fails_findings_skips_the_unclear_and_passes_refusals() -> None:
    root = ElementTree.fromstring(junit(made_report(*ONE_OF_EACH)))
    judgements = {case.get("name", "").split(":")[0]: [child.tag for child in case] for case in root.iter("testcase")}
    assert judgements == {
        "honoured.case": [],
        "refused.case": ["system-out"],
        "ignored.case": ["failure"],
        "wrong.case": ["failure"],
        "unclear.case": ["skipped"],
    }
    assert {name: root.get(name) for name in ("tests", "failures", "errors", "skipped")} == {
        "tests": "5",
        "failures": "2",
        "errors": "0",
        "skipped": "1",
    }
    failure = next(root.iter("failure"))
    assert failure.get("message") == "so it was"
    assert "curl -sS" in (failure.text or "")


def test_junit_is_xml_whatever_a_server_said() -> None:
    nasty = finding("a.b", Verdict.wrong, NASTY, said=NASTY)
    section = Section(NASTY, (finding("c.d", Verdict.unclear, NASTY), finding("e.f", Verdict.refused, NASTY)))
    root = ElementTree.fromstring(junit(made_report(nasty, sections=(section,), ended=NASTY)))
    assert "<b>&amp;\"'] ]]>" in str(next(root.iter("failure")).get("message"))
    assert root.get("errors") == "1"


def test_junit_agrees_with_the_exit_code_on_documented_deviations() -> None:
    known = finding("best_of.returns_the_best", Verdict.ignored)
    for accept, tags in ((False, {"failure"}), (True, {"skipped"})):
        report = made_report(known, profile=ProfileName.vllm, options={"accept_documented": accept})
        root = ElementTree.fromstring(junit(report))
        assert {child.tag for case in root.iter("testcase") for child in case} == tags
        assert bool(int(root.get("failures", ""))) == bool(report.status)


# ---- HTML


class Read(HTMLParser):
    """Checks that every element that is opened is closed, and keeps the text."""

    EMPTY = ("meta", "input", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def read(text: str) -> Read:
    parser = Read()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    return parser


def test_the_page_has_every_case_with_its_sentence_reason_law_and_command() -> None:
    text = " ".join("".join(read(page(made_report(*ONE_OF_EACH))).words).split())
    for verdict in Verdict:
        assert f"the sentence of {verdict}.case" in text
    assert text.count("so it was") == 5
    assert text.count("4.2, One draw") == 5
    assert text.count("curl -sS http://server/v1/completions") == 8
    assert "12 requests · 3,456 tokens" in text


def test_the_page_has_no_script_fetches_nothing_and_escapes_everything() -> None:
    nasty = f"</pre></details><script>alert(1)</script><img src=x onerror=alert(1)>{NASTY}"
    section = Section(nasty, (finding("c.d", Verdict.wrong, nasty),), (Table(nasty, (nasty,), ((nasty,),)),), (nasty,))
    report = made_report(
        finding("a.b", Verdict.wrong, nasty, **{nasty: nasty}),
        sections=(section,),
        ended=nasty,
        options={"profile": nasty},
    )
    report = replace(report, url=nasty, model=nasty)
    parsed = read(page(report))
    assert not {"script", "img", "link", "iframe", "object", "b>"} & set(parsed.seen)
    assert "alert(1)" in "".join(parsed.words)
    page(report).encode("utf-8")  # no lone surrogate is left
    assert not re.search(r"(src|href)=|url\(|@import", page(report).replace("&lt;img src=x", ""))


def test_the_page_is_whole_for_no_cases_and_for_many() -> None:
    assert "0 cases" in "".join(read(page(made_report())).words)
    many = [finding(f"group{k % 7}.case{k}", list(Verdict)[k % 5]) for k in range(400)]
    assert read(page(made_report(*many))).seen.count("details") >= 400


# ---- sections


def test_a_section_is_in_every_form() -> None:
    section = Section(
        "Against the weights",
        (finding("weights.dtype", Verdict.wrong, "0.02 off"),),
        (Table("Deviation", ("place", "most"), (("0", "0.0213"),)),),
        ("The reference ran the same requests.",),
    )
    report = made_report(finding("a.b", Verdict.honoured), sections=(section,))
    [value] = json.loads(report.text())["sections"]
    assert value["title"] == "Against the weights"
    assert value["findings"][0]["case"] == "weights.dtype"
    assert value["tables"] == [{"title": "Deviation", "header": ["place", "most"], "rows": [["0", "0.0213"]]}]
    for text in (printed(report), "".join(read(page(report)).words)):
        for word in ("Against the weights", "0.02 off", "0.0213", "The reference ran the same requests."):
            assert word in text
    names = [suite.get("name") for suite in ElementTree.fromstring(junit(report)).iter("testsuite")]
    assert names == ["a", "Against the weights"]


# ---- which cases


CASES = (
    made_case("a.first"),
    made_case("a.second", ("a.first",)),
    made_case("b.third", ("a.second", "not.there")),
    made_case("c.fourth"),
)


def test_only_takes_groups_parameters_and_names_in_the_order_of_all() -> None:
    assert [case.name for case in chosen(CASES, ("c", "a.second"))] == ["a.second", "c.fourth"]
    assert chosen(CASES, ()) == CASES
    with pytest.raises(NoSuchCase, match="'x' is no group or case; there are: a, b, c"):
        chosen(CASES, ("a", "x"))


def test_what_a_case_needs_is_run_too_and_what_that_needs() -> None:
    assert [case.name for case in with_needs(CASES[2:3], CASES)] == ["a.first", "a.second", "b.third"]


# ---- baseline


def kept(report: Report, path: Path) -> baseline.Earlier:
    path.write_text(report.text())
    return baseline.read_report(str(path))


def test_a_baseline_tells_new_findings_from_mended_ones_and_other_changes(tmp_path: Path) -> None:
    honoured, wrong, unclear = Verdict.honoured, Verdict.wrong, Verdict.unclear
    before = made_report(
        finding("a.broke", honoured),
        finding("b.mended", wrong),
        finding("c.same", wrong),
        finding("d.unclear_now", Verdict.ignored),
        finding("e.refused_now", honoured),
        finding("f.gone", wrong),
        finding("g.ignored_then_wrong", Verdict.ignored),
    )
    now = made_report(
        finding("a.broke", wrong, "no more"),
        finding("b.mended", honoured),
        finding("c.same", wrong),
        finding("d.unclear_now", unclear),
        finding("e.refused_now", Verdict.refused),
        finding("g.ignored_then_wrong", wrong),
        finding("h.added", wrong),
    )
    changes = baseline.changes_since(kept(before, tmp_path / "r.json"), now, [entry.case for entry in now.entries])
    names = {kind: [change.case for change in getattr(changes, kind)] for kind in TITLES}
    assert names == {
        "new_findings": ["a.broke"],
        "mended": ["b.mended"],
        "changed": ["d.unclear_now", "e.refused_now", "g.ignored_then_wrong"],
        "added": ["h.added"],
        "gone": ["f.gone"],
    }
    assert changes.notes == ()
    compared = replace(now, changes=changes)
    value = json.loads(compared.text())["changes"]
    assert value["new_findings"] == [{"case": "a.broke", "before": "honoured", "now": "wrong", "reason": "no more"}]
    for text in (" ".join(printed(compared).split()), " ".join("".join(read(page(compared)).words).split())):
        for words in ("new findings: 1", "mended: 1", "other changes of the verdict: 3", "honoured → wrong: no more"):
            assert words in text


def test_a_report_of_a_report_with_itself_says_that_nothing_changed(tmp_path: Path) -> None:
    report = made_report(*ONE_OF_EACH)
    changes = baseline.changes_since(kept(report, tmp_path / "r.json"), report, [])
    assert not changes.any
    assert "no verdict has changed" in printed(replace(report, changes=changes))


def test_a_restricted_run_does_not_miss_what_it_was_not_to_judge(tmp_path: Path) -> None:
    earlier = kept(made_report(finding("a.b", Verdict.wrong), finding("c.d", Verdict.wrong)), tmp_path / "r.json")
    now = made_report(finding("a.b", Verdict.wrong), options={"only": ["a"]})
    assert not baseline.changes_since(earlier, now, ["a.b"]).any
    lost = made_report(options={"only": ["a"]}, ended="gone", not_run=1)
    assert [change.case for change in baseline.changes_since(earlier, lost, ["a.b"]).gone] == ["a.b"]


def test_a_comparison_says_what_else_differs(tmp_path: Path) -> None:
    report = made_report(*ONE_OF_EACH)
    earlier = kept(replace(report, url="http://other/v1", model="b", ended="interrupted"), tmp_path / "r.json")
    notes = baseline.changes_since(earlier, report, []).notes
    assert notes == (
        "the server's address was http://other/v1, and is http://server/v1",
        "the model was b, and is a-model",
        "the earlier run did not come to its end",
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is no JSON"),
        (b"\xff\xfe", "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b"[]", "is no report of gnomon verify"),
        (b'{"schema": "other"}', "is no report of gnomon verify"),
        (b'{"schema": "gnomon-verify-report", "version": 99}', "a report of version 99; this gnomon reads 1"),
        (b'{"schema": "gnomon-verify-report", "version": 1}', "a damaged report"),
        (b'{"schema": "gnomon-verify-report", "version": 1, "findings": 5, "sections": []}', "a damaged report"),
        (
            b'{"schema": "gnomon-verify-report", "version": 1, "sections": [], '
            b'"findings": [{"case": "a", "verdict": "fine", "reason": ""}]}',
            "a damaged report",
        ),
    ],
)
def test_a_file_that_is_no_report_is_refused_with_the_reason(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(content)
    with pytest.raises(baseline.NoReport, match=re.escape(words)):
        baseline.read_report(str(path))


def test_a_baseline_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(baseline.NoReport, match="No such file"):
        baseline.read_report(str(tmp_path / "none.json"))
    with pytest.raises(baseline.NoReport, match="Is a directory"):
        baseline.read_report(str(tmp_path))
