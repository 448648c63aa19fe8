"""`gnomon verify` as a command: its options, its exit codes, its files, and what it says where it cannot run."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gnomon.http.app import create_app
from gnomon.http.cli.main import main
from gnomon.http.settings import Settings
from gnomon.http.verify.ask.answer import Unclear
from gnomon.http.verify.ask.client import Busy, CannotReach, OutOfBudget
from gnomon.http.verify.ask.probe import Probe, Subject
from gnomon.http.verify.command import CannotRun, bases, run_verify
from gnomon.http.verify.options import Options, ProfileName
from gnomon.http.verify.report.report import Section
from gnomon.http.verify.verdict import Case, Finding, Judgement, case, honoured, ignored, wrong
from helpers.fake import FakeEngine, fake_tokenizer, hashed_logits
from helpers.raw import Asked, RawServer, http, raw_server

COMMAND = (
    sys.executable,
    "-c",
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "from gnomon.http.cli.main import main; main()",
)


class Result(NamedTuple):
    code: int
    out: str
    err: str


Gnomon = Callable[..., Result]


@pytest.fixture
def gnomon(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Gnomon:
    monkeypatch.delenv("GNOMON_KEY", raising=False)

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["gnomon", "verify", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            main()
        return Result(exit.value.code or 0, *capfd.readouterr())  # type: ignore[arg-type]

    return run


# ---- a server of a few lines


class Small:
    """Answers as a server should, asked for no key or for one; keeps what it was asked."""

    def __init__(self, models: Sequence[str] = ("m",), key: str | None = None, prefix: str = "/v1") -> None:
        self.models, self.key = models, key
        self.bodies: list[dict[str, Any]] = []
        self.app = Starlette(
            routes=[
                Route(f"{prefix}/models", self.list_models),
                Route(f"{prefix}/completions", self.complete, methods=["POST"]),
            ]
        )

    def refusal(self, request: Request) -> Response | None:
        if self.key is None or request.headers.get("authorization") == f"Bearer {self.key}":
            return None
        return JSONResponse({"error": {"message": "who are you?", "param": None}}, 401)

    async def list_models(self, request: Request) -> Response:
        refusal = self.refusal(request)
        return refusal or JSONResponse({"object": "list", "data": [{"id": name} for name in self.models]})

    async def complete(self, request: Request) -> Response:
        refusal = self.refusal(request)
        if refusal is not None:
            return refusal
        body = await request.json()
        self.bodies.append(body)
        if body["model"] not in self.models:
            error = {"message": f"no model {body['model']}", "type": "x", "param": "model", "code": None}
            return JSONResponse({"error": error}, 404)
        choice = {"index": 0, "text": "a" * body["max_tokens"], "logprobs": None, "finish_reason": "length"}
        usage = {"prompt_tokens": 4, "completion_tokens": body["max_tokens"], "total_tokens": 4 + body["max_tokens"]}
        value = {"id": "c", "object": "text_completion", "created": 1, "model": body["model"], "usage": usage}
        return JSONResponse({**value, "choices": [choice]})


@case("good.answers", "prompt", law="3", says="a prompt is continued")
async def answers(p: Probe) -> Judgement:
    return honoured((await p.complete(max_tokens=2)).text)


@case("good.again", "seed", law="10", says="and again", needs=("good.answers",))
async def again(p: Probe) -> Judgement:
    return honoured((await p.complete(max_tokens=3)).text)


@case("best_of.returns_the_best", "best_of", law="8", says="the best comes back", needs=("good.answers",))
async def bad(p: Probe) -> Judgement:
    await p.complete(best_of=2)
    return ignored("it is the first")


CASES = (answers, again, bad)


class Judged(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def judged(capfd: pytest.CaptureFixture[str]) -> Callable[..., Judged]:
    """verify() against a small server in this process."""

    def run(small: Small, cases: Sequence[Case] = CASES, sections: Sequence[Any] = (), **options: Any) -> Judged:
        given = {"url": "http://small", **options}
        status = run_verify(Options(**given), cases, sections, httpx.ASGITransport(small.app))
        return Judged(status, *capfd.readouterr())

    return run


Verify = Callable[..., Judged]


# ---- the address


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8000", ("http://127.0.0.1:8000/v1",)),
        ("http://127.0.0.1:8000/", ("http://127.0.0.1:8000/v1",)),
        ("http://127.0.0.1:8000/v1", ("http://127.0.0.1:8000/v1",)),
        ("http://127.0.0.1:8000/v1/", ("http://127.0.0.1:8000/v1",)),
        (" https://a.example/v1/completions ", ("https://a.example/v1",)),
        ("https://a.example/v2", ("https://a.example/v2",)),
        ("https://a.example/openai", ("https://a.example/openai/v1", "https://a.example/openai")),
        ("https://a.example/openai/v1", ("https://a.example/openai/v1",)),
        ("http://[::1]:8000", ("http://[::1]:8000/v1",)),
    ],
)
def test_the_address_may_have_v1_or_not(url: str, expected: tuple[str, ...]) -> None:
    assert bases(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:8000",
        "localhost",
        "ftp://a.example",
        "http://",
        "https:///v1",
        "http://a b",
        "http://a:port",
        "x",
    ],
)
def test_what_is_no_address_is_refused_with_an_example(url: str, gnomon: Gnomon) -> None:
    result = gnomon(url)
    assert result.code == 2
    assert "give one such as http://127.0.0.1:8000" in result.err
    assert result.err.count("\n") == 1


def test_a_password_in_the_address_is_refused_and_not_shown(gnomon: Gnomon) -> None:
    result = gnomon("https://somebody:hunter2@a.example/v1")
    assert result.code == 2
    assert "GNOMON_KEY" in result.err
    assert "hunter2" not in result.err + result.out
    assert "hunter2" not in gnomon("https://somebody:hunter2@a b:c/v1").err


@pytest.mark.parametrize("url", ["http://a/v1?api-key=hunter2", "http://a/v1#hunter2", "http://a/v1?"])
def test_a_query_in_the_address_is_refused_and_not_shown(url: str, gnomon: Gnomon) -> None:
    result = gnomon(url)
    assert result.code == 2
    assert "hunter2" not in result.err
    assert "'http://a/v1'" in result.err


def test_an_address_without_v1_is_tried_as_it_is_too(judged: Verify) -> None:
    small = Small(prefix="/api")
    assert judged(small, (answers,), url="http://small/api").status == 0
    assert judged(small, (answers,), url="http://small/api", model="m").status == 0
    assert judged(Small(prefix="/api/v1"), (answers,), url="http://small/api").status == 0


# ---- model and key


def test_the_first_model_is_taken_and_said_where_there_are_several(judged: Verify) -> None:
    small = Small(("one", "two", "three"))
    result = judged(small, (answers,))
    assert result.status == 0
    assert "3 models; judging the first, 'one'; --model takes another: two, three" in result.err
    assert {body["model"] for body in small.bodies} == {"one"}
    assert judged(Small(("one", "two")), (answers,), model="two").err == ""


def test_a_list_without_models_asks_for_a_name(judged: Verify) -> None:
    result = judged(Small(()), (answers,))
    assert result.status == 2
    assert "names no model; give the model's name with --model" in result.err


def test_a_model_that_is_not_served_ends_the_run_with_the_servers_words(judged: Verify) -> None:
    result = judged(Small(), model="other")
    assert result.status == 2
    assert "a plain request is refused: POST http://small/v1/completions: HTTP 404: no model other" in result.err


def test_a_server_that_wants_a_key_says_how_to_give_one(judged: Verify) -> None:
    small = Small(key="sk-0123456789abcdef")
    for model in (None, "m"):
        result = judged(small, model=model)
        assert result.status == 2
        assert "HTTP 401; the server wants a key: set GNOMON_KEY" in result.err
    assert "the server does not take this key" in judged(small, api_key="another").err
    assert judged(small, (answers,), api_key="sk-0123456789abcdef").status == 0


@pytest.mark.parametrize("key", ["", "two words", "schlüssel", "line\nbreak"])
def test_a_key_that_no_header_can_have_is_refused_and_not_shown(key: str, judged: Verify) -> None:
    result = judged(Small(), api_key=key)
    assert result.status == 2
    assert "the key is empty, or has a character that no header can have" in result.err
    assert not key or key not in result.err


# ---- exit codes


def test_exit_codes_are_0_for_honoured_1_for_findings_2_for_no_run(judged: Verify) -> None:
    assert judged(Small(), (answers, again)).status == 0
    assert judged(Small(), CASES).status == 1
    assert judged(Small(), CASES, budget_tokens=1).status == 2


def test_accepting_what_is_documented_makes_it_0_and_the_word_stays(judged: Verify) -> None:
    result = judged(Small(), profile=ProfileName.vllm)
    assert result.status == 1
    result = judged(Small(), profile=ProfileName.vllm, accept_documented=True)
    assert result.status == 0
    assert "IGNORED   the best comes back" in result.out
    assert "left out of the exit code" in result.out


def test_a_budget_is_never_exceeded_and_what_it_left_is_unclear(judged: Verify, tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    assert judged(Small(), (answers, again), budget_tokens=70, json=str(file)).status == 0
    value = json.loads(file.read_bytes())
    assert value["cost"]["tokens"] <= 70
    assert value["totals"]["honoured"] + value["totals"]["unclear"] == 2


# ---- only


def test_only_runs_what_a_case_needs_and_reports_it_alone(judged: Verify, tmp_path: Path) -> None:
    small, file = Small(), tmp_path / "r.json"
    assert judged(small, only=("seed",), json=str(file)).status == 0
    value = json.loads(file.read_bytes())
    assert [entry["case"] for entry in value["findings"]] == ["good.again"]
    assert [body["max_tokens"] for body in small.bodies] == [1, 2, 3]
    assert value["options"]["only"] == ["seed"]


def test_a_group_that_is_none_is_refused_before_anything_is_asked(judged: Verify) -> None:
    small = Small()
    result = judged(small, only=("sed",))
    assert result.status == 2
    assert "'sed' is no group or case; there are: good, best_of" in result.err
    assert small.bodies == []


# ---- files


def test_all_forms_are_written_and_tell_the_same(judged: Verify, tmp_path: Path) -> None:
    files = {name: str(tmp_path / f"r.{name}") for name in ("json", "junit", "html")}
    result = judged(Small(), **files)
    value = json.loads(Path(files["json"]).read_bytes())
    assert value["exit_code"] == result.status == 1
    assert ElementTree.parse(files["junit"]).getroot().get("failures") == "1"
    assert "it is the first" in Path(files["html"]).read_text("utf-8")
    assert "3 cases: 2 honoured, 1 IGNORED" in result.out


def test_json_on_standard_output_is_alone_there(judged: Verify) -> None:
    result = judged(Small(), json="-")
    assert json.loads(result.out)["totals"]["cases"] == 3
    assert "3 cases: 2 honoured" in result.err


@pytest.mark.parametrize("name", ["json", "junit", "html"])
def test_a_file_that_cannot_be_written_ends_it_before_anything_is_asked(
    name: str, judged: Verify, tmp_path: Path
) -> None:
    small = Small()
    for path, words in ((tmp_path / "no" / "r", "No such file"), (tmp_path, "Is a directory")):
        result = judged(small, **{name: str(path)})
        assert result.status == 2
        assert f"--{name}: {str(path)!r}: {words}" in result.err
    assert small.bodies == []


def test_one_file_for_two_forms_is_refused(judged: Verify, tmp_path: Path) -> None:
    same = {"json": str(tmp_path / "r"), "html": str(tmp_path / "." / "r")}
    assert "name the same file" in judged(Small(), **same).err


def test_where_there_is_no_run_no_file_is_left_and_an_old_one_stays(judged: Verify, tmp_path: Path) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.html"
    old.write_text("old")
    assert judged(Small(), model="other", json=str(old), html=str(new)).status == 2
    assert old.read_text() == "old"
    assert not new.exists()


def test_a_baseline_may_be_the_file_that_is_written(judged: Verify, tmp_path: Path) -> None:
    file = str(tmp_path / "r.json")
    assert judged(Small(), (answers, again), json=file).status == 0
    result = judged(Small(), json=file, baseline=file)
    assert result.status == 1
    changes = json.loads(Path(file).read_bytes())["changes"]
    assert [change["case"] for change in changes["added"]] == ["best_of.returns_the_best"]
    assert "cases that the earlier report does not have: 1" in result.out


def test_a_baseline_that_is_no_report_ends_it_before_anything_is_asked(judged: Verify, tmp_path: Path) -> None:
    small, file = Small(), tmp_path / "r.json"
    file.write_text("{}")
    result = judged(small, baseline=str(file))
    assert result.status == 2
    assert "is no report of gnomon verify" in result.err
    assert small.bodies == []


# ---- sections


def test_a_section_asks_after_the_cases_and_counts(judged: Verify, tmp_path: Path) -> None:
    async def beside(subject: Subject, /) -> Section:
        await Probe(subject).complete(max_tokens=9)
        return Section("Beside", (Finding(answers, wrong("another one"), (), 0.1),))

    small = Small()
    result = judged(small, (answers,), [beside])
    assert result.status == 1
    assert [body["max_tokens"] for body in small.bodies] == [1, 2, 9]
    assert "another one" in result.out


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (OutOfBudget(), "the budget of tokens is spent"),
        (Busy("no room"), "no room"),
        (Unclear("who knows"), "who knows"),
        (TypeError("a list is no number"), "TypeError: a list is no number"),
        (CannotReach("it is gone"), "it is gone"),
    ],
)
def test_a_section_that_fails_leaves_the_cases_and_is_2(fault: Exception, words: str, judged: Verify) -> None:
    async def failing(subject: Subject, /) -> Section:
        raise fault

    result = judged(Small(), (answers,), [failing])
    assert result.status == 2
    assert result.err.startswith("gnomon verify: the run did not come to its end: ")
    assert words in result.err
    assert result.err.count("\n") == 1
    assert "1 case: 1 honoured" in result.out


# ---- the command itself


def test_the_help_says_what_the_key_is_and_what_a_run_costs(gnomon: Gnomon) -> None:
    text = " ".join(gnomon("--help").out.split())
    assert "GNOMON_KEY" in text
    assert "a command line can be read by others" in text
    assert "[default: 50000" in text
    assert "0: all honoured, refused or unclear; 1: findings; 2: could not run" in text


def test_without_an_address_it_asks_for_one(gnomon: Gnomon) -> None:
    result = gnomon()
    assert result.code == 2
    assert "give the server's URL" in result.err


@pytest.mark.parametrize(
    "arguments",
    [["--concurrency", "0"], ["--concurrency", "65"], ["--budget-tokens", "0"], ["--timeout", "0"], ["--profile", "x"]],
)
def test_an_option_out_of_range_is_2_and_names_it(arguments: list[str], gnomon: Gnomon) -> None:
    result = gnomon("http://127.0.0.1:9", *arguments)
    assert result.code == 2
    assert arguments[0] in result.err


def test_the_list_has_every_case_and_asks_no_server(gnomon: Gnomon) -> None:
    from gnomon.http.verify.cases import CASES as ALL

    result = gnomon("--list")
    assert result.code == 0
    words = result.out.split()
    assert all(case.name in words for case in ALL)
    assert f"{len(ALL)} cases" in result.out
    some = gnomon("--list", "--only", "seed")
    assert "seed.repeats" in some.out
    assert "best_of.zero" not in some.out
    assert gnomon("--list", "--only", "sed").code == 2


def test_our_own_server_is_judged_through_the_command(
    gnomon: Gnomon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from helpers.live import serving

    monkeypatch.setenv("GNOMON_KEY", "sk-the-key-of-this-test")
    app = create_app(FakeEngine(hashed_logits, context=256), fake_tokenizer(tmp_path), Settings())
    with serving(app) as base:
        result = gnomon(base, "--only", "errors", "--only", "max_tokens.accepted", "--json", tmp_path / "r.json")
    assert result.code == 0, result.out
    value = json.loads((tmp_path / "r.json").read_bytes())
    assert {entry["group"] for entry in value["findings"]} == {"errors", "max_tokens"}
    assert value["options"]["with_key"] is True
    assert "sk-the-key" not in (tmp_path / "r.json").read_text() + result.out + result.err


@pytest.mark.slow
def test_ctrl_c_ends_with_what_was_found_and_no_traceback(tmp_path: Path) -> None:
    """After the plain request and one more, the server answers nothing; then the signal comes."""
    reached = threading.Event()
    sound = http(b'{"choices": [{"index": 0, "text": "a", "finish_reason": "length"}]}')

    def script(server: RawServer, client: socket.socket, asked: Asked) -> None:
        if len(server.asked) <= 2:
            client.sendall(sound)
        else:
            reached.set()
            server.hang()

    file = tmp_path / "r.json"
    with raw_server(script) as server:
        environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        process = subprocess.Popen(
            [*COMMAND, "verify", server.base, "--model", "m", "--json", str(file), "--concurrency", "1"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert reached.wait(60)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert err == "gnomon verify: the run did not come to its end: interrupted\n"
    assert "Traceback" not in out
    value = json.loads(file.read_bytes())
    assert value["ended"] == "interrupted"
    assert value["totals"]["not_run"] > 100


@pytest.mark.slow
def test_ctrl_c_before_the_first_answer_is_one_line(tmp_path: Path) -> None:
    reached = threading.Event()

    def script(server: RawServer, client: socket.socket, asked: Asked) -> None:
        reached.set()
        server.hang()

    with raw_server(script) as server:
        environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        process = subprocess.Popen(
            [*COMMAND, "verify", server.base],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert reached.wait(60)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (2, "", "gnomon verify: interrupted\n")


@pytest.mark.slow
def test_an_ascii_terminal_gets_escapes_and_no_error(tmp_path: Path) -> None:
    small_answer = http(b'{"choices": [{"index": 0, "text": "a", "finish_reason": "length"}]}')
    with raw_server(lambda server, client, asked: client.sendall(small_answer)) as server:
        environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        process = subprocess.run(
            [*COMMAND, "verify", server.base, "--model", "m", "--only", "seed.every_integer"],
            capture_output=True,
            env={**environment, "PYTHONIOENCODING": "ascii"},
            timeout=60,
            check=False,
        )
    assert process.returncode in (0, 1)
    assert process.stdout.isascii()
    assert process.stderr == b""


def test_bases_raises_nothing_but_cannot_run_for_any_text() -> None:
    for url in ("http://\x00", "http://a:99999", "\ud800", "http://[::1", "//", "http://é.example/\x7f", "http://%"):
        with pytest.raises(CannotRun):
            bases(url)
