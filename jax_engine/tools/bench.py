"""`python -m gnomon.jax_engine.tools.bench`: a table; a row is a ratio of two sides measured in turn, in the same run.

    1 side      something that is compared: a function that measures itself once
    2 rounds    every side once to warm up, then all in turn, round after round: what disturbs one disturbs the other
    3 row       the medians of both sides and their extremes; of the ratio, larger is always better for us (ratios.py)
    4 group     rows that belong together (groups.py), chosen with --only, once for every dtype
    5 report    a head (versions, device, cores, load before and after), then the rows: as a table, and as JSON

All sides run the same model: random weights in the shape of a 135M Llama (--shape 0.5B: of a Qwen2), exact in bfloat16,
or --checkpoint. No token ends a completion early. The engine is asked through `submit` (engine_rows.py), the server
over HTTP (server_rows.py, peer_rows.py); bare.py alone knows an engine's insides. A row that cannot be measured here
says so, and why.

    --peers                  every server that tests/peer_run.py has installed, started for the run (peers.py)
    --peers vllm             one of them · --peers NAME=URL[,model=ID]: one that runs, with --checkpoint and --dtype
    --baseline PYTHON        the interpreter of an environment with another version of gnomon, such as yesterday's: its
                             server answers in turn with ours in every row that asks a server
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

from gnomon.jax_engine.runtime.backend import NoDevice, require_devices
from gnomon.jax_engine.tools.clients import ClientError, CompletionsClient
from gnomon.jax_engine.tools.groups import GROUPS
from gnomon.jax_engine.tools.measure import DTYPES, LLAMA_135M, QWEN2_500M, SIZES, cores, make_checkpoint
from gnomon.jax_engine.tools.peers import INSTALLED_PEERS
from gnomon.jax_engine.tools.ratios import NotMeasured, Ratios, describe_row, render
from gnomon.jax_engine.tools.workbench import QUICK_PLAN, Bench, BenchPlan
from gnomon.reference.checkpoint.errors import CheckpointError
from gnomon.reference.checkpoint.load import Checkpoint, load_checkpoint

SHAPES = {"135M": LLAMA_135M, "0.5B": QWEN2_500M}


def load_average() -> str:
    return " ".join(f"{figure:.2f}" for figure in os.getloadavg())


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"no {package}"


def head(options: argparse.Namespace, checkpoint: Checkpoint) -> dict[str, Any]:
    packages = ("gnomon", "jax", "jaxlib", "numpy", "torch", "transformers")
    device = jax.devices()[0]
    shape = " ".join(f"{name}={getattr(checkpoint.config, name)}" for name in SIZES)
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "versions": ", ".join([f"Python {platform.python_version()}", *map(_version, packages)]),
        "device": f"{device.platform} ({device.device_kind}, {platform.machine()}), {cores()} cores",
        "model": f"{checkpoint.parameter_count:,} parameters, {shape}",
        "rounds": options.plan.rounds,
        "baseline": options.baseline_version or "none",
        "load average before": load_average(),
    }


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options with their defaults filled in, and running peers, which have answered; else the process ends with
    2."""
    parser = argparse.ArgumentParser(
        "python -m gnomon.jax_engine.tools.bench", description="One table of measured ratios."
    )
    parser.add_argument("--only", metavar="GROUP,…", help=f"some of {', '.join(GROUPS)}")
    parser.add_argument("--dtype", choices=DTYPES, help="one instead of both")
    parser.add_argument("--rounds", type=int, help=f"default: {BenchPlan().rounds}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the report is to be written as JSON too")
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="the model; default: random weights")
    parser.add_argument("--shape", choices=SHAPES, default="135M", help="of the random weights; 0.5B is for bfloat16")
    named = f"{', '.join(INSTALLED_PEERS)} (all, if none is named) or NAME=URL[,model=ID]"
    parser.add_argument("--peers", nargs="*", metavar="PEER", help=named)
    parser.add_argument("--baseline", type=Path, metavar="PYTHON", help="an interpreter with another gnomon")
    parser.add_argument("--quick", action="store_true", help="a tiny model, one round, float32: does all of it work?")
    options = parser.parse_args(arguments)
    is_compared = options.peers is not None or options.baseline is not None
    options.only = options.only.split(",") if options.only else [g for g in GROUPS if g != "peers" or is_compared]
    if unknown := [group for group in options.only if group not in GROUPS]:
        parser.error(f"--only: there is no {', '.join(unknown)}; there are {', '.join(GROUPS)}")
    if "peers" in options.only and not is_compared:
        parser.error("the group peers needs --peers or --baseline")
    if options.peers is not None and "peers" not in options.only:
        parser.error("--peers: only with the group peers")
    peers = list(INSTALLED_PEERS) if options.peers == [] else options.peers or []
    running = [peer for peer in peers if "=" in peer]
    if unknown := [peer for peer in peers if "=" not in peer and peer not in INSTALLED_PEERS]:
        parser.error(f"--peers: there is no {', '.join(unknown)}; there are {', '.join(INSTALLED_PEERS)}")
    if running and not (options.checkpoint and options.dtype):
        parser.error("--peers: what a running one serves is to be said with --checkpoint and --dtype")
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds: at least 1")
    options.plan = QUICK_PLAN if options.quick else replace(BenchPlan(), shape=SHAPES[options.shape])
    options.plan = replace(options.plan, rounds=options.rounds or options.plan.rounds)
    few = DTYPES[:1] if options.quick else DTYPES[1:] if options.shape == "0.5B" else DTYPES
    options.dtypes = [options.dtype] if options.dtype else few
    try:
        if options.json is not None:
            options.json.open("a").close()  # an hour later would be a bad time to find that it cannot be written
        clients = {peer: CompletionsClient.of_running(peer) for peer in running}
        options.baseline_version = options.baseline and version_of(options.baseline)
    except (ClientError, OSError) as error:
        parser.error(str(error))
    options.peers = [clients.get(peer, peer) for peer in peers]
    names = [peer if isinstance(peer, str) else peer.name for peer in options.peers]
    if len(set(names)) < len(names) or {"ours", "baseline"} & set(names):
        parser.error("--peers: two have the same name, or one is called ours or baseline")
    return options


