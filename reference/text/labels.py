"""A name for every id of a vocabulary, no two alike, by construction (LAW.md, section 6)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

RESERVED = ("bytes:", "token_id:")


def token_labels(token_bytes: Iterable[bytes], special: Mapping[int, str], fallback: set[int]) -> tuple[str, ...]:
    """A label for every id. Special tokens choose first, then ordinary ones, then byte-fallback ones, each by id;
    who finds the wanted label taken is `token_id:<v>`. No other label can begin with `token_id:`, so no two are equal.
    """
    contents = list(token_bytes)
    order = sorted(range(len(contents)), key=lambda v: (v not in special, v in fallback, v))
    labels = [f"token_id:{v}" for v in range(len(contents))]
    taken: set[str] = set()
    for v in order:
        wanted = _wanted_label(special[v].encode() if v in special else contents[v])
        if wanted is not None and wanted not in taken:
            taken.add(wanted)
            labels[v] = wanted
    return tuple(labels)


def _wanted_label(content: bytes) -> str | None:
    """The text itself; `bytes:\\xNN…` if it is none or looks like a label of another kind; None if there is nothing."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = RESERVED[0]
    if text.startswith(RESERVED):
        return RESERVED[0] + "".join(f"\\x{byte:02x}" for byte in content)
    return text or None
