"""What a user chooses of `gnomon verify`. Needs nothing heavy: `--help` is made of it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from gnomon.reference.system.options import option


class ProfileName(StrEnum):
    openai = "openai"
    vllm = "vllm"
    llama_cpp = "llama.cpp"
    transformers = "transformers"


@dataclass(frozen=True, slots=True)
class Options:
    """What to judge, and what becomes of it. `reference` and `golden` stand for sections that the command adds."""

    url: str | None = option(
        None,
        "The server's address, with or without /v1: http://127.0.0.1:8000.",
        argument=True,
        metavar="URL",
    )
    model: str | None = option(None, "The model to ask for. Default: the first of GET /v1/models.", metavar="NAME")
    api_key: str | None = option(
        None,
        "The server's key. Prefer the variable: a command line can be read by others on this machine. "
        "No report has it.",
        metavar="KEY",
        env="GNOMON_KEY",
    )
    only: tuple[str, ...] = option(
        (),
        "Report this group of cases, parameter or single case; what it needs is run too.",
        metavar="GROUP",
    )
    reference: str | None = option(
        None,
        "Then compare log-probabilities with the reference's on this checkpoint, which the server must serve: "
        "a directory, a hub id, or default for the embedded model.",
        metavar="DIR",
        file=True,
    )
    golden: bool = option(False, "Then replay the golden vectors: for a server of the embedded model only.")
    list: bool = option(False, "Show the cases, with their sections of the law and odds, and exit.")
    json: str | None = option(
        None,
        "Write the report as JSON; - is standard output, and the table goes to standard error.",
        metavar="FILE",
        file=True,
    )
    junit: str | None = option(None, "Write it as JUnit XML.", metavar="FILE", file=True)
    html: str | None = option(None, "Write it as one HTML page.", metavar="FILE", file=True)
    baseline: str | None = option(
        None, "Say what changed since this report, written by --json.", metavar="FILE", file=True
    )
    profile: ProfileName | None = option(None, "Mark what this vendor documents. It stays a finding.")
    accept_documented: bool = option(False, "Leave documented deviations out of the exit code.")
    concurrency: int = option(4, "Requests at a time; the cases of load send more.", min=1, max=64, metavar="N")
    budget_tokens: int = option(
        50_000,
        "Tokens that the run may cost, prompts included; it never exceeds them. A full run took about 8,800, "
        "and is charged about 22,700 where the server shows no usage.",
        min=1,
        metavar="N",
    )
    timeout: float = option(60, "Seconds for one answer, to its last byte.", min=0.1, max=3600, metavar="SECONDS")
    verbose: bool = option(False, "Show reason, evidence and command of every case.", short="-v")
    findings: bool = option(
        False, "Show the findings alone, each root cause with the number of those that follow from it."
    )

    def shown(self) -> dict[str, Any]:
        """What of it belongs in a report."""
        return {
            "only": [*self.only],
            "profile": None if self.profile is None else str(self.profile),
            "accept_documented": self.accept_documented,
            "concurrency": self.concurrency,
            "budget_tokens": self.budget_tokens,
            "timeout": self.timeout,
            "with_key": self.api_key is not None,
        }


def file_name(file: str | Path) -> str:
    """A file's name for a line that people read, as UTF-8 where the locale could not read it."""
    return os.fsencode(file).decode("utf-8", "surrogateescape")
