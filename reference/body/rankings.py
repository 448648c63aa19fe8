"""Rankings of many positions, kept small.

A ranking as a tuple of pairs is some 100 bytes an entry, in objects that the garbage collector looks at and that are
freed in one go: an answer of a million of them stops every thread for most of a second. Here each is one string of
bytes, twelve an entry, and becomes pairs again when it is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from struct import pack, unpack
from typing import overload

Ranking = tuple[tuple[int, float], ...]
"""The most probable ids of a position with their log-probabilities, in the order (−logit, id)."""

PACKED_BYTES = 12  # an id and a log-probability


class Rankings(Sequence[Ranking | None]):
    """A ranking for every position, or None for one that has none. Grows by `append`."""

    __slots__ = ("_packed",)

    def __init__(self, rankings: Iterable[Ranking | None] = ()) -> None:
        self._packed: list[bytes | None] = [_packed(ranking) for ranking in rankings]

    def append(self, ranking: Ranking | None) -> None:
        self._packed.append(_packed(ranking))

    def __len__(self) -> int:
        return len(self._packed)

    @overload
    def __getitem__(self, at: int) -> Ranking | None: ...
    @overload
    def __getitem__(self, at: slice) -> Rankings: ...
    def __getitem__(self, at: int | slice) -> Ranking | Rankings | None:
        if isinstance(at, int):
            return _unpacked(self._packed[at])
        part = Rankings()
        part._packed = self._packed[at]
        return part

    def __repr__(self) -> str:
        return f"Rankings({list(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self._packed))


def _packed(ranking: Ranking | None) -> bytes | None:
    if ranking is None:
        return None
    if not ranking:
        return b""
    n = len(ranking)
    return pack(f"={n}I{n}d", *(v for v, _ in ranking), *(value for _, value in ranking))


def _unpacked(packed: bytes | None) -> Ranking | None:
    if packed is None:
        return None
    n = len(packed) // PACKED_BYTES
    numbers = unpack(f"={n}I{n}d", packed)
    return tuple(zip(numbers[:n], numbers[n:], strict=True))
