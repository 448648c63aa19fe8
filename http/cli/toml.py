"""A setting as a line of TOML 1.0, for `gnomon serve --print-config`; Python's own library only reads it."""

from __future__ import annotations

from typing import Any

from gnomon.http.observe.text import as_utf8

ESCAPED = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r"}


def assignment(name: str, value: Any) -> str:
    """name = value. TOML has neither a null nor text that is no Unicode: then the line is a comment that says so."""
    if value is None:
        return f"# {name} = (not set)"
    try:
        return f"{name} = {_value(value)}"
    except UnicodeEncodeError:
        return f"# {name} = (bytes that are no UTF-8: {str(value)!a})"


def fitting(line: str, encoding: str) -> str:
    """The line with the escape, as TOML has it, of every character that the encoding does not have. All of them stand
    in strings and comments."""
    return "".join(c if _fits(c, encoding) else _escaped(c) for c in line)


def _fits(character: str, encoding: str) -> bool:
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    return f'"{"".join(map(_character, as_utf8(str(value))))}"'


def _character(character: str) -> str:
    character.encode()  # half of a surrogate pair stands for a byte that is no UTF-8
    if character in ESCAPED:
        return ESCAPED[character]
    return character if character.isprintable() else _escaped(character)


def _escaped(character: str) -> str:
    return f"\\u{ord(character):04X}" if ord(character) < 0x10000 else f"\\U{ord(character):08X}"
