"""What wire.py uses of uvicorn that is no public interface: each name is here, is used, and exists in this version."""

from __future__ import annotations

import ast
import asyncio
import inspect
import logging
import re
from pathlib import Path
from typing import Any, cast

import h11
import pytest
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.server import ServerState

from gnomon.http.wire import Wire

ROOT = Path(__file__).parents[2]

USED = {
    "self": {
        "_should_upgrade", "_unset_keepalive_if_required", "client", "conn", "connections", "cycle", "flow",
        "handle_events", "loop", "on_response_complete", "scope", "server_state", "shutdown", "timeout_keep_alive",
        "timeout_keep_alive_handler", "timeout_keep_alive_task", "transport",
    },
    "self.cycle": {"disconnected", "keep_alive", "message_event", "response_complete", "response_started"},
    "self.flow": {"read_paused", "resume_reading"},
    "self.server_state": {"default_headers"},
}  # fmt: skip


def mentioned() -> dict[str, set[str]]:
    """Object → the names of it that Wire's source has, its own and those that it overrides."""
    names: dict[str, set[str]] = {}
    for node in ast.walk(ast.parse(inspect.getsource(Wire))):
        if isinstance(node, ast.Attribute):
            names.setdefault(ast.unparse(node.value), set()).add(node.attr)
        elif isinstance(node, ast.FunctionDef):
            names.setdefault("self", set()).add(node.name)
    return names


@pytest.fixture
def theirs() -> dict[str, set[str]]:
    """Object → the names that uvicorn's own have, beyond asyncio's."""
    loop = asyncio.new_event_loop()
    state = ServerState()
    protocol = H11Protocol(Config(cast(Any, None), log_config=None, ws="none"), state, {}, loop)
    loop.close()
    flow, log = FlowControl(cast(Any, None)), logging.getLogger("uvicorn.error")
    cycle = RequestResponseCycle(
        cast(Any, {}), h11.Connection(h11.SERVER), cast(Any, None), flow, log, log, False, [], asyncio.Event(), print
    )
    found: dict[str, object] = {
        "self": protocol, "self.cycle": cycle, "self.flow": flow, "self.server_state": state,
    }  # fmt: skip
    return {name: set(dir(one)) - set(dir(asyncio.Protocol)) for name, one in found.items()}


@pytest.mark.parametrize("name", USED)
def test_every_private_name_that_is_used_is_listed_and_exists(name: str, theirs: dict[str, set[str]]) -> None:
    assert mentioned()[name] & theirs[name] == USED[name]


def test_uvicorn_is_admitted_up_to_the_version_that_was_tested() -> None:
    tested = re.search(r"^uvicorn==(\d+)\.(\d+)", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)
    assert tested is not None
    bound = f"<{tested[1]}.{int(tested[2]) + 1}"
    assert re.search(rf'"uvicorn>=[\d.]+,{re.escape(bound)}"', (ROOT / "pyproject.toml").read_text("utf-8")), bound
