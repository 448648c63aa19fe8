"""A server whose process watches its own interpreter, and whose engine costs nothing: what holds it is the server.

    python watched.py PORT-FILE HOLDS-FILE [ARGUMENTS]     with arguments, `gnomon` with these instead

A thread asks for the interpreter every few milliseconds. How long it waited goes to HOLDS-FILE, a line whenever it was
longer than NOTED: the seconds of a clock, and those for which this process had a processor. On a loaded machine a
process waits for that too, so the smaller of the two is for how long one thread held the interpreter.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gnomon.http import run as server
from gnomon.http.app import create_app
from gnomon.http.cli.main import main as command
from gnomon.http.settings import Settings
from gnomon.reference.body.rankings import Rankings
from gnomon.reference.engine import Done, Event, JobRequest, PromptScored, ReferenceJob, Token
from helpers.fake import FAKE_VOCAB, FakeEngine, fake_tokenizer, hashed_logits

CONTEXT = 2**15
NOTED = 0.03
TABLE = np.stack([hashed_logits([i]) for i in range(64)])
TOPS = [tuple((int(v), float(-1.25 - v / 3)) for v in np.argsort(-row)[:20]) for row in TABLE]


class Ready(ReferenceJob):
    """A job whose events need no model."""

    def close(self, prompt: int | None = None, candidate: int | None = None) -> None:
        if prompt is None:
            super().close()

    def events(self) -> Iterator[Event]:
        self.started = time.monotonic()
        asked = self.request
        for j, length in enumerate(map(len, asked.prompts)):
            if asked.score:
                tops = Rankings([None])
                for i in range(1, length):
                    tops.append(TOPS[i % 64][: asked.top])
                yield PromptScored(j, (None, *(-0.1234567 * (i % 89) for i in range(1, length))), tops)
            for step in range(asked.params.max_tokens):
                for c in range(asked.candidates):
                    if self._closed.is_set():
                        return
                    yield Token(j, c, 97 + (step + c) % 26, -2.3456789, TOPS[step % 64][: asked.top])
            for c in range(asked.candidates):
                yield Done(j, c)


class ReadyEngine(FakeEngine):
    concurrency = 64

    def submit(self, request: JobRequest) -> Ready:
        return Ready(self, request)

    def states(self, tokens: Sequence[int], check: object = None) -> NDArray[np.float64]:
        return TABLE[np.arange(len(tokens)) % 64]


def watch(file: Path) -> None:
    out = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    while True:
        clock, processor = time.monotonic(), time.process_time()
        time.sleep(0.002)
        waited, held = time.monotonic() - clock, time.process_time() - processor
        if waited > NOTED:
            os.write(out, f"{waited:.3f} {min(waited, held):.3f}\n".encode())


def main() -> None:
    port_file, holds, *arguments = sys.argv[1:]
    threading.Thread(target=watch, args=[Path(holds)], daemon=True).start()
    if arguments:
        listener = server.bind("127.0.0.1", 0)
        port = listener.getsockname()[1]
        listener.close()
        Path(port_file).write_text(str(port))
        sys.argv = ["gnomon", *arguments, "--port", str(port)]
        command()
    else:
        serve(Path(port_file))


def serve(port_file: Path) -> None:
    listener, settings = server.bind("127.0.0.1", 0), Settings()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = fake_tokenizer(Path(folder))
        engine = ReadyEngine(hashed_logits, FAKE_VOCAB, CONTEXT)
        running = server.Server(create_app(engine, tokenizer, settings), settings, lambda: None)
    signal.signal(signal.SIGTERM, running.handle_exit)
    port_file.write_text(str(listener.getsockname()[1]))
    running.run(sockets=[listener])
