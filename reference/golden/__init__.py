"""Golden vectors: what the reference answers on the embedded model, as JSON for engines in any language.

*.json, README.md    the vectors, and how to use them
cases.py             the requests, and what each one shows
vectors.py           makes the vectors (`python -m gnomon.reference.golden`)
judge.py             holds a server's answer against a case
"""

from __future__ import annotations

from gnomon.reference.golden.cases import MODEL
from gnomon.reference.golden.judge import (
    ABSENT,
    FLOAT32,
    REACH,
    Case,
    Difference,
    Tolerance,
    Verdict,
    golden_path,
    judge,
    load_cases,
)

__all__ = [
    "ABSENT",
    "FLOAT32",
    "MODEL",
    "REACH",
    "Case",
    "Difference",
    "Tolerance",
    "Verdict",
    "golden_path",
    "judge",
    "load_cases",
]
