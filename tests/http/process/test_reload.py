"""Signals, sent to a real process: SIGHUP reads keys and certificates again, and no stray one ends it undrained."""

from __future__ import annotations

import os
import pty
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from gnomon.http.settings import AuthMode, AuthSettings
from helpers.auth_app import auth_app
from helpers.certificate import certificate
from helpers.command import CODE
from helpers.fake import EOT
from helpers.identity import FakeTime, served_identity
from helpers.live import eventually
from helpers.models import tiny_llama

OLD, KEPT, NEW = (letter * 20 for letter in "okn")
LONG = {"model": "tiny", "prompt": "a", "max_tokens": 4000, "stream": True, "logit_bias": {EOT: -100}}


class Served(NamedTuple):
    process: subprocess.Popen[bytes]
    url: str
    err: Path

    def log(self) -> str:
        return self.err.read_text()

    def hang_up(self, *lines: str) -> None:
        """SIGHUP, until the log says these, each a regular expression, in lines that it did not have before."""
        before = len(self.log())
        self.process.send_signal(signal.SIGHUP)
        for line in lines:
            found = partial(re.search, line)
            assert eventually(lambda found=found: bool(found(self.log()[before:]))), self.log()  # type: ignore[misc]

    def status(self, key: str = "", path: str = "/v1/models") -> int:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return httpx.get(self.url + path, headers=headers, verify=False).status_code


@contextmanager
def served(model: Path, tmp_path: Path, *arguments: object, before: str = "", **more: Any) -> Iterator[Served]:
    """before: code that the process runs first."""
    out, err = tmp_path / "out.txt", tmp_path / "err.txt"
    code = f"{before}\n{CODE}"
    command = [
        sys.executable,
        "-c",
        code,
        "serve",
        str(model),
        "--engine",
        "reference",
        "--port",
        "0",
        *map(str, arguments),
    ]
    with out.open("wb") as to_out, err.open("wb") as to_err:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=to_out, stderr=to_err, **more)
    try:
        assert eventually(lambda: " is served at " in out.read_text() or process.poll() is not None, 60)
        found = re.search(r" is served at (https?://\S+)/v1 ", out.read_text())
        assert found, err.read_text()
        yield Served(process, found[1], err)
    finally:
        process.kill()
        process.wait()


def replaced(path: Path, by: Path | str) -> None:
    """As a careful operator does it: the new file is whole before it takes the old one's place."""
    new = path.with_suffix(".new")
    new.write_bytes(by.read_bytes() if isinstance(by, Path) else by.encode())
    new.replace(path)


def subject(base: str) -> str:
    """Whose certificate a new connection gets, asked for by a client that names no host."""
    host, port = base.removeprefix("https://").split(":")
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection((host, int(port)), timeout=10) as client,
        context.wrap_socket(client) as secured,
    ):
        shown = secured.getpeercert(binary_form=True)
    assert shown is not None
    return "two" if b"two" in shown else "one" if b"one" in shown else "?"


