"""HTTPS by a certificate of the test's own, and pages of other origins, which may call only where they are named."""

from __future__ import annotations

import ssl

import httpx
import openai
import pytest
from starlette.applications import Starlette

from gnomon.http.app import create_app
from gnomon.http.settings import Settings
from gnomon.reference.tokenizer import Tokenizer
from helpers.certificate import certificate as make_certificate
from helpers.fake import FakeEngine, always
from helpers.live import MODEL, call, check_error, request_body, serving
from helpers.loopback import Tls

ORIGIN = "https://pages.example"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return make_certificate(tmp_path_factory.mktemp("tls"), "gnomon", "127.0.0.1")


def test_https_is_served_by_certificate_and_key_streams_too(tokenizer: Tokenizer, certificate: Tls) -> None:
    settings = Settings(tls_certificate=certificate.certificate, tls_key=certificate.key)
    app = create_app(FakeEngine(always(*b"abc")), tokenizer, settings)
    trust = ssl.create_default_context(cafile=str(certificate.certificate))
    with serving(app, settings) as base:
        secure = base.replace("http:", "https:")
        with openai.OpenAI(
            base_url=f"{secure}/v1",
            api_key="any",
            http_client=openai.DefaultHttpxClient(verify=trust),
            max_retries=0,
        ) as sdk:
            whole = sdk.completions.create(model=MODEL, prompt="a", max_tokens=6, temperature=0)
            pieces = sdk.completions.create(model=MODEL, prompt="a", max_tokens=6, temperature=0, stream=True)
            assert whole.choices[0].text == "".join(p.choices[0].text for p in pieces) == "abcabc"
        with pytest.raises(httpx.ConnectError, match=r"(?i)certificate"):
            httpx.get(f"{secure}/livez")  # nobody trusts it unasked
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{base}/livez")  # no plain HTTP on the same port


@pytest.fixture
def app(tokenizer: Tokenizer) -> Starlette:
    return create_app(FakeEngine(always(*b"abc")), tokenizer, Settings(cors_origins=(ORIGIN,)))


def preflight(app: Starlette, origin: str) -> httpx.Response:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,x-stainless-os"}
    return call(app, "OPTIONS", "/v1/completions", headers={"Origin": origin, **asked})


def test_without_origins_no_page_may_call(tokenizer: Tokenizer) -> None:
    app = create_app(FakeEngine(always(*b"abc")), tokenizer, Settings())
    check_error(preflight(app, ORIGIN), 405)
    answer = call(app, "POST", "/v1/completions", json=request_body(), headers={"Origin": ORIGIN})
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_named_origin_may_call_and_can_read_errors_too(app: Starlette) -> None:
    allowed = preflight(app, ORIGIN)
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == ORIGIN
    assert "authorization" in allowed.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in allowed.headers
    for fields, status in (({}, 200), ({"temperature": 3}, 400), ({"model": "x"}, 404)):
        answer = call(app, "POST", "/v1/completions", json=request_body(**fields), headers={"Origin": ORIGIN})
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert "retry-after" in answer.headers["access-control-expose-headers"]


@pytest.mark.parametrize("origin", ["https://other.example", "http://pages.example", f"{ORIGIN}.evil", "null"])
def test_any_other_origin_may_not(app: Starlette, origin: str) -> None:
    refused = preflight(app, origin)
    assert "origin; the origins of --cors-origins may send GET and POST" in check_error(refused, 400)
    assert "Origin" in refused.headers["vary"]
    assert "access-control-allow-origin" not in refused.headers
    answer = call(app, "POST", "/v1/completions", json=request_body(), headers={"Origin": origin})
    assert "access-control-allow-origin" not in answer.headers
