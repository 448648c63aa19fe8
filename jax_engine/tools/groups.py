"""The groups of the table: each yields rows, once for every dtype."""

from __future__ import annotations

from collections.abc import Callable

from gnomon.jax_engine.tools import engine_rows, peer_rows, server_rows
from gnomon.jax_engine.tools.ratios import Ratios
from gnomon.jax_engine.tools.workbench import Bench

GROUPS: dict[str, Callable[[Bench], Ratios]] = {
    # the engine in this process
    "decode": engine_rows.decode_rows,
    "prefill": engine_rows.prefill_rows,
    "length": engine_rows.length_rows,
    "engine": engine_rows.overhead,
    "slots": engine_rows.live_slots,
    "others": engine_rows.beside_others,
    "chunks": engine_rows.chunks,
    "first-token": engine_rows.first_token,
    "long-prefill": engine_rows.long_prefill,
    "transformers": engine_rows.transformers,
    # `gnomon serve`, and with --baseline that of another version in turn with it
    "sampling": server_rows.sampling,
    "http": server_rows.over_http,
    "embedded": server_rows.embedded,
    "startup": server_rows.start_up,
    "memory": server_rows.memory_rows,
    "peers": peer_rows.against_peers,
}
