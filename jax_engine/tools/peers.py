"""Servers not written here, as tests/peer_run.py installs them, started for the bench on its model.

The folder $GNOMON_PEERS (~/.cache/gnomon-peers) has what was installed, a file NAME.installed for each part that was
installed to its end. The scripts that start the servers are in $GNOMON_PEER_SCRIPTS (../shared/peers, from where the
command is called): they take the folder of models and GGUF files from PEERS_DIR, a model's name in it, and a port.
Nothing is installed here.

All of them run a thread a core that this process may use, and keep keys and values in float32, as our CPU engine does.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from gnomon.jax_engine.tools.clients import ClientError, CompletionsClient
from gnomon.jax_engine.tools.gguf import write_gguf
from gnomon.jax_engine.tools.measure import cores
from gnomon.reference.checkpoint.load import Checkpoint

FOLDER = Path(os.environ.get("GNOMON_PEERS", "~/.cache/gnomon-peers")).expanduser()
SCRIPTS = Path(os.environ.get("GNOMON_PEER_SCRIPTS", "../shared/peers")).absolute()
EXACT = ("-ctk", "f32", "-ctv", "f32", "-fa", "off")  # llama-server would keep keys and values in 16 bits
START_SECONDS = 600  # vLLM compiles its programs when it starts for the first time
MODEL, GGUF = "gnomon-bench", "gnomon-bench.gguf"
SLOTS = 32  # the most that the bench asks at once


class InstalledPeer(NamedTuple):
    """parts: what must have been installed · command: a script or program in SCRIPTS and its arguments, of which PORT
    and DTYPE stand for the run's · ready: the path that answers once it serves · the rest: see CompletionsClient."""

    parts: Sequence[str]
    command: Sequence[str]
    ready: str = "/v1/models"
    streams: bool = True
    in_one: bool = False


INSTALLED_PEERS = {
    "llama-server": InstalledPeer(("llama",), ("start_llama_server.sh", GGUF, "PORT", MODEL, *EXACT), "/health"),
    "vllm": InstalledPeer(("venvB",), ("start_vllm.sh", MODEL, "PORT", "DTYPE")),
    "transformers": InstalledPeer(
        ("venvA",), ("hf_generate_server.py", MODEL, "PORT", "eager", "DTYPE"), "", streams=False, in_one=True
    ),
}


def missing(name: str) -> str | None:
    """Why it cannot be started here."""
    peer = INSTALLED_PEERS[name]
    if absent := [part for part in peer.parts if not (FOLDER / f"{part}.installed").exists()]:
        return f"{', '.join(absent)} not installed in {FOLDER}: see tests/peer_run.py"
    if not (SCRIPTS / peer.command[0]).exists():
        return f"there is no {peer.command[0]} in {SCRIPTS}"
    return None


def lay_out(folder: Path, checkpoint: Checkpoint, dtype: str, with_gguf: bool) -> Path:
    """A PEERS_DIR for this model, in which installed environments and their caches are links."""
    place = folder / f"peers-{dtype}"
    for name in ("ckpt", "gguf"):
        (place / name).mkdir(parents=True, exist_ok=True)
    (FOLDER / "cache").mkdir(parents=True, exist_ok=True)
    links = {f"ckpt/{MODEL}": checkpoint.path.absolute()}
    links |= {name: FOLDER / name for name in ("venvA", "venvB", "build-llama", "cache")}
    for name, to in links.items():
        if not (place / name).is_symlink():
            (place / name).symlink_to(to)
    if (FOLDER / "debs").exists():  # vLLM's allocator, for which the script looks behind no link
        shutil.copytree(FOLDER / "debs", place / "debs", symlinks=True, dirs_exist_ok=True)
    if with_gguf and not (place / "gguf" / GGUF).exists():
        write_gguf(checkpoint, dtype, place / "gguf" / GGUF)
    return place


@contextmanager
def started(name: str, checkpoint: Checkpoint, dtype: str, folder: Path, longest: int) -> Iterator[CompletionsClient]:
    """An installed peer on this model, for sequences of so many tokens. Raises ClientError if it does not come up."""
    peer = INSTALLED_PEERS[name]
    try:
        place = lay_out(folder, checkpoint, dtype, GGUF in peer.command)
    except ValueError as error:
        raise ClientError(f"{name}: {error}") from None
    environment = {"PEERS_DIR": place, "THREADS": cores(), "SLOTS": SLOTS, "MAX_LEN": longest}
    environment |= {"VLLM_BIND": processors()}
    port = str(free_port())
    script, *arguments = [{"PORT": port, "DTYPE": dtype}.get(part, part) for part in peer.command]
    program = [place / "venvA" / "bin" / "python"] if script.endswith(".py") else []
    command = [*program, SCRIPTS / script, *arguments]
    with listening(command, environment, f"http://127.0.0.1:{port}", peer.ready, place / f"{name}.log") as url:
        yield CompletionsClient(name, url, MODEL, {"ignore_eos": True}, peer.streams, peer.in_one)


def processors() -> str:
    """Those that this process may use, as Linux writes a list of them: 0-1, or 0,2."""
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [*range(cores())]
    first, last = usable[0], usable[-1]
    return f"{first}-{last}" if last - first + 1 == len(usable) > 1 else ",".join(map(str, usable))


# ---- any server in a process of its own


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@contextmanager
def listening(
    command: Sequence[object], environment: Mapping[str, object], url: str, ready: str, log: Path
) -> Iterator[str]:
    """The address, once what the command started answers there: with anything at `ready`, or, where that is empty,
    with a connection. Raises ClientError with the end of what it wrote if that does not come about."""
    with log.open("wb") as output:
        server = subprocess.Popen(
            list(map(str, command)),
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **{name: str(value) for name, value in environment.items()}},
            start_new_session=True,  # it has processes of its own, which end with it
        )
        try:
            end = time.monotonic() + START_SECONDS
            while (why := _unheard(url, ready)) is not None:
                if server.poll() is not None or time.monotonic() > end:
                    tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
                    raise ClientError(f"no server: {why}; the end of {log}:\n{tail}")
                time.sleep(0.5)
            yield url
        finally:
            with suppress(ProcessLookupError):  # nothing of it is left
                os.killpg(server.pid, signal.SIGTERM)
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()


def _unheard(url: str, ready: str) -> OSError | None:
    try:
        if ready:
            with urllib.request.urlopen(f"{url}{ready}", timeout=5):
                return None
        host, _, port = url.rpartition("/")[2].partition(":")
        with socket.create_connection((host, int(port)), timeout=5):
            return None
    except OSError as error:  # urllib's own errors are of this kind, too
        return error
