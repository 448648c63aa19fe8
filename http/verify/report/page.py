"""The report as one HTML page: no script, nothing fetched, and nothing in it but what `html.escape` has passed.

The frame, with all styles, is page.html beside this file. Filtering is done by the styles alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from string import Template

from gnomon.http.verify.ask.safe import escaped
from gnomon.http.verify.report.changes import TITLES, Changes
from gnomon.http.verify.report.report import Part, Report, ReportedFinding, Root, Table, by_group, counted
from gnomon.http.verify.verdict import Verdict

MEANINGS = {
    Verdict.honoured: "The server does what the sentence says.",
    Verdict.refused: "It answers a legal value with an error that names the field.",
    Verdict.ignored: "It answers as if the field had not been sent, or as if a value out of range were in it.",
    Verdict.wrong: "The field has an effect, and another one; or there is no sound answer.",
    Verdict.unclear: "It cannot be told on this model or server, for the reason given.",
}
OPEN_VERDICTS = (Verdict.ignored, Verdict.wrong)


def page(report: Report) -> str:
    frame = Template((files("gnomon.http.verify.report") / "page.html").read_text(encoding="utf-8"))
    body = [
        _head(report),
        _summary(report),
        _changes(report.changes) if report.changes is not None else "",
        _filter(),
        _findings(report),
        *(_group(report, name, entries) for name, entries in by_group(report.entries).items()),
        _untold(report),
        *(_part(report, part) for part in report.parts),
        _foot(report),
    ]
    return frame.substitute(title=_text(f"{report.model}: gnomon verify"), body="\n".join(body))


def _text(text: str) -> str:
    return escape(escaped(text, keep="\n"), quote=True)


def _head(report: Report) -> str:
    profile = f" · documented deviations of {report.profile}" if report.profile else ""
    facts = f"model {report.model} · {report.date} · gnomon {report.gnomon} · law {report.law.sha256[:12]}{profile}"
    return (
        '<p class="kicker">gnomon verify: POST /v1/completions, judged from outside</p>\n'
        f'<h1>{_text(report.url)}</h1>\n<p class="facts">{_text(facts)}</p>'
    )


def _summary(report: Report) -> str:
    totals = report.totals
    tiles = [(str(verdict), totals[verdict]) for verdict in Verdict]
    if report.profile:
        tiles.append(("documented", totals["documented"]))
    if report.not_run:
        tiles.append(("not run", report.not_run))
    counts = "".join(
        f'<li class="{name.replace(" ", "-")}{"" if count else " none"}"><b>{count}</b>{name}</li>'
        for name, count in tiles
    )
    bar = "".join(f'<i class="{verdict}" style="flex:{totals[verdict]}"></i>' for verdict in Verdict if totals[verdict])
    cost = report.cost
    spent = f"{totals['cases']} cases · {cost.requests:,} requests · {cost.tokens:,} tokens · {cost.seconds:.1f} s"
    notice = ""
    if report.ended is not None:
        notice = f'<p class="notice">The run did not come to its end: {_text(report.ended)}</p>'
    return (
        f'{notice}<ul class="counts">{counts}</ul>\n<div class="bar" aria-hidden="true">{bar}</div>\n'
        f'<p class="facts">{_text(spent)}</p>'
    )


def _changes(changes: Changes) -> str:
    parts = [
        f'<section class="changes"><h2>Changes <small>since {_text(changes.date)}, {_text(changes.file)}</small></h2>'
    ]
    parts += [f'<p class="facts">{_text(note)}.</p>' for note in changes.notes]
    if not changes.any:
        parts.append("<p>No verdict has changed.</p>")
    for kind, title in TITLES.items():
        found = getattr(changes, kind)
        if not found:
            continue
        parts.append(f"<h3>{_text(title)}: {len(found)}</h3><ul>")
        for change in found:
            was = " → ".join(verdict for verdict in (change.before, change.now) if verdict is not None)
            reason = f": {change.reason}" if kind == "new_findings" else ""
            parts.append(f"<li><code>{_text(change.case)}</code> {_text(was + reason)}</li>")
        parts.append("</ul>")
    return "".join(parts) + "</section>"


def _filter() -> str:
    choices = (("all", "all", " checked"), ("open", "not honoured", ""), ("findings", "findings", ""))
    labels = "".join(
        f'<label><input type="radio" name="show" id="{name}"{checked}>{words}</label>'
        for name, words, checked in choices
    )
    return f'<fieldset class="filter"><legend>Show</legend>{labels}</fieldset>'


def _findings(report: Report) -> str:
    """The root causes, each with those that follow from it."""
    roots = report.roots
    if not roots:
        return ""
    number = sum(1 + len(root.also) for root in roots)
    causes = "" if len(roots) == number else f", of {_number(len(roots), 'root cause')}"
    cases = "\n".join(_case(report, root.entry, _followers(report, root)) for root in roots)
    return (
        f'<section class="group"><h2>Findings <small>{number}{causes}</small></h2>\n'
        f'<div class="cases">{cases}</div></section>'
    )


def _followers(report: Report, root: Root) -> str:
    also = untold = ""
    if root.also:
        why = f" for the same reason: {root.entry.fault}" if root.shares_fault else " that follow"
        words = f"also {_number(len(root.also), 'finding')}{why}"
        cases = "\n".join(_case(report, entry, closed=True) for entry in root.also)
        also = f'<details class="earlier"><summary>{_text(words)}</summary><div class="cases">{cases}</div></details>'
    if root.untold:
        words = f"and {_number(len(root.untold), 'case')} cannot be told for it"
        names = ", ".join(entry.case for entry in root.untold)
        untold = f'<details class="earlier"><summary>{_text(words)}</summary><p>{_text(names)}</p></details>'
    return also + untold


def _untold(report: Report) -> str:
    """The cases that cannot be told, by reasons; a reason of one case is not said twice."""
    groups = []
    for why, entries in report.untold_by_reason():
        cases = "\n".join(_case(report, entry) for entry in entries)
        if len(entries) == 1:
            groups.append(cases)
            continue
        words = f'<span class="verdict unclear">{len(entries)}</span><span class="says">{_text(why)}</span>'
        groups.append(f'<details class="case unclear"><summary>{words}</summary>{cases}</details>')
    if not groups:
        return ""
    return (
        f'<section class="group"><h2>Unclear <small>{_number(len(report.untold), "case")}</small></h2>\n'
        f'<div class="cases">{"".join(groups)}</div></section>'
    )


def _group(report: Report, name: str, entries: Sequence[ReportedFinding]) -> str:
    """What is honoured or refused of a group; the heading counts all of it."""
    kept = [entry for entry in entries if not entry.is_finding and entry.verdict is not Verdict.unclear]
    if not kept:
        return ""
    cases = "\n".join(_case(report, entry) for entry in kept)
    return (
        f'<section class="group"><h2>{_text(name)} <small>{_text(counted(entries))}</small></h2>\n'
        f'<div class="cases">{cases}</div></section>'
    )


def _case(report: Report, entry: ReportedFinding, followers: str = "", closed: bool = False) -> str:
    tags = ""
    if entry.documented is not None:
        tags += '<span class="tag">documented</span>'
    changes = report.changes
    if changes is not None and any(change.case == entry.case for change in changes.new_findings):
        tags += '<span class="tag new">new</span>'
    facts = [("case", entry.case), ("law", report.law.section(entry.law)), ("about", entry.param)]
    if entry.documented is not None:
        facts.append(("documented", f"{entry.documented.reason}. {entry.documented.source}"))
    if entry.odds:
        facts.append(("odds", f"{entry.odds} against a server that keeps the law"))
    facts.append(
        ("cost", f"{_number(entry.requests, 'request')}, {_number(entry.tokens, 'token')}, {entry.seconds:.2f} s")
    )
    rows = "".join(f"<dt>{name}</dt><dd>{_text(value)}</dd>" for name, value in facts)
    evidence = ""
    if entry.evidence:
        short = json.dumps(entry.evidence, ensure_ascii=False)
        long = json.dumps(entry.evidence, ensure_ascii=False, indent=2)
        evidence = f"<pre>{_text(short if len(short) <= 160 else long)}</pre>"
    verdict, opened = entry.verdict, " open" if entry.verdict in OPEN_VERDICTS and not closed else ""
    return (
        f'<details class="case {verdict}"{opened}><summary><span class="verdict {verdict}">{verdict}</span>'
        f'<span class="says">{_text(entry.says)}{tags}</span>'
        f'<span class="reason">{_text(entry.reason)}</span></summary>'
        f'<div class="more"><dl>{rows}</dl>{evidence}{_curl(entry)}{followers}</div></details>'
    )


def _number(count: int, word: str) -> str:
    return f"{count:,} {word}" + ("" if count == 1 else "s")


def _curl(entry: ReportedFinding) -> str:
    if not entry.curl:
        return ""
    last = f"<pre>{_text(entry.curl[-1])}</pre>"
    before = entry.curl[:-1]
    if not before:
        return last
    others = "".join(f"<pre>{_text(command)}</pre>" for command in before)
    words = "the request before it" if len(before) == 1 else f"{len(before)} different requests before it"
    return f'{last}<details class="earlier"><summary>{words}</summary>{others}</details>'


def _part(report: Report, part: Part) -> str:
    notes = "".join(f"<p>{_text(note)}</p>" for note in part.notes)
    tables = "".join(_table(table) for table in part.tables)
    cases = "\n".join(_case(report, entry) for entry in part.entries)
    cases = f'<div class="cases">{cases}</div>' if cases else ""
    return f"<section><h2>{_text(part.title)}</h2>{notes}{tables}{cases}</section>"


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{_text(cell)}</th>' for cell in table.header)
    rows = "".join(
        "<tr>"
        + "".join(
            f'<td data-name="{_text(name)}">{_text(cell)}</td>' for name, cell in zip(table.header, row, strict=True)
        )
        + "</tr>"
        for row in table.rows
    )
    return (
        f'<div class="figures"><table><caption>{_text(table.title)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _foot(report: Report) -> str:
    meanings = "".join(
        f'<dt><span class="verdict {verdict}">{verdict}</span></dt><dd>{_text(words)}</dd>'
        for verdict, words in MEANINGS.items()
    )
    return (
        f"<footer><dl>{meanings}</dl><p>A verdict comes from what was observed on this server with this model. Each "
        "command repeats the request that shows the matter; the key, if there is one, is taken from the variable "
        f"<code>GNOMON_KEY</code>. Law: {_text(report.law.sha256)}.</p></footer>"
    )
