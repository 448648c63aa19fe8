"""What became of the cases since an earlier report, as a report shows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Change(NamedTuple):
    """A case whose verdict is another one; None where one of the reports has no such case."""

    case: str
    before: str | None
    now: str | None
    reason: str


class Changes(NamedTuple):
    """What changed since an earlier report. notes: what else differs, so that a reader does not blame the server."""

    file: str
    date: str
    notes: tuple[str, ...]
    new_findings: tuple[Change, ...]
    mended: tuple[Change, ...]
    changed: tuple[Change, ...]
    added: tuple[Change, ...]
    gone: tuple[Change, ...]

    def json(self) -> dict[str, Any]:
        kinds = {kind: [change._asdict() for change in getattr(self, kind)] for kind in TITLES}
        return {"file": self.file, "date": self.date, "notes": list(self.notes), **kinds}

    @property
    def any(self) -> bool:
        return any(getattr(self, kind) for kind in TITLES)


TITLES: Mapping[str, str] = {
    "new_findings": "new findings",
    "mended": "mended",
    "changed": "other changes of the verdict",
    "added": "cases that the earlier report does not have",
    "gone": "cases that only the earlier report has",
}
