"""Standard output and standard error of the command: what becomes of them when they fail, and how a line looks there.

    a pipe whose reader has left   the command ends by SIGPIPE, in silence, as every Unix tool does
    any other failure of output    one line, and the status of a failure: a full disk, a closed descriptor
    a closed descriptor            is opened again, so that no file or socket takes its number
    a package that is missing      one line, which says how to install it
    a character that is not to be  is written as its escape: `\xe9` for é on an output that is ASCII
    had in the output's encoding
    --log-format json              every line of standard error is one JSON record from the first line on, whoever
                                   writes it: Python's warnings, threads, a C++ library. For that, the descriptor
                                   of standard error becomes a pipe that a thread reads; what a crash of the process
                                   itself (SIGSEGV, SIGABRT) has just written there may be lost

Imports nothing but the standard library until a command runs.
"""

from __future__ import annotations

import errno
import faulthandler
import io
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import NoReturn

from gnomon.http.cli.missing import explained
from gnomon.http.observe.text import as_utf8, printable_line

OUTPUT_FAILED = 1
FLUSH_SECONDS = 1.0


# ---- a line of the command itself


def tell(level: int, message: str) -> None:
    """One line on standard error. That it cannot be written is no reason for another failure."""
    message = printable_line(as_utf8(message))
    if Records.current is not None:
        logging.getLogger("gnomon").log(level, "%s", message)
    elif wants_json(sys.argv[1:], os.environ):
        _print(record(level, message))
    else:
        _print(f"gnomon: {'warning: ' if level == logging.WARNING else ''}{message}")


def warn(message: str) -> None:
    tell(logging.WARNING, message)


def say(line: str) -> None:
    """How far a command is, on standard error."""
    print(line, file=sys.stderr, flush=True)


def fail(message: str, status: int) -> NoReturn:
    """Ends the command with one line."""
    import typer

    tell(logging.ERROR, message)
    raise typer.Exit(status)


def record(level: int, message: str, **members: object) -> str:
    """A line of the log in JSON, for what is said while there is no log, or on standard output."""
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    about = {"time": time, "level": logging.getLevelName(level), "logger": "gnomon"}
    return json.dumps({**about, "message": message, **members})


def _print(line: str) -> None:
    with suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)


