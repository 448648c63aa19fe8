"""The command line: `gnomon complete` in this process, `gnomon serve` as a process of its own."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import httpx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gnomon.http.cli.complete import print_choices
from gnomon.http.cli.model import JaxOptions
from gnomon.http.cli.serve import SERVE_ROWS
from gnomon.http.settings import LIMITS, TIMES, AuthMode
from gnomon.reference.checkpoint.load import load_checkpoint
from gnomon.reference.completion import EngineFailed, Run, prepare
from gnomon.reference.engine import ReferenceEngine
from gnomon.reference.request import FIELDS, CompletionRequest, Field
from gnomon.reference.response import Choice, Completion
from gnomon.reference.tokenizer import load_tokenizer
from helpers.command import COMMAND, Gnomon, Result
from helpers.fake import EOT
from helpers.live import eventually
from helpers.models import tiny_llama
from helpers.readme import README

JAX_OPTIONS = (
    ["--slots", "3"],
    ["--dtype", "bfloat16"],
    ["--kv-cache-memory", "7"],
    ["--tensor-parallel", "2"],
    ["--native"],
    ["--no-native"],
    ["--threads", "5"],
    ["--cache-dir", "cache"],
)
NO_END = json.dumps({EOT: -100})


def check_one_line(result: Result, code: int, beginning: str) -> None:
    assert result.code == code
    assert result.out == ""
    assert result.err.startswith(f"gnomon: {beginning}"), result.err
    assert result.err.count("\n") == 1


# ---- help


def test_help_needs_no_server_and_never_jax() -> None:
    script = (
        "import sys\nfrom gnomon.http.cli.main import main\n"
        "for arguments in (['--help'], ['serve', '--help'], ['complete', '--help'], ['--version']):\n"
        "    sys.argv[1:] = arguments\n"
        "    try: main()\n"
        "    except SystemExit as exit: assert exit.code == 0\n"
        "print([name for name in ('jax', 'starlette', 'uvicorn', 'asyncio') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert done.stderr == ""


def test_version_is_the_packages(gnomon: Gnomon) -> None:
    result = gnomon("--version")
    assert result.code == 0
    assert re.fullmatch(r"gnomon \d+\.\d+\.\d+\n", result.out)


@pytest.mark.parametrize("field", [f for f in FIELDS if f.name not in ("model", "stream", "stream_options")])
def test_every_field_is_an_option_with_the_tables_own_words(gnomon: Gnomon, field: Field) -> None:
    help = re.sub(r"(?<=\w)- ", "-", " ".join(gnomon("complete", "--help").out.split()))  # lines end at hyphens too
    if field.name == "prompt":
        assert "[prompt]" in help
        return
    assert f" --{field.name.replace('_', '-')} " in help
    assert field.meaning[1:] in help
    if field.type != "boolean":
        assert f"Allowed: {' '.join(field.allowed.split())}." in help
    if field.default:
        assert f"Default: {json.dumps(field.default)}." in help


# ---- complete: what is asked


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["a"], {"prompts": ("a",), "max_tokens": 16, "temperature": 1.0, "seed": None, "stop": ()}),
        ([], {"prompts": ("",)}),
        (["--prompt-ids", "[1, 2]"], {"prompts": ((1, 2),)}),
        (["--prompt-ids", "[[1], [2]]"], {"prompts": ((1,), (2,))}),
        (["--max-tokens", "3", "--n", "2", "--best-of", "3"], {"max_tokens": 3, "n": 2, "best_of": 3}),
        (["--temperature", "0.5", "--top-p", "0"], {"temperature": 0.5, "top_p": 0.0}),
        (["--frequency-penalty", "-2", "--presence-penalty", "2"], {"frequency_penalty": -2, "presence_penalty": 2}),
        (["--seed", "-9223372036854775808"], {"seed": -(2**63)}),
        (["--logit-bias", '{"50": -100}'], {"logit_bias": {50: -100.0}}),
        (["--logprobs", "0", "--echo"], {"logprobs": 0, "echo": True}),
        (["--stop", "1", "--stop", "b"], {"stop": ("1", "b")}),
        (["--stop", ""], {"stop": ()}),
        (["--suffix", "5", "--user", "null"], {"suffix": "5", "user": "null"}),
        (["--", "--n"], {"prompts": ("--n",)}),
    ],
)
def test_options_become_the_request(
    gnomon: Gnomon, monkeypatch: pytest.MonkeyPatch, model: Path, arguments: list[str], expected: dict[str, Any]
) -> None:
    seen: list[CompletionRequest] = []

    def seeing(request: CompletionRequest, *_: object) -> None:
        seen.append(request)
        raise KeyboardInterrupt

    monkeypatch.setattr("gnomon.reference.completion.prepare", seeing)
    gnomon("complete", "--model", model, *arguments)
    [request] = seen
    assert {name: getattr(request, name) for name in expected} == expected


def test_the_options_cover_the_fields_that_the_cases_above_set() -> None:
    parameters = test_options_become_the_request.pytestmark[0].args[1]
    set_somewhere = {name for _, expected in parameters for name in expected}
    assert set_somewhere == {f.attribute for f in FIELDS} - {"model", "stream", "include_usage"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", "-1"), ("max_tokens", "many"), ("max_tokens", ""), ("max_tokens", "5000"), ("n", "0"),
        ("n", "1.5"), ("best_of", "21"), ("temperature", "2.1"), ("temperature", "NaN"), ("temperature", '1,"n":2'),
        ("top_p", "1e400"), ("top_p", "true"), ("frequency_penalty", "3"), ("presence_penalty", "-3"),
        ("logprobs", "21"), ("logprobs", "[1]"), ("seed", "9" * 5000), ("logit_bias", "5"),
        ("logit_bias", '{"1": 101}'), ("logit_bias", '{"1": 1, "1": 1}'), ("logit_bias", '{"999": 1}'),
        ("logit_bias", "{" * 5000), ("logit_bias", '{"\udc80": 1}'), ("suffix", "\udc80"), ("user", "\udc80"),
        ("prompt_ids", "[999]"), ("prompt_ids", "[]"), ("stop", "\udc80"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_one_line_that_names_the_field(gnomon: Gnomon, model: Path, field: str, value: str) -> None:
    result = gnomon("complete", "--model", model, "--" + field.replace("_", "-"), value)
    check_one_line(result, 2, "prompt" if field == "prompt_ids" else field)


def test_a_prompt_that_is_no_utf8_is_refused(gnomon: Gnomon, model: Path) -> None:
    check_one_line(gnomon("complete", "-", "--model", model, stdin=b"a\xff"), 2, "prompt")


def test_a_text_and_ids_together_are_refused(gnomon: Gnomon, model: Path) -> None:
    check_one_line(gnomon("complete", "a", "--prompt-ids", "[1]", "--model", model), 2, "prompt")


@pytest.mark.parametrize("command", ["complete", "serve"])
def test_a_model_that_cannot_be_loaded_is_one_line(gnomon: Gnomon, tmp_path: Path, command: str) -> None:
    def arguments(directory: Path) -> list[object]:
        return ["complete", "a", "--model", directory] if command == "complete" else ["serve", directory, "--port", 0]

    check_one_line(gnomon(*arguments(tmp_path / "nowhere")), 1, f"{tmp_path / 'nowhere'}: no such directory")
    other = tiny_llama(tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "architectures": ["MambaForCausalLM"]}))
    check_one_line(gnomon(*arguments(other)), 1, "")
    (other / "config.json").write_text("{")
    check_one_line(gnomon(*arguments(other)), 1, "")


# ---- complete: what is printed


@pytest.fixture
def expected(model: Path) -> Callable[..., list[str]]:
    """The texts of the choices, from the reference itself."""
    checkpoint = load_checkpoint(model)
    engine, tokenizer = ReferenceEngine(checkpoint), load_tokenizer(model, checkpoint.config.vocab_size)

    def texts(**fields: object) -> list[str]:
        request = CompletionRequest.from_fields({"model": "tiny", "logit_bias": {str(EOT): -100}, **fields})
        return [choice.text for choice in prepare(request, engine, tokenizer, "tiny").whole().choices]

    return texts


def test_the_text_is_printed_and_a_line_end(gnomon: Gnomon, model: Path, expected: Callable[..., list[str]]) -> None:
    result = gnomon("complete", "the", "--seed", 5, "--model", model, "--logit-bias", NO_END)
    assert result == (0, expected(prompt="the", seed=5)[0] + "\n", "")


def test_standard_input_is_the_prompt_to_the_last_byte(
    gnomon: Gnomon, model: Path, expected: Callable[..., list[str]]
) -> None:
    arguments = ("--seed", 5, "--echo", "--model", model, "--logit-bias", NO_END)
    result = gnomon("complete", "-", *arguments, stdin="é\n".encode())
    assert result.out == expected(prompt="é\n", seed=5, echo=True)[0] + "\n"


def test_several_choices_stand_one_after_the_other(
    gnomon: Gnomon, model: Path, expected: Callable[..., list[str]]
) -> None:
    arguments = ("--seed", 5, "--n", 2, "--model", model, "--logit-bias", NO_END)
    first, second = expected(prompt="the", seed=5, n=2)
    result = gnomon("complete", "the", *arguments)
    assert result.out == f"--- choice 0 ---\n{first}\n--- choice 1 ---\n{second}\n"
    [best] = expected(prompt="the", seed=5, n=1, best_of=3)
    result = gnomon("complete", "the", "--best-of", 3, *arguments, "--n", 1)
    assert result.out == best + "\n"


def test_json_is_the_whole_response_in_one_line(
    gnomon: Gnomon, model: Path, expected: Callable[..., list[str]]
) -> None:
    result = gnomon("complete", "the", "--json", "--seed", 5, "--n", 2, "--model", model, "--logit-bias", NO_END)
    assert result.code == 0
    body = json.loads(result.out)
    assert result.out.count("\n") == 1
    assert (body["object"], body["model"]) == ("text_completion", "tiny")
    assert [choice["text"] for choice in body["choices"]] == expected(prompt="the", seed=5, n=2)
    assert body["usage"]["completion_tokens"] == 32


def chunk(index: int, text: str, finish_reason: Literal["stop", "length"] | None = None) -> Completion:
    return Completion("id", 0, "m", "f", (Choice(index, text, None, finish_reason),))


def test_text_is_on_its_way_before_the_next_piece_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(pipe), write_through=False))

    def chunks() -> Iterator[Completion]:
        yield chunk(0, "a")
        assert pipe.getvalue() == b"--- choice 0 ---\na"
        yield chunk(1, "x", "stop")
        assert pipe.getvalue() == b"--- choice 0 ---\na"
        yield chunk(0, "b", "length")
        assert pipe.getvalue() == b"--- choice 0 ---\nab\n--- choice 1 ---\nx\n"
        yield chunk(2, "")
        yield chunk(2, "y", "stop")

    print_choices(chunks(), 3)
    assert pipe.getvalue().endswith(b"--- choice 2 ---\ny\n")


@pytest.mark.parametrize(("options", "waits"), [([], False), (["--n", 2], False), (["--best-of", 2], True)])
def test_only_best_of_waits_for_the_whole(
    gnomon: Gnomon, model: Path, monkeypatch: pytest.MonkeyPatch, options: list[object], waits: bool
) -> None:
    def no_pieces(run: Run) -> None:
        raise EngineFailed("asked for pieces")

    def no_whole(run: Run) -> None:
        raise EngineFailed("asked for the whole")

    monkeypatch.setattr(Run, "chunks" if waits else "whole", no_pieces if waits else no_whole)
    assert gnomon("complete", "the", "--model", model, *options).code == 0


def test_ctrl_c_ends_a_completion_without_a_traceback(
    gnomon: Gnomon, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ReferenceEngine, "last_logits", interrupted)
    result = gnomon("complete", "a", "--model", model)
    assert (result.code, result.out) == (130, "")
    assert "Traceback" not in result.err


def test_an_engine_that_fails_is_one_line(gnomon: Gnomon, tmp_path: Path) -> None:
    broken = tiny_llama(tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"] = np.full(32, 1e308)  # a sound float64, whose products overflow
    save_file(weights, broken / "model.safetensors")
    check_one_line(gnomon("complete", "a", "--model", broken), 1, "the model produced logits that are not finite")


def test_a_shorter_context_bounds_a_completion(gnomon: Gnomon, model: Path) -> None:
    fits = gnomon("complete", "--prompt-ids", "[1,2]", "--max-tokens", 6, "--max-model-len", 8, "--model", model)
    assert fits.code == 0
    result = gnomon("complete", "--prompt-ids", "[1,2]", "--max-tokens", 7, "--max-model-len", 8, "--model", model)
    check_one_line(result, 2, "")
    assert "8" in result.err


@pytest.mark.parametrize("command", [["complete", "a", "--model"], ["serve", "--port", "0"]])
def test_a_context_longer_than_the_models_is_one_line_with_both_numbers(
    gnomon: Gnomon, model: Path, command: list[str]
) -> None:
    result = gnomon(*command, model, "--max-model-len", 4097)
    check_one_line(result, 1, "max-model-len 4097: the model's context is 4096; allowed: 1 to 4096")


@pytest.mark.parametrize("command", [["complete", "a", "--model"], ["serve", "--port", "0"]])
def test_a_revision_of_a_directory_is_one_line(gnomon: Gnomon, model: Path, command: list[str]) -> None:
    check_one_line(gnomon(*command, model, "--revision", "v1"), 1, f"{model}: a directory has no revision 'v1'")


def with_objects_of(native_cache: Path, directory: Path) -> None:
    """There the native library is still to be built, but of what has been compiled before."""
    directory.mkdir(mode=0o700, parents=True)
    for compiled in native_cache.glob("*.o"):
        shutil.copy(compiled, directory)


@pytest.mark.slow
def test_completing_says_only_what_takes_long_and_only_the_first_time(
    gnomon: Gnomon, model: Path, native_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_objects_of(native_cache, tmp_path / "jax")
    monkeypatch.setattr("gnomon.jax_engine.kernels.native._registered", {})
    monkeypatch.setenv("GNOMON_CACHE_DIR", str(tmp_path))
    said = []
    for engine in ("reference", "jax", "jax"):
        result = gnomon("complete", "a", "--engine", engine, "--max-model-len", 64, "--model", model)
        assert result.code == 0
        said.append(result.err)
    assert said[0] == said[2] == ""
    assert re.fullmatch(r"importing jax\nbuilding the native operations .+\ncompiling 5 programs .+\n", said[1])


BEFORE_JAX = """
import sys, time
class Told:
    def find_spec(self, name, path=None, target=None):
        if name == "jax":
            time.sleep(1)  # what was said is there by now
            sys.stderr.write("jax is imported\\n")
            sys.stderr.flush()
            sys.meta_path.remove(self)
