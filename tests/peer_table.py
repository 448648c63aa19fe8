"""What `gnomon verify` found on engines not written here: python tests/peer_table.py

Reads the reports in tests/peers, written by `gnomon verify URL --reference default --json FILE` against servers of the
embedded model, and writes http/verify/PEERS.md, a table of them. A verdict there is of one version, on one day.
"""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import wrap
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
REPORTS = ROOT / "tests" / "peers"
TABLE = ROOT / "http" / "verify" / "PEERS.md"
ORDER = ("honoured", "refused", "ignored", "wrong", "unclear")
SHOWN = {"honoured": "yes", "refused": "refused", "ignored": "**ignored**", "wrong": "**wrong**", "unclear": "·"}


class Peer(NamedTuple):
    """A server that was asked: the report's file name, and what it was."""

    file: str
    name: str


PEERS = (
    Peer("vllm", "vLLM 0.32.0 (CPU, float32)"),
    Peer("llama-server", "llama-server (llama.cpp of llama-cpp-python 0.3.36, float32)"),
    Peer("llama-cpp-python", "llama-cpp-python 0.3.36 (its own server)"),
    Peer("transformers-serve", "transformers 5.24.0 (`transformers serve`)"),
)

LATER = (
    "body.all_unknown_fields",
    "body.null_is_absent",
    "stream_options.unknown",
    "errors.context_length",
    "stream.as_it_is_made",
)
"""Cases that are younger than the stored reports: a new run asks them, and then this is empty again."""


def reports() -> dict[str, dict[str, Any]]:
    return {peer.file: json.loads((REPORTS / f"{peer.file}.json").read_text()) for peer in PEERS}


def fill(text: str) -> list[str]:
    return wrap(text, 100, break_long_words=False, break_on_hyphens=False)


def table() -> str:
    """The document. · is "cannot be told", mostly since it needs what departs."""
    found = reports()
    lines = [
        "# Engines not written here",
        "",
        *fill(
            "What `gnomon verify URL --reference default` said of four servers of the embedded model (made from the "
            "reports in tests/peers by `python tests/peer_table.py`; gnomon's own server honours every case). A "
            "departure from our law is not a fault in itself: most of these servers never promised it, and some say "
            "so. The requests of all findings were sent again with the reports' curl commands (bodies of over 4,000 "
            "characters aside, which a report shortens), and showed what is said here. llama-cpp-python and "
            "transformers were asked one request at a time: as it comes, the first breaks a stream off when the next "
            "request arrives, and the second has no limit where `max_tokens` is left out, so that a request waits for "
            "the one before. `python -m pytest -m weekly tests/http/verify/test_verify_peers.py` installs and "
            "asks all four again."
        ),
        *fill(f"None of them has been asked yet: {', '.join(f'`{name}`' for name in LATER)}." if LATER else ""),
        "",
        "| server | asked on | " + " | ".join(ORDER) + " | greedy log-probabilities against the reference |",
        "|---|---|" + "---|" * (len(ORDER) + 1),
    ]
    for peer in PEERS:
        report = found[peer.file]
        verdicts = [finding["verdict"] for finding in report["findings"]]
        counts = " | ".join(str(verdicts.count(verdict)) for verdict in ORDER)
        lines.append(f"| {peer.name} | {report['date'][:10]} | {counts} | {_deviation(report)} |")
    names = list(dict.fromkeys(finding["case"] for report in found.values() for finding in report["findings"]))
    by_case = {peer.file: {one["case"]: one for one in found[peer.file]["findings"]} for peer in PEERS}
    lines += [
        "",
        "Sentence by sentence, where not all four honour it (· : cannot be told there):",
        "",
        "| sentence | section | " + " | ".join(peer.file for peer in PEERS) + " |",
        "|---|---|" + "---|" * len(PEERS),
    ]
    for name in names:
        cells = [by_case[peer.file].get(name) for peer in PEERS]
        known = next(cell for cell in cells if cell is not None)
        verdicts = ["" if cell is None else SHOWN[cell["verdict"]] for cell in cells]
        if {"**ignored**", "**wrong**", "refused"} & set(verdicts):
            lines.append(f"| `{name}`: {known['says']} | {known['law']} | " + " | ".join(verdicts) + " |")
    return "\n".join(lines) + "\n"


def _deviation(report: dict[str, Any]) -> str:
    """The first sentence of the section that compared with the weights, or why there is none."""
    for section in report["sections"]:
        if section["title"] == "With the weights" and section["notes"]:
            return str(section["notes"][0])
    return "not compared"


if __name__ == "__main__":
    TABLE.write_text(table(), encoding="utf-8")
    print(f"wrote {TABLE.relative_to(ROOT)}")
