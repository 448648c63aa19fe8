"""The README's table of parameters, made from `FIELDS`. Run this file to write it into README.md again."""

from __future__ import annotations

import json
from pathlib import Path

from gnomon.reference.request import FIELDS, Field

README = Path(__file__).resolve().parent.parent.parent / "README.md"
BEGIN, END = "<!-- table: written by tests/helpers/readme.py -->", "<!-- end of table -->"

TESTS: dict[str, str] = {}


def default(field: Field) -> str:
    return "required" if field.required else f"`{json.dumps(field.default)}`"


def table() -> str:
    rows = ["| field | default | allowed | what it does | where | test |", "|---|---|---|---|---|---|"]
    for field in FIELDS:
        allowed = field.allowed.replace("|", "\\|")
        rows.append(
            f"| `{field.name}` | {default(field)} | {allowed} | {field.meaning} | `{field.where}` | {TESTS[field.name]} |"
        )
    return "\n".join(rows)


def with_table(text: str) -> str:
    """README's text with the table as it should be."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")
