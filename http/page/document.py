"""GET /: the page that shows the sampler at work, one document, sent to whoever asks.

It holds nothing of this server: what is served, with which limits, it asks the API like any other client, with the key
that its user gives it. So it is open in every mode of authentication, and the API behind it is not.

Its parts are files of this folder, and index.html names them in their order. They are joined once, when the server
starts, and sent as one answer: a proxy has one path to forward and a cache one answer to hold, so that no browser ever
has the parts of two versions, and authentication has one path to open.

Its policy lets the browser run the one script and use the one style sheet that are in the document, by their hashes,
and talk to the server it came from. Nothing else is loaded, sent, framed or evaluated, and no text can become markup
(Trusted Types; the one policy is for the traces' pictures, which the page strips before it shows them).
"""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

FOLDER = Path(__file__).parent
_SHEET = re.compile(r'<link rel="stylesheet" href="(\w+\.css)">\n')
_SCRIPTS = re.compile(r'(?:<script src="\w+\.js"></script>\n)+')


def assemble(folder: Path = FOLDER) -> bytes:
    """index.html with its style sheet and its scripts in it. The scripts are one module: they share one scope."""

    def part(name: str) -> str:
        text = (folder / name).read_text(encoding="utf-8")
        assert not re.search(r"</(script|style)", text, re.IGNORECASE), f"{name} would end its element"
        return text

    def sheet(link: re.Match[str]) -> str:
        return f"<style>\n{part(link[1])}</style>\n"

    def script(elements: re.Match[str]) -> str:
        names = re.findall(r'src="(\w+\.js)"', elements[0])
        return '<script type="module">\n' + "\n".join(part(name) for name in names) + "</script>\n"

    html = (folder / "index.html").read_text(encoding="utf-8")
    return _SCRIPTS.sub(script, _SHEET.sub(sheet, html)).encode()


class Page:
    """The endpoint. Joined once: the policy's hashes belong to these bytes."""

    def __init__(self) -> None:
        self.html = assemble()
        self.headers = {
            "cache-control": "no-cache",  # a server that was renewed must not meet the page of the old one
            "content-security-policy": policy(self.html),
            "cross-origin-opener-policy": "same-origin",
            "cross-origin-resource-policy": "same-origin",
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
        }

    async def answer(self, request: Request) -> Response:
        return Response(self.html, headers=self.headers, media_type="text/html")


def policy(html: bytes) -> str:
    """The Content-Security-Policy under which only this page's own script and style work."""
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {hashes(html, b'script')}",
            f"style-src {hashes(html, b'style')}",
            "connect-src 'self'",
            "img-src data:",  # its icon
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types picture",
        )
    )


def hashes(html: bytes, element: bytes) -> str:
    """The sources of an inline element's contents, as the policy writes them."""
    found = re.findall(rb"<%b(?: [^>]*)?>(.*?)</%b>" % (element, element), html, re.DOTALL)
    assert found, f"the page has no inline {element.decode()}"
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'" for text in found)
