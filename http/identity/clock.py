"""What time it is, as one value that can be handed in: tests of an hour's expiry take no hour."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple


class Clock(NamedTuple):
    wall: Callable[[], float]  # seconds since 1970, as tokens count them
    monotonic: Callable[[], float]  # seconds that no administrator sets back, for everything we remember
    sleep: Callable[[float], Awaitable[object]]


SYSTEM = Clock(time.time, time.monotonic, asyncio.sleep)
