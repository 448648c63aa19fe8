"""Loads a real server until it would show, and prints a table: are the bytes the same, is anything lost or left behind?

    1 start     `gnomon serve` as a process of its own, on a free port of 127.0.0.1, with a short queue
    2 alone     every request of a bounded pool, one at a time, on the quiet server: what the answers must be
    3 rounds    equal ones: the same clients with the same dice. They stream or do not, read slowly, leave before their
                body is whole, while they are queued or in the middle of a stream, by FIN and by RST, and send nonsense
    4 quiet     after each round: slots, pages, threads and files are back at their start
    5 end       SIGTERM; status 0, and nothing in the log that should not be there

    python tests/load.py                                            200 clients, twice two minutes, on JAX
    python tests/load.py --engine reference --clients 8 --pool 16 --longest 48
    python tests/load.py --hostile                                  two minutes of clients that mean harm (hostile.py)

Exit 1 if an invariant does not hold. "The same bytes" are those of `choices`, written again from the parsed answer by
one writer; a stream's chunks are joined first. A client is plain asyncio with h11, so that it can leave and dawdle
exactly when and as it means to.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import h11
from prometheus_client.parser import text_string_to_metric_families

from gnomon.reference.checkpoint.config import read_config
from gnomon.reference.checkpoint.load import default_model_path
from helpers.judge import random_request

COMMAND = (sys.executable, "-c", "from gnomon.http.cli.main import main; main()")
QUIET_SECONDS = 40.0  # for all to be back at its start
ANSWER_SECONDS = 300.0  # for one answer; more is a hang
OUTCOMES = ("answered", "refused", "cancelled", "failed")
LOAD = ("gnomon_num_requests_running", "gnomon_num_requests_waiting", "gnomon_slots_busy", "gnomon_kv_cache_pages_held")


@dataclass(frozen=True, slots=True)
class Plan:
    """How much, of what, for how long."""

    engine: str = "jax"
    model: Path | None = None  # None: the embedded one
    clients: int = 200
    seconds: float = 120  # of a round
    rounds: int = 2
    pool: int = 48  # distinct requests
    longest: int = 512  # tokens of a prompt and its completion
    max_queue: int = 100
    seed: int = 0
    memory_slack: float = 0  # MiB that resident memory may grow in any case, for rounds too short to level out
    hostile: bool = False  # hostile.py in place of the rounds; `seconds` are all of its turns, and what follows is its
    pause: float = 1.0  # seconds between two waves of a shape
    slower: float = 2.0  # so much longer may an ordinary client wait for its first token
    livez_ms: int = 250
    growth: float = 1.05  # of resident memory
    more: tuple[str, ...] = ()  # options of the server


# ---- the server


class Server(NamedTuple):
    process: subprocess.Popen[str]
    port: int
    model: str
    log: Path


@contextmanager
def server(plan: Plan) -> Iterator[Server]:
    """A server of its own; it is killed on leaving if it has not ended by then."""
    options = {"port": 0, "engine": plan.engine, "max-queue": plan.max_queue, "queue-seconds": 600}
    arguments = [] if plan.model is None else [str(plan.model)]
    arguments += [part for name, value in options.items() for part in (f"--{name}", str(value))]
    arguments += plan.more
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("w") as err:
            process = subprocess.Popen([*COMMAND, "serve", *arguments], stdout=subprocess.PIPE, stderr=err, text=True)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.match(r"(\S+) is served at http://127\.0\.0\.1:(\d+)/v1 ", line)
            if found is None:
                raise RuntimeError(f"the server did not start: {line}{log.read_text()}")
            yield Server(process, int(found[2]), found[1], log)
        finally:
            process.kill()
            process.communicate()


class Held(NamedTuple):
    """What a process has of the machine."""

    threads: int
    files: int
    resident: float  # MiB


def held(pid: int) -> Held:
    status = Path(f"/proc/{pid}/status").read_text()
    numbers = {name: int(value.split()[0]) for name, value in re.findall(r"(Threads|VmRSS):\s+(.+)", status)}
    return Held(numbers["Threads"], sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir()), numbers["VmRSS"] / 1024)


# ---- one connection


class Received(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes
    first: float  # when the first byte of the body had come


class Left(Exception):
    """The client has gone away, as it meant to."""


class Connection:
    """HTTP/1.1 from the client's side, a request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.state = h11.Connection(h11.CLIENT)
        self.has_begun = asyncio.Event()  # something of an answer's body has come

    @classmethod
    async def open(cls, port: int, narrow: bool = False) -> Connection:
        """narrow: little is on its way between the server and a client that does not read."""
        client = socket.socket()
        client.setblocking(False)
        if narrow:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        try:
            await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", port))
            return cls(*await asyncio.open_connection(sock=client, limit=1024 if narrow else 2**16))
        except BaseException:  # cancelled, too: until it has a writer, nobody else closes it
            client.close()
            raise

    async def send(self, body: bytes, target: str = "/v1/completions", part: float = 1.0) -> None:
        """A request, or the first part of its body."""
        method = "POST" if body else "GET"
        head = [("Host", "gnomon"), ("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        data = self.state.send(h11.Request(method=method, target=target, headers=head)) or b""
        if body:
            data += self.state.send(h11.Data(data=body[: math.floor(len(body) * part)])) or b""
        if part == 1.0:
            data += self.state.send(h11.EndOfMessage()) or b""
        self.writer.write(data)
        await self.writer.drain()

    async def receive(self, dawdle: random.Random | None = None, until: float = 0, most: float = math.inf) -> Received:
        """The answer. dawdle: a few bytes at a time, up to the moment `until`. Raises Left after `most` bytes."""
        status, headers, body, first = 0, {}, bytearray(), 0.0
        while True:
            event = self.state.next_event()
            if event is h11.NEED_DATA:
                slow = dawdle is not None and time.monotonic() < until
                piece = await self.reader.read(dawdle.randint(1, 64) if slow and dawdle is not None else 2**16)
                if slow and dawdle is not None:
                    await asyncio.sleep(dawdle.random() * 0.03)
                self.state.receive_data(piece)
            elif isinstance(event, h11.Response):
                status = event.status_code
                headers = {name.decode(): value.decode() for name, value in event.headers}
            elif isinstance(event, h11.Data):
                first = first or time.monotonic()
                self.has_begun.set()
                body += event.data
                if len(body) >= most:
                    raise Left
            elif isinstance(event, h11.EndOfMessage):
                if self.state.our_state is h11.DONE and self.state.their_state is h11.DONE:
                    self.state.start_next_cycle()
                return Received(status, headers, bytes(body), first)
            else:
                raise ConnectionError(f"the connection ended in the middle of an answer: {event!r}")

    def close(self, reset: bool = False) -> None:
        if reset:
            linger = struct.pack("ii", 1, 0)  # nothing is waited for: closing sends RST
            self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.writer.transport.abort()
        else:
            self.writer.close()


async def metrics(port: int) -> dict[str, float] | None:
    """Every sample of /metrics, over all its labels but `outcome`; None if this server has no such path."""
    connection = await Connection.open(port)
    try:
        await connection.send(b"", "/metrics")
        answer = await connection.receive()
    finally:
        connection.close()
    if answer.status == 404:
        return None
    samples: dict[str, float] = {}
    for family in text_string_to_metric_families(answer.body.decode()):
        for sample in family.samples:
            name = " ".join([sample.name, *[v for k, v in sample.labels.items() if k == "outcome"]])
            samples[name] = samples.get(name, 0.0) + sample.value
    return samples


# ---- requests and answers


class Alone(NamedTuple):
    """A request of the pool, and its answer on a quiet server."""

    body: dict[str, Any]
    choices: str
    tokens: int


NONSENSE: tuple[tuple[int, Any], ...] = (
    (400, {"temperature": 3}), (400, {"n": 0}), (400, {"prompt": [[]]}), (400, {"max_tokens": 10**9}),
    (400, {"no_such_field": 1}), (400, {"logit_bias": {"99999999": 1}}), (400, {"best_of": 5, "stream": True}),
    (404, {"model": "another"}),
)  # fmt: skip


def pool(plan: Plan, model: str) -> list[dict[str, Any]]:
    config = read_config(plan.model or default_model_path())
    rng = random.Random(plan.seed)
    longest = min(plan.longest, config.max_position_embeddings)
    return [{**random_request(rng, config.vocab_size, longest), "model": model} for _ in range(plan.pool)]


def can_stream(body: Mapping[str, Any]) -> bool:
    return bool(body.get("best_of", 1) <= body["n"])


def written(choices: Sequence[Any]) -> str:
    return json.dumps(choices)


def choices_of(answer: Received) -> str | None:
    """What an answer of either kind comes to; None if it is not whole. Raises ValueError for what is no answer."""
    if not answer.headers["content-type"].startswith("text/event-stream"):
        return written(json.loads(answer.body)["choices"])
    events = [event for event in answer.body.decode("ascii").split("\n\n") if event and not event.startswith(":")]
    if not events or events.pop() != "data: [DONE]":
        return None
    whole: dict[int, Any] = {}
    for event in events:
        chunk = json.loads(event.removeprefix("data: "))
        if "error" in chunk:
            return None
        for piece in chunk["choices"]:
            joined = whole.setdefault(piece["index"], piece)
            if joined is not piece:
                joined["text"] += piece["text"]
                joined["finish_reason"] = piece["finish_reason"]
                for name, array in (piece["logprobs"] or {}).items():
                    joined["logprobs"][name] += array
    return written([whole[index] for index in sorted(whole)])


# ---- the load


@dataclass(slots=True)
class Tally:
    """What the clients of all rounds have seen."""

    counts: Counter[str] = field(default_factory=Counter)
    surprises: list[str] = field(default_factory=list)
    first_tokens: list[float] = field(default_factory=list)  # seconds, of streams that were read at full speed
    tokens: int = 0
    seconds: float = 0  # of all rounds
    most_waiting: float = 0

    def surprise(self, what: str) -> None:
        self.counts["surprises"] += 1
        if len(self.surprises) < 10:
            self.surprises.append(what)


class Client:
    """Sends one request after the other until the round is over. Its dice depend on its number alone."""

    def __init__(self, number: int, plan: Plan, at: Server, requests: Sequence[Alone], tally: Tally) -> None:
        self.rng = random.Random(f"{plan.seed} {number}")
        self.at, self.requests, self.tally = at, requests, tally
        self.connection: Connection | None = None

    async def work(self, until: float) -> None:
        visits = {self.whole: 40, self.slow: 12, self.nonsense: 14, self.leave_in_body: 8}
        visits |= {self.leave_in_queue: 10, self.leave_in_answer: 16}
        while time.monotonic() < until:
            [visit] = self.rng.choices([*visits], weights=[*visits.values()])
            self.tally.counts["requests"] += 1
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    await visit(self.rng.choice(self.requests), until)
            except (OSError, TimeoutError, ValueError, KeyError, h11.ProtocolError) as error:
                self.tally.surprise(f"{visit.__name__}: {error!r}")
                self.leave()
        self.leave()

    async def connected(self, narrow: bool = False) -> Connection:
        """The connection of the request before, if it can be used again."""
        if narrow or self.connection is None or self.connection.reader.at_eof():
            self.leave()
            self.connection = await Connection.open(self.at.port, narrow)
        return self.connection

    def leave(self, reset: bool = False) -> None:
        if self.connection is not None:
            self.connection.close(reset)
            self.connection = None

    def body(self, request: Alone) -> bytes:
        fields = dict(request.body)
        if can_stream(fields) and self.rng.random() < 0.85:
            fields["stream"] = True
            if self.rng.random() < 0.5:
                fields["stream_options"] = {"include_usage": True}
        return json.dumps(fields).encode()

    # ---- visits

    async def whole(self, request: Alone, until: float) -> None:
        connection = await self.connected()
        sent = time.monotonic()
        await connection.send(self.body(request))
        answer = await connection.receive()
        await self.judge(answer, request)
        if answer.status == 200 and answer.headers["content-type"].startswith("text/event-stream"):
            self.tally.first_tokens.append(answer.first - sent)

    async def slow(self, request: Alone, until: float) -> None:
        connection = await self.connected(narrow=True)
        await connection.send(self.body(request))
        await self.judge(await connection.receive(self.rng, until), request)
        self.leave()

    async def nonsense(self, request: Alone, until: float) -> None:
        status, changes = self.rng.choice(NONSENSE)
        connection = await self.connected()
        await connection.send(json.dumps({**request.body, **changes}).encode())
        answer = await connection.receive()
        if answer.status == 429:
            await self.refused(answer)
        elif answer.status == status:
            self.tally.counts["invalid"] += 1
        else:
            self.tally.surprise(f"{changes} gave {answer.status}: {answer.body[:200]!r}")

    async def leave_in_body(self, request: Alone, until: float) -> None:
        await (await self.connected()).send(self.body(request), part=self.rng.random() * 0.99)
        await self.gone_after(self.rng.random() * 0.05)

    async def leave_in_queue(self, request: Alone, until: float) -> None:
        await (await self.connected()).send(self.body(request))
        await self.gone_after(self.rng.random() * 0.2)

    async def leave_in_answer(self, request: Alone, until: float) -> None:
        connection = await self.connected()
        await connection.send(self.body(request))
        try:
            answer = await connection.receive(most=self.rng.choice([1, 300, 2000]))
        except Left:
            await self.gone_after(self.rng.random() * 0.1)
            return
        await self.judge(answer, request)  # it was shorter than that

    async def gone_after(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self.leave(reset=self.rng.random() < 0.5)
        self.tally.counts["cancelled"] += 1

    # ---- judging

    async def judge(self, answer: Received, request: Alone) -> None:
        if answer.status == 429:
            await self.refused(answer)
            return
        if answer.status != 200:
            self.tally.surprise(f"{answer.status}: {answer.body[:200]!r}")
            return
        choices = choices_of(answer)
        if choices is None:
            self.tally.surprise(f"a stream that is not whole: {answer.body[-200:]!r}")
            return
        self.tally.counts["completed"] += 1
        self.tally.tokens += request.tokens
        if choices != request.choices:
            self.tally.counts["differing"] += 1
            self.tally.surprise(f"other bytes for {request.body}: {choices[:300]} and not {request.choices[:300]}")

    async def refused(self, answer: Received) -> None:
        if int(answer.headers.get("retry-after", "0")) >= 1:
            self.tally.counts["refused"] += 1
        else:
            self.tally.surprise("a 429 without Retry-After")
        await asyncio.sleep(0.1 + 0.4 * self.rng.random())


async def all_alone(plan: Plan, at: Server) -> list[Alone]:
    connection = await Connection.open(at.port)
    answers = []
    for body in pool(plan, at.model):
        await connection.send(json.dumps(body).encode())
        answer = await connection.receive()
        if answer.status != 200:
            raise RuntimeError(f"{body} alone gave {answer.status}: {answer.body!r}")
        whole = json.loads(answer.body)
        answers.append(Alone(body, written(whole["choices"]), whole["usage"]["completion_tokens"]))
    connection.close()
    return answers


async def load(plan: Plan, at: Server, requests: Sequence[Alone], tally: Tally) -> None:
    """One round. A client that has begun a request when it is over still gets its answer."""
    begun = time.monotonic()
    until = begun + plan.seconds
    watching = asyncio.create_task(watch(at, tally))
    async with asyncio.TaskGroup() as group:
        for number in range(plan.clients):
            group.create_task(Client(number, plan, at, requests, tally).work(until))
    watching.cancel()
    await asyncio.wait([watching])
    tally.seconds += time.monotonic() - begun


async def watch(at: Server, tally: Tally) -> None:
    """The longest queue that was seen."""
    while (samples := await metrics(at.port)) is not None:
        tally.most_waiting = max(tally.most_waiting, samples["gnomon_num_requests_waiting"])
        await asyncio.sleep(0.1)


class Rest(NamedTuple):
    """A quiet server."""

    held: Held
    load: Mapping[str, float] | None  # None: the server has no /metrics


async def rest(at: Server) -> Rest:
    samples = await metrics(at.port)
    load = None if samples is None else {name: samples.get(name, 0.0) for name in LOAD}
    await asyncio.sleep(0.05)  # for the server to close the connection of that very question
    return Rest(held(at.process.pid), load)


async def come_to_rest(at: Server, start: Rest) -> Rest:
    """The server as it was at its start, or as it is when the patience is at its end."""
    end = time.monotonic() + QUIET_SECONDS
    while True:
        now = await rest(at)
        same = now.held.threads <= start.held.threads and now.held.files <= start.held.files and now.load == start.load
        if same or time.monotonic() > end:
            return now
        await asyncio.sleep(0.25)


# ---- the verdict


@dataclass(frozen=True, slots=True)
class Report:
    """rows: the table. failures: the invariants that do not hold, with what was seen."""

    rows: Mapping[str, object]
    failures: Sequence[str]
    tally: Tally


def quantile(values: Sequence[float], part: float) -> str:
    return f"{sorted(values)[int(part * (len(values) - 1))]:.2f} s" if values else "none"


async def rounds(plan: Plan, at: Server, tally: Tally) -> tuple[list[Rest], dict[str, float] | None]:
    """The server at rest: at its start and after each round; and its metrics at the end."""
    requests = await all_alone(plan, at)
    rests = [await rest(at)]
    for _ in range(plan.rounds):
        await load(plan, at, requests, tally)
        rests.append(await come_to_rest(at, rests[0]))
    return rests, await metrics(at.port)


def run(plan: Plan) -> Report:
    tally = Tally()
    with server(plan) as at:
        rests, samples = asyncio.run(rounds(plan, at, tally))
        at.process.send_signal(signal.SIGTERM)
        at.process.wait(60)
        return report(plan, tally, rests, samples, at.process.returncode, at.log.read_text())


def report(
    plan: Plan, tally: Tally, rests: Sequence[Rest], samples: Mapping[str, float] | None, status: int, log: str
) -> Report:  # fmt: skip
    counts, (start, *after) = tally.counts, rests
    memory = [f"{now.held.resident:.1f}" for now in rests]
    bound = max(1.05 * after[0].held.resident, after[0].held.resident + plan.memory_slack)
    leaks = {
        what: [getattr(now.held, what) for now in rests]
        for what in ("threads", "files")
        if any(getattr(now.held, what) > getattr(start.held, what) for now in after)
    }
    holds = {
        "the bytes are those of the same request alone": counts["differing"] == 0,
        "no surprise": counts["surprises"] == 0,
        f"threads and files are back at their start {leaks or ''}": not leaks,
        "resident memory after the last round is at most 1.05 of that after the first": after[-1].held.resident
        <= bound,
        "the log has no traceback": "Traceback" not in log,
        f"SIGTERM ended it with status 0 ({status})": status == 0,
    }
    unknown = "not checked: this server has no /metrics"
    sums: object = unknown
    if samples is not None and start.load is not None:
        received = samples["gnomon_requests_received_total"]
        ended = {outcome: samples.get(f"gnomon_requests_ended_total {outcome}", 0.0) for outcome in OUTCOMES}
        sums = f"{received:.0f} = " + " + ".join(f"{count:.0f} {outcome}" for outcome, count in ended.items())
        holds |= {
            "slots, pages, running and waiting are back at their start": all(now.load == start.load for now in after),
            "no more wait than may": tally.most_waiting <= plan.max_queue,
            f"the metrics add up ({sums})": received == sum(ended.values()),
            "what clients saw is in the metrics": ended["answered"] >= counts["completed"] + plan.pool
            and ended["refused"] >= counts["refused"] + counts["invalid"]
            and ended["failed"] == 0,
        }
    rows: dict[str, object] = {
        "engine": plan.engine,
        "clients, seconds of a round": f"{plan.clients}, {plan.seconds:g}",
        "requests": counts["requests"],
        **{outcome: counts[outcome] for outcome in ("completed", "cancelled", "refused", "invalid")},
        "differing bytes": counts["differing"],
        "surprises": counts["surprises"],
        "threads at the start and after each round": ", ".join(str(now.held.threads) for now in rests),
        "open files likewise": ", ".join(str(now.held.files) for now in rests),
        "resident memory likewise (MiB)": ", ".join(memory),
        "slots and pages likewise": unknown if start.load is None else [[*(now.load or {}).values()] for now in rests],
        "longest queue seen, and the bound": unknown
        if samples is None
        else f"{tally.most_waiting:.0f}, {plan.max_queue}",
        "received = ended": sums,
        "time to first token, p50, p95": ", ".join(quantile(tally.first_tokens, part) for part in (0.5, 0.95)),
        "tokens a second, of answers read to their end": f"{tally.tokens / tally.seconds:.0f}",
    }
    failures = [name for name, is_so in holds.items() if not is_so]
    return Report(rows, failures + tally.surprises, tally)


def main() -> int:
    import hostile  # which imports this module

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name, default in ((f, Plan.__dataclass_fields__[f].default) for f in Plan.__dataclass_fields__):
        if name == "engine":
            parser.add_argument("--engine", choices=["jax", "reference"], default=default)
        elif name == "more":
            parser.add_argument("more", nargs="*", metavar="OPTION", help="of the server, after --")
        elif name == "model":
            parser.add_argument("--model", type=Path, default=default)
        elif name == "hostile":
            parser.add_argument("--hostile", action="store_true")
        else:
            parser.add_argument("--" + name.replace("_", "-"), type=type(default), default=default)
    given: dict[str, Any] = vars(parser.parse_args())
    plan = Plan(**given | {"more": tuple(given["more"])})
    done = hostile.run(plan) if plan.hostile else run(plan)
    width = max(map(len, done.rows))
    for name, value in done.rows.items():
        print(f"{name:{width}}  {value}")
    for failure in done.failures:
        print(f"DOES NOT HOLD: {failure}")
    return 1 if done.failures else 0


if __name__ == "__main__":
    sys.exit(import_module("load").main())  # as hostile.py imports it: one module, not two
