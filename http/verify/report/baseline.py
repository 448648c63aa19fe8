"""A report held against an earlier one of the same server, case by case: `gnomon verify URL --baseline FILE`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gnomon.http.verify.ask.safe import Secret, line
from gnomon.http.verify.options import file_name
from gnomon.http.verify.report.changes import Change, Changes
from gnomon.http.verify.report.report import REPORT_VERSION, SCHEMA, Report
from gnomon.http.verify.verdict import Verdict
from gnomon.reference.system.files import read_regular

MOST_REPORT_BYTES = 64 * 2**20


class NoReport(Exception):
    """A file that is no report of ours; the words are for the user."""


class Earlier(NamedTuple):
    """What is read of an earlier report."""

    file: str
    value: Mapping[str, Any]
    verdicts: Mapping[str, Verdict]
    reasons: Mapping[str, str]


def read_report(file: str) -> Earlier:
    """Raises NoReport."""
    path, file = Path(file), file_name(file)
    try:
        value = json.loads(read_regular(path, MOST_REPORT_BYTES))
    except OSError as error:
        raise NoReport(f"--baseline: {file!r}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise NoReport(f"--baseline: {file!r} is no JSON; give a file that --json has written") from None
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        raise NoReport(f"--baseline: {file!r} is no report of gnomon verify; give a file that --json has written")
    if value.get("version") != REPORT_VERSION:
        raise NoReport(
            f"--baseline: {file!r} is a report of version {value.get('version')!r:.20}; "
            f"this gnomon reads {REPORT_VERSION}"
        )
    try:
        found = [*value["findings"], *(entry for section in value["sections"] for entry in section["findings"])]
        verdicts = {str(entry["case"]): Verdict(entry["verdict"]) for entry in found}
        reasons = {str(entry["case"]): line(str(entry["reason"]), Secret(None)) for entry in found}
    except (KeyError, TypeError, ValueError):
        raise NoReport(f"--baseline: {file!r} is a damaged report: its findings cannot be read") from None
    return Earlier(file, value, verdicts, reasons)


def changes_since(earlier: Earlier, report: Report, chosen: Sequence[str]) -> Changes:
    """chosen: names of the cases that this run was to judge; others of the earlier report are left out of account if
    this run was restricted to some."""
    now = {entry.case: entry for entry in report.all_entries}
    new_findings, mended, changed, added = [], [], [], []
    for name, entry in now.items():
        before = earlier.verdicts.get(name)
        change = Change(name, None if before is None else str(before), str(entry.verdict), entry.reason)
        if before is None:
            added.append(change)
        elif entry.is_finding and not before.is_finding:
            new_findings.append(change)
        elif before.is_finding and entry.verdict in (Verdict.honoured, Verdict.refused):
            mended.append(change)
        elif before is not entry.verdict:
            changed.append(change)
    gone = [
        Change(name, str(verdict), None, earlier.reasons[name])
        for name, verdict in earlier.verdicts.items()
        if name not in now and not (report.options.get("only") and name not in chosen)
    ]
    date = line(str(earlier.value.get("date")), Secret(None), 40)
    return Changes(
        line(earlier.file, Secret(None)),
        date,
        _notes(earlier.value, report),
        *(tuple(kind) for kind in (new_findings, mended, changed, added, gone)),
    )


def _notes(value: Mapping[str, Any], report: Report) -> tuple[str, ...]:
    def of(*path: str) -> str:
        at: Any = value
        for name in path:
            at = at.get(name) if isinstance(at, dict) else None
        return line(str(at), Secret(None), 200)

    pairs = (
        ("the server's address", of("server", "url"), report.url),
        ("the model", of("server", "model"), report.model),
        ("gnomon", of("gnomon"), report.gnomon),
        ("the law's text", of("law", "sha256")[:12], report.law.sha256[:12]),
    )
    notes = [f"{what} was {before}, and is {now}" for what, before, now in pairs if before != now]
    if value.get("ended") is not None:
        notes.append("the earlier run did not come to its end")
    return tuple(notes)
