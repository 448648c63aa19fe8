"""The entry point of the command `gnomon`: the commands' own code may be what cannot be imported."""

from __future__ import annotations

import sys

from gnomon.http.cli.console import guarded


def main() -> None:
    """The command, from its arguments to its status."""
    guarded(_run, 2 if sys.argv[1:2] == ["verify"] else 1)


def _run() -> None:
    from gnomon.http.cli.app import run_command

    run_command()


if __name__ == "__main__":
    main()