def version_of(python: Path) -> str:
    """Of the gnomon that an interpreter has. Raises ClientError if it has none."""
    code = "from importlib.metadata import version; import gnomon.jax_engine; print(version('gnomon'))"
    said = subprocess.run([python, "-c", code], capture_output=True, text=True)
    if said.returncode:
        raise ClientError(f"--baseline {python}: {(said.stderr.splitlines() or ['it failed'])[-1]}")
    return f"gnomon {said.stdout.strip()} of {python}"


def measured(bench: Bench, group: str) -> Ratios:
    """A group's rows, named with the dtype. What fails in it is a row too, and ends this group alone."""
    try:
        for row in GROUPS[group](bench):
            yield replace(row, name=f"{row.name}, {bench.dtype}")
    except Exception as error:
        traceback.print_exc()
        why = f"failed, {type(error).__name__}: {' '.join(str(error).split())}"
        yield NotMeasured(f"the rest of the group {group}, {bench.dtype}", why, failed=True)


def _checkpoint(path: Path, plan: BenchPlan) -> Checkpoint:
    try:
        checkpoint = load_checkpoint(path)
    except CheckpointError as error:
        sys.exit(str(error))
    longest = max(plan.long, plan.prompt + plan.added) + plan.new
    if checkpoint.config.max_position_embeddings < longest:
        sys.exit(f"{path}: the context is shorter than the {longest} tokens that are measured")
    return checkpoint


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 1 if a group failed."""
    options = parse_options(arguments)
    try:
        require_devices()
    except NoDevice as error:
        sys.exit(str(error))
    failed, said = False, set[str]()
    with tempfile.TemporaryDirectory(prefix="gnomon-bench-") as name:
        scratch = Path(name)
        checkpoint = _checkpoint(
            options.checkpoint or make_checkpoint(scratch / "model", options.plan.shape, options.plan.context),
            options.plan,
        )
        report: dict[str, Any] = {"head": head(options, checkpoint), "rows": []}
        for dtype in options.dtypes:
            bench = Bench(options.plan, dtype, checkpoint, scratch, options.peers, options.baseline, said)
            for group in options.only:
                print(f"{group}, {dtype} …", file=sys.stderr, flush=True)
                for row in measured(bench, group):
                    report["rows"].append(row.to_json())
                    print(describe_row(row.to_json()), file=sys.stderr, flush=True)
                    failed |= isinstance(row, NotMeasured) and row.failed
                bench.close()  # what one group has made takes memory that the next may need
    report["head"]["engines here"] = "; ".join(sorted(said)) or "none"
    report["head"]["load average after"] = load_average()
    print(render(report))
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
