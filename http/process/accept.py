"""Accepting connections, and what happens when the system has no descriptor left for one.

    no descriptor   accepting pauses for a moment and is tried again; a line tells of it, at most one in QUIET_SECONDS.
                    Whoever is not accepted waits in the kernel's queue. What is being answered goes on
    no room         a connection beyond those that may be open or refused at a time is closed without a word: a TLS
                    handshake counts from its first byte, not from its end

asyncio's own server makes as many attempts as its queue is long, each with a traceback, and only then pauses. How many
connections there may be is decided in descriptors.py, what one beyond the bound is told in wire.py.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import time
from collections.abc import Callable
from typing import Any

log = logging.getLogger("gnomon.http")

AT_ONCE = 64  # accepted in a row, before other work of the loop has its turn
PAUSE_SECONDS = 0.25
QUIET_SECONDS = 60.0  # between two lines that say that accepting paused
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Acceptor:
    """Accepts on a listener until it is closed, in the place of what `loop.create_server` returns.

    make: a protocol for a connection · options: of `loop.connect_accepted_socket` · room: how many connections more may
    be there, those left out whose handshake is under way.
    """

    def __init__(
        self, make: Callable[[], asyncio.Protocol], listener: socket.socket, room: Callable[[], int], **options: Any
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.make = make
        self.listener = listener
        self.room = room
        self.options = options
        self.coming: set[asyncio.Task[None]] = set()
        self.retry: asyncio.TimerHandle | None = None
        self.told: float | None = None  # when a line last said that accepting paused
        self.pauses = 0  # since then
        listener.setblocking(False)
        self.start()

    def start(self) -> None:
        self.retry = None
        self.loop.add_reader(self.listener.fileno(), self.accept)

    def accept(self) -> None:
        for _ in range(AT_ONCE):
            try:
                client, _ = self.listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in EXHAUSTED:
                    raise
                self.pause(error)
                return
            if self.room() <= len(self.coming):
                client.close()
                continue
            task = self.loop.create_task(self.take(client))
            self.coming.add(task)
            task.add_done_callback(self.coming.discard)

    async def take(self, client: socket.socket) -> None:
        """Connects a protocol. A handshake that fails is the client's own affair."""
        try:
            await self.loop.connect_accepted_socket(self.make, client, **self.options)
        except OSError as error:  # so is ssl.SSLError
            log.debug("a connection was lost before it was one: %s", error)

    def pause(self, error: OSError) -> None:
        self.loop.remove_reader(self.listener.fileno())
        self.retry = self.loop.call_later(PAUSE_SECONDS, self.start)
        self.pauses += 1
        now = time.monotonic()
        if self.told is None or now - self.told >= QUIET_SECONDS:
            log.warning(
                "no connection can be accepted: %s; accepting has paused %d times, and is tried again every %g s",
                os.strerror(error.errno or 0),
                self.pauses,
                PAUSE_SECONDS,
            )
            self.told, self.pauses = now, 0

    def close(self) -> None:
        if self.retry is not None:
            self.retry.cancel()
        if self.listener.fileno() >= 0:
            self.loop.remove_reader(self.listener.fileno())
            self.listener.close()
        for task in self.coming:
            task.cancel()

    async def wait_closed(self) -> None:
        await asyncio.gather(*self.coming, return_exceptions=True)
