"""The load program's hostile mode: `python tests/load.py --hostile`. Do clients that mean harm slow or change others?

    1 start     `gnomon serve` as a process of its own, and every request of a small pool alone
    2 turns     calm and hostile ones in turn: the same few ordinary clients stream in both; in a hostile turn another
                process, of lower priority, sends what a small request, or a client that leaves, can do worst
    3 quiet     slots, pages, threads, files and memory are back at their start
    4 end       SIGTERM; status 0, and nothing in the log that should not be there

The shapes: the largest answers that the server allows (it is asked for less until it does not refuse), thousands of
one-token prompts whose client disconnects, bodies of 8 MB whose client closes, stop strings and users of 8 MB. A
refusal is a fine answer to them; they are counted by their status. Bodies are made before, few are sent at a time, and
the table says how much of a processor the clients took: they should not be what slows the ordinary ones.

What must hold: ordinary answers have the bytes that they have alone, and none is lost; half of their first tokens, and
95 of 100, come within twice the time of the calm turns; /livez answers within 250 ms throughout; resident memory comes
back to 1.05 of its start, which is after the first calm turn.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import h11
from load import (
    ANSWER_SECONDS,
    OUTCOMES,
    Alone,
    Connection,
    Plan,
    Report,
    Rest,
    Server,
    Tally,
    all_alone,
    can_stream,
    choices_of,
    come_to_rest,
    held,
    metrics,
    quantile,
    rest,
    server,
)

from gnomon.reference.checkpoint.config import read_config
from gnomon.reference.checkpoint.load import default_model_path

ORDINARY = 4  # clients
TURNS = 4  # of each kind
LIVEZ_EVERY = 0.05  # seconds
SETTLE_SECONDS = 15.0  # between a hostile turn and the next calm one at most
LOST_SECONDS = 60.0  # after which an ordinary client's answer counts as lost
REST_SECONDS = 90.0  # for the server to be quiet, after it has been attacked
PATIENCE = 15.0  # seconds that a hostile client waits for its answer at most
SENT_AT_MOST = 8 * 2**20 - 4096  # bytes of a body, a little below the server's default bound


# ---- hostile clients, in a process of their own


@dataclass(slots=True)
class Shape:
    """A way to do harm. bodies: the worst first; after a 400 the next one is sent. at_once: connections in one wave.
    leaves: seconds after which the client has gone away, from and to; None: it reads its answer, for `PATIENCE`."""

    name: str
    bodies: Sequence[bytes]
    at_once: int = 1
    leaves: tuple[float, float] | None = None
    at: int = 0  # the body that is sent


def shapes(model: str, context: int) -> list[Shape]:
    def body(**fields: Any) -> bytes:
        return json.dumps({"model": model, "max_tokens": 1, "temperature": 1, **fields}).encode()

    def filled(fields: Mapping[str, Any], name: str, unit: str) -> bytes:
        room = SENT_AT_MOST - len(body(**fields, **{name: ""}))
        return body(**fields, **{name: (unit * (room // len(unit) + 1))[:room]})

    ids = [[17 + i % 200 for i in range(context - 1)]] * 16
    large = {"prompt": ids, "echo": True, "logprobs": 20}
    halves = [128 >> i for i in range(8)]
    counts = [2048 >> i for i in range(10)]
    story = "Once upon a time there was a little fox who lived near a river, and it said: 12 + 7 = 19! "
    waits = {"prompt": "Once", "max_tokens": context - 16}
    return [
        Shape("largest answer", [body(**large, n=n) for n in halves]),
        Shape("largest answer, streamed", [body(**large, n=n, stream=True) for n in halves]),
        Shape(
            "largest batch with logprobs",
            [body(prompt=[[5]] * count, echo=True, logprobs=20, max_tokens=8) for count in counts],
        ),
        Shape("one-token prompts, left", [body(prompt=[[5]] * 2048, max_tokens=16)], at_once=8, leaves=(0.05, 0.5)),
        Shape("8 MB prompt, closed", [filled({}, "prompt", story)], at_once=2, leaves=(0.0, 0.1)),
        Shape("8 MB prompt, streamed, closed", [filled({"stream": True}, "prompt", story)], leaves=(0.1, 1.0)),
        Shape("8 MB stop string, left", [filled(waits, "stop", "Zz")], at_once=2, leaves=(0.5, 2.0)),
        Shape("8 MB user, left", [filled(waits, "user", "u")], at_once=2, leaves=(0.5, 2.0)),
    ]


class Attack:
    """One wave after another of each shape, until the time is over."""

    def __init__(self, port: int, pause: float, all_shapes: Sequence[Shape]) -> None:
        self.port, self.pause, self.shapes = port, pause, all_shapes
        self.rng = random.Random(0)
        self.outcomes: dict[str, Counter[str]] = {shape.name: Counter() for shape in all_shapes}
        self.received: Counter[str] = Counter()  # bytes

    async def run(self, until: float) -> None:
        async with asyncio.TaskGroup() as group:
            for shape in self.shapes:
                group.create_task(self.waves(shape, until))

    async def waves(self, shape: Shape, until: float) -> None:
        await asyncio.sleep(self.rng.random() * self.pause)
        while time.monotonic() < until:
            sent = shape.at
            outcomes = await asyncio.gather(*(self.one(shape, shape.bodies[sent]) for _ in range(shape.at_once)))
            self.outcomes[shape.name].update(outcomes)
            if "400" in outcomes and sent + 1 < len(shape.bodies):
                shape.at = sent + 1
            await asyncio.sleep(self.pause * (0.5 + self.rng.random()))

    async def one(self, shape: Shape, body: bytes) -> str:
        """What became of one request: its status, "left", or "cut" where the server closed without a word."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=2**18)
        head = (
            "POST /v1/completions HTTP/1.1\r\nHost: gnomon\r\nContent-Type: application/json\r\nConnection: close\r\n"
        )
        try:
            with suppress(ConnectionError):  # an answer may come before the body is whole
                writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode())
                writer.write(body)
                await asyncio.wait_for(writer.drain(), PATIENCE)
            stays = PATIENCE if shape.leaves is None else self.rng.uniform(*shape.leaves)
            return await asyncio.wait_for(self.answer(shape, reader), stays)
        except TimeoutError:
            return "left"
        except ConnectionError:
            return "cut"
        finally:
            if self.rng.random() < 0.5:
                writer.transport.abort()
            else:
                writer.close()

    async def answer(self, shape: Shape, reader: asyncio.StreamReader) -> str:
        line = await reader.readline()
        size = 0
        while piece := await reader.read(2**18):
            size += len(piece)
            await asyncio.sleep(0)
        self.received[shape.name] += size
        return line.split()[1].decode() if line.startswith(b"HTTP/1.1 ") else "cut"


