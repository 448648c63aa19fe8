"""The report for a person at a terminal, at 80 columns or more, and as well in a pipe, a log or without colour.

Findings come first, root causes in the order of what follows from them; then what is kept, by groups; then how many
cases cannot be told, and why. What departs from the law is in capitals, so that no colour is needed to find it.
Commands are printed whole and never broken into lines, so that they can be copied. Nothing is read as markup: every
piece is a `Text` of visible characters.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich.console import Console
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from gnomon.http.verify.ask.safe import escaped
from gnomon.http.verify.report.changes import TITLES, Changes
from gnomon.http.verify.report.report import Law, Part, Report, ReportedFinding, Root, by_group, counted
from gnomon.http.verify.verdict import Case, Verdict

STYLES = {
    Verdict.honoured: "green",
    Verdict.refused: "cyan",
    Verdict.ignored: "bold red",
    Verdict.wrong: "bold red",
    Verdict.unclear: "yellow",
}
VERDICT_WIDTH = max(len(verdict) for verdict in Verdict)
INDENT = VERDICT_WIDTH + 4

SHORT = 12
"""Cells of a table that are no longer stay on a line."""


def show_report(report: Report, console: Console, verbose: bool = False, findings: bool = False) -> None:
    """Prints it all. verbose: with the reason, the evidence and the command of every case · findings: and nothing
    else."""
    _head(report, console)
    _findings(report, console, verbose)
    if not findings:
        _kept(report, console, verbose)
        _untold(report, console, verbose)
    for part in report.parts:
        if not findings:
            _part(report, part, console, verbose)
        elif any(entry.is_finding for entry in part.entries):
            _print(console, Text(f"\n{part.title}", "bold underline"))
            _entries(report, [entry for entry in part.entries if entry.is_finding], console, verbose)
    if report.changes is not None:
        _changes(report.changes, console)
    _totals(report, console)


def _print(console: Console, text: Text) -> None:
    """The text from the margin on; a line break at its beginning is an empty line."""
    _row(console, text, indent=0)


def _head(report: Report, console: Console) -> None:
    _print(console, Text(f"gnomon verify {report.url}", "bold"))
    profile = f", documented deviations of {report.profile}" if report.profile else ""
    law = report.law.sha256[:12]
    facts = f"model {report.model}, {report.date}, gnomon {report.gnomon}, law {law}{profile}"
    _print(console, Text(facts, "dim"))


def _findings(report: Report, console: Console, verbose: bool) -> None:
    """The root causes, each with those that follow from it."""
    roots = report.roots
    if not roots:
        return
    number = sum(1 + len(root.also) for root in roots)
    causes = "" if len(roots) == number else f", of {_count(len(roots), 'root cause')}"
    _print(console, Text.assemble("\n", ("findings", "bold"), (f"  {number}{causes}", "dim")))
    for place, root in enumerate(roots):
        if place:
            _print(console, Text())
        _entry(report, root.entry, console, verbose)
        _followers(report, root, console, verbose)


def _followers(report: Report, root: Root, console: Console, verbose: bool) -> None:
    if root.also:
        why = f"for the same reason ({root.entry.fault})" if root.shares_fault else "that follow"
        words = f"also {_count(len(root.also), 'finding')} {why}: "
        _row(console, Text(words + ", ".join(entry.case for entry in root.also)))
    if root.untold:
        words = f"and {_count(len(root.untold), 'case')} cannot be told for it"
        _row(console, Text(words if not verbose else f"{words}: " + ", ".join(one.case for one in root.untold), "dim"))
    if verbose:
        for entry in root.also:
            _entry(report, entry, console, verbose)


def _count(number: int, word: str) -> str:
    return f"{number} {word}" + ("" if number == 1 else "s")


def _kept(report: Report, console: Console, verbose: bool) -> None:
    """What is honoured or refused, by groups that say how many of each verdict they have."""
    for group, found in by_group(report.entries).items():
        _print(console, Text.assemble("\n", (group, "bold"), (f"  {counted(found)}", "dim")))
        for entry in found:
            if not entry.is_finding and entry.verdict is not Verdict.unclear:
                _entry(report, entry, console, verbose)


def _untold(report: Report, console: Console, verbose: bool) -> None:
    """How many cases cannot be told, by reasons; each of them, if verbose."""
    untold = report.untold
    if not untold:
        return
    more = "" if verbose else "; --verbose shows them"
    said = f"  {_count(len(untold), 'case')} cannot be told{more}"
    _print(console, Text.assemble("\n", ("unclear", STYLES[Verdict.unclear]), (said, "dim")))
    for why, entries in report.untold_by_reason():
        _row(console, Text(why, "dim"), Text(f"{len(entries):>{VERDICT_WIDTH}}", STYLES[Verdict.unclear]))
        if verbose:
            for entry in entries:
                _entry(report, entry, console, verbose)


def _entries(report: Report, entries: Sequence[ReportedFinding], console: Console, verbose: bool) -> None:
    for group, found in by_group(entries).items():
        _print(console, Text.assemble("\n", (group, "bold"), (f"  {counted(found)}", "dim")))
        for entry in found:
            _entry(report, entry, console, verbose)


def verdict_word(entry: ReportedFinding) -> str:
    """The verdict as it is printed: in capitals where it is a finding."""
    return str(entry.verdict).upper() if entry.is_finding else str(entry.verdict)


def _entry(report: Report, entry: ReportedFinding, console: Console, verbose: bool) -> None:
    kept = entry.verdict is Verdict.honoured
    _row(console, Text(entry.says), Text(verdict_word(entry), STYLES[entry.verdict]))
    if verbose or not kept:
        _row(console, Text(entry.reason, "" if entry.is_finding else "dim"))
    if entry.documented is not None:
        said = f"documented by {entry.documented.profile}: {entry.documented.reason} ({entry.documented.source})"
        _row(console, Text(said, "magenta"))
    if verbose and entry.odds:
        _row(console, Text(f"odds against a server that keeps the law: {entry.odds}", "dim"))
    if verbose and entry.evidence:
        _row(console, Text(escaped(json.dumps(entry.evidence, ensure_ascii=False)), "dim"))
    if verbose or not kept:
        number = f"; the last of {entry.requests} requests" if entry.curl and entry.requests > 1 else ""
        _row(console, Text(f"{entry.case}, law {report.law.section(entry.law)}{number}", "dim"))
    if entry.curl and (verbose or entry.is_finding or entry.verdict is Verdict.refused):
        console.print(Text(" " * INDENT + entry.curl[-1], "dim"), soft_wrap=True, highlight=False)


def _row(console: Console, text: Text, head: Text | None = None, indent: int = INDENT) -> None:
    """A text that goes on under itself, and a word before it; no line ends in spaces, as the cells of a table would."""
    lines = text.wrap(console, max(console.width - indent, 20), overflow="fold")
    for number, part_of_it in enumerate(lines or [Text()]):
        part_of_it.rstrip()
        left = Text(" " * 2) + head if number == 0 and head is not None else Text()
        left.pad_right(indent - len(left))
        console.print(Text.assemble(left, part_of_it), soft_wrap=True, highlight=False)


def _part(report: Report, part: Part, console: Console, verbose: bool) -> None:
    _print(console, Text(f"\n{part.title}", "bold underline"))
    for note in part.notes:
        _row(console, Text(note), indent=2)
    for table in part.tables:
        grid = Grid(title=Text(table.title), title_justify="left", box=None, pad_edge=False)
        for name, *column in zip(table.header, *table.rows, strict=True):
            short = max(map(len, column), default=0) <= SHORT  # a number or a name: never broken
            grid.add_column(Text(name, "bold"), overflow="fold", no_wrap=short)
        for cells in table.rows:
            grid.add_row(*(Text(cell) for cell in cells))
        console.print(Padding(grid, (1, 0, 0, 2)), highlight=False)
    _entries(report, part.entries, console, verbose)


def _changes(changes: Changes, console: Console) -> None:
    _print(console, Text(f"\nCompared with {changes.file} of {changes.date}", "bold"))
    for note in changes.notes:
        _row(console, Text(f"note: {note}", "yellow"), indent=2)
    if not changes.any:
        _row(console, Text("no verdict has changed"), indent=2)
    for kind, title in TITLES.items():
        found = getattr(changes, kind)
        if not found:
            continue
        style = {"new_findings": "bold red", "mended": "green"}.get(kind, "")
        _row(console, Text(f"{title}: {len(found)}", style), indent=2)
        for change in found:
            was = " → ".join(verdict for verdict in (change.before, change.now) if verdict is not None)
            reason = f": {change.reason}" if kind == "new_findings" else ""
            _row(console, Text(f"{change.case}: {was}{reason}"), indent=4)


def _totals(report: Report, console: Console) -> None:
    totals = report.totals
    words = [
        Text(f"{totals[verdict]} {str(verdict).upper() if verdict.is_finding else verdict}", STYLES[verdict])
        for verdict in Verdict
        if totals[verdict]
    ]
    if report.not_run:
        words.append(Text(f"{report.not_run} not run", "yellow"))
    first = _count(totals["cases"], "case")
    _print(console, Text.assemble("\n", (first, "bold"), ": " if words else "", Text(", ").join(words)))
    if totals["documented"]:
        accepted = report.options.get("accept_documented")
        rest = "left out of the exit code" if accepted else "in the exit code like others"
        found = totals["ignored"] + totals["wrong"]
        said = f"{totals['documented']} of {found} findings documented by {report.profile}, {rest}"
        _print(console, Text(said, "magenta"))
    cost = report.cost
    budget = report.options.get("budget_tokens")
    of = f" of at most {budget:,}" if isinstance(budget, int) else ""
    _print(console, Text(f"{cost.requests:,} requests, {cost.tokens:,} tokens{of}, {cost.seconds:.1f} s", "dim"))
    if report.ended is not None:
        _print(console, Text(f"The run did not come to its end: {report.ended}", "bold red"))


def list_cases(cases: Sequence[Case], law: Law, console: Console) -> None:
    """Every case with its sentence, its section of the law and its odds."""
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(case.group, []).append(case)
    for group, some in groups.items():
        _print(console, Text.assemble((group, "bold"), (f"  {len(some)}", "dim")))
        for case in some:
            _row(console, Text.assemble((case.name, "cyan"), "  ", case.says), indent=2)
            more = [f"law {law.section(case.law)}"]
            if case.odds:
                more.append(f"odds against a server that keeps the law: {case.odds}")
            if case.needs:
                more.append(f"needs {', '.join(case.needs)}")
            _row(console, Text("; ".join(more), "dim"), indent=6)
    _print(console, Text(_count(len(cases), "case"), "bold"))
