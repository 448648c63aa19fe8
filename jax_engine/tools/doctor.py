"""The examination behind `gnomon doctor`: is the engine sound on the device that is here, and how fast is it?

    environment   versions, device, memory, the variables that matter; the engine is started
    parity        a fixed set of requests; every float32 token is judged against the reference (reference/parity.py)
    same_bytes    requests alone, among neighbours, backwards from a warm prefix cache, on a second engine
    speed         the read bandwidth of the device, and how near to it a decode step comes

Every section fills its own part of the report and prints it; one that raises is recorded, and the others still run.
The verdict is `sound`, or `unsound` with reasons; speed is never one of them. A report names no user, host or path.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import jax

from gnomon.jax_engine.runtime.pins import pinned
from gnomon.jax_engine.tools.environment import environment
from gnomon.jax_engine.tools.examined import FULL_EXTENT, QUICK_EXTENT, Examination, ExaminedModel, SayLine
from gnomon.jax_engine.tools.lines import last_line, row, shorten
from gnomon.jax_engine.tools.parity import parity
from gnomon.jax_engine.tools.same_bytes import same_bytes
from gnomon.jax_engine.tools.speed import speed
from gnomon.reference.checkpoint.load import Checkpoint
from gnomon.reference.tokenizer import Tokenizer

ExaminationSection = Callable[[ExaminedModel, Examination, SayLine], list[str]]
"""Fills the report, says its lines, returns what is wrong."""

SECTIONS: dict[str, ExaminationSection] = {
    "environment": environment,
    "parity": parity,
    "same_bytes": same_bytes,
    "speed": speed,
}


def examine(
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    say: SayLine = print,
    quick: bool = False,
    cache: Path | None = None,
    announce: SayLine = lambda line: None,
) -> Examination:
    """Runs every section; `say` gets each line as it comes, and `announce` one before every engine that is built. The
    report's `verdict` is `sound` or `unsound`.

    cache: the directory that `gnomon serve` has, so that what is built there once is examined here; XLA's programs are
    compiled anew all the same.
    """
    examined = ExaminedModel(checkpoint, tokenizer, QUICK_EXTENT if quick else FULL_EXTENT, cache, announce)
    started, now = time.monotonic(), datetime.now(UTC)
    report: Examination = {"gnomon": version("gnomon"), "date": now.isoformat(timespec="seconds"), "quick": quick}
    say(f"gnomon doctor{' --quick' if quick else ''}, version {report['gnomon']}, {now:%Y-%m-%d %H:%M} UTC")
    reasons: list[str] = []
    try:
        with _no_compilation_cache(), pinned():
            for name, section in SECTIONS.items():
                found: Examination = {}
                report[name], began = found, time.monotonic()
                say("")
                try:
                    faults = section(examined, found, say)
                except Exception as error:
                    found["error"] = last_line(error)
                    say(row("error", shorten(found["error"])))
                    faults = [found["error"]]
                found["seconds"] = round(time.monotonic() - began, 1)
                reasons += [f"{name.replace('_', ' ')}: {fault}" for fault in faults]
    finally:
        examined.stop()
    report.update(verdict="unsound" if reasons else "sound", reasons=reasons)
    report["seconds"] = round(time.monotonic() - started, 1)
    say("")
    say(f"verdict: {report['verdict']}, after {report['seconds']:.0f} s")
    for reason in reasons:
        say(f"  {shorten(reason)}")
    return report


@contextmanager
def _no_compilation_cache() -> Iterator[None]:
    """A program that another start has compiled would say nothing about this one."""
    before = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    jax.config.update("jax_enable_compilation_cache", False)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    raise SystemExit("the examination is started by the command: gnomon doctor")