@pytest.mark.slow
def test_a_hangup_reads_keys_and_certificate_again_and_a_stream_goes_on(model: Path, tmp_path: Path) -> None:
    one, two = certificate(tmp_path, "one", "127.0.0.1"), certificate(tmp_path, "two", "127.0.0.1")
    cert = Path(shutil.copy(one.certificate, tmp_path / "cert.pem"))
    key = Path(shutil.copy(one.key, tmp_path / "key.pem"))
    keys = tmp_path / "keys.txt"
    keys.write_text(f"{OLD}\n{KEPT}\n")
    files = ("--tls-certificate", cert, "--tls-key", key, "--auth-mode", "api-key", "--auth-api-key-file", keys)
    with (
        served(model, tmp_path, *files) as at,
        httpx.Client(verify=False, headers={"authorization": f"Bearer {OLD}"}, timeout=60) as client,
    ):
        assert [at.status(one) for one in (OLD, KEPT, NEW)] == [200, 200, 401]
        assert subject(at.url) == "one"
        with client.stream("POST", f"{at.url}/v1/completions", json={**LONG, "max_tokens": 300}) as stream:
            lines = stream.iter_lines()
            next(lines)
            replaced(keys, f"{KEPT}\n{NEW}\n")
            replaced(cert, two.certificate)
            replaced(key, two.key)
            read = rf"INFO SIGHUP: keys read from {keys}: 2, new 1, no longer let in 1"
            at.hang_up(read, rf"INFO SIGHUP: --tls-certificate {cert} read: CN=two, valid until \d{{4}}-\d\d-\d\d")
            assert [at.status(one) for one in (OLD, KEPT, NEW)] == [401, 200, 200]
            assert subject(at.url) == "two"
            *_, last, _, done, _ = lines  # let in with a key, on a connection with a certificate, that are gone
        assert '"length"' in last
        assert done == "data: [DONE]"
        # what cannot be read changes nothing, and each says why
        replaced(keys, "short\n")
        replaced(cert, one.certificate)
        stay = "; what was read before stays in force"
        at.hang_up(
            f"ERROR SIGHUP: --auth-api-key-file: {keys}: line 1 has 5 characters; 16 to 8192 are allowed: .*{stay}",
            f"ERROR SIGHUP: --tls-certificate: {cert} has no certificate of --tls-key {key}: .*{stay}",
        )
        keys.unlink()
        os.mkfifo(keys)  # that nobody writes to: whoever opened it would wait for ever
        at.hang_up(f"ERROR SIGHUP: --auth-api-key-file: {keys}: not a regular file, so it cannot be read again{stay}")
        assert [at.status(one) for one in (OLD, KEPT, NEW)] == [401, 200, 200]
        assert subject(at.url) == "two"
        assert not any(one in at.log() for one in (OLD, KEPT, NEW))
        at.process.send_signal(signal.SIGTERM)
        assert at.process.wait(20) == 0


@pytest.mark.slow
@pytest.mark.parametrize("source", ["variable", pytest.param("pipe", marks=pytest.mark.slow)])
def test_keys_that_came_from_a_variable_or_a_pipe_stay(model: Path, tmp_path: Path, source: str) -> None:
    environment, read = dict(os.environ), -1
    arguments = ["--auth-mode", "api-key"]
    if source == "variable":
        environment["GNOMON_AUTH_API_KEYS"] = KEPT
    else:
        read, write = os.pipe()
        os.write(write, f"{KEPT}\n".encode())
        os.close(write)
        arguments += ["--auth-api-key-file", f"/dev/fd/{read}"]
    pipes = () if read < 0 else (read,)
    with served(model, tmp_path, *arguments, env=environment, pass_fds=pipes) as at:
        at.hang_up(r"ERROR SIGHUP: the keys came from GNOMON_AUTH_API_KEYS or from a pipe, which cannot be read again")
        assert [at.status(one) for one in (KEPT, NEW)] == [200, 401]
    for one in pipes:
        os.close(one)


@pytest.mark.slow
def test_a_hangup_without_files_says_so_and_neither_it_nor_user_signals_end_a_drain(
    model: Path, tmp_path: Path
) -> None:
    with served(model, tmp_path, "--drain-seconds", 60) as at:
        at.hang_up("INFO SIGHUP: nothing to read again: no file of keys or certificates was given; the server goes on")
        for sig in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGPIPE):
            at.process.send_signal(sig)
        assert eventually(lambda: len(re.findall(r"WARNING SIGUSR[12] means nothing here", at.log())) == 2)
        body = {**LONG, "max_tokens": 300}
        with httpx.stream("POST", f"{at.url}/v1/completions", json=body, timeout=60) as stream:
            lines = stream.iter_lines()
            next(lines)
            at.process.send_signal(signal.SIGTERM)
            assert eventually(lambda: at.status(path="/readyz") == 503)
            at.hang_up("INFO SIGHUP: nothing to read again")
            *_, last, _, done, _ = lines
        assert at.process.wait(20) == 0
    assert '"length"' in last
    assert done == "data: [DONE]"