def wants_json(arguments: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Whether `gnomon serve` was told to write JSON; asked before its options are read, which may fail."""
    if arguments[:1] != ["serve"]:
        return False
    wanted = environment.get("GNOMON_LOG_FORMAT", "")
    for at, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if argument == "--":
            break
        if name == "--log-format":
            wanted = value or "".join(arguments[at + 1 : at + 2])
    return wanted == "json"


# ---- the standard streams


class Standard(io.TextIOWrapper):
    """A standard stream that remembers that it failed: with what, no exception that passes by could tell."""

    failure: OSError | None = None

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self.failure = error
            raise

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self.failure = error
            raise


def open_closed() -> None:
    """Standard streams that are closed are opened on /dev/null, the wrong way round: using one is an error, except
    that nobody can be told of standard error's."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            flags = os.O_RDONLY if name == "stdout" else os.O_WRONLY
            opened = os.open(os.devnull, flags)  # the lowest number that is free
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            stream = os.fdopen(number, "r" if name == "stdin" else "w", encoding="utf-8", closefd=False)
            setattr(sys, name, stream)


def remembering() -> list[Standard]:
    """Standard output and standard error, able to say that they failed; none of them where tests have their own.

    Either writes the escape of a character that its encoding does not have, whichever command it is.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
        if type(stream) is io.TextIOWrapper:
            about = (stream.encoding, stream.errors, None, stream.line_buffering, stream.write_through)
            setattr(sys, name, Standard(stream.detach(), *about))
    return [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, Standard)]


def discard_output(stream: object) -> None:
    """What the stream holds and whatever comes goes nowhere from now on, and that is no failure."""
    if isinstance(stream, Standard):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        stream.flush()
        stream.failure = None


def guarded(command: Callable[[], object], status_of_failure: int = OUTPUT_FAILED) -> None:
    """Runs the command, and answers for its output and for packages that are not here."""
    open_closed()
    streams = remembering()
    records: Records | None = None
    ended: BaseException | None = None
    try:
        records = Records() if wants_json(sys.argv[1:], os.environ) else None
        command()
    except ImportError as error:
        tell(logging.ERROR, explained(error))
        ended = SystemExit(1)
    except BaseException as error:
        ended = error
        if records is not None and isinstance(error, Exception) and not any(stream.failure for stream in streams):
            logging.getLogger("gnomon").critical("the command failed", exc_info=error)
            ended = SystemExit(1)
    finally:
        if records is not None:
            records.end()
    for stream in streams:
        with suppress(OSError):
            stream.flush()
    _answer_for(streams, ended, status_of_failure)
    if ended is not None:
        raise ended


def _answer_for(streams: Sequence[Standard], ended: BaseException | None, status: int) -> None:
    """Ends the process if a stream failed, unless something else went wrong."""
    failed = [(stream is sys.stdout, stream.failure) for stream in streams if stream.failure is not None]
    if not failed or not isinstance(ended, OSError | SystemExit | KeyboardInterrupt | None):
        return
    for stream in streams:
        if stream.failure is not None:
            discard_output(stream)
    if any(failure.errno == errno.EPIPE for _, failure in failed):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGPIPE)
    for is_output, failure in failed:
        if is_output:
            closed = failure.errno == errno.EBADF
            tell(logging.ERROR, f"standard output {'is closed' if closed else f'fails: {failure.strerror}'}")
            raise SystemExit(status)
    if isinstance(ended, OSError):
        raise SystemExit(status)


# ---- every line a JSON record


class Records:
    """From its making to `end`: every line of standard error is a record of the log, in JSON."""

    current: Records | None = None

    def __init__(self) -> None:
        from logging.config import dictConfig

        from gnomon.http.observe import logs
        from gnomon.http.settings import LogFormat, Settings

        self._real, self._logs = os.dup(2), logs
        logs.descriptor = self._real
        dictConfig(logs.logging_config(Settings(log_format=LogFormat.json)))
        read, write = os.pipe()
        os.dup2(write, 2)
        os.close(write)
        if faulthandler.is_enabled():
            faulthandler.enable(self._real)
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
        self._reading = threading.Thread(target=self._read, args=[read], name="standard error", daemon=True)
        self._reading.start()
        self._hooks = (threading.excepthook, sys.unraisablehook)
        logging.captureWarnings(True)
        threading.excepthook = self._in_thread
        sys.unraisablehook = self._unraisable
        Records.current = self

    def _read(self, pipe: int) -> None:
        with os.fdopen(pipe, encoding="utf-8", errors="backslashreplace") as lines:
            for line in lines:
                if line.strip():
                    logging.getLogger("stderr").warning("%s", line.rstrip())

    def _in_thread(self, failed: threading.ExceptHookArgs) -> None:
        if failed.exc_type is not SystemExit and failed.exc_value is not None:
            name = failed.thread.name if failed.thread else "that is gone"
            logging.getLogger("gnomon").error("a thread failed: %s", name, exc_info=failed.exc_value)

    def _unraisable(self, failed: sys.UnraisableHookArgs) -> None:
        value: BaseException | None = failed.exc_value
        trace: TracebackType | None = failed.exc_traceback
        told = (failed.exc_type, value, trace) if value is not None else None
        logging.getLogger("gnomon").error(
            "%s: %r", failed.err_msg or "an exception was ignored", failed.object, exc_info=told
        )

    def end(self) -> None:
        """All that was said is written; standard error is itself again."""
        if Records.current is not self:
            return
        with suppress(OSError, ValueError):
            sys.stderr.flush()
        os.dup2(self._real, 2)  # the pipe has no writer any more
        self._reading.join(FLUSH_SECONDS)
        for handler in logging.getLogger().handlers:
            handler.flush()
        logging.captureWarnings(False)
        threading.excepthook, sys.unraisablehook = self._hooks
        Records.current = self._logs.descriptor = None
        os.close(self._real)
