"""Which findings one fault explains. Nothing is folded by its words: only by what a case declares and what was seen.

follows    a field that is ignored takes any value: its case of types or ranges that is `ignored` too follows
Fault      the same fault, seen by as many cases as it takes: all but the first follow that one
needs      a case that cannot be told, since one that it needs is not honoured, follows what that one follows
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from gnomon.http.verify.verdict import Finding, SharedFault, Verdict


def rooted(findings: Iterable[Finding]) -> list[Finding]:
    """The findings in their order, each with its root."""
    found = list(findings)
    by_name = {one.case.name: one for one in found}
    roots = _of_ignored_fields(by_name)
    roots |= _of_faults(one for one in found if one.case.name not in roots)
    return [replace(one, root=_root(one, by_name, roots)) for one in found]


def _of_ignored_fields(by_name: Mapping[str, Finding]) -> dict[str, str]:
    """For the name of a finding, that of the finding which says that its field is ignored."""

    def is_ignored(name: str) -> bool:
        return name in by_name and by_name[name].judgement.verdict is Verdict.ignored

    return {
        name: one.case.follows
        for name, one in by_name.items()
        if one.case.follows and is_ignored(name) and is_ignored(one.case.follows)
    }


def _of_faults(findings: Iterable[Finding]) -> dict[str, str]:
    """For the name of a finding, that of the first with the same fault, where there are enough of them."""
    by_fault: dict[SharedFault, list[str]] = {}
    for one in findings:
        if one.judgement.verdict.is_finding and one.judgement.fault is not None:
            by_fault.setdefault(one.judgement.fault, []).append(one.case.name)
    return {name: names[0] for fault, names in by_fault.items() if len(names) >= fault.least for name in names[1:]}


def _root(one: Finding, by_name: Mapping[str, Finding], roots: Mapping[str, str]) -> str | None:
    if one.case.name in roots:
        return roots[one.case.name]
    if one.lacks is None:
        return None
    name = one.lacks
    while name in by_name and (lacks := by_name[name].lacks) is not None:
        name = lacks
    return roots.get(name, name)
