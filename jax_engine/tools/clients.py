"""Who asks for completions, and what came of it: an engine's clients, a server's over HTTP, and our own server started
for them."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
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

SERVE = ("-c", "from gnomon.http.cli.main import main; main()", "serve")
RECEIVED_AT_ONCE = 2**15  # bytes: the events of about a hundred tokens
GREEDY_PARAMS = SamplingParams(temperature=0.0)  # end_ids is empty: nothing ends early


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


class HttpAnswer(NamedTuple):
    """came: when each part of the body was read, and the part."""

    status: int
    came: list[tuple[float, bytes]]

    @property
    def body(self) -> bytes:
        return b"".join(part for _, part in self.came)


@dataclass(frozen=True, slots=True)
class CompletionsClient:
    """Asks a server of POST /v1/completions, ours or a peer's. Whatever goes wrong is a ClientError that names it."""

    name: str
    url: str
    model: str
    no_end: Mapping[str, Any]  # the fields that keep an end-of-sequence token from ending a completion
    streams: bool = True  # a token an event
    in_one: bool = False  # prompts that are asked for at once go in one request: it takes one at a time

    @classmethod
    def of_running(cls, text: str) -> CompletionsClient:
        """From NAME=URL[,model=ID]; without an id the server is asked for one."""
        found = re.fullmatch(r"([^=,]+)=(http://[^,]+?)/?(?:/v1/?)?(?:,model=(.+))?", text)
        if found is None:
            raise ClientError(f"--peers {text!r}: not NAME=URL[,model=ID]")
        client = cls(found[1], found[2], found[3] or "", {"ignore_eos": True})
        if client.model:
            return client
        served = client._json(client._exchange("GET", "/v1/models")).get("data") or [{}]
        return replace(client, model=str(served[0].get("id", "")))

    def rate(
        self, prompts: Sequence[Sequence[int]], new: int, stream: bool = False, params: SamplingParams = GREEDY_PARAMS
    ) -> float:
        """Tokens/s of all prompts asked for at once, each on a connection of its own, until all are answered."""
        began = time.perf_counter()
        if self.in_one:
            self._ask(prompts, len(prompts) * new, {"max_tokens": new}, params)
        else:
            one = {"max_tokens": new} | ({"stream": True, "stream_options": {"include_usage": True}} if stream else {})
            with ThreadPoolExecutor(len(prompts)) as pool:
                list(pool.map(lambda prompt: self._ask(prompt, new, one, params), prompts))
        return len(prompts) * new / (time.perf_counter() - began)

    def decode_rate(self, prompt: Sequence[int], new: int) -> float:
        """Tokens/s after the first, greedily, as they come in a stream."""
        fields = {"max_tokens": new, "stream": True, "stream_options": {"include_usage": True}}
        answer = self._ask(prompt, new, fields, GREEDY_PARAMS, timed=True)
        # the usage comes in an event of its own, the last but [DONE], with no choices in it
        times = [at for at, part in answer.came if re.search(rb'"choices": ?\[ ?\{', part)]
        if len(times) < new // 2:
            raise self._error(f"streamed {new} tokens in {len(times)} parts: when one came cannot be told")
        return (new - 1) / (times[-1] - times[0])

    def _ask(
        self, prompt: object, tokens: int, fields: Mapping[str, Any], params: SamplingParams, timed: bool = False
    ) -> HttpAnswer:
        drawn = {"temperature": params.temperature, "top_p": params.top_p}
        body = {"model": self.model, "prompt": prompt, **fields, **drawn, **self.no_end}
        answer = self._exchange("POST", "/v1/completions", body, timed)
        came = (self._json(answer).get("usage") or {}).get("completion_tokens")
        if came != tokens:
            raise self._error(f"gave {came} tokens where {tokens} were asked for")
        return answer

    def _exchange(self, method: str, path: str, body: object = None, timed: bool = False) -> HttpAnswer:
        """timed: every part is read as it comes. Else this process, which shares its cores with the server, sleeps
        until much of the answer is there, or all of it and the end of the connection."""
        parts = urllib.parse.urlsplit(self.url)
        connection = http.client.HTTPConnection(parts.netloc, timeout=600)
        try:
            connection.connect()
            if not timed:
                connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, RECEIVED_AT_ONCE)
            headers = {"Content-Type": "application/json", "Connection": "close"}
            connection.request(method, parts.path + path, json.dumps(body), headers)
            response = connection.getresponse()
            came = []
            while part := response.read1(MEBIBYTE):
                came.append((time.perf_counter(), part))
            return HttpAnswer(response.status, came)
        except (OSError, http.client.HTTPException) as error:
            raise self._error(f"does not answer: {error}") from None
        finally:
            connection.close()

    def _json(self, answer: HttpAnswer) -> dict[str, Any]:
        """The JSON of an answer, or the last event of a stream."""
        data = answer.body.strip()
        try:
            last = data.removesuffix(b"data: [DONE]").rpartition(b"data: ")[2]
            read = json.loads(last) if answer.status == 200 else None
        except ValueError:
            read = None
        if not isinstance(read, dict):
            raise self._error(f"answers {answer.status}: {data[:300].decode(errors='replace')}")
        return read

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
def serving(
    checkpoint: Checkpoint, dtype: str, cache: Path, *options: object, python: Path | None = None
) -> Iterator[RunningServer]:
    """`gnomon serve` on a free port; compiled programs are kept in `cache`. python: an interpreter that has another
    version of gnomon."""
    command = [
        python or sys.executable, *SERVE, checkpoint.path, "--engine", "jax", "--dtype", dtype, "--port", 0, *options
    ]  # fmt: skip
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
            name = "gnomon" if python is None else "the baseline"
            yield RunningServer(CompletionsClient(name, found[2], found[1], no_end), process.pid, began, ready, log)
        finally:
            process.terminate()
            process.communicate()
