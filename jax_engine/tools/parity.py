"""The examination's second section: a fixed set of requests, every float32 token judged (reference/parity.py)."""

from __future__ import annotations

from contextlib import suppress
from typing import NamedTuple

from gnomon.jax_engine.tools.examined import NAME, Examination, ExaminedModel, SayLine
from gnomon.jax_engine.tools.lines import row, shorten
from gnomon.reference.completion import EngineFailed, prepare
from gnomon.reference.parity import RecordingEngine, Tally, judge_recording
from gnomon.reference.request import CompletionRequest


class ParityTolerance(NamedTuple):
    """See reference/parity.py."""

    logit_error: float  # δ₀
    logprob: float  # τ, nats


EMBEDDED = ParityTolerance(
    2e-4, 4e-4
)  # of 50,680 log-probabilities of the full set the worst was off by 7.9e-5 (on a CPU)
ANY_OTHER = ParityTolerance(1e-3, 2e-3)  # nothing is known of the model, but errors grow with its depth


def parity(examined: ExaminedModel, found: Examination, say: SayLine) -> list[str]:
    """Every token, log-probability and ranking of the float32 engine, teacher-forced, against the reference."""
    say("parity: the float32 engine against the reference, token by token")
    tolerance = EMBEDDED if examined.embedded else ANY_OTHER
    engine, reference, tally = examined.engine("float32"), examined.reference, Tally()
    for body in examined.bodies(examined.extent.rounds):
        recorder = RecordingEngine(engine)
        run = prepare(CompletionRequest.from_fields(body), recorder, examined.tokenizer, NAME)
        with suppress(EngineFailed):  # the recording has it too, as a fault
            run.whole()
        judge_recording(reference, recorder.recordings[0], tally, *tolerance)
    found.update(
        requests=tally.requests,
        tokens=tally.tokens,
        excused=tally.excused,
        most_excused=tally.most_excused,
        logprobs=tally.logprobs,
        worst_logprob=tally.worst_logprob,
        tolerance={"logit_error": tolerance.logit_error, "logprob": tolerance.logprob},
        faults=len(tally.faults),
        first_faults=tally.faults[:10],
    )
    say(row("requests", f"{found['requests']:,}"))
    say(row("sampled tokens", f"{found['tokens']:,}, {found['excused']} excused ({found['most_excused']} allowed)"))
    worst = f"the worst of {found['logprobs']:,} is off by {found['worst_logprob']:.1e}"
    say(row("log-probabilities", f"{worst} ({tolerance.logprob:.0e} allowed)"))
    say(row("faults", found["faults"] or "none"))
    for fault in found["first_faults"][:3]:
        say(f"    {shorten(fault)}")
    problems = []
    if tally.faults:
        problems.append(f"{len(tally.faults)} faults, the first: {tally.faults[0]}")
    if tally.excused > tally.most_excused:
        problems.append(f"{tally.excused} of {tally.tokens} tokens were excused, {tally.most_excused} may be")
    if not tally.tokens:
        problems.append("no token was sampled")
    return problems
