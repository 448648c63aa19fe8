"""The page at GET / as it is sent: one document, its policy, and what is in none of it."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette

from gnomon.http.app import create_app
from gnomon.http.page.document import FOLDER, assemble, policy
from gnomon.http.settings import Settings
from gnomon.reference.request import FIELDS
from gnomon.reference.tokenizer import Tokenizer
from helpers.browser import GUARDED
from helpers.fake import FakeEngine, hashed_logits
from helpers.live import call

HTML = assemble().decode()


def test_it_is_one_document_and_head_is_the_same_without_it(app: Starlette) -> None:
    got, head = call(app, "GET", "/"), call(app, "HEAD", "/")
    assert (got.status_code, got.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert got.text == HTML
    assert (head.status_code, head.content) == (200, b"")
    differing = {"x-request-id"}
    assert {k: v for k, v in head.headers.items() if k not in differing} == {
        k: v for k, v in got.headers.items() if k not in differing
    }


@pytest.mark.parametrize("element", ["script", "style"])
def test_the_policy_admits_this_script_and_this_style_sheet_and_no_other(app: Starlette, element: str) -> None:
    sent = dict(part.split(" ", 1) for part in call(app, "GET", "/").headers["content-security-policy"].split("; "))
    [text] = re.findall(f"<{element}[^>]*>(.*?)</{element}>", HTML, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    assert sent[f"{element}-src"] == f"'sha256-{digest}'"
    assert policy(HTML.replace(text, text + " ").encode()) != policy(HTML.encode())


def test_the_policy_lets_it_talk_to_its_own_server_alone(app: Starlette) -> None:
    headers = call(app, "GET", "/").headers
    sent = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert sent["default-src"] == sent["base-uri"] == sent["form-action"] == sent["frame-ancestors"] == "'none'"
    assert (sent["connect-src"], sent["img-src"]) == ("'self'", "data:")
    assert sent["require-trusted-types-for"] == "'script'"
    assert "unsafe" not in headers["content-security-policy"]
    assert "*" not in headers["content-security-policy"]
    assert (headers["referrer-policy"], headers["x-content-type-options"]) == ("no-referrer", "nosniff")


class Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_it_loads_nothing_and_names_no_other_host() -> None:
    assert set(re.findall(r"https?://[^\s\"'<>]*", HTML)) == {"http://www.w3.org/2000/svg"}  # a name, not a place
    assert re.findall(r"@import|\burl\(", HTML.split("<script")[0]) == []
    elements = Elements()
    elements.feed(HTML)
    fetching = [attrs for tag, attrs in elements.found for name in ("src", "href", "srcset", "action") if name in attrs]
    assert [str(attrs.get("href")).split(",")[0] for attrs in fetching] == ["data:image/svg+xml"]


def test_no_text_can_become_markup_or_a_program() -> None:
    assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", HTML) == []
    elements = Elements()
    elements.feed(HTML)
    assert len(elements.found) > 50
    assert [attrs for _, attrs in elements.found for name in attrs if name.startswith("on") or name == "style"] == []


def test_every_part_in_the_folder_is_in_the_document_once() -> None:
    parts = [file for file in FOLDER.iterdir() if file.suffix in (".css", ".js")]
    assert len(parts) > 10
    for file in parts:
        assert HTML.count(file.read_text(encoding="utf-8")) == 1, file.name


def test_no_part_is_longer_than_350_lines() -> None:
    for file in FOLDER.iterdir():
        if file.suffix in (".html", ".css", ".js"):
            assert len(file.read_text(encoding="utf-8").splitlines()) <= 350, file.name


@pytest.mark.parametrize("path", ["/index.html", "/style.css", "/start.js"])
def test_a_part_has_no_address_of_its_own(app: Starlette, path: str) -> None:
    assert call(app, "GET", path).status_code == 404


def test_a_part_that_would_end_its_element_is_none(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text('<link rel="stylesheet" href="a.css">\n<script src="b.js"></script>\n')
    (tmp_path / "a.css").write_text("a {}\n")
    (tmp_path / "b.js").write_text("b();\n")
    joined = b'<style>\na {}\n</style>\n<script type="module">\nb();\n</script>\n'
    assert assemble(tmp_path) == joined
    (tmp_path / "b.js").write_text("const end = '</Script>';\n")
    with pytest.raises(AssertionError, match=r"b\.js would end its element"):
        assemble(tmp_path)


def test_it_is_small() -> None:
    assert len(HTML.encode()) < 128 * 1024


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_every_parameter_has_its_sentence(field: Any) -> None:
    said = HTML.split("const SAY = {")[1].split("\n};")[0]
    assert re.search(rf'^  {field.name}: ".{{20,}}",$', said, re.MULTILINE)


def test_it_is_open_and_the_api_behind_it_is_not(tokenizer: Tokenizer) -> None:
    guarded = create_app(FakeEngine(hashed_logits), tokenizer, GUARDED)
    assert call(guarded, "GET", "/").text == HTML
    for path in ("/v1/capabilities", "/openapi.json", "/v1/models", "/version"):
        assert call(guarded, "GET", path).status_code == 401, path
    for path in ("/v1/completions", "/v1/completions/trace"):
        assert call(guarded, "POST", path, json={}).status_code == 401, path


def test_it_is_there_while_the_model_is_loading() -> None:
    assert call(create_app(None, None, Settings()), "GET", "/").status_code == 200
