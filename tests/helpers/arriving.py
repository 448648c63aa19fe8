"""An engine whose jobs go on by themselves: the fake one's, each computed in a thread of its own."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator

from gnomon.reference.engine import Event, Failed, JobRequest, ReferenceJob
from helpers.fake import FakeEngine


class ArrivingEngine(FakeEngine):
    concurrency = 64

    def submit(self, request: JobRequest) -> ArrivedJob:
        return ArrivedJob(self, request)


class ArrivedJob(ReferenceJob):
    def __init__(self, engine: FakeEngine, request: JobRequest) -> None:
        super().__init__(engine, request)
        self._woken: Callable[[], object] = lambda: None
        self._come: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        threading.Thread(target=self._go_on, name="arriving", daemon=True).start()

    def _go_on(self) -> None:
        try:
            for event in super().events():
                self._put(event)
        except Exception:
            logging.getLogger("gnomon.http").exception("the engine failed")
            self._put(Failed("the engine failed"))
        self._put(None)

    def _put(self, event: Event | None) -> None:
        self._come.put(event)
        self._woken()

    def close(self, prompt: int | None = None, candidate: int | None = None) -> None:
        super().close(prompt, candidate)
        if prompt is None:
            self._put(None)

    def arrived(self, woken: Callable[[], object]) -> Iterator[Event | None]:
        self._woken = woken
        try:
            while True:
                try:
                    event = self._come.get_nowait()
                except queue.Empty:
                    yield None
                    continue
                if event is None or self._closed.is_set():
                    return
                yield event
        finally:
            self._woken = lambda: None

    def events(self) -> Iterator[Event]:
        while (event := self._come.get()) is not None and not self._closed.is_set():
            yield event

    @property
    def made(self) -> float:
        return time.monotonic()
