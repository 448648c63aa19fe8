"""The cases, one file a part of the law. `CASES` has all of them, in the order of a report.

accepted    every field of the request is honoured or refused by name
request     what is no request, and how a server says so
text        prompts, max_tokens, stop, suffix
sampling    bias, penalties, temperature, nucleus
seed        randomness, and whether load changes anything
choices     n, best_of, usage
"""

from __future__ import annotations

from gnomon.http.verify.cases import accepted, choices, request, sampling, seed, text
from gnomon.http.verify.verdict import Case

CASES: tuple[Case, ...] = (
    *accepted.CASES,
    *request.CASES,
    *text.CASES,
    *sampling.CASES,
    *seed.CASES,
    *choices.CASES,
)
