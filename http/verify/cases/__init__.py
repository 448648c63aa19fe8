"""The cases, one file a part of the law. `CASES` has all of them, in the order of a report.

accepted    every field of the request is honoured or refused by name
request     what is no request, and how a server says so
text        prompts, max_tokens, stop, suffix
sampling    bias, penalties, temperature, nucleus
seed        randomness, and whether load changes anything
choices     n, best_of, usage
logprobs    the four lists: when there are any, how long, which tokens in what order
values      the numbers in them are of the raw logits
labels      what tokens are called, and the text that they make
echo        the prompt before the completion, with its numbers
offsets     where tokens stand in the text
stream      events, chunks, stream_options
arrival     when the events of a stream come
"""

from __future__ import annotations

from gnomon.http.verify.cases.accepted import CASES as ACCEPTED
from gnomon.http.verify.cases.arrival import CASES as ARRIVAL
from gnomon.http.verify.cases.choices import CASES as CHOICES
from gnomon.http.verify.cases.echo import CASES as ECHO
from gnomon.http.verify.cases.labels import CASES as LABELS
from gnomon.http.verify.cases.logprobs import CASES as LOGPROBS
from gnomon.http.verify.cases.offsets import CASES as OFFSETS
from gnomon.http.verify.cases.request import CASES as REQUEST
from gnomon.http.verify.cases.sampling import CASES as SAMPLING
from gnomon.http.verify.cases.seed import CASES as SEED
from gnomon.http.verify.cases.stream import CASES as STREAM
from gnomon.http.verify.cases.text import CASES as TEXT
from gnomon.http.verify.cases.values import CASES as VALUES
from gnomon.http.verify.verdict import Case

CASES: tuple[Case, ...] = (
    *ACCEPTED,
    *REQUEST,
    *TEXT,
    *SAMPLING,
    *SEED,
    *CHOICES,
    *LOGPROBS,
    *VALUES,
    *LABELS,
    *ECHO,
    *OFFSETS,
    *STREAM,
    *ARRIVAL,
)
