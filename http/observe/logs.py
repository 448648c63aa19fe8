"""What a line of the log looks like: text for people, or one JSON object a line; all of it on standard error.

    hide                what the lines of this request must not show: its credentials
    BackgroundHandler   writes the lines in a thread of its own: a pipe that nobody reads stops no request and no signal
    logging_config      which loggers speak, and in which of the two forms

Whatever a message holds, a line is one line: control characters are escaped, and the lines of a traceback are indented
or are one member. So nobody who chooses a part of a message can forge a line. What the line of a request says is
decided in access.py.
"""

from __future__ import annotations

import json
import logging
import os
import re
import select
import sys
import threading
from contextvars import ContextVar
from datetime import UTC, datetime
from queue import SimpleQueue
from typing import Any, Protocol, runtime_checkable
from urllib.parse import quote

from gnomon.http.observe.text import as_utf8, printable_line
from gnomon.http.settings import LogFormat, Settings

REDACTED = "[hidden]"
MOST_LINES = 10_000
LONGEST_FLUSH = 1.0  # seconds
_LEAST = 8  # characters: what is shorter is no secret, and would only punch holes into words
_CREDENTIALS = re.compile(r"\b(Bearer|Basic)(\s+)[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE)
descriptor: int | None = None  # of standard error, while console.py reads what others write to it
_hidden: ContextVar[tuple[str, ...]] = ContextVar("gnomon.hidden", default=())  # the longest first


@runtime_checkable
class Structured(Protocol):
    """A message that is members in JSON, and str() in text."""

    def members(self) -> dict[str, object]: ...


def hide(authorization: list[bytes]) -> None:
    """No line written in this context shows these headers from now on, whole or without their scheme.

    Never undone: the server still logs an exception of the request after the application has returned.
    """
    parts = {part for value in authorization for part in (value, value.partition(b" ")[2].strip())}
    spellings = {spelling for part in parts for spelling in _spellings(part) if len(spelling) >= _LEAST}
    _hidden.set(tuple(sorted(spellings, key=len, reverse=True)))  # once, and not for every line


def redacted(text: str) -> str:
    """The text without the credentials of this request, and without anybody's that look like some.

    The second is for threads that know of no request.
    """
    for spelling in _hidden.get():
        text = text.replace(spelling, REDACTED)
    return _CREDENTIALS.sub(rf"\1\2{REDACTED}", text)


def _spellings(value: bytes) -> tuple[str, ...]:
    """As it was sent, and as repr, JSON and a URL write it."""
    text = value.decode("latin-1")
    return text, repr(text)[1:-1], ascii(text)[1:-1], json.dumps(text)[1:-1], quote(value)


class Lines(logging.Formatter):
    """What the two forms share."""

    def time(self, record: logging.LogRecord) -> str:
        return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")

    def message(self, record: logging.LogRecord) -> str:
        try:
            return redacted(as_utf8(record.getMessage().rstrip()))
        except Exception:  # or logging itself would print the arguments as they are
            return redacted(f"{record.msg} (with arguments that do not fit)")

    def traceback(self, record: logging.LogRecord) -> str:
        parts = [self.formatException(record.exc_info)] if record.exc_info and record.exc_info[0] else []
        if record.stack_info:
            parts.append(record.stack_info)
        return redacted("\n".join(parts))


class TextLines(Lines):
    def format(self, record: logging.LogRecord) -> str:
        lines = [f"{self.time(record)} {record.levelname} {printable_line(self.message(record))}"]
        lines += ["    " + printable_line(line) for line in self.traceback(record).splitlines()]
        return "\n".join(lines)


class JsonLines(Lines):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {"time": self.time(record), "level": record.levelname, "logger": record.name}
        if isinstance(record.msg, Structured):
            members = record.msg.members().items()
            line.update((name, redacted(value) if isinstance(value, str) else value) for name, value in members)
        else:
            line["message"] = self.message(record)
        if traceback := self.traceback(record):
            line["exception"] = traceback
        return json.dumps(line)


class BackgroundHandler(logging.Handler):
    """Lines to standard error. At most MOST_LINES wait to be written; what comes then is lost, and counted.

    Written past the interpreter's buffer: a thread that stands in a write there would hold its lock at the end.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lines: SimpleQueue[str] = SimpleQueue()
        self._lost = 0
        self._unwritten = threading.Semaphore(MOST_LINES)
        self._turn = threading.Lock()  # not the handler's own, which is held while the end waits in `flush`
        self._idle = threading.Event()
        self._idle.set()
        self._thread: threading.Thread | None = None

    def emit(self, record: logging.LogRecord) -> None:  # the handler's lock is held
        line = self.format(record)  # here and not there: what must be hidden is known in this context only
        if not self._unwritten.acquire(blocking=False):
            self._lost += 1
            return
        if self._lost:
            lost = f"{self._lost} lines before this one were lost: nobody read standard error"
            line = self.format(logging.LogRecord("gnomon.http", logging.WARNING, "", 0, lost, (), None)) + "\n" + line
            self._lost = 0
        with self._turn:
            self._idle.clear()
            self._lines.put(line + "\n")
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="log", daemon=True)
            self._thread.start()

    def flush(self) -> None:
        """Waits for what was said, but not for ever."""
        self._idle.wait(LONGEST_FLUSH)

    def _work(self) -> None:
        while True:
            line = self._lines.get().encode(errors="backslashreplace")
            try:
                while line and sys.stderr is not None:
                    line = line[write_some(sys.stderr.fileno() if descriptor is None else descriptor, line) :]
            except (OSError, ValueError):  # closed, or its disk is full: there is nowhere to say so
                line = b""
            self._unwritten.release()
            with self._turn:
                if self._lines.empty():
                    self._idle.set()


def write_some(descriptor: int, line: bytes) -> int:
    """How many of a line's bytes were written. Waits for room also where whoever shares the terminal or
    the pipe has made it one that does not wait; the line would be lost there, or its end, without a word."""
    try:
        return os.write(descriptor, line)
    except BlockingIOError:
        room = select.poll()
        room.register(descriptor, select.POLLOUT)
        room.poll()
        return 0


def logging_config(settings: Settings) -> dict[str, Any]:
    """For `logging.config.dictConfig`."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"lines": {"()": JsonLines if settings.log_format is LogFormat.json else TextLines}},
        "handlers": {"stderr": {"()": BackgroundHandler, "formatter": "lines"}},
        "root": {"handlers": ["stderr"], "level": "WARNING"},
        "loggers": {
            "gnomon": {"level": "INFO"},
            "uvicorn": {"level": "WARNING"},
            "uvicorn.access": {"level": "CRITICAL", "handlers": [], "propagate": False},  # gnomon.access is its place
            "opentelemetry": {"level": "CRITICAL"},  # it speaks at every failure; otel.py says what matters, rarely
        },
    }
