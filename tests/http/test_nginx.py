"""A real nginx with the very configuration that http/README.md prints, in front of a real server.

Ports, certificate files and two times are put in its place; nothing else of it is changed.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from starlette.applications import Starlette

from gnomon.http.app import create_app
from gnomon.http.page.document import assemble
from gnomon.http.settings import Settings
from gnomon.http.wire import Wire
from gnomon.reference.tokenizer import Tokenizer
from helpers.certificate import certificate
from helpers.fake import EOT, FakeEngine, always
from helpers.live import Gate, call, check_error, eventually, request_body, serving
from helpers.loopback import Tls
from helpers.readme import OPERATING

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
pytestmark = pytest.mark.skipif(NGINX is None, reason="needs nginx: apt install nginx-light")

[PRINTED] = re.findall(r"```nginx\n(.*?)```", OPERATING.read_text(encoding="utf-8"), re.DOTALL)
AROUND = """\
daemon off;
master_process off;
pid nginx.pid;
error_log stderr;
events {}
http {
    access_log off;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
    include site.conf;
}
"""


class Proxied(NamedTuple):
    client: httpx.Client  # its base is the sub-path
    log: Path


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return certificate(tmp_path_factory.mktemp("tls"), "gnomon", "127.0.0.1")


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(always(*b"abc"), context=5000)


@pytest.fixture
def app(engine: FakeEngine, tokenizer: Tokenizer) -> Starlette:
    return create_app(engine, tokenizer, Settings())


@contextmanager
def proxied(
    app: Starlette, tls: Tls, folder: Path, settings: Settings | None = None, **changed: str
) -> Iterator[Proxied]:
    """changed: values of directives of the printed configuration, or a directive to stand before another."""
    assert NGINX is not None
    with serving(app, settings) as base, socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        free.close()
        site = PRINTED
        for printed, ours in {
            "listen 443 ssl;": f"listen 127.0.0.1:{port} ssl;",
            "server 127.0.0.1:8000;": f"server {base.removeprefix('http://')};",
            "/etc/ssl/gnomon.pem;": f"{tls.certificate};",
            "/etc/ssl/gnomon.key;": f"{tls.key};",
            **changed,
        }.items():
            assert site.count(printed) == 1, printed
            site = site.replace(printed, ours)
        (folder / "site.conf").write_text(site)
        (folder / "nginx.conf").write_text(AROUND)
        log = folder / "error.log"
        command = [NGINX, "-p", str(folder), "-c", "nginx.conf"]
        with log.open("wb") as err:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=err, stderr=err)
        try:
            url = f"https://127.0.0.1:{port}/llm/"
            trust = ssl.create_default_context(cafile=str(tls.certificate))
            with httpx.Client(base_url=url, verify=trust, timeout=20) as client:
                assert eventually(lambda: answers(client)), log.read_text()
                yield Proxied(client, log)
        finally:
            process.terminate()
            process.wait(10)


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("livez").status_code == 200
    except httpx.TransportError:
        return False


def ended(app: Starlette, outcome: str) -> float:
    text = call(app, "GET", "/metrics").text
    found = re.search(rf'^gnomon_requests_ended_total{{outcome="{outcome}"}} (\S+)', text, re.MULTILINE)
    return float(found[1]) if found else 0


def stream(client: httpx.Client, **fields: Any) -> Any:
    return client.stream("POST", "v1/completions", json=request_body(stream=True, temperature=0, **fields))


def test_a_stream_comes_through_nginx_piece_by_piece(
    app: Starlette, engine: FakeEngine, tls: Tls, tmp_path: Path
) -> None:
    gate = engine.logits_of = Gate(engine.logits_of)
    with proxied(app, tls, tmp_path) as at:
        gate.allow(1)
        with stream(at.client, max_tokens=3) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            lines = (line for line in response.iter_lines() if line)
            texts = []
            for step in range(3):  # the next token is not made before this piece has come
                texts.append(json.loads(next(lines).removeprefix("data: "))["choices"][0]["text"])
                assert gate.begun <= step + 2
                gate.allow(1)
            assert "".join(texts) == "abc"
            assert list(lines)[-1] == "data: [DONE]"


def test_the_page_and_the_api_work_below_a_sub_path(app: Starlette, tls: Tls, tmp_path: Path) -> None:
    """The page asks for `v1/…` and nothing that begins with a slash, so what it asks for lies below it."""
    with proxied(app, tls, tmp_path) as at:
        page = at.client.get("")
        assert page.content == assemble()
        assert "connect-src 'self'" in page.headers["content-security-policy"]
        asked = re.findall(r"""(?:call|fetch)\(\s*["'`]([^"'`]+)""", page.text)
        assert {"v1/completions"} <= set(asked)
        assert not [path for path in asked if path.startswith("/") or ":" in path]
        for path in {path for path in asked if "$" not in path}:
            assert at.client.get(path).status_code in (200, 405), path  # 405: there, and wants a POST
        without_slash = at.client.get(str(at.client.base_url).rstrip("/"))
        assert without_slash.status_code == 301
        assert without_slash.headers["location"].endswith("/llm/")
        answer = at.client.post("v1/completions", json=request_body(max_tokens=3, temperature=0))
        assert answer.json()["choices"][0]["text"] == "abc"
        assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])  # nginx's, which its log can have too
        check_error(at.client.post("v1/completions", json=request_body(temperature=3)), 400, "temperature")


