"""Output that fails, packages that are missing, and a log of which every line is JSON: the command as users run it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gnomon.http.cli.console import wants_json
from helpers.certificate import certificate
from helpers.command import COMMAND
from helpers.fake import EOT
from helpers.live import eventually
from helpers.models import tiny_llama

SIGPIPE = -signal.SIGPIPE  # 141 in a shell


def shell(redirections: str, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """The command with redirections of a shell, such as >&- for a closed standard output."""
    return subprocess.run(
        ["bash", "-c", f'exec "$0" "$@" {redirections}', *COMMAND, *map(str, arguments)],
        env=os.environ | variables, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def into_a_pipe_that_nobody_reads(*arguments: object, **variables: str) -> tuple[int, str]:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)], env=os.environ | variables, stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(write)
    return done.returncode, done.stderr


def slowly(*cases: tuple[str, ...]) -> list[Any]:
    """Cases of the same kind, each of which starts the command once more."""
    return [pytest.param(*case, marks=pytest.mark.slow) for case in cases]


# ---- output that fails

COMMANDS: dict[str, tuple[Sequence[str], int]] = {
    "complete": (["complete", "a", "--max-tokens", "2"], 1),
    "complete --json": (["complete", "a", "--max-tokens", "2", "--json"], 1),
    "verify --list": (["verify", "--list"], 2),
    "--print-config": (["serve", "--print-config"], 1),
    "--help": (["serve", "--help"], 1),
    "--version": (["--version"], 1),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "unbuffered"),
    [("complete", "1"), ("--print-config", ""), *slowly(("complete", ""), ("complete --json", ""), ("--help", "")),
     *slowly(("verify --list", ""), ("--version", ""))],
)  # fmt: skip
def test_output_that_cannot_be_written_is_one_line_or_the_silence_of_a_pipe(what: str, unbuffered: str) -> None:
    arguments, status = COMMANDS[what]
    full = shell(">/dev/full", *arguments, PYTHONUNBUFFERED=unbuffered)
    assert (full.returncode, full.stderr) == (status, "gnomon: standard output fails: No space left on device\n")
    closed = shell(">&-", *arguments, PYTHONUNBUFFERED=unbuffered)
    assert (closed.returncode, closed.stderr) == (status, "gnomon: standard output is closed\n")
    assert into_a_pipe_that_nobody_reads(*arguments, PYTHONUNBUFFERED=unbuffered) == (SIGPIPE, "")


def test_an_export_whose_list_cannot_be_shown_is_one_line(tmp_path: Path) -> None:
    done = shell(">/dev/full", "export-model", tmp_path / "out")
    assert (done.returncode, done.stderr) == (1, "gnomon: standard output fails: No space left on device\n")


@pytest.mark.slow
@pytest.mark.parametrize("redirection", ["2>&-", *slowly(("2>/dev/full",))])
def test_an_error_that_nobody_can_be_told_keeps_its_status_and_standard_output_clean(redirection: str) -> None:
    done = shell(redirection, "complete", "a", "--max-tokens", "-1")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")
    sound = shell(redirection, "complete", "a", "--max-tokens", "0")
    assert (sound.returncode, sound.stdout) == (0, "\n")


def test_a_prompt_from_a_closed_standard_input_is_one_line() -> None:
    done = shell("<&-", "complete", "-")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "gnomon: prompt: standard input: closed\n")


@pytest.mark.slow
def test_a_server_whose_greeting_is_not_taken_ends_with_0_all_the_same(model: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = f'exec "$0" "$@" serve {model} --port {port} --engine reference >&-'
    process = subprocess.Popen(["bash", "-c", command, *COMMAND], stderr=subprocess.PIPE, text=True)
    assert eventually(lambda: answers(f"http://127.0.0.1:{port}/readyz"), 30)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "which standard output did not take" in err
    assert "Traceback" not in err
    assert "Exception ignored" not in err


def answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


# ---- packages that are missing


def shadowed(directory: Path) -> str:
    """A search path on which what is in the directory comes first."""
    return os.pathsep.join(filter(None, (str(directory), os.environ.get("PYTHONPATH"))))


MISSING = {
    "jax": ["serve", "--port", "0"],
    "jaxlib": ["complete", "a", "--engine", "jax"],
    "uvicorn": ["serve", "--port", "0"],
    "starlette": ["serve", "--port", "0"],
    "typer": ["--help"],
    "numpy": ["complete", "a"],
    "tokenizers": ["complete", "a"],
    "safetensors": ["complete", "a"],
    "huggingface_hub": ["complete", "a", "--model", "maker/tiny"],
    "rich": ["verify", "--list"],
    "httpx": ["verify", "http://127.0.0.1:1"],
    "jwt": ["serve", "--auth-mode", "api-key"],
    "prometheus_client": ["serve", "--port", "0"],
}
FIRST = ("jax", "typer")  # the others are slow


@pytest.mark.slow
@pytest.mark.parametrize("package", [*FIRST, *slowly(*((name,) for name in MISSING if name not in FIRST))])
def test_a_package_that_is_missing_is_one_line_with_its_name_and_cure(package: str, tmp_path: Path) -> None:
    shadow = f"raise ModuleNotFoundError(\"No module named '{package}'\", name='{package}')\n"
    (tmp_path / f"{package}.py").write_text(shadow)
    done = shell("", *MISSING[package], PYTHONPATH=shadowed(tmp_path))
    *begun, last = done.stderr.splitlines(keepends=True)
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert all(re.match(r"\S+ INFO ", line) for line in begun), done.stderr  # what a server says before it needs jax
    pip = re.escape(f"{sys.executable} -m pip install ")
    line = rf"gnomon: the package {package} is not installed here; install it: {pip}'?(\S+?)'?\n"
    found = re.fullmatch(line, last)
    assert found, done.stderr
    name = {"jwt": "pyjwt"}.get(package, package)
    assert re.split(r"[<>=\[]", found[1])[0].lower().replace("-", "_") == name


def test_a_package_whose_library_is_missing_is_one_line_with_the_first_cause(tmp_path: Path) -> None:
    """As numpy tells of it: a page of advice around the one line that matters."""
    (tmp_path / "numpy").mkdir()
    cause = "libopenblas.so.0: cannot open shared object file: No such file or directory"
    (tmp_path / "numpy" / "_core.py").write_text(f"raise ImportError({cause!r})\n")
    advice = "raise ImportError('\\n\\nIMPORTANT: PLEASE READ THIS\\n') from error"
    code = f"try:\n    from . import _core\nexcept ImportError as error:\n    {advice}\n"
    (tmp_path / "numpy" / "__init__.py").write_text(code)
    done = shell("", "complete", "a", PYTHONPATH=shadowed(tmp_path))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
    assert done.stderr.startswith(f"gnomon: the package numpy cannot be imported: {cause}; install it anew: ")
    assert "--force-reinstall" in done.stderr


# ---- every line is JSON


@pytest.mark.parametrize(
    ("arguments", "variable", "expected"),
    [
        (["serve", "--log-format", "json"], None, True),
        (["serve", "--log-format=json"], "text", True),
        (["serve", "model"], "json", True),
        (["serve", "--log-format", "text"], "json", False),
        (["serve", "--log-format", "text", "--log-format", "json"], None, True),
        (["serve", "--", "--log-format=json"], None, False),
        (["serve", "--log-format"], None, False),
        (["complete", "--log-format", "json"], "json", False),
        ([], "json", False),
    ],
)
def test_whether_json_is_wanted_is_known_before_the_options_are_read(
    arguments: list[str], variable: str | None, expected: bool
) -> None:
    assert wants_json(arguments, {} if variable is None else {"GNOMON_LOG_FORMAT": variable}) == expected


def record(line: str) -> dict[str, Any]:
    try:
        members = json.loads(line)
    except ValueError:
        members = line
    assert isinstance(members, dict), f"no record: {members!r}"
    return members


def records(text: str) -> list[dict[str, Any]]:
    """Every line, which must be a record."""
    lines = [record(line) for line in text.splitlines()]
    assert all({"time", "level", "logger"} <= line.keys() for line in lines)
    assert all("message" in line or line["logger"] == "gnomon.access" for line in lines)
    return lines


STRAY = """
import os, sys, threading, warnings
import gnomon.http.cli.serve as cli
from gnomon.http.cli.main import main
announce = cli.announce
class Cyclic:
    def __del__(self): raise ValueError("in a finaliser")
