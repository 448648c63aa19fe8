"""All faults of a server under `gnomon verify`, and which of them a day's run tries against every case."""

from __future__ import annotations

from collections.abc import Collection

from gnomon.http.verify.cases import CASES
from gnomon.http.verify.report.report import with_needs
from gnomon.http.verify.verdict import Case
from helpers.answer_faults import ANSWER_FAULTS
from helpers.faults import Fault
from helpers.request_faults import REQUEST_FAULTS
from helpers.today import is_todays

FAULTS = (*REQUEST_FAULTS, *ANSWER_FAULTS)
BY_NAME = {case.name: case for case in CASES}
DAYS = 10
MOST = 80  # faults of a day, each against every case, of which one takes seconds


def label(fault: Fault) -> str:
    return f"{fault.case}: {fault.name}"


def closure(name: str) -> tuple[Case, ...]:
    """A case and all that it needs, in the order of a report."""
    return with_needs([BY_NAME[name]], CASES)


def file_of(fault: Fault) -> str:
    """The file, from the repository's root, of the case that must find the fault."""
    module = BY_NAME[fault.case].judge.__module__
    return module.removeprefix("gnomon.").replace(".", "/") + ".py"


def chosen(day: int, touched: Collection[str]) -> list[Fault]:
    """A tenth of the faults, another one each day, and those whose case stands in a file that was touched: all of them,
    but no more than MOST together, for a change of every file is the weekly run's."""
    tenth = [fault for i, fault in enumerate(FAULTS) if is_todays(i, DAYS, day)]
    others = [fault for i, fault in enumerate(FAULTS) if not is_todays(i, DAYS, day) and file_of(fault) in touched]
    first = day * 7 % max(len(others), 1)
    kept = [*tenth, *[*others[first:], *others[:first]][: MOST - len(tenth)]]
    return [fault for fault in FAULTS if fault in kept]