sys.meta_path.insert(0, Told())
from gnomon.http.cli.main import main
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("command", ["serve", pytest.param("doctor", marks=pytest.mark.slow)])
def test_the_first_line_comes_before_jax_is_imported(command: str) -> None:
    """Importing it takes seconds. JAX_PLATFORMS ends the start there."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("GNOMON_")}
    done = subprocess.run(
        [sys.executable, "-c", BEFORE_JAX, command, *(["--port", "0"] if command == "serve" else ["--quick"])],
        env={**others, "JAX_PLATFORMS": "nonsense"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (1, "")
    first, *_, imported, last = done.stderr.splitlines()
    assert re.fullmatch(r"(\S+ INFO )?starting .+: importing jax", first)
    assert imported == "jax is imported"
    assert last.startswith("gnomon: JAX_PLATFORMS='nonsense': ")


# ---- serve


class Serving(NamedTuple):
    process: subprocess.Popen[str]
    line: str
    url: str


@contextmanager
def serve(*arguments: object) -> Iterator[Serving]:
    command = [*COMMAND, "serve", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r" is served at (http://\S+)/v1 ", line)
        assert found, (line, process.communicate()[1] if process.poll() is not None else "")
        yield Serving(process, line, found[1])
    finally:
        process.kill()
        process.communicate()


def interrupt(process: subprocess.Popen[str]) -> str:
    """Ctrl-C; the rest of standard error, after checking that the end was clean."""
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert out == ""
    assert "Traceback" not in err
    return err


def test_serve_says_where_and_its_example_works_and_ctrl_c_ends_it(model: Path) -> None:
    with serve(model, "--port", 0, "--engine", "reference") as server:
        assert server.line.startswith("tiny is served at http://127.0.0.1:")
        example = shlex.split(server.line.partition("try: ")[2])
        assert example[0] == "curl"
        assert example[2] == "-H"
        assert example[4] == "-d"
        name, value = example[3].split(": ")
        response = httpx.post(example[1], content=example[5], headers={name: value})
        assert response.status_code == 200
        assert response.json()["model"] == "tiny"
        [served] = httpx.get(f"{server.url}/v1/models").json()["data"]
        assert (served["id"], served["max_model_len"]) == ("tiny", 4096)
        assert "server" not in response.headers
        log = interrupt(server.process)
    first, infill, weights, products, started, post, get, draining, stopped = log.splitlines()
    assert re.fullmatch(r"\S+ INFO starting tiny with --engine reference", first)
    assert infill.partition(" INFO ")[2] == (
        "fill-in-the-middle: <|fim_prefix|> prompt <|fim_suffix|> suffix <|fim_middle|> "
        "(order psm: as the embedded model's MODEL_CARD.md says of these tokens; --fim-order changes it)"
    )
    assert re.fullmatch(r"\S+ INFO weights: 21 tensors, 0\.\d MiB, read in [\d.]+ s, placed in [\d.]+ s", weights)
    assert re.fullmatch(r"\S+ INFO products by .+", products)
    assert re.fullmatch(r"\S+ INFO started in [\d.]+ s", started)
    assert re.fullmatch(r'\S+ INFO 127.0.0.1 "POST /v1/completions" 200 \d+B .* answered id=\w{32} .*', post)
    assert re.fullmatch(r'\S+ INFO 127.0.0.1 "GET /v1/models" 200 .*', get)
    assert "nothing new is let in; 0 requests are to be finished" in draining
    assert stopped.endswith(" INFO stopped")


@pytest.mark.slow
def test_a_shorter_context_is_served_and_its_pool_is_smaller(
    model: Path, native_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GNOMON_CACHE_DIR", str(native_cache.parent))
    monkeypatch.setenv("GNOMON_MAX_MODEL_LEN", "96")
    with serve(model, "--port", 0, "--slots", 2) as server:
        [served] = httpx.get(f"{server.url}/v1/models").json()["data"]
        assert served["max_model_len"] == 96
        body = {"model": "tiny", "prompt": [1] * 90, "max_tokens": 6}
        assert httpx.post(f"{server.url}/v1/completions", json=body).status_code == 200
        assert httpx.post(f"{server.url}/v1/completions", json={**body, "max_tokens": 7}).status_code == 400
        log = interrupt(server.process)
    assert "key/value pool: 768 tokens, " in log  # 4 contexts for each of 2 slots


@pytest.mark.slow
def test_the_servers_options_are_carried_out(model: Path) -> None:
    arguments = ("--served-model-name", "it's", "--openai-limits", "--max-candidates", 3, "--max-body-bytes", 200)
    with serve(model, "--port", 0, "--host", "localhost", "--engine", "reference", *arguments) as server:
        assert json.loads(shlex.split(server.line.partition("try: ")[2])[-1])["model"] == "it's"

        def status(**fields: object) -> int:
            body = {"model": "it's", "prompt": "a", "max_tokens": 0, **fields}
            return httpx.post(f"{server.url}/v1/completions", json=body).status_code

        assert [status(), status(logprobs=5), status(n=3)] == [200, 200, 200]
        assert [status(logprobs=6), status(n=4), status(user="a" * 200), status(model="tiny")] == [400, 400, 413, 404]
        interrupt(server.process)


LONG = {"model": "tiny", "prompt": "a", "max_tokens": 4000, "stream": True, "logit_bias": {EOT: -100}}


@pytest.mark.slow
@pytest.mark.parametrize("sig", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_second_signal_ends_a_stream_now_and_properly(model: Path, sig: signal.Signals) -> None:
    with serve(model, "--port", 0, "--engine", "reference") as server:
        with httpx.stream("POST", f"{server.url}/v1/completions", json=LONG) as response:
            lines = response.iter_lines()
            next(lines)
            server.process.send_signal(sig)
            assert eventually(lambda: httpx.get(f"{server.url}/readyz").status_code == 503)
            assert httpx.get(f"{server.url}/livez").status_code == 200
            refused = httpx.post(f"{server.url}/v1/completions", json=LONG)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
            begun = time.monotonic()
            server.process.send_signal(sig)
            *_, error, _, done, _ = lines
        out, err = server.process.communicate(timeout=20)
        assert time.monotonic() - begun < 8
        assert (server.process.returncode, out) == (0, "")
    assert "the server is draining" in error
    assert done == "data: [DONE]"
    assert "Traceback" not in err


def test_a_signal_lets_what_was_begun_finish_and_then_the_process_ends_with_0(model: Path) -> None:
    with serve(model, "--port", 0, "--engine", "reference", "--drain-seconds", 60) as server:
        body = {**LONG, "max_tokens": 60}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as response:
            lines = response.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            *_, last, _, done, _ = lines
        out, err = server.process.communicate(timeout=20)
    assert (server.process.returncode, out) == (0, "")
    assert json.loads(last.removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
    assert done == "data: [DONE]"
    assert "Traceback" not in err


@pytest.mark.slow
def test_what_is_not_finished_when_the_draining_is_over_ends_with_an_error(model: Path) -> None:
    with serve(model, "--port", 0, "--engine", "reference", "--drain-seconds", 0.5) as server:
        with httpx.stream("POST", f"{server.url}/v1/completions", json=LONG, timeout=60) as response:
            lines = response.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            *_, error, _, done, _ = lines
        _, log = server.process.communicate(timeout=20)
    assert server.process.returncode == 0
    assert "draining is over: 1 requests are not finished, and end with an error" in log
    [line] = [line for line in log.splitlines() if "POST /v1/completions" in line]
    assert re.search(r'"POST /v1/completions" 200 \d+B [\d.]+s drained id=', line)
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "draining"
    assert done == "data: [DONE]"


@pytest.mark.slow
def test_a_signal_while_it_loads_ends_it_at_once(tmp_path: Path) -> None:
    """Its loading waits for ever."""
    model = tiny_llama(tmp_path / "slow")
    waits = "import threading, gnomon.http.cli.serve as cli; cli.open_model = lambda *_: threading.Event().wait()\n"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [*COMMAND[:2], waits + COMMAND[2], "serve", str(model), "--engine", "reference", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert eventually(lambda: status_of(f"http://127.0.0.1:{port}/health") == 503, 30)
        assert status_of(f"http://127.0.0.1:{port}/livez") == 200
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=10)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, out) == (0, "")
    assert "Traceback" not in err


def status_of(url: str) -> int | None:
    try:
        return httpx.get(url).status_code
    except httpx.TransportError:
        return None


def test_a_taken_port_is_one_line(gnomon: Gnomon, model: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        check_one_line(gnomon("serve", model, "--port", port), 1, f"127.0.0.1 port {port}: ")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_beyond_loopback_an_authentication_mode_must_be_chosen(gnomon: Gnomon, model: Path, host: str) -> None:
    result = gnomon("serve", model, "--host", host)
    check_one_line(result, 2, f"{host} is no loopback address")
    assert "choose --auth-mode" in result.err
    assert all(mode in result.err for mode in AuthMode)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_no_authentication_beyond_loopback_needs_a_second_switch(gnomon: Gnomon, model: Path, host: str) -> None:
    result = gnomon("serve", model, "--host", host, "--auth-mode", "none")
    check_one_line(result, 2, f"{host} is no loopback address")
    assert "--auth-allow-none-anywhere" in result.err
    result = gnomon(
        "serve", model, "--host", host, "--auth-mode", "none", "--auth-allow-none-anywhere", "--print-config"
    )
    assert result.code == 0


@pytest.mark.parametrize(
    ("host", "beginning"), [("", "the host is an empty string"), ("no.such.host.invalid", "no.such")]
)
def test_a_host_that_is_no_address_is_one_line(gnomon: Gnomon, model: Path, host: str, beginning: str) -> None:
    check_one_line(gnomon("serve", model, "--host", host), 1, beginning)


@pytest.mark.parametrize(
    ("host", "instead"),
    [
        ("[::1]", "; give the address alone: --host ::1"),
        ("[::1]:8000", "; give the address alone: --host ::1 --port 8000"),
        ("127.0.0.1:8000", "; give the address alone: --host 127.0.0.1 --port 8000"),
        ("http://localhost:8000/v1", "; give the address alone: --host localhost --port 8000"),
        ("https://[::1]", "; give the address alone: --host ::1"),
        ("unix:/run/gnomon.sock", "; a Unix-domain socket cannot be served on"),
        ("/run/gnomon.sock", "; a Unix-domain socket cannot be served on"),
        ("::zz", ""),
    ],
)
def test_a_host_in_another_servers_form_says_what_to_write(
    gnomon: Gnomon, model: Path, host: str, instead: str
) -> None:
    result = gnomon("serve", model, "--host", host)
    check_one_line(result, 1, f"{host}: ")
    assert instead in result.err
    assert instead or ";" not in result.err


@pytest.mark.slow
def test_another_address_is_served_when_a_mode_is_chosen(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GNOMON_AUTH_API_KEYS", "a-key-of-the-operator")
    with serve(model, "--port", 0, "--host", "0.0.0.0", "--engine", "reference", "--auth-mode", "api-key") as server:
        base = server.url.replace("0.0.0.0", "127.0.0.1")
        body = {"model": "tiny", "prompt": "a", "max_tokens": 0}
        assert httpx.post(f"{base}/v1/completions", json=body).status_code == 401
        headers = {"Authorization": "Bearer a-key-of-the-operator"}
        assert httpx.post(f"{base}/v1/completions", json=body, headers=headers).status_code == 200
        assert "Authorization: Bearer" in server.line
        log = interrupt(server.process)
    assert "without TLS" in log
    assert "a-key-of-the-operator" not in log


# ---- serve: its options


def test_every_option_has_a_flag_a_variable_and_a_line_of_help(gnomon: Gnomon) -> None:
    help = " ".join(gnomon("serve", "--help").out.split())
    for row in SERVE_ROWS:
        assert f"GNOMON_{row.name.upper()}" in help
        if not row.secret:
            assert f" {row.name if row.argument else row.flag} " in help
            assert row.help in help


def test_no_secret_can_be_given_on_the_command_line(gnomon: Gnomon) -> None:
    assert [row.name for row in SERVE_ROWS if row.secret] == ["auth_api_keys"]
    assert gnomon("serve", "--auth-api-keys", "x").code == 2


def test_the_command_line_goes_before_the_environment_and_that_before_the_default(
    gnomon: Gnomon, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {
        row.name: 7 if row.type in (int, int | None) else 7.5 for row in SERVE_ROWS if row.group in (LIMITS, TIMES)
    }
    given["openai_limits"], given["max_header_bytes"], given["max_queued_bytes"] = True, 2048, 8192
    variables = {**given, "cors_origins": ["https://a.example", "https://b.example"], "log_format": "json"}
    for name, value in variables.items():
        text = " ".join(value) if isinstance(value, list) else str(value)
        monkeypatch.setenv(f"GNOMON_{name.upper()}", text)
    monkeypatch.setenv("GNOMON_ENGINE", "reference")
    monkeypatch.setenv("GNOMON_PORT", "9")
    result = gnomon("serve", "--print-config", "--max-queue", 5, "--port", 8)
    assert result.code == 0
    shown = in_force(result.out)
    assert shown.pop("max_queue") == (5, "command line")
    assert shown.pop("port") == (8, "command line")
    assert shown.pop("engine") == ("reference", "environment GNOMON_ENGINE")
    del variables["max_queue"]
    for name, value in variables.items():
        assert shown.pop(name) == (value, f"environment GNOMON_{name.upper()}")
    assert all(source.startswith("default") for _, source in shown.values())
    assert set(shown) == {row.name for row in SERVE_ROWS} - {*variables, "max_queue", "port", "engine"}


def toml(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        pytest.fail(f"no TOML: {error}")


def in_force(out: str) -> dict[str, tuple[Any, str]]:
    """Every setting that --print-config shows, by name: its value, None where it has none, and where that is from."""
    values, shown = toml(out), {}
    for line in out.splitlines():
        setting, _, source = line.rpartition("  # ")
        name, _, value = setting.removeprefix("# ").partition(" = ")
        assert (name in values) != line.startswith("# ")
        assert name in values or value.strip() == "(not set)"
        shown[name] = (values.get(name), source)
    assert values.keys() <= shown.keys()
    return shown


def test_the_configuration_is_toml_whatever_its_values_are(gnomon: Gnomon) -> None:
    name, file = 'a "quoted" \\ näme 😀 = # ]', "/etc/né\t\x01\x7f\n"
    given = ("--served-model-name", name, "--otlp-endpoint", file, "--log-format", "text", "--cors-origins", "*")
    result = gnomon("serve", "--print-config", *given, "--queue-seconds", "3e7", "--revision", "\udcff")
    assert result.code == 0
    values = toml(result.out)
    assert (values["served_model_name"], values["otlp_endpoint"]) == (name, file)
    assert (values["cors_origins"], values["queue_seconds"], values["native"]) == (["*"], 3e7, True)
    assert "revision" not in values
    assert "# revision = (bytes that are no UTF-8: '\\udcff')" in result.out


def test_the_configuration_shows_how_many_keys_there_are_and_none_of_them(
    gnomon: Gnomon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GNOMON_AUTH_API_KEYS", "a-key-of-sixteen another-of-sixteen")
    result = gnomon("serve", "--print-config", "--auth-mode", "api-key")
    assert "of-sixteen" not in result.out + result.err
    assert re.search(r'^auth_api_keys = "2 values, not shown" +# environment GNOMON_AUTH_API_KEYS$', result.out, re.M)


@pytest.mark.parametrize(
    "name", ["GNOMON_AUTH_ORGANIZATIONS", "GNOMON_AUTH_REQUIRED_ACL", "GNOMON_AUTH_MODE", "GNOMON_PORT"]
)
@pytest.mark.parametrize("value", ["", " "])
def test_an_empty_variable_is_refused_and_does_not_count_as_none(
    gnomon: Gnomon, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    if value and name != "GNOMON_AUTH_ORGANIZATIONS":
        assert gnomon("serve", "--print-config").code == 2  # typer has a word of its own for these
    else:
        check_one_line(gnomon("serve", "--print-config"), 2, f"{name} is set and empty")


def test_a_misspelt_variable_is_told_and_refused_where_it_was_to_keep_somebody_out(
    gnomon: Gnomon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GNOMON_MAX_QEUE", "3")
    told = gnomon("serve", "--print-config")
    assert (told.code, told.err.count("\n")) == (0, 1)
    assert told.err.startswith("gnomon: warning: GNOMON_MAX_QEUE is no option's variable")
    monkeypatch.delenv("GNOMON_MAX_QEUE")
    monkeypatch.setenv("GNOMON_AUTH_ORGANISATIONS", "acme")
    check_one_line(gnomon("serve", "--print-config"), 2, "GNOMON_AUTH_ORGANISATIONS is no option's variable")


@pytest.mark.slow
def test_keys_can_come_from_a_pipe_and_are_asked_for(model: Path) -> None:
    read, write = os.pipe()
    os.write(write, b"a-key-of-sixteen-characters\n")
    os.close(write)
    command = [*COMMAND, "serve", str(model), "--port", "0", "--engine", "reference", "--auth-mode", "api-key"]
    command += ["--auth-api-key-file", f"/dev/fd/{read}"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, pass_fds=[read]
    ) as process:
        os.close(read)
        assert process.stdout is not None
        found = re.search(r" is served at (http://\S+)/v1 ", process.stdout.readline())
        try:
            assert found
            headers = {"authorization": "Bearer a-key-of-sixteen-characters"}
            assert httpx.get(f"{found[1]}/version", headers=headers).status_code == 200
            assert httpx.get(f"{found[1]}/version").status_code == 401
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("out", ["full", "gone", "ascii"])
def test_a_standard_output_that_takes_nothing_does_not_end_the_server(model: Path, out: str) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    command = [*COMMAND, "serve", str(model), "--port", str(port), "--engine", "reference", "--auth-mode", "api-key"]
    environment = os.environ | {"GNOMON_AUTH_API_KEYS": "a-key-of-sixteen-characters"}
    read, write = os.pipe()
    os.close(read)
    with open("/dev/full", "wb") as full:
        places: dict[str, IO[bytes] | int] = {"full": full, "gone": write, "ascii": subprocess.DEVNULL}
        if out == "ascii":
            environment["PYTHONIOENCODING"] = "ascii"
        process = subprocess.Popen(command, stdout=places[out], stderr=subprocess.DEVNULL, env=environment)
    os.close(write)

    def ready() -> bool:
        assert process.poll() is None
        with suppress(httpx.ConnectError):
            headers = {"authorization": "Bearer a-key-of-sixteen-characters"}
            return httpx.get(f"http://127.0.0.1:{port}/readyz", headers=headers).status_code == 200
        return False

    try:
        assert eventually(ready, 30)
        time.sleep(0.2)  # it is ready a moment before it says so
        assert ready()
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("origin", ["example.org", "https://a/b", "https://u@a", "ftp://a", "https://"])
def test_an_origin_that_is_none_is_one_line(gnomon: Gnomon, origin: str) -> None:
    check_one_line(gnomon("serve", "--cors-origins", origin), 2, "--cors-origins: ")


@pytest.mark.parametrize("name", ["", "a\nb", "\x1b[31m"])
def test_a_name_that_cannot_be_shown_is_one_line(gnomon: Gnomon, name: str) -> None:
    check_one_line(gnomon("serve", "--served-model-name", name), 2, "--served-model-name: ")


@pytest.mark.parametrize("given", [["--tls-certificate", README], ["--tls-key", README]])
def test_a_certificate_and_its_key_go_together(gnomon: Gnomon, given: list[object]) -> None:
    check_one_line(gnomon("serve", *given), 2, "--tls-certificate and --tls-key: give both")


def test_a_certificate_that_is_none_is_one_line(gnomon: Gnomon) -> None:
    for file in (README, README.with_name("nowhere")):
        check_one_line(gnomon("serve", "--tls-certificate", file, "--tls-key", file), 2, f"--tls-certificate: {file}")


@pytest.mark.parametrize("option", [["--port", "65536"], ["--max-candidates", "0"], ["--engine", "torch"]])
def test_an_option_out_of_range_is_a_usage_error(gnomon: Gnomon, model: Path, option: list[str]) -> None:
    result = gnomon("serve", model, *option)
    assert result.code == 2
    assert option[0] in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e300"])
def test_seconds_that_are_no_time_limit_are_refused_by_name(gnomon: Gnomon, model: Path, value: str) -> None:
    """Each is compared with a clock: nothing is less than nan, and the system's clocks end long before 1e300."""
    rows = [row for row in SERVE_ROWS if row.type is float]
    assert len(rows) >= 10
    for flag in (row.flag for row in rows):
        result = gnomon("serve", model, f"{flag}={value}", "--print-config")
        assert result.code == 2
        assert f"Invalid value for '{flag}'" in result.err


