"""Who asks for completions, and what came of it: an engine's clients, a server's over HTTP, and our own server started
for them."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from gnomon.jax_engine.tools.measure import MEBIBYTE
from gnomon.reference.checkpoint.load import Checkpoint
from gnomon.reference.engine import Engine, Failed, Job, JobRequest, Token
from gnomon.reference.sampler import SamplingParams

SERVE = (sys.executable, "-c", "from gnomon.http.cli.main import main; main()", "serve")


class ClientError(Exception):
    """What keeps a figure from being measured, in words for whoever asked for it."""


# ---- an engine's


class Streams(NamedTuple):
    """Completions asked for at once: when, and when each of their tokens was read, by completion."""

    began: float
    times: list[list[float]]

    def rate(self) -> float:
        """Tokens/s from the request to the last token: prefill is in it."""
        return sum(map(len, self.times)) / (max(map(max, self.times)) - self.began)

    def steady_rate(self) -> float:
        """Tokens/s while all of them run: from the last first token to the first last one."""
        begin, end = max(each[0] for each in self.times), min(each[-1] for each in self.times)
        return sum(begin < at <= end for each in self.times for at in each) / (end - begin)


def run_streams(engine: Engine, prompts: Sequence[Sequence[int]], new: int, params: SamplingParams) -> Streams:
    """`new` tokens after every prompt, each prompt a job of its own, read by a thread of its own."""
    params = replace(params, max_tokens=new)
    began = time.perf_counter()
    jobs = [
        engine.submit(JobRequest([p], [seed], params, candidates=1, top=0, score=False))
        for seed, p in enumerate(prompts)
    ]
    with ThreadPoolExecutor(len(jobs)) as pool:
        arrivals = list(pool.map(lambda job: list(arriving(job)), jobs))
    assert all(len(each) == new for each in arrivals)
    return Streams(began, arrivals)


def arriving(job: Job) -> Iterator[float]:
    """When each token comes."""
    for event in job.events():
        if isinstance(event, Failed):
            raise ClientError(event.message)
        if isinstance(event, Token):
            yield time.perf_counter()


# ---- HTTP


@dataclass(frozen=True, slots=True)
class CompletionsClient:
    """Asks a server of POST /v1/completions, ours or a peer's. Whatever goes wrong is a ClientError that names it."""

    name: str
    url: str
    model: str
    no_end: Mapping[str, Any]  # the fields that keep an end-of-sequence token from ending a completion

    @classmethod
    def of_peer(cls, text: str) -> CompletionsClient:
        """From NAME=URL[,model=ID]; without an id the server is asked for one."""
        found = re.fullmatch(r"([^=,]+)=(http://[^,]+?)/?(?:/v1/?)?(?:,model=(.+))?", text)
        if found is None:
            raise ClientError(f"--peer {text!r}: not NAME=URL[,model=ID]")
        client = cls(found[1], found[2], found[3] or "", {"ignore_eos": True})
        served = client._answer("GET", "/v1/models").get("data") or [{}]
        return replace(client, model=client.model or str(served[0].get("id", "")))

    def ask(self, prompt: Sequence[int], new: int, stream: bool = False) -> None:
        """`new` tokens after the prompt, greedily."""
        body = {"model": self.model, "prompt": prompt, "max_tokens": new, "temperature": 0, **self.no_end}
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        came = (self._answer("POST", "/v1/completions", body).get("usage") or {}).get("completion_tokens")
        if came != new:
            raise self._error(f"gave {came} tokens where {new} were asked for")

    def rate(self, prompts: Sequence[Sequence[int]], new: int, stream: bool = False) -> float:
        """Tokens/s of all prompts asked for at once, each on a connection of its own, until all are answered."""
        began = time.perf_counter()
        with ThreadPoolExecutor(len(prompts)) as pool:
            list(pool.map(lambda prompt: self.ask(prompt, new, stream), prompts))
        return len(prompts) * new / (time.perf_counter() - began)

    def _answer(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """The JSON of an answer, or the last event of a stream."""
        parts = urllib.parse.urlsplit(self.url)
        connection = http.client.HTTPConnection(parts.netloc, timeout=600)
        try:
            connection.request(method, parts.path + path, json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            data = response.read().strip()
        except (OSError, http.client.HTTPException) as error:
            raise self._error(f"does not answer: {error}") from None
        finally:
            connection.close()
        try:
            last = data.removesuffix(b"data: [DONE]").rpartition(b"data: ")[2]
            answer = json.loads(last) if response.status == 200 else None
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise self._error(f"answers {response.status}: {data[:300].decode(errors='replace')}")
        return answer

    def _error(self, what: str) -> ClientError:
        return ClientError(f"{self.name} at {self.url} {what}")


class RunningServer(NamedTuple):
    """A running `gnomon serve`."""

    client: CompletionsClient
    pid: int
    began: float
    ready: float  # when it said where it serves
    log: str  # what it had written to standard error by then


@contextmanager
def serving(checkpoint: Checkpoint, dtype: str, cache: Path, *options: object) -> Iterator[RunningServer]:
    """`gnomon serve` on a free port; compiled programs are kept in `cache`."""
    command = [*SERVE, checkpoint.path, "--engine", "jax", "--dtype", dtype, "--port", 0, *options]
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    no_end = {"logit_bias": {str(v): -100 for v in checkpoint.config.eos_token_ids}}
    with tempfile.TemporaryFile() as errors:
        began = time.perf_counter()
        process = subprocess.Popen(
            list(map(str, command)), stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        )
        try:
            assert process.stdout is not None
            found = re.search(r"(.+) is served at (http://\S+)/v1 ", process.stdout.readline())
            ready = time.perf_counter()
            log = os.pread(errors.fileno(), MEBIBYTE, 0).decode(errors="replace")  # the server's place in it stays
            if found is None:
                raise ClientError(f"gnomon serve did not start: {log[-500:]}")
            yield RunningServer(
                CompletionsClient("gnomon serve", found[2], found[1], no_end), process.pid, began, ready, log
            )
        finally:
            process.terminate()
            process.communicate()
