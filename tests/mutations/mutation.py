from __future__ import annotations

from typing import NamedTuple


class Mutation(NamedTuple):
    """A mistake one could make in our source: one piece of a file's text, replaced."""

    name: str
    file: str
    old: str
    new: str
    test: str  # file::function below tests/, or one case of it; it must turn red
