"""`python -m gnomon.reference.golden [DIRECTORY]` makes the golden files, where they are checked in or elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from gnomon.reference import load
from gnomon.reference.golden.vectors import documents, to_text


def main(arguments: Sequence[str]) -> int:
    if len(arguments) > 1 or any(argument.startswith("-") for argument in arguments):
        print("usage: python -m gnomon.reference.golden [DIRECTORY]", file=sys.stderr)
        return 2
    directory = Path(arguments[0]) if arguments else Path(__file__).resolve().parent
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, document in documents(*load()):
            text = to_text(document)
            (directory / name).write_text(text, encoding="ascii", newline="\n")
            print(f"{directory / name}: {len(text):,} bytes")
    except OSError as error:
        print(f"{directory}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
