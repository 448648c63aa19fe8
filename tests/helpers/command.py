"""The command `gnomon`, in this process and as one of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

CODE = "from gnomon.http.cli.main import main; main()"
COMMAND = (sys.executable, "-c", CODE)


class Result(NamedTuple):
    code: int
    out: str
    err: str


Gnomon: TypeAlias = Callable[..., Result]
"""The command in this process; its words are its arguments, `stdin` what it can read."""
