"""The entry point of the command `gnomon`: the command's own code may be what cannot be imported."""

from __future__ import annotations

import logging
import sys

from gnomon.http.cli.console import tell
from gnomon.http.cli.missing import explained


def main() -> None:
    try:
        from gnomon.http.cli.commands import main as command
    except ImportError as error:
        tell(logging.ERROR, explained(error))
        sys.exit(1)
    command()


if __name__ == "__main__":
    main()
