"""A request that does not leave this machine as it should: the variable that decides how it does is named."""

from __future__ import annotations

import ssl
import sys
from collections.abc import Mapping

import httpx
import pytest

from gnomon.http.cli.main import main
from gnomon.reference.checkpoint.network import proxy_note, unusable
from helpers.loopback import closed_port, loopback, status
from helpers.raw import http, raw_server

HERE = "http://127.0.0.1:8000/v1"
THROUGH = "; it was asked through the proxy in the variable {}; NO_PROXY=127.0.0.1 asks it without one"
VARIABLES = [f"{kind}_proxy" for kind in ("http", "https", "all", "no")]
SECRET = "http://user:s3cret@[::1"


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "GNOMON_KEY", *VARIABLES, *map(str.upper, VARIABLES)):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({}, None),
        ({"http_proxy": ""}, None),
        ({"https_proxy": "http://p:1"}, None),
        ({"http_proxy": "http://p:1"}, "http_proxy"),
        ({"HTTP_PROXY": "http://p:1", "ALL_PROXY": "http://p:1"}, "HTTP_PROXY"),
        ({"ALL_PROXY": "http://p:1"}, "ALL_PROXY"),
        ({"http_proxy": "http://p:1", "no_proxy": "localhost,127.0.0.1"}, None),
        ({"http_proxy": "http://p:1", "NO_PROXY": "*"}, None),
        ({"http_proxy": "http://p:1", "NO_PROXY": "example.org"}, "http_proxy"),
    ],
)
def test_the_proxy_in_between_is_named_by_its_variable(environment: Mapping[str, str], named: str | None) -> None:
    assert proxy_note(HERE, environment) == ("" if named is None else THROUGH.format(named))


@pytest.mark.parametrize(
    ("error", "environment", "said"),
    [
        (ImportError("socksio"), {"http_proxy": "http://p", "ALL_PROXY": "socks5://p"}, "ALL_PROXY: a SOCKS proxy"),
        (FileNotFoundError(2, "No such file"), {"SSL_CERT_FILE": "/a", "SSL_CERT_DIR": "/b"}, "SSL_CERT_FILE: No such"),
        (ssl.SSLError(1, "no certificate"), {"SSL_CERT_DIR": "/b"}, "SSL_CERT_DIR: no certificate"),
        (httpx.InvalidURL(SECRET), {"http_proxy": SECRET}, "http_proxy: no value that an HTTP client can use"),
    ],
)
def test_what_no_client_can_be_made_of_is_named_and_not_shown(
    error: Exception, environment: Mapping[str, str], said: str
) -> None:
    line = unusable(error, environment)
    assert line.startswith(said)
    assert "s3cret" not in line


def verify(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], base: str) -> str:
    """The one line that `gnomon verify` says; it cannot run."""
    monkeypatch.setattr(sys, "argv", ["gnomon", "verify", base, "--model", "m"])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capfd.readouterr()
    assert (ended.value.code, out, err.count("\n")) == (2, "", 1), err
    return err.rstrip()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:9", "ALL_PROXY: a SOCKS proxy needs the package socksio"),
        ("ALL_PROXY", "nonsense://127.0.0.1:9", "ALL_PROXY: no value that an HTTP client can use"),
        ("NO_PROXY", "localhost,[::1]", "NO_PROXY: no value that an HTTP client can use"),
        ("NO_PROXY", "fd07:b51a:cc66:f0::/64", "NO_PROXY: no value that an HTTP client can use"),
        ("SSL_CERT_FILE", "/nowhere/cacert.pem", "SSL_CERT_FILE: No such file or directory"),
    ],
)
def test_verify_names_the_variable_that_it_cannot_use(
    name: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, value)
    with loopback() as server:
        line = verify(monkeypatch, capfd, server.base)
    assert line.startswith(f"gnomon verify: nothing can be asked: {said}")


def test_verify_says_that_a_proxy_and_not_the_server_did_not_answer(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with loopback() as server:
        monkeypatch.setenv("http_proxy", closed_port())
        assert verify(monkeypatch, capfd, server.base).endswith(THROUGH.format("http_proxy"))


@pytest.mark.parametrize("code", ["502 Bad Gateway", "403 Forbidden", "407 Proxy Authentication Required"])
def test_verify_says_that_the_answer_may_be_a_proxys(
    code: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    answer = http(b"<html>", code, "text/html")
    with raw_server(lambda server, client, asked: client.sendall(answer)) as proxy:
        monkeypatch.setenv("http_proxy", proxy.base)
        assert verify(monkeypatch, capfd, HERE).endswith(THROUGH.format("http_proxy"))


def test_a_server_without_a_proxy_is_blamed_by_itself(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with loopback() as server:
        server.app = status(502)
        assert "proxy" not in verify(monkeypatch, capfd, server.base)