@pytest.mark.slow
def test_a_hangup_while_it_starts_and_loads_waits_and_does_no_harm(tmp_path: Path) -> None:
    """Its loading waits for ever."""
    model = tiny_llama(tmp_path / "slow")
    waits = "import threading, gnomon.http.cli.serve as cli; cli.open_model = lambda *_: threading.Event().wait()\n"
    keys, err = tmp_path / "keys.txt", tmp_path / "err.txt"
    keys.write_text(f"{OLD}\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    command = [
        sys.executable,
        "-c",
        waits + CODE,
        "serve",
        str(model),
        "--engine",
        "reference",
        "--port",
        url.rpartition(":")[2],
    ]
    with err.open("wb") as to_err:
        process = subprocess.Popen(
            [*command, "--auth-mode", "api-key", "--auth-api-key-file", str(keys)],
            stdout=subprocess.DEVNULL,
            stderr=to_err,
        )
    at = Served(process, url, err)

    def lives() -> bool:
        try:
            return at.status(path="/livez") == 200
        except httpx.TransportError:
            return False

    try:
        assert eventually(lives, 60)
        keys.write_text(f"{NEW}\n")
        at.hang_up(f"INFO SIGHUP: keys read from {keys}: 1, new 1, no longer let in 1")
        assert [at.status(one) for one in (OLD, NEW)] == [401, 503]  # and 503 is that it loads
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_under_nohup_a_hangup_stays_ignored(model: Path, tmp_path: Path) -> None:
    nohup = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    with served(model, tmp_path, before=nohup) as at:
        at.process.send_signal(signal.SIGHUP)
        at.process.send_signal(signal.SIGUSR1)
        assert eventually(lambda: "SIGUSR1" in at.log())  # which came later, and was answered
        assert "SIGHUP:" not in at.log()


@pytest.mark.slow
def test_a_server_whose_terminal_goes_away_drains_and_ends(model: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    take_it = f"import fcntl, os, termios; os.setsid(); fcntl.ioctl({theirs}, termios.TIOCSCTTY, 0)"
    with served(model, tmp_path, before=take_it, pass_fds=(theirs,)) as at:
        os.close(theirs)
        at.hang_up("INFO SIGHUP: nothing to read again")  # while it is there, a hangup is one like any other
        with httpx.stream("POST", f"{at.url}/v1/completions", json={**LONG, "max_tokens": 200}, timeout=60) as stream:
            lines = stream.iter_lines()
            next(lines)
            os.close(ours)
            assert eventually(lambda: at.status(path="/readyz") == 503)
            *_, last, _, done, _ = lines
        assert at.process.wait(20) == 0
    assert '"length"' in last
    assert done == "data: [DONE]"


@pytest.mark.slow
def test_quit_ends_it_at_once_as_the_system_has_it(model: Path, tmp_path: Path) -> None:
    no_core = "import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0))"
    no_shells_choice = "import signal; signal.signal(signal.SIGQUIT, signal.SIG_DFL)"  # what it begins by & ignores it
    with served(model, tmp_path, before=f"{no_core}; {no_shells_choice}") as at:
        at.process.send_signal(signal.SIGQUIT)
        assert at.process.wait(20) == -signal.SIGQUIT


def test_the_authority_of_the_identity_service_is_read_again(tmp_path: Path) -> None:
    """Its certificate was renewed by another authority; what is asked meanwhile is not broken off."""
    ours, others, mine = (certificate(tmp_path, name, "127.0.0.1") for name in ("ours", "others", "mine"))
    trusted = Path(shutil.copy(others.certificate, tmp_path / "trusted.pem"))
    clock = FakeTime()
    with served_identity(clock, tls=ours) as identity:
        settings = AuthSettings(
            mode=AuthMode.userinfo, issuer=identity.issuer, ca_file=trusted, http_seconds=10,
            client_certificate=mine.certificate, client_key=mine.key,
        )  # fmt: skip
        with auth_app(settings, clock, ready=False) as at:
            at.until(lambda: len(clock.slept) > 1)
            assert at.outcome(identity.service_token()) == "unavailable"
            trusted.write_bytes(ours.certificate.read_bytes())
            [read] = at.authenticator.readers()
            told, use = read()
            assert told.startswith(f"--auth-ca-file {trusted} read, certificates in it: 1; --auth-client-certificate ")
            assert "CN=mine, valid until " in told

            async def on_the_loop() -> None:
                use()

            at.run(on_the_loop())
            at.until(lambda: at.authenticator.ready)
            assert at.outcome(identity.service_token()) == "accepted"
