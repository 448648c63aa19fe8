"""A whole answer on its way out: JSON that was made in pieces goes out in pieces.

The pieces are never joined: what several choices share is sent several times and held once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from starlette.types import Send


async def send_json(pieces: Sequence[bytes], send: Send) -> None:
    """A 200 whose body is these pieces. Between two of them the loop looks after the others."""
    length = str(sum(map(len, pieces))).encode()
    headers = [(b"content-length", length), (b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for i, piece in enumerate(pieces, 1):
        await send({"type": "http.response.body", "body": piece, "more_body": i < len(pieces)})
        await asyncio.sleep(0)
