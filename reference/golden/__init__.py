"""Golden vectors: what the reference answers on the embedded model, as JSON for engines in any language.

*.json, README.md    the vectors, and how to use them
cases.py             the requests, and what each one shows
vectors.py           makes the vectors (`python -m gnomon.reference.golden`)
answers.py           reads the stored cases
judge.py             holds a server's answer against a case
"""

from __future__ import annotations

from gnomon.reference.golden.answers import FLOAT32_TOLERANCE, REACH, GoldenCase, Tolerance, golden_path, load_cases
from gnomon.reference.golden.cases import MODEL
from gnomon.reference.golden.judge import NOT_THERE, AnswerCheck, Difference, judge_answer

__all__ = [
    "FLOAT32_TOLERANCE",
    "MODEL",
    "NOT_THERE",
    "REACH",
    "AnswerCheck",
    "Difference",
    "GoldenCase",
    "Tolerance",
    "golden_path",
    "judge_answer",
    "load_cases",
]
