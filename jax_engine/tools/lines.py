"""A report's lines, which name no user, host or path."""

from __future__ import annotations

import os
import re
import socket
import textwrap


def row(label: str, value: object) -> str:
    return f"  {label:<21} {value}"


def shorten(text: str) -> str:
    return textwrap.shorten(text, 116, placeholder=" ...")


def last_line(error: Exception) -> str:
    """Of the traceback, without the notes that jax adds."""
    return without_names(textwrap.shorten(f"{type(error).__name__}: {error}", 500, placeholder=" ..."))


def without_names(text: str) -> str:
    """The text without what could say whose machine this is: paths and the host's name."""
    home, host = os.path.expanduser("~"), socket.gethostname()
    if len(home) > 1:
        text = text.replace(home, "/~")  # it may have spaces in it
    text = re.sub(r"(?<![\w.])/[^\s'\",:;()]+", "<path>", text)
    return re.sub(rf"\b{re.escape(host)}\b", "<host>", text) if host else text