def test_the_servers_defaults_are_the_laws(gnomon: Gnomon) -> None:
    help = " ".join(gnomon("serve", "--help").out.split())
    for default in ("127.0.0.1", "8000", "2048", str(8 * 2**20)):
        assert f"default: {default}" in help


@pytest.mark.parametrize("options", JAX_OPTIONS)
def test_options_of_the_jax_engine_are_refused_with_another(gnomon: Gnomon, model: Path, options: list[str]) -> None:
    result = gnomon("serve", model, "--port", "0", "--engine", "reference", *options)
    assert result.code == 2
    assert options[0] in result.err


def test_the_jax_engines_own_defaults_are_those_of_its_options() -> None:
    from gnomon.jax_engine.runtime.settings import EngineSettings

    chosen, own = JaxOptions(), EngineSettings()
    for name in ("slots", "dtype", "tensor_parallel", "native"):
        assert getattr(chosen, name) == getattr(own, name), name


@pytest.mark.slow
@pytest.mark.parametrize("options", JAX_OPTIONS)
def test_options_of_the_jax_engine_reach_it(
    gnomon: Gnomon, monkeypatch: pytest.MonkeyPatch, model: Path, options: list[str], tmp_path: Path
) -> None:
    from gnomon.jax_engine.runtime.settings import EngineSettings

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    seen: list[EngineSettings] = []

    def engine(checkpoint: object, settings: EngineSettings, *tellers: object) -> None:
        seen.append(settings)
        raise ValueError("enough was seen")

    monkeypatch.setattr("gnomon.jax_engine.engine.JaxEngine", engine)
    result = gnomon("serve", model, "--port", "0", *options)
    assert (result.code, result.err) == (1, "gnomon: enough was seen\n")
    [settings] = seen
    per_token = 2 * 2 * 2 * 8 * 4  # keys and values, layers, key/value heads, head width, bytes of a float32
    expected: dict[str, object] = {"--slots": 3, "--dtype": "bfloat16", "--kv-cache-memory": 7 * 2**20 // per_token}
    expected["--tensor-parallel"], expected["--cache-dir"] = 2, tmp_path / "cache" / "jax"
    given: dict[str, object] = {
        "--slots": settings.slots,
        "--dtype": settings.dtype,
        "--kv-cache-memory": settings.pool_tokens,
    }
    given["--tensor-parallel"], given["--cache-dir"] = settings.tensor_parallel, settings.compilation_cache
    expected["--native"], given["--native"] = True, settings.native
    expected["--no-native"], given["--no-native"] = False, settings.native
    expected["--threads"], given["--threads"] = 5, settings.threads
    assert given[options[0]] == expected[options[0]]


@pytest.mark.slow
def test_serve_runs_jax_by_default_reports_its_start_and_starts_quicker_from_its_cache(
    model: Path, native_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_objects_of(native_cache, tmp_path / "gnomon" / "jax")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    weights = r"\S+ INFO weights: 21 tensors, [\d.]+ MiB, read in [\d.]+ s, placed in [\d.]+ s\n"
    first = r"\S+ INFO starting tiny with --engine jax: importing jax\n\S+ INFO fill-in-the-middle: .+\n"
    built = r"\S+ INFO building the native operations with \S+: about \d+ s, the first time only\n"
    reading = r"\S+ INFO reading the weights: [\d,]+ parameters\n"
    ahead = r"\S+ INFO compiling 5 programs for 2 layers: about 4 s, the first time only\n"
    compiled = r"(\S+ INFO compiled \w+ in [\d.]+ s\n){5}"
    kept = []
    for is_first in (True, False):
        build, compiling = (built, ahead) if is_first else ("", "")
        products = rf"{first}{build}\S+ INFO products by .+\n"
        programs = rf"{products}{reading}{weights}{compiling}{compiled}\S+ INFO "
        with serve(model, "--port", 0, "--slots", 2) as server:
            answer = httpx.post(f"{server.url}/v1/completions", json={"model": "tiny", "prompt": "a", "max_tokens": 2})
            assert answer.json()["system_fingerprint"].startswith("gnomon-jax-")
            log = interrupt(server.process)
            pool = r"key/value pool: [\d,]+ tokens, [\d.]+ MiB\n"
            assert re.match(programs + pool + r"\S+ INFO started in [\d.]+ s\n", log)
        kept.append({path.name for path in (tmp_path / "gnomon" / "jax").glob("*.program")})
    assert len(kept[0]) >= 5
    assert kept[0] == kept[1]  # the second start found all that it needed
