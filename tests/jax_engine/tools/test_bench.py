"""The benchmark in its quick mode: are its figures what the table says, however large they are?"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np
import pytest

from gnomon.jax_engine.tools import peers
from gnomon.jax_engine.tools.bare import BarePrograms
from gnomon.jax_engine.tools.bench import main
from gnomon.jax_engine.tools.clients import GREEDY_PARAMS, ClientError, CompletionsClient, Streams, run_streams
from gnomon.jax_engine.tools.groups import GROUPS
from gnomon.jax_engine.tools.measure import make_checkpoint
from gnomon.jax_engine.tools.ratios import NotMeasured, Ratio
from gnomon.jax_engine.tools.workbench import LOADS, QUICK_PLAN, Bench
from gnomon.reference.checkpoint.load import load_checkpoint

pytestmark = pytest.mark.weekly

COMMAND = (sys.executable, "-m", "gnomon.jax_engine.tools.bench")


class Printed(NamedTuple):
    code: int
    table: str
    report: dict[str, Any]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model") / "llama", QUICK_PLAN.shape, QUICK_PLAN.context)


@pytest.fixture(scope="module")
def bench(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    bench = Bench(QUICK_PLAN, "float32", load_checkpoint(checkpoint), tmp_path_factory.mktemp("scratch"))
    yield bench
    bench.close()


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Printed:
    """All groups but the one that needs peers, and torch's, which is slow to import and has a test of its own. This
    version is its own baseline."""
    file = tmp_path_factory.mktemp("report") / "report.json"
    groups = ",".join(name for name in GROUPS if name not in ("peers", "transformers"))
    done = subprocess.run(
        [*COMMAND, "--quick", "--only", groups, "--baseline", sys.executable, "--json", str(file)],
        capture_output=True, text=True, timeout=1200,
    )  # fmt: skip
    assert done.stdout, done.stderr
    return Printed(done.returncode, done.stdout, json.loads(file.read_text()))


def check(rows: list[dict[str, Any]]) -> None:
    """Two positive sides, and the ratio theirs: above 1 where ours is the better one."""
    for row in rows:
        assert row["ours"] > 0 < row["theirs"], row
        ours, theirs = row["ours"], row["theirs"]
        assert row["better"] == ("larger" if row["unit"] == "tok/s" else "smaller")
        assert row["ratio"] == (ours / theirs if row["better"] == "larger" else theirs / ours)
        reached = None if row["target"] is None else row["ratio"] >= row["target"]
        assert row["met"] == (reached if row["most"] is None else row["ours"] <= row["most"])
        for side in ("ours", "theirs"):
            assert row[side] == np.median(row["rounds"][side])
            assert row["other"]


def test_every_row_of_the_quick_run_has_two_sides_and_their_ratio(quick: Printed) -> None:
    assert quick.code == 0, quick.table
    check(quick.report["rows"])
    names = [row["row"] for row in quick.report["rows"]]
    assert len(set(names)) == len(names)
    for what in (
        "decode step, 1 row, greedy", "decode step, 8 rows, temperature 0.8 and top_p 0.95",
        "prefill of a chunk of 128", "engine, 8 streams, greedy", "decode step, 8 rows, beside 4 busy processes",
        "--slots 1, one stream", "--slots 8, 9 streams",
        "prefill of 32 in a chunk of 128", "first token of a prompt of 385, warm prefix",
        "between two tokens, prefill of 384 under way", "HTTP, 8 at once, streamed",
        "8 streams, temperature 0.8 and top_p 0.95, the baseline's", "embedded model, one stream, greedy",
        "start-up, this model, until the first answer, warm cache", "peak of the start, against the baseline",
    ):  # fmt: skip
        assert f"{what}, float32" in names


def test_the_targets_are_those_that_were_set(quick: Printed) -> None:
    rows = quick.report["rows"]
    assert {row["row"].removesuffix(", float32"): row["target"] for row in rows if row["target"] is not None} == {
        "decode step, 1 row, greedy": 0.65,
        "decode step, 8 rows, beside 4 busy processes": 0.6,
        "engine, 8 streams, greedy": 0.95,
        "engine, 8 streams, temperature 0.8 and top_p 0.95": 0.95,
        "8 streams, temperature 0.8 and top_p 0.95": 0.95,
        "embedded model over HTTP, 9 at once, streamed, against the baseline": 2.0,
        "peak of the start, at most 1.15 × the other side": 1 / 1.15,
        "resident memory, at most 1.1 × the other side": 1 / 1.1,
    }
    assert {row["row"].removesuffix(", float32"): row["most"] for row in rows if row["most"] is not None} == {
        "what 1,000 positions of one row add to a step": 3.0,
        "start-up, embedded model, until it says it serves, warm cache": 3.0,
    }


def test_the_json_says_what_the_table_says(quick: Printed) -> None:
    head, _, table = quick.table.partition("\n\n")
    assert [line.split(": ", 1) for line in head.splitlines()] == [
        [name, str(value)] for name, value in quick.report["head"].items()
    ]
    for line, row in zip(table.splitlines()[2:], quick.report["rows"], strict=True):
        name, ours, theirs, ratio, target, met, rounds = (cell.strip() for cell in line.strip("|").split("|"))
        assert name == row["row"]
        assert ours == f"{row['ours']:.4g} {row['unit']}"
        assert theirs == f"{row['theirs']:.4g} {row['unit']}, {row['other']}"
        assert ratio == f"{row['ratio']:.3g}"
        most = "" if row["most"] is None else f"≤ {row['most']:g} {row['unit']}"
        assert target == (most if row["target"] is None else f"≥ {row['target']:.3g}")
        assert met == {None: "", True: "yes", False: "NO"}[row["met"]]
        assert int(rounds) == len(row["rounds"]["ours"]) == len(row["rounds"]["theirs"])


def test_the_head_says_where_and_under_which_load(quick: Printed) -> None:
    head = quick.report["head"]
    assert list(head)[:6] == ["date", "versions", "device", "model", "rounds", "baseline"]
    assert head["baseline"].endswith(f"of {sys.executable}")
    assert list(head)[6:] == ["load average before", "engines here", "load average after"]
    assert head["engines here"].startswith("products by ")
    assert "jaxlib" in head["versions"]
    assert "106,816 parameters" in head["model"]


# ---- the bare step


def test_the_bare_step_is_that_of_a_full_engine(bench: Bench) -> None:
    engine = bench.engine()
    bare = BarePrograms(engine, BarePrograms.STEP, 16, lambda: bench.streams(engine, 8))
    [live] = [argument for argument in bare._arguments["decode"] if isinstance(argument, np.ndarray)]
    assert live.tolist() == [True] * 8
    first = bare._arguments["decode"][1]
    assert bare.milliseconds(3) > 0
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first))  # consumed, and taken anew
    assert bare.milliseconds(3) > 0


def test_recording_leaves_the_engine_as_it_was(bench: Bench) -> None:
    engine = bench.engine()
    before = dict(engine.device.compiled)
    BarePrograms(engine, ["prefill"], 3, lambda: run_streams(engine, bench.prompts(1, 300), 1, GREEDY_PARAMS))
    with pytest.raises(ClientError, match="the engine did not call prefill 3 times"):
        BarePrograms(engine, ["prefill"], 3, lambda: run_streams(engine, bench.prompts(1, 200), 1, GREEDY_PARAMS))
    assert engine.device.compiled == before
    assert len(bench.streams(engine, 3, LOADS["greedy"]).times) == 3


def test_rates_count_what_came_in_the_time_that_it_took() -> None:
    streams = Streams(10.0, [[11.0, 12.0, 13.0, 14.0], [12.0, 13.0, 14.0, 15.0]])
    assert streams.rate() == 8 / 5
    assert streams.steady_rate() == 4 / 2  # from 12, excluded, to 14


def test_the_engines_of_the_table_multiply_as_those_of_the_server(bench: Bench) -> None:
    bench.engine()
    with bench.serving() as server:
        lines = server.log.splitlines()
        assert {line[line.index("products by ") :] for line in lines if "products by " in line} == bench.said


# ---- transformers


def test_without_transformers_the_row_says_so(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    [row] = GROUPS["transformers"](bench)
    assert row.to_json() == {
        "row": "against transformers generate",
        "not measured": "torch and transformers not installed",
    }


def test_transformers_generates_as_many_tokens_from_the_same_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    done = subprocess.run(
        [*COMMAND, "--quick", "--only", "transformers", "--json", str(tmp_path / "report.json")],
        capture_output=True, text=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    check(rows)
    assert [row["target"] for row in rows] == [1.3, 1.3, 0.95, 0.95, 1.0]


# ---- what is asked for, and peers


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as end:
        main(list(map(str, arguments)))
    assert end.value.code == 2
    return capsys.readouterr().err


def test_an_unknown_group_is_refused_with_the_names_of_all(capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal(capsys, "--only", "decode,speed")
    assert "--only: there is no speed; there are " in message
    assert all(name in message for name in GROUPS)


def test_options_that_make_no_run_are_refused_before_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "needs --peers or --baseline" in refusal(capsys, "--only", "peers")
    assert "only with the group peers" in refusal(capsys, "--only", "decode", "--peers", "vllm")
    assert "there is no vlm; there are llama-server, vllm, transformers" in refusal(capsys, "--peers", "vlm")
    assert "--checkpoint and --dtype" in refusal(capsys, "--peers", "a=http://127.0.0.1:1")
    assert "two have the same name" in refusal(capsys, "--peers", "vllm", "vllm")
    assert "--rounds: at least 1" in refusal(capsys, "--rounds", 0)
    assert "No such file or directory" in refusal(capsys, "--baseline", tmp_path / "python")
    assert "No such file or directory" in refusal(
        capsys, "--quick", "--only", "prefill", "--json", tmp_path / "absent" / "report.json"
    )


def test_a_dead_peer_is_named(capsys: pytest.CaptureFixture[str], checkpoint: Path) -> None:
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))  # and it does not listen
        url = f"http://127.0.0.1:{unheard.getsockname()[1]}"
        message = refusal(capsys, "--checkpoint", checkpoint, "--dtype", "float32", "--peers", f"gone={url}")
    assert f"gone at {url} does not answer" in message


class Handler(BaseHTTPRequestHandler):
    """A server that makes no tokens but counts them."""

    bodies: ClassVar[list[dict[str, Any]]] = []

    def log_message(self, *arguments: object) -> None:
        return

    def do_GET(self) -> None:
        self._answer({"data": [{"id": "fake"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.bodies.append(body)
        time.sleep(0.01)
        count = min(body["max_tokens"], 30)
        usage = {"usage": {"completion_tokens": count}, "choices": []}
        if body.get("stream"):
            self.send_response(200)
            self.end_headers()
            for _ in range(count):
                time.sleep(0.01)
                self.wfile.write(b'data: {"choices": [{"text": "a"}]}\n\n')
            self.wfile.write(b"data: %s\n\ndata: [DONE]\n\n" % json.dumps(usage).encode())
        else:
            self._answer(usage)

    def _answer(self, answer: object) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())


@pytest.fixture
def peer() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    Handler.bodies.clear()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_peers_are_asked_for_as_many_tokens_as_our_server(
    peer: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "FOLDER", tmp_path)
    options = ["--quick", "--dtype", "float32", "--checkpoint", str(checkpoint), "--only", "peers"]
    assert main([*options, "--peers", f"fake={peer}/v1/", "vllm", "--json", str(tmp_path / "report.json")]) == 0
    absent, *rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert absent == {
        "row": "against vllm, float32",
        "not measured": f"venvB not installed in {tmp_path}: see tests/peer_run.py",
    }
    check(rows)
    assert [row["row"] for row in rows] == [
        "one stream, 32 + 16 tokens, against fake, float32",
        "eight streams, 32 + 16 tokens, against fake, float32",
        "9 streams, 32 + 24 tokens, against fake, float32",
        "prefill of 400 and a token, against fake, float32",
        "one stream after a prompt of 800, against fake, float32",
        "eight streams, 800 + 24 tokens, against fake, float32",
    ]
    assert rows[3]["theirs"] > 100  # ids of the prompt: of requests there cannot be more than 100 a second
    assert 50 < rows[4]["theirs"] <= 100  # a token every 10 ms, the first one's time not counted
    asked = [(body["model"], len(body["prompt"]), body["max_tokens"]) for body in Handler.bodies]
    works = [(32, 16)] * 18 + [(32, 24)] * 18 + [(400, 1)] * 2 + [(800, 16)] * 2 + [(800, 24)] * 16
    assert asked == [("fake", *work) for work in works]


def test_an_answer_of_too_few_tokens_is_an_error_that_names_the_server(peer: str) -> None:
    with pytest.raises(ClientError, match=f"short at {peer} gave 30 tokens where 31 were asked for"):
        CompletionsClient.of_running(f"short={peer},model=m").rate([[1]], 31)


def test_a_group_that_fails_is_a_row_and_a_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(bench: Bench) -> Iterator[Ratio | NotMeasured]:
        yield Ratio("a", "ms", [1.0], [2.0], "b")
        raise ClientError("the peer\nis gone")

    monkeypatch.setitem(GROUPS, "decode", broken)
    monkeypatch.setitem(GROUPS, "prefill", lambda bench: iter([Ratio("c", "tok/s", [1.0, 5.0, 2.0], [4.0], "d", 0.5)]))
    assert main(["--quick", "--only", "decode,prefill"]) == 1
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "| a, float32 | 1 ms | 2 ms, b | 2 |  |  | 1 |",
        "| the rest of the group decode, float32 | not measured: failed, ClientError: the peer is gone | | | | | |",
        "| c, float32 | 2 tok/s (1 to 5) | 4 tok/s, d | 0.5 | ≥ 0.5 | yes | 3 |",
    ]
