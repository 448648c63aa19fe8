"""What a line of the log can hold and what it never can; and where nobody reads it."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import subprocess
import sys
import threading
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from gnomon.http.observe.access import Observed
from gnomon.http.observe.logs import MOST_LINES, Lines, hide
from gnomon.http.observe.metrics import Metrics
from helpers.observed import IDLE, JSON, ROUTES, TEXT, drive, formatted, line_of

FORGED = "x\r\n2030-01-01T00:00:00.000+00:00 INFO forged\x1b[31m\x85\u2028\u202eend"


def test_no_message_and_no_exception_can_forge_a_line() -> None:
    try:
        raise RuntimeError(FORGED)
    except RuntimeError as error:
        text = formatted(TEXT, "%s", FORGED, exc=error)
        object = formatted(JSON, "%s", FORGED, exc=error)
    first, *rest = text.split("\n")
    assert first.endswith(r"x\r\n2030-01-01T00:00:00.000+00:00 INFO forged\x1b[31m\x85\u2028\u202eend")
    assert rest[0] == "    Traceback (most recent call last):"
    assert all(line.startswith("    ") and line.isprintable() for line in rest)
    assert object.isascii()
    assert object.isprintable()
    members = json.loads(object)
    assert list(members) == ["time", "level", "logger", "message", "exception"]
    assert members["message"] == FORGED
    assert members["exception"].startswith("Traceback")
    assert "RuntimeError" in members["exception"]


SECRETS = [
    b"Bearer sk-0123456789abcdef",
    b"bearer  eyJhbGciOi.eyJzdWIi.c2lnbmF0dXJl",
    b"sk-without-a-scheme",
    b"Basic dXNlcjpwYXNzd29yZA==",
    b"Token it's\"quoted\\and\xe9",
    b"Bearer short",
]


def careless(secret: bytes) -> Any:
    """An application that logs all that it has."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        log = logging.getLogger("gnomon.careless")
        token = secret.partition(b" ")[2].strip() or secret
        log.error("scope %s", scope)
        log.error("headers %r", dict(scope["headers"]))
        log.error("value " + secret.decode("latin-1"))
        log.error("json %s", json.dumps({"authorization": secret.decode("latin-1")}))
        if len(token) >= 8:
            log.error("token %s %r", token.decode("latin-1"), token)
        try:
            raise KeyError(secret)
        except KeyError as error:
            raise ValueError("refused " + secret.decode("latin-1")) from error

    return app


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("form", [TEXT, JSON])
def test_no_line_of_a_request_can_show_its_authorization(secret: bytes, form: Lines) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(form)
    logger = logging.getLogger("gnomon")
    logger.addHandler(handler)
    try:
        raw_path = b"/v1/" + secret.replace(b" ", b"%20")
        headers = [(b"authorization", secret)]
        drive(Observed(careless(secret), Metrics("mine", lambda: IDLE), ROUTES), headers=headers, raw_path=raw_path)
    finally:
        logger.removeHandler(handler)
    output = stream.getvalue()
    assert output.count("[hidden]") >= 6
    assert "ValueError: refused [hidden]" in output
    assert "scope {" in output
    marks = ("0123456789", "eyJ", "c2lnbm", "without", "dXNlcj", "quoted", "short")  # one of each secret
    assert not any(mark in output for mark in marks)


@pytest.mark.parametrize("form", [TEXT, JSON])
def test_a_credential_in_the_place_of_the_method_is_hidden_too(form: Lines) -> None:
    async def within() -> str:
        hide([b"Bearer sk-0123456789"])
        return formatted(form, line_of("sk-0123456789", b"/"))

    line = asyncio.run(within())
    assert "[hidden]" in line
    assert "0123456789" not in line


def test_a_thread_that_knows_no_request_shows_no_bearer_token_either() -> None:
    shown: list[str] = []
    thread = threading.Thread(target=lambda: shown.append(formatted(TEXT, "sent Authorization: Bearer abcdefgh12")))
    thread.start()
    thread.join()
    assert "abcdefgh12" not in shown[0]
    assert "Bearer [hidden]" in shown[0]


def test_a_message_whose_arguments_do_not_fit_shows_no_argument() -> None:
    for form in (TEXT, JSON):
        line = formatted(form, "%s of %s", "abcdefgh12")
        assert "%s of %s (with arguments that do not fit)" in line
        assert "abcdefgh12" not in line


