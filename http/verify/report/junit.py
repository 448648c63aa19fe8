"""The report as JUnit XML, for what collects test results: a suite a group, a case a case.

A finding is a failure; what cannot be told is skipped, and so is a documented deviation that was accepted; what was
refused has passed, with the refusal as its output. A run that did not come to its end has an error of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from xml.etree import ElementTree

from gnomon.http.verify.report.report import Report, ReportedFinding, by_group
from gnomon.http.verify.verdict import Verdict

NOT_IN_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What no XML document can have, not even escaped."""


def junit(report: Report) -> bytes:
    root = ElementTree.Element("testsuites", name="gnomon verify", time=f"{report.cost.seconds:.3f}")
    for group, entries in by_group(report.entries).items():
        _suite(root, report, group, entries)
    for part in report.parts:
        _suite(root, report, part.title, part.entries)
    if report.ended is not None:
        suite = ElementTree.SubElement(root, "testsuite", name="run", tests="1", failures="0", errors="1", skipped="0")
        case = ElementTree.SubElement(suite, "testcase", classname="gnomon.verify.run", name="comes to its end")
        message = _legal(report.ended)
        ElementTree.SubElement(case, "error", message=message).text = f"{message}\n{report.not_run} cases were not run"
    counts = {
        name: sum(int(suite.get(name, "0")) for suite in root) for name in ("tests", "failures", "errors", "skipped")
    }
    for name, count in counts.items():
        root.set(name, str(count))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n"


def _suite(root: ElementTree.Element, report: Report, name: str, entries: Sequence[ReportedFinding]) -> None:
    if not entries:
        return
    failures = sum(report.counts(entry) for entry in entries)
    skipped = sum(
        entry.verdict is Verdict.unclear or (entry.is_finding and not report.counts(entry)) for entry in entries
    )
    suite = ElementTree.SubElement(
        root,
        "testsuite",
        name=_legal(name),
        tests=str(len(entries)),
        failures=str(failures),
        errors="0",
        skipped=str(skipped),
        time=f"{sum(entry.seconds for entry in entries):.3f}",
        timestamp=report.date.removesuffix("Z"),
        hostname=_legal(report.url),
    )
    for entry in entries:
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname=f"gnomon.verify.{_legal(entry.group)}",
            name=_legal(f"{entry.case}: {entry.says}"),
            time=f"{entry.seconds:.3f}",
        )
        _judgement(case, report, entry)


def _judgement(case: ElementTree.Element, report: Report, entry: ReportedFinding) -> None:
    reason = _legal(entry.reason)
    if report.counts(entry):
        failure = ElementTree.SubElement(case, "failure", type=str(entry.verdict), message=reason)
        failure.text = _legal(_details(report, entry))
    elif entry.is_finding and entry.documented is not None:
        why = f"{entry.verdict}, documented by {entry.documented.profile}: {entry.documented.reason}; {reason}"
        ElementTree.SubElement(case, "skipped", message=_legal(why))
    elif entry.verdict is Verdict.unclear:
        ElementTree.SubElement(case, "skipped", message=reason)
    elif entry.verdict is Verdict.refused:
        ElementTree.SubElement(case, "system-out").text = f"refused: {reason}"


def _details(report: Report, entry: ReportedFinding) -> str:
    lines = [f"{entry.verdict}: {entry.reason}", f"law: {report.law.section(entry.law)}"]
    if entry.documented is not None:
        lines.append(f"documented: {entry.documented.reason} ({entry.documented.source})")
    if entry.evidence:
        lines.append(f"evidence: {json.dumps(entry.evidence)}")
    return "\n".join([*lines, *entry.curl[-1:]])


def _legal(text: str) -> str:
    return NOT_IN_XML.sub("", text)