def test_a_body_of_exactly_the_limit_passes_and_a_longer_one_is_the_apis_413(
    app: Starlette, tls: Tls, tmp_path: Path
) -> None:
    most = Settings().max_body_bytes
    body = json.dumps(request_body(max_tokens=0)).encode()
    kind = {"content-type": "application/json"}
    with proxied(app, tls, tmp_path) as at:
        assert at.client.post("v1/completions", content=body.ljust(most), headers=kind).status_code == 200
        check_error(at.client.post("v1/completions", content=body.ljust(most + 1), headers=kind), 413)
        beyond = at.client.post("v1/completions", content=body.ljust(9 * 2**20 + 1), headers=kind)
        assert (beyond.status_code, beyond.headers["content-type"]) == (413, "text/html")


def test_a_client_that_leaves_nginx_leaves_the_server_too(
    app: Starlette, engine: FakeEngine, tls: Tls, tmp_path: Path
) -> None:
    gate = engine.logits_of = Gate(engine.logits_of)
    with proxied(app, tls, tmp_path) as at:
        gate.allow(2)
        with stream(at.client, max_tokens=1000) as response:
            next(response.iter_lines())
        gate.allow(3)
        assert eventually(lambda: ended(app, "cancelled") == 1)
        assert gate.begun < 10
        assert at.client.get("readyz").status_code == 200


def test_requests_share_a_connection_to_the_server(
    app: Starlette, tls: Tls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, connection_made = [], Wire.connection_made

    def counted(self: Wire, transport: Any) -> None:
        made.append(transport)
        connection_made(self, transport)

    monkeypatch.setattr(Wire, "connection_made", counted)
    with proxied(app, tls, tmp_path) as at:
        for _ in range(5):
            answer = at.client.get("v1/models")
            assert answer.status_code == 200
            assert "keep-alive" not in answer.headers  # that of the server's hop ends there
    assert len(made) == 1


@pytest.mark.slow
def test_no_request_meets_a_connection_that_the_server_is_closing(app: Starlette, tls: Tls, tmp_path: Path) -> None:
    """The times as by default, 60 and 75, at a fortieth; requests about where either would close."""
    changed = {"keepalive 32;": "keepalive 32; keepalive_timeout 1500ms;"}
    with proxied(app, tls, tmp_path, Settings(idle_seconds=75 / 40), **changed) as at:
        for pause in (0.1, 1.45, 1.49, 1.5, 1.51, 1.55, 1.8, 1.87, 1.875, 1.88, 1.95):
            time.sleep(pause)
            assert at.client.post("v1/completions", json=request_body(max_tokens=1)).status_code == 200, pause


@pytest.mark.slow
@pytest.mark.parametrize(("ping_seconds", "whole"), [(0.3, True), (60, False)], ids=["pings", "without"])
def test_pings_keep_a_silent_stream_open_beyond_nginxs_time(
    app: Starlette, engine: FakeEngine, tokenizer: Tokenizer, tls: Tls, tmp_path: Path, ping_seconds: float, whole: bool
) -> None:
    gate = engine.logits_of = Gate(engine.logits_of)
    settings = Settings(ping_seconds=ping_seconds)
    app = create_app(engine, tokenizer, settings)
    with proxied(app, tls, tmp_path, settings, **{"proxy_read_timeout 610s;": "proxy_read_timeout 1s;"}) as at:
        gate.allow(1)
        with stream(at.client, max_tokens=2, logit_bias={EOT: -100}) as response:
            lines = response.iter_lines()
            assert next(lines).startswith("data: ")
            time.sleep(2.5)
            gate.allow(5)
            if whole:
                said = [line for line in lines if line]
                assert said[-1] == "data: [DONE]"
                assert sum(line.startswith(":") for line in said) >= 3
            else:
                with pytest.raises(httpx.RemoteProtocolError):
                    list(lines)
