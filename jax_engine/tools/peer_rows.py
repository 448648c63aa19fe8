"""Rows against servers of the same model, over HTTP: peers, and another version of gnomon."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

from gnomon.jax_engine.runtime.backend import one_line
from gnomon.jax_engine.tools.clients import ClientError, CompletionsClient
from gnomon.jax_engine.tools.measure import DTYPES, interleaved
from gnomon.jax_engine.tools.peers import missing, started
from gnomon.jax_engine.tools.ratios import NotMeasured, Ratio, Ratios
from gnomon.jax_engine.tools.workbench import Bench, BenchPlan


class PeerWork(NamedTuple):
    """What servers are asked for: `new` tokens after each of `at_once` prompts of `length` ids."""

    name: str
    at_once: int
    length: int
    new: int
    peer: str  # against which the targets are
    targets: tuple[float, ...]  # by dtype, in the order of DTYPES
    counts: str = "new"  # "prompt": the ids of the prompts are counted · "after": the time from the first token on

    def rate(self, bench: Bench, client: CompletionsClient) -> float:
        """Tokens/s."""
        prompts = bench.prompts(self.at_once, self.length)
        if self.counts == "after":
            return client.decode_rate(prompts[0], self.new)
        return client.rate(prompts, self.new) * (self.length / self.new if self.counts == "prompt" else 1)

    def target(self, peer: str, dtype: str) -> float | None:
        return dict(zip(DTYPES, self.targets, strict=True))[dtype] if peer == self.peer else None


def works(plan: BenchPlan) -> list[PeerWork]:
    """The rows of the table: a target is the least that ours may be of the peer's."""
    short, long, new = plan.prompt, plan.after, plan.new_of_peers
    return [
        PeerWork(f"one stream, {short} + {new} tokens", 1, short, new, "llama-server", (1.2, 1.1)),
        PeerWork(f"eight streams, {short} + {new} tokens", 8, short, new, "vllm", (1.5, 1.2)),
        PeerWork(f"{plan.many} streams, {short} + {plan.new} tokens", plan.many, short, plan.new, "vllm", (1.2, 1.2)),
        PeerWork(f"prefill of {plan.prefill} and a token", 1, plan.prefill, 1, "vllm", (1.1, 1.0), "prompt"),
        PeerWork(f"one stream after a prompt of {long}", 1, long, new, "llama-server", (1.0, 1.0), "after"),
        PeerWork(f"eight streams, {long} + {plan.new} tokens", 8, long, plan.new, "vllm", (1.0, 1.0)),
    ]


def against_peers(bench: Bench) -> Ratios:
    """Our server with default options, the baseline's and every peer's, all running, asked in turn."""
    absent = {peer: missing(peer) for peer in bench.peers if isinstance(peer, str)}
    for peer, why in absent.items():
        if why is not None:
            yield NotMeasured(f"against {peer}", why)
    here = [peer for peer in bench.peers if isinstance(peer, CompletionsClient) or absent[peer] is None]
    if not (here or bench.baseline):
        return
    with ExitStack() as stack:
        clients = {name: server.client for name, server in stack.enter_context(bench.servers()).items()}
        for which in here:
            if isinstance(which, CompletionsClient):
                clients[which.name] = which
                continue
            running = started(which, bench.checkpoint, bench.dtype, bench.scratch, bench.plan.longest)
            try:
                clients[which] = stack.enter_context(running)
            except ClientError as error:
                yield NotMeasured(f"against {which}", one_line(error), failed=True)
        for work in works(bench.plan):
            yield from side_by_side(bench, work, clients)


def side_by_side(bench: Bench, work: PeerWork, clients: Mapping[str, CompletionsClient]) -> Ratios:
    """One row for each of the others; whoever cannot do the work is a row that says so, and holds up nobody."""
    sides = {name: partial(work.rate, bench, client) for name, client in clients.items()}
    for name in list(sides):
        if work.counts == "after" and not clients[name].streams:
            del sides[name]
            yield NotMeasured(f"{work.name}, against {name}", "it streams nothing")
            continue
        try:
            sides[name]()  # to warm it up
        except ClientError as error:
            if name == "ours":
                raise
            del sides[name]
            yield NotMeasured(f"{work.name}, against {name}", one_line(error), failed=True)
    seen = interleaved(bench.plan.rounds, sides, warm_up=False)
    for name in list(sides)[1:]:
        other = "the baseline" if name == "baseline" else name
        target = work.target(name, bench.dtype)
        yield Ratio(f"{work.name}, against {other}", "tok/s", seen["ours"], seen[name], other, target)
