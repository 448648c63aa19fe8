"""Takes two pictures of the page, of which the README shows the first: python tests/screenshots.py

Needs the extra `browser` and chromium. The letters are those of whatever fonts the machine has; for the pictures that
are kept, Inter and P052, from Debian's fonts-inter and fonts-urw-base35. What is in them is the same each time: the
embedded model, on the reference engine, with a seed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from gnomon.http.app import create_app
from gnomon.http.settings import Settings
from gnomon.reference import load
from helpers.browser import Playground, chromium
from helpers.live import serving

PICTURES = Path(__file__).resolve().parent.parent / "tests" / "pictures"
MOST = 200_000  # bytes


def main() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    PICTURES.mkdir(exist_ok=True)
    engine, tokenizer = load()
    with serving(create_app(engine, tokenizer, Settings())) as base, chromium() as browser:

        def open_page(**profile: Any) -> Playground:
            return Playground(browser.new_context(**profile).new_page()).open(base)

        page = open_page(viewport={"width": 1280, "height": 820}, color_scheme="light")
        page.set("seed", 7)
        page.set("temperature", 0.8)
        page.run()
        page.settled()
        page.page.evaluate("document.querySelector('aside').scrollTop = 0; scrollTo(0, 0)")
        keep(page, "page.png")

        page = open_page(viewport={"width": 1280, "height": 765}, color_scheme="dark")
        page.set("seed", 12)
        page.run()
        page.settled()
        page["[role=option] >> nth=0"].click()
        page["#trace-title"].filter(has_text="Draw 1:").wait_for()
        page["#knob-top_p"].fill("0.9")
        page["#candidates tr.gone"].first.wait_for()
        page["#trace"].evaluate("one => { document.querySelector('aside').scrollTop = 0; one.scrollIntoView(); }")
        keep(page, "trace.png")


def keep(page: Playground, name: str) -> None:
    page.page.wait_for_timeout(400)  # the bars' own motion
    picture = page.page.screenshot()
    assert len(picture) < MOST, f"{name} has {len(picture)} bytes"
    (PICTURES / name).write_bytes(picture)
    print(f"{PICTURES / name}: {len(picture)} bytes")


if __name__ == "__main__":
    main()
