"""The report of a run as plain values: what is printed, written as JSON, JUnit XML or HTML, and compared later.

Everything that came from the server passes `safe` on its way in, so no form of the report has the key, or has anything
that a terminal would obey; each form still escapes for itself. The JSON's form is described in README.md beside this
file; `VERSION` grows when a reader of it could be misled.

    Section   a part of the report that others make: `--reference`, `--golden`; its findings count like all others
    Entry     one finding                        Root      one that follows from no other, with those that follow
    Report    all of it
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from typing import Any, NamedTuple, Protocol

from gnomon.http.verify.ask.probe import Subject
from gnomon.http.verify.ask.safe import Secret, escaped, line, plain
from gnomon.http.verify.options import ProfileName
from gnomon.http.verify.report.changes import Changes
from gnomon.http.verify.report.profiles import Documented, documented
from gnomon.http.verify.verdict import Case, Finding, Verdict

SCHEMA = "gnomon-verify-report"
REPORT_VERSION = 1
MOST_CURL = 12


class Table(NamedTuple):
    """Figures of a section."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class Section(NamedTuple):
    """What another way of judging found, beside the cases."""

    title: str
    findings: tuple[Finding, ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()


class MakeSection(Protocol):
    """Asks the server after all cases. Raises what a case may raise; its findings are made with `verdict.Finding`."""

    async def __call__(self, subject: Subject, /) -> Section: ...


@dataclass(frozen=True, slots=True)
class ReportedFinding:
    """One finding, fit to be shown. curl: what was sent, in order; the last one shows the matter · root: the case
    whose fault it shows, if that is another one · fault: what that is, where several cases can see it."""

    case: str
    group: str
    param: str
    law: str
    says: str
    odds: str
    verdict: Verdict
    reason: str
    evidence: Any
    root: str | None
    fault: str | None
    documented: Documented | None
    curl: tuple[str, ...]
    requests: int
    tokens: int
    seconds: float

    @classmethod
    def of(cls, finding: Finding, secret: Secret, profile: ProfileName | None) -> ReportedFinding:
        case, judgement = finding.case, finding.judgement
        lines = list(dict.fromkeys(reversed([exchange.curl() for exchange in finding.exchanges])))[:MOST_CURL]
        return cls(
            case.name,
            case.group,
            case.param,
            case.law,
            case.says,
            case.odds,
            judgement.verdict,
            line(judgement.reason, secret),
            plain(judgement.evidence, secret),
            finding.root,
            None if judgement.fault is None else judgement.fault.says,
            documented(profile, case.name, judgement.verdict),
            tuple(escaped(secret.out_of(command), keep="\n") for command in reversed(lines)),
            len(finding.exchanges),
            finding.tokens,
            round(finding.seconds, 3),
        )

    @property
    def is_finding(self) -> bool:
        return self.verdict.is_finding

    def json(self) -> dict[str, Any]:
        value = {name: getattr(self, name) for name in self.__slots__}
        return {
            **value,
            "verdict": str(self.verdict),
            "documented": None if self.documented is None else self.documented._asdict(),
            "curl": list(self.curl),
        }


class Root(NamedTuple):
    """A finding that follows from no other of the report. also: findings that follow from it · untold: cases that it
    keeps from being told."""

    entry: ReportedFinding
    also: tuple[ReportedFinding, ...]
    untold: tuple[ReportedFinding, ...]

    @property
    def shares_fault(self) -> bool:
        """Whether those that follow show the same fault, rather than follow from what this one says."""
        return self.entry.fault is not None and any(entry.fault == self.entry.fault for entry in self.also)


class Part(NamedTuple):
    """A section, fit to be shown."""

    title: str
    entries: tuple[ReportedFinding, ...]
    tables: tuple[Table, ...]
    notes: tuple[str, ...]


class Law(NamedTuple):
    """Which text the server was judged by. titles: of its sections, by number."""

    sha256: str
    titles: Mapping[str, str]

    @classmethod
    def read(cls) -> Law:
        text = (files("gnomon.reference") / "LAW.md").read_bytes()
        titles = dict(re.findall(r"^## (\d+)\. (.+?)\s*$", text.decode(), re.MULTILINE))
        return cls(hashlib.sha256(text).hexdigest(), titles)

    def section(self, number: str) -> str:
        """“4.2, One draw” for 4.2."""
        title = self.titles.get(number.split(".")[0])
        return number if title is None else f"{number}, {title}"


class Cost(NamedTuple):
    requests: int
    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Report:
    """url: the address before /completions · ended: why the run did not come to its end; None if it did · not_run: how
    many of the chosen cases have no finding for that reason."""

    url: str
    model: str
    date: str
    law: Law
    options: Mapping[str, Any]
    entries: tuple[ReportedFinding, ...]
    parts: tuple[Part, ...]
    cost: Cost
    ended: str | None = None
    not_run: int = 0
    changes: Changes | None = None

    @property
    def all_entries(self) -> tuple[ReportedFinding, ...]:
        return (*self.entries, *(entry for part in self.parts for entry in part.entries))

    @property
    def roots(self) -> tuple[Root, ...]:
        """The findings of the cases, each of them once: root causes, those first from which most follows."""
        found = {entry.case: entry for entry in self.entries if entry.is_finding}
        roots = [
            Root(
                entry,
                tuple(other for other in found.values() if other.root == entry.case),
                tuple(other for other in self.untold if other.root == entry.case),
            )
            for entry in found.values()
            if entry.root not in found
        ]
        return tuple(sorted(roots, key=lambda root: -len(root.also) - len(root.untold)))

    @property
    def untold(self) -> tuple[ReportedFinding, ...]:
        return tuple(entry for entry in self.entries if entry.verdict is Verdict.unclear)

    def untold_by_reason(self) -> list[tuple[str, list[ReportedFinding]]]:
        """The unclear cases by what they have in common, the largest group first: a root of the report, or words."""
        roots = {entry.case: entry for entry in self.entries}
        groups: dict[str, list[ReportedFinding]] = {}
        for entry in self.untold:
            root = roots.get(entry.root or "")
            why = entry.reason
            if root is not None and root.verdict is not Verdict.unclear:
                why = f"since “{root.says}” is {root.verdict}: {root.case}"
            elif root is not None:
                why = root.reason
            groups.setdefault(why, []).append(entry)
        return sorted(groups.items(), key=lambda group: -len(group[1]))

    @property
    def gnomon(self) -> str:
        return version("gnomon")

    @property
    def profile(self) -> str | None:
        return self.options.get("profile")

    @property
    def totals(self) -> dict[str, int]:
        """How many cases there are, of each verdict, and how many findings are documented, and are roots."""
        counts = Counter(entry.verdict for entry in self.all_entries)
        return {
            "cases": len(self.all_entries),
            **{str(verdict): counts[verdict] for verdict in Verdict},
            "documented": sum(entry.is_finding and entry.documented is not None for entry in self.all_entries),
            "roots": len(self.roots) + sum(entry.is_finding for part in self.parts for entry in part.entries),
            "not_run": self.not_run,
        }

    @property
    def status(self) -> int:
        """0: all honoured, refused or unclear; 1: findings; 2: the run did not come to its end."""
        if self.ended is not None:
            return 2
        return int(any(self.counts(entry) for entry in self.all_entries))

    def counts(self, entry: ReportedFinding) -> bool:
        """Whether it makes the exit code 1. A documented deviation does, unless it was said to be accepted: that a
        vendor knows of it helps no client that relies on the law."""
        accepted = entry.documented is not None and bool(self.options.get("accept_documented"))
        return entry.is_finding and not accepted

    def json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "version": REPORT_VERSION,
            "server": {"url": self.url, "model": self.model},
            "date": self.date,
            "gnomon": self.gnomon,
            "law": {"sha256": self.law.sha256},
            "options": dict(self.options),
            "exit_code": self.status,
            "ended": self.ended,
            "totals": self.totals,
            "cost": self.cost._asdict(),
            "findings": [entry.json() for entry in self.entries],
            "sections": [
                {
                    "title": part.title,
                    "notes": list(part.notes),
                    "findings": [entry.json() for entry in part.entries],
                    "tables": [
                        {**table._asdict(), "header": list(table.header), "rows": [list(row) for row in table.rows]}
                        for table in part.tables
                    ],
                }
                for part in self.parts
            ],
            "changes": None if self.changes is None else self.changes.json(),
        }

    def text(self) -> str:
        """The JSON as it is written: in ASCII, which any terminal, pipe and reader takes as it is."""
        return json.dumps(self.json(), indent=2, allow_nan=False) + "\n"