def noisy(*arguments):
    warnings.warn("a warning of Python's")
    os.write(2, b"a line of a C++ library\\nand one more\\n")
    print("a print to standard error", file=sys.stderr)
    failing = threading.Thread(target=lambda: 1 / 0, name="stray")
    failing.start(); failing.join()
    Cyclic()
    announce(*arguments)
cli.announce = noisy
main()
"""


def serve(model: Path, code: str, *options: str) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    command = [sys.executable, "-c", code, "serve", str(model), "--engine", "reference", "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()
    return process, record(line)


@pytest.mark.slow
def test_every_line_of_a_server_is_json_from_its_start_to_the_end_of_its_draining(model: Path) -> None:
    process, greeting = serve(model, STRAY, "--log-format", "json", "--drain-seconds", "0.3")
    url = greeting["url"]
    assert (greeting["level"], greeting["model"]) == ("INFO", "tiny")
    assert greeting["message"].startswith(f"tiny is served at {url} ")
    body: dict[str, Any] = {"model": "tiny", "prompt": "a", "max_tokens": 3}
    long = {**body, "max_tokens": 4000, "stream": True, "logit_bias": {EOT: -100}}
    assert httpx.post(f"{url}/completions", json=body).status_code == 200
    assert httpx.post(f"{url}/completions", json={**body, "n": 0}).status_code == 400
    with httpx.stream("POST", f"{url}/completions", json={**body, "stream": True}) as response:
        assert "[DONE]" in response.read().decode()
    with httpx.stream("POST", f"{url}/completions", json=long) as response:
        next(response.iter_lines())  # and away
    with httpx.stream("POST", f"{url}/completions", json=long, timeout=60) as response:
        lines = response.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        assert any('"draining"' in line for line in lines)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "")
    told = records(err)
    messages = [line.get("message", "") for line in told]
    for expected in ("weights: 21 tensors", "started in", "a warning of Python's", "a line of a C++ library",
                     "and one more", "a print to standard error", "a thread failed: stray", "draining: nothing new",
                     "draining is over: 1 requests", "stopped"):  # fmt: skip
        assert any(expected in message for message in messages), (expected, messages)
    assert any("ZeroDivisionError" in line.get("exception", "") for line in told)
    assert any("in a finaliser" in line.get("exception", "") for line in told)
    outcomes = [line["outcome"] for line in told if line["logger"] == "gnomon.access"]
    assert sorted(outcomes) == ["answered", "answered", "cancelled", "drained", "refused"]


@pytest.mark.slow
def test_a_fault_of_the_engine_is_one_record_with_its_traceback_in_it(tmp_path: Path) -> None:
    broken = tiny_llama(tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"] = np.full(32, 1e308)
    save_file(weights, broken / "model.safetensors")
    process, greeting = serve(broken, COMMAND[2], "--log-format=json")
    body = {"model": "broken", "prompt": "a", "max_tokens": 3}
    assert httpx.post(f"{greeting['url']}/completions", json=body).status_code == 500
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "")
    assert any(line["level"] == "ERROR" for line in records(err))


def starts(tmp_path: Path) -> dict[str, tuple[list[str], str]]:
    pair = certificate(tmp_path, "made", "127.0.0.1")
    return {
        "no number": (["--port", "http"], "--port"),
        "out of range": (["--port", "70000"], "--port"),
        "no option": (["--prot", "1"], "--prot"),
        "a word too many": (["a", "b"], "b"),
        "no directory": ([str(tmp_path / "nowhere"), "--port", "0"], "no such directory"),
        "no host": (["--host", "no.such.host.invalid"], "no.such.host.invalid"),
        "no keys": (["--auth-mode", "api-key"], "GNOMON_AUTH_API_KEYS"),
        "TLS": (["--tls-certificate", str(pair.key), "--tls-key", str(pair.certificate)], "swapped"),
        "a bug": ([], "the command failed"),
    }


@pytest.mark.slow
@pytest.mark.parametrize("what", ["no option", "no directory", "a bug",
                                  *slowly(("no number",), ("out of range",), ("a word too many",), ("no host",),
                                          ("no keys",), ("TLS",))])  # fmt: skip
def test_a_start_that_fails_is_one_record_too(tmp_path: Path, what: str) -> None:
    arguments, named = starts(tmp_path)[what]
    code = COMMAND[2]
    if what == "a bug":
        code = "import gnomon.http.cli.serve as cli; cli.check_tls = lambda settings: 1 / 0\n" + code
    command = [sys.executable, "-c", code, "serve", *arguments]
    done = subprocess.run(
        command, env=os.environ | {"GNOMON_LOG_FORMAT": "json"}, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (1 if what in ("no directory", "no host", "a bug") else 2, "")
    *_, line = records(done.stderr)
    assert named in line["message"]
    assert line["level"] == ("CRITICAL" if what == "a bug" else "ERROR")
    assert ("ZeroDivisionError" in line.get("exception", "")) == (what == "a bug")


@pytest.mark.slow
def test_warnings_and_a_missing_package_are_records_too(tmp_path: Path) -> None:
    done = shell("", "serve", "--print-config", GNOMON_LOG_FORMAT="json", GNOMON_MAX_QEUE="3")
    [line] = records(done.stderr)
    assert (done.returncode, line["level"]) == (0, "WARNING")
    (tmp_path / "typer.py").write_text("raise ModuleNotFoundError(name='typer')\n")
    done = shell("", "serve", PYTHONPATH=shadowed(tmp_path), GNOMON_LOG_FORMAT="json")
    [line] = records(done.stderr)
    assert "the package typer is not installed here" in line["message"]


def test_a_crash_shows_pythons_own_dump_on_the_real_standard_error(model: Path) -> None:
    code = (
        "import faulthandler, os; faulthandler.enable()\n"
        "import gnomon.http.cli.serve as cli; cli.announce = lambda *_: os.abort()\n" + COMMAND[2]
    )
    command = [sys.executable, "-c", code, "serve", str(model), "--engine", "reference", "--port", "0"]
    done = subprocess.run([*command, "--log-format", "json"], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGABRT
    assert "Fatal Python error: " in done.stderr  # what comes next may stand behind a line of the log


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "status", "said"),
    [
        ("gnomon.http.cli.main", 0, "gnomon "),
        ("gnomon.jax_engine.tools.doctor", 1, "the examination is started by the command: gnomon doctor"),
    ],
)
def test_a_module_run_by_its_name_is_the_command_or_says_what_is(module: str, status: int, said: str) -> None:
    done = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True, timeout=120)
    assert done.returncode == status
    assert (done.stdout + done.stderr).startswith(said)