def attack() -> int:
    """The process of the hostile clients: a JSON line in for each turn, one out when it is over."""
    os.nice(10)
    order = json.loads(sys.stdin.readline())
    made = shapes(order["model"], order["context"])
    print(json.dumps({"ready": sum(len(body) for shape in made for body in shape.bodies)}), flush=True)
    attacking = Attack(order["port"], order["pause"], made)
    for line in sys.stdin:
        used = time.process_time()
        asyncio.run(attacking.run(time.monotonic() + json.loads(line)["seconds"]))
        told = {
            "outcomes": attacking.outcomes,
            "received": attacking.received,
            "smallest": {shape.name: shape.at for shape in made},
            "cpu": time.process_time() - used,
        }
        print(json.dumps(told), flush=True)
    return 0


class Attackers:
    """That process, seen from here."""

    def __init__(self, at: Server, context: int, pause: float) -> None:
        command = [sys.executable, str(Path(__file__)), "--attack"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.told: dict[str, Any] = {}
        self.cpu = 0.0
        self._say({"port": at.port, "model": at.model, "context": context, "pause": pause})
        self._hear()

    def _say(self, what: Mapping[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()

    def _hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        heard: dict[str, Any] = json.loads(self.process.stdout.readline())
        return heard

    def begin(self, seconds: float) -> None:
        self._say({"seconds": seconds})

    def end(self) -> None:
        """Waits for the last answers of the turn."""
        self.told = self._hear()
        self.cpu += self.told["cpu"]

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


# ---- ordinary clients, and the probe


@dataclass(slots=True)
class Turn:
    """What the ordinary clients saw in the turns of one kind."""

    seconds: float = 0
    cpu: float = 0  # seconds of this process
    answered: int = 0
    again: int = 0  # refused with 429 or 503, and sent again
    tokens: int = 0
    first_tokens: list[float] = field(default_factory=list)  # seconds since it was first sent, refusals included
    livez: list[float] = field(default_factory=list)


async def ordinary(number: int, plan: Plan, at: Server, requests: Sequence[Alone], turn: Turn, tally: Tally) -> None:
    """Streams one request after another until the turn is over, with a short rest in between; the same dice in every
    turn."""
    rng = random.Random(f"{plan.seed} {number}")
    end = time.monotonic() + plan.seconds / (2 * TURNS)
    while time.monotonic() < end:
        request = rng.choice(requests)
        tally.counts["requests"] += 1
        try:
            async with asyncio.timeout(LOST_SECONDS):
                await ask(at, request, turn, tally)
        except (OSError, TimeoutError, ValueError, KeyError, h11.ProtocolError) as error:
            tally.surprise(f"an ordinary client: {error!r}")
        await asyncio.sleep(0.05 + 0.1 * rng.random())


async def ask(at: Server, request: Alone, turn: Turn, tally: Tally) -> None:
    sent = time.monotonic()
    body = json.dumps({**request.body, "stream": True}).encode()
    while True:
        connection = await Connection.open(at.port)
        try:
            await connection.send(body)
            answer = await connection.receive()
        finally:
            connection.close()
        if answer.status not in (429, 503):
            break
        turn.again += 1
        await asyncio.sleep(0.2)
    choices = choices_of(answer) if answer.status == 200 else None
    if choices is None:
        tally.surprise(f"an ordinary request gave {answer.status}: {answer.body[-200:]!r}")
        return
    turn.answered += 1
    turn.tokens += request.tokens
    turn.first_tokens.append(answer.first - sent)
    if choices != request.choices:
        tally.counts["differing"] += 1
        tally.surprise(f"other bytes for {request.body}: {choices[:300]} and not {request.choices[:300]}")


class Livez(threading.Thread):
    """Asks /livez again and again, on a connection a time, and notes how long each answer took, and how late this
    machine itself woke the thread meanwhile."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.port = port
        self.turn = Turn()
        self.late: list[float] = []
        self.faults: list[str] = []
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.is_set():
            turn, begun = self.turn, time.monotonic()
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=ANSWER_SECONDS) as client:
                    client.sendall(b"GET /livez HTTP/1.1\r\nHost: gnomon\r\nConnection: close\r\n\r\n")
                    line = client.recv(4096).split(b"\r\n")[0]
                if line != b"HTTP/1.1 200 OK":
                    self.faults.append(f"/livez: {line!r:.80}")
            except OSError as error:
                self.faults.append(f"/livez: {error!r}")
            now = time.monotonic()
            turn.livez.append(now - begun)
            self.over.wait(LIVEZ_EVERY)
            self.late.append(time.monotonic() - now - LIVEZ_EVERY)


@contextmanager
def probing(at: Server) -> Iterator[Livez]:
    probe = Livez(at.port)
    probe.start()
    try:
        yield probe
    finally:
        probe.over.set()
        probe.join()


# ---- the run


class Seen(NamedTuple):
    """All that a run comes to."""

    calm: Turn
    hostile: Turn
    start: Rest
    end: Rest
    told: Mapping[str, Any]
    cpu: float
    late: Sequence[float]
    faults: Sequence[str]
    samples: Mapping[str, float] | None
    peak: float  # MiB, the most resident memory there was


def peak_memory(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


async def one_turn(plan: Plan, at: Server, requests: Sequence[Alone], turn: Turn, tally: Tally) -> None:
    begun, used = time.monotonic(), time.process_time()
    async with asyncio.TaskGroup() as group:
        for number in range(ORDINARY):
            group.create_task(ordinary(number, plan, at, requests, turn, tally))
    turn.seconds += time.monotonic() - begun
    turn.cpu += time.process_time() - used


async def turns(plan: Plan, at: Server, tally: Tally) -> Seen:
    requests = [one for one in await all_alone(plan, at) if can_stream(one.body)]
    calm, hostile = Turn(), Turn()
    await one_turn(plan, at, requests, Turn(), tally)  # everything has been done once
    start = await come_to_rest(at, await rest(at))
    context = min(read_config(plan.model or default_model_path()).max_position_embeddings, 32768)
    attackers = Attackers(at, context, plan.pause)
    try:
        with probing(at) as probe:
            for _ in range(TURNS):
                probe.turn = calm
                await one_turn(plan, at, requests, calm, tally)
                probe.turn = hostile
                attackers.begin(plan.seconds / (2 * TURNS))
                await one_turn(plan, at, requests, hostile, tally)
                await asyncio.to_thread(attackers.end)
                await settled(at, start)
    finally:
        attackers.close()
    faults = list(probe.faults)
    samples: Mapping[str, float] | None = None
    try:
        async with asyncio.timeout(REST_SECONDS):
            end = await come_to_rest(at, start)
            samples = await metrics(at.port)
    except (OSError, TimeoutError) as error:
        faults.append(f"/metrics does not answer within {REST_SECONDS:g} s after the last turn: {error!r}")
        end = Rest(held(at.process.pid), {})
    peak = peak_memory(at.process.pid)
    return Seen(calm, hostile, start, end, attackers.told, attackers.cpu, probe.late, faults, samples, peak)


async def settled(at: Server, start: Rest) -> None:
    """Waits a while for the server to have nothing left of the hostile turn, so that a calm one is calm."""
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(SETTLE_SECONDS):
            while (await rest(at)).load != start.load:
                await asyncio.sleep(0.25)


def run(plan: Plan) -> Report:
    tally = Tally()
    with server(plan) as at:
        seen = asyncio.run(turns(plan, at, tally))
        at.process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):  # then it is killed
            at.process.wait(60)
        return report(plan, tally, seen, at.process.returncode, at.log.read_text())


def at_quantile(values: Sequence[float], part: float) -> float:
    return sorted(values)[int(part * (len(values) - 1))] if values else float("inf")


def report(plan: Plan, tally: Tally, seen: Seen, status: int | None, log: str) -> Report:
    calm, hostile, start, end = seen.calm, seen.hostile, seen.start, seen.end
    ratios = {
        part: at_quantile(hostile.first_tokens, part) / at_quantile(calm.first_tokens, part) for part in (0.5, 0.95)
    }
    slowest = max([*calm.livez, *hostile.livez], default=float("inf"))
    grown = end.held.resident / start.held.resident
    growth_allowed = max(plan.growth, 1 + plan.memory_slack / start.held.resident)
    seen_statuses = {status for outcomes in seen.told["outcomes"].values() for status in outcomes}
    holds = {
        "ordinary answers have the bytes that they have alone": tally.counts["differing"] == 0,
        "no ordinary answer is lost, and no surprise": tally.counts["surprises"] == 0,
        "there were ordinary answers in both kinds of turns": min(len(calm.livez), calm.answered, hostile.answered) > 0,
        f"/livez and /metrics always answer{'' if not seen.faults else f' ({len(seen.faults)}: {seen.faults[0]})'}":
            not seen.faults,
        f"/livez answers within {plan.livez_ms} ms ({slowest * 1000:.0f} ms)": slowest * 1000 <= plan.livez_ms,
        f"resident memory comes back to {growth_allowed:.2f} of its start ({grown:.2f})": grown <= growth_allowed,
        "threads are back at their start": end.held.threads <= start.held.threads,
        "open files are back at their start": end.held.files <= start.held.files,
        "hostile requests get an answer, or a refusal of 400 to 499 or 503": seen_statuses
        <= {"200", "400", "408", "413", "422", "429", "431", "503", "left"},
        "the log has no traceback": "Traceback" not in log,
        f"SIGTERM ended it with status 0 within 60 s ({status})": status == 0,
    }  # fmt: skip
    for part, name in ((0.5, "the median of first tokens"), (0.95, "the 95th percentile of first tokens")):
        what = f"{name} is within {plan.slower:g} of the calm turns' ({ratios[part]:.2f})"
        holds[what] = ratios[part] <= plan.slower
    sums: object = "not checked: this server has no /metrics"
    if seen.samples is not None:
        received = seen.samples["gnomon_requests_received_total"]
        ended = {outcome: seen.samples.get(f"gnomon_requests_ended_total {outcome}", 0.0) for outcome in OUTCOMES}
        sums = f"{received:.0f} = " + " + ".join(f"{count:.0f} {outcome}" for outcome, count in ended.items())
        holds[f"the metrics add up ({sums})"] = received == sum(ended.values())
        holds["no request has failed"] = ended["failed"] == 0
        holds["slots, pages, running and waiting are back at their start"] = end.load == start.load
    rows: dict[str, object] = {
        "engine": plan.engine,
        "ordinary clients; turns of each kind, seconds of one": f"{ORDINARY}; {TURNS}, {plan.seconds / (2 * TURNS):g}",
        **table(calm, hostile),
        "first tokens, hostile to calm: median, 95th percentile": ", ".join(f"{r:.2f}" for r in ratios.values()),
        "resident memory at the start, after, and at its peak (MiB)": f"{start.held.resident:.1f}, "
        f"{end.held.resident:.1f}, {seen.peak:.1f}",
        "threads; open files, likewise": f"{start.held.threads}, {end.held.threads}; "
        f"{start.held.files}, {end.held.files}",
        "received = ended": sums,
        "differing bytes; surprises": f"{tally.counts['differing']}; {tally.counts['surprises']}",
        **{f"hostile: {name}": outcome(seen.told, name) for name in seen.told["outcomes"]},
        "processor of the hostile clients, of one core": f"{seen.cpu / max(hostile.seconds, 1e-9):.0%}, nice 10",
        "latest wake-up of this program by the machine": f"{max(seen.late, default=0) * 1000:.0f} ms",
    }
    return Report(rows, [name for name, is_so in holds.items() if not is_so] + tally.surprises, tally)


def table(calm: Turn, hostile: Turn) -> dict[str, object]:
    """Rows of one value for the calm turns and one for the hostile ones."""

    def both(show: Any) -> str:
        return " | ".join(show(turn) for turn in (calm, hostile))

    return {
        "": "calm | hostile",
        "ordinary answers": both(lambda turn: str(turn.answered)),
        "ordinary requests refused, and sent again": both(lambda turn: str(turn.again)),
        "tokens a second, ordinary": both(lambda turn: f"{turn.tokens / max(turn.seconds, 1e-9):.0f}"),
        "first token, median": both(lambda turn: quantile(turn.first_tokens, 0.5)),
        "first token, 95th percentile": both(lambda turn: quantile(turn.first_tokens, 0.95)),
        "first token, slowest": both(lambda turn: quantile(turn.first_tokens, 1)),
        "/livez, median": both(lambda turn: f"{at_quantile(turn.livez, 0.5) * 1000:.0f} ms"),
        "/livez, slowest": both(lambda turn: f"{at_quantile(turn.livez, 1) * 1000:.0f} ms"),
        "processor of the ordinary clients, of one core": both(
            lambda turn: f"{turn.cpu / max(turn.seconds, 1e-9):.0%}"
        ),
    }


def outcome(told: Mapping[str, Any], name: str) -> str:
    counted = ", ".join(f"{status}: {count}" for status, count in sorted(told["outcomes"][name].items()))
    received = told["received"].get(name, 0)
    size = f"; {received / 2**20:.0f} MiB received" if received > 2**20 else ""
    smaller = f"; {told['smallest'][name]} times halved" if told["smallest"][name] else ""
    return (counted or "none") + size + smaller


if __name__ == "__main__":
    if sys.argv[1:] != ["--attack"]:
        sys.exit("this is run by: python tests/load.py --hostile")
    sys.exit(attack())