def part(section: Section, secret: Secret, profile: ProfileName | None) -> Part:
    def clean(text: str) -> str:
        return line(text, secret)

    return Part(
        clean(section.title),
        tuple(ReportedFinding.of(finding, secret, profile) for finding in section.findings),
        tuple(
            Table(
                clean(table.title),
                tuple(clean(cell) for cell in table.header),
                tuple(tuple(clean(cell) for cell in row) for row in table.rows),
            )
            for table in section.tables
        ),
        tuple(clean(note) for note in section.notes),
    )


def by_group(entries: Iterable[ReportedFinding]) -> dict[str, list[ReportedFinding]]:
    """The entries of each group, groups in the order of their first."""
    groups: dict[str, list[ReportedFinding]] = {}
    for entry in entries:
        groups.setdefault(entry.group, []).append(entry)
    return groups


def counted(entries: Sequence[ReportedFinding]) -> str:
    """How many of each verdict, in words: “3 honoured, 1 wrong”."""
    counts = Counter(entry.verdict for entry in entries)
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict])


class NoSuchCase(Exception):
    """A group that is none; the words are for the user."""


def chosen(cases: Sequence[Case], only: Sequence[str]) -> tuple[Case, ...]:
    """The cases of these groups, parameters or names; all, if none are given. Raises NoSuchCase."""
    for word in only:
        if not any(word in (case.group, case.param, case.name) for case in cases):
            known = ", ".join(dict.fromkeys(case.group for case in cases))
            raise NoSuchCase(f"--only: {word!r:.60} is no group or case; there are: {known}")
    return tuple(
        case for case in cases if not only or any(word in (case.group, case.param, case.name) for word in only)
    )


def with_needs(some: Sequence[Case], cases: Sequence[Case]) -> tuple[Case, ...]:
    """These and all that they need, in the order of all cases."""
    by_name = {case.name: case for case in cases}
    wanted: set[str] = set()
    waiting = [case.name for case in some]
    while waiting:
        name = waiting.pop()
        if name in wanted or name not in by_name:
            continue
        wanted.add(name)
        waiting += by_name[name].needs
    return tuple(case for case in cases if case.name in wanted)