def test_words_shorter_than_a_secret_are_left_alone() -> None:
    async def within() -> str:
        hide([b"Bearer a"])
        return formatted(TEXT, "a plain message")

    assert asyncio.run(within()).endswith("INFO a plain message")


SPEAK = """
import logging, logging.config, sys
from gnomon.http.observe.access import AccessLine
from gnomon.http.observe.logs import logging_config
from gnomon.http.observe.record import Record
from gnomon.http.settings import LogFormat, Settings
logging.config.dictConfig(logging_config(Settings(log_format=LogFormat(sys.argv[1]))))
logging.getLogger("gnomon.access").info(AccessLine(Record("id", "GET", "/ok"), "::1", "GET", "/ok"))
logging.getLogger("gnomon.http").error("ours")
logging.getLogger("uvicorn.error").error("uvicorn's")
logging.getLogger("uvicorn.error").info("silent")
logging.getLogger("uvicorn.access").info("silent")
logging.getLogger("httpx").info("silent")
logging.getLogger("opentelemetry.sdk").error("silent")
logging.getLogger("another").warning("another's")
try:
    raise RuntimeError("the cause")
except RuntimeError:
    logging.getLogger("uvicorn.error").exception("caught")
assert not logging.getLogger("uvicorn.access").hasHandlers()
"""


def spoken(form: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", SPEAK, form], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "silent" not in done.stderr
    return done.stderr.splitlines()


def test_in_json_every_line_on_standard_error_is_an_object() -> None:
    objects = [json.loads(line) for line in spoken("json")]
    assert [(o["logger"], o.get("message")) for o in objects] == [
        ("gnomon.access", None),
        ("gnomon.http", "ours"),
        ("uvicorn.error", "uvicorn's"),
        ("another", "another's"),
        ("uvicorn.error", "caught"),
    ]
    assert objects[0]["path"] == "/ok"
    assert objects[-1]["exception"].endswith("RuntimeError: the cause")


def test_in_text_every_line_on_standard_error_begins_with_its_time_or_is_indented() -> None:
    said = spoken("text")
    assert [re.sub(r"^\d{4}-\S+ ", "@ ", line) for line in said[1:5]] == [
        "@ ERROR ours",
        "@ ERROR uvicorn's",
        "@ WARNING another's",
        "@ ERROR caught",
    ]
    assert all(line.startswith("    ") for line in said[5:])
    assert said[-1] == "    RuntimeError: the cause"


FLOOD = """
import logging, logging.config, sys
from gnomon.http.observe import logs
from gnomon.http.settings import Settings
logging.config.dictConfig(logs.logging_config(Settings()))
for i in range(logs.MOST_LINES + 2000):
    logging.getLogger("gnomon.http").info("line %d of many %s", i, "x" * 50)
print("all said", flush=True)
sys.stdin.readline()
logging.getLogger("gnomon.http").info("the last")
"""


def test_a_standard_error_that_nobody_reads_stops_nothing_and_counts_what_is_lost() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", FLOOD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "all said\n"  # nobody has read a byte of 1 MB yet
        first = [process.stderr.readline() for _ in range(5000)]
        process.stdin.write("\n")
        process.stdin.close()
        lines = first + process.stderr.readlines()
        assert process.wait(60) == 0
    assert "the last" in lines[-1]
    lost = sum(int(line.split()[2]) for line in lines if "lines before this one were lost" in line)
    assert lost > 0
    assert sum("of many" in line for line in lines) + lost == MOST_LINES + 2000


@pytest.mark.slow
def test_a_process_ends_whose_standard_error_nobody_reads() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", FLOOD], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.wait(60) == 0


UNWAITING = """
import logging, logging.config, os, sys
from gnomon.http.observe import logs
from gnomon.http.settings import Settings
os.set_blocking(2, False)
logging.config.dictConfig(logs.logging_config(Settings()))
for i in range(2000):
    logging.getLogger("gnomon.http").info("line %d of many %s", i, "x" * 500)
print("all said", flush=True)
logging.getLogger().handlers[0]._idle.wait(60)
"""


def test_no_line_is_lost_or_cut_where_standard_error_does_not_wait() -> None:
    """Whoever shares a terminal or a pipe can make it one whose writes fail at once where there is no room."""
    with subprocess.Popen(
        [sys.executable, "-c", UNWAITING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "all said\n"  # a pipe has room for a tenth of it
        lines = process.stderr.readlines()
        assert process.wait(60) == 0
    assert len(lines) == 2000
    assert all(re.search(f"line {i} of many x{{500}}\n$", line) for i, line in enumerate(lines))
