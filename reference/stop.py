"""Where a text ends by a stop string (LAW.md, section 5): the matcher, and the special tokens that are stop strings."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from gnomon.reference.tokenizer import Tokenizer


def stop_ids(stops: Sequence[str], tokenizer: Tokenizer) -> frozenset[int]:
    """Section 5: the special tokens that a stop string is the literal of. They have no characters that could match,
    so each ends a candidate as an end-of-sequence id does."""
    return frozenset(v for v, literal in tokenizer.special.items() if literal in stops)


class Fallbacks:
    """Of one stop string, [k]: the length of the longest proper suffix of stop[:k] that is a prefix of stop.

    Made as far as it is asked for, four bytes a character: a text seldom comes far into a stop string.
    """

    __slots__ = ("_lengths", "_stop")

    def __init__(self, stop: str) -> None:
        self._stop = stop
        self._lengths = array("I", (0, 0))

    def __getitem__(self, k: int) -> int:
        stop, lengths = self._stop, self._lengths
        while len(lengths) <= k:
            char, state = stop[len(lengths) - 1], lengths[-1]
            while state and stop[state] != char:
                state = lengths[state]
            lengths.append(state + (stop[state] == char))
        return lengths[k]


class StopMatcher:
    """Finds stop strings in a text that comes a character at a time (Knuth, Morris & Pratt 1977, one automaton a
    string).

    The match with the earliest end wins and, of those, the one with the earliest start: the order of the list, and
    how the text was cut into tokens, cannot matter.
    """

    def __init__(self, stops: Sequence[str], fallbacks: Sequence[Fallbacks] | None = None) -> None:
        """fallbacks: the stop strings' own, to be shared by the candidates of a request."""
        self._stops = stops
        self._fallbacks = [Fallbacks(stop) for stop in stops] if fallbacks is None else fallbacks
        self._states = [0] * len(stops)  # for every stop string: how much of it the text ends with

    @property
    def held(self) -> int:
        """The length of the text's longest suffix that may yet become a stop string."""
        return max(self._states, default=0)

    def push(self, char: str) -> int:
        """The length of the longest stop string that this character completes, or 0."""
        longest = 0
        for i, stop in enumerate(self._stops):
            state = self._states[i]
            while state and stop[state] != char:
                state = self._fallbacks[i][state]
            state += stop[state] == char
            if state == len(stop):
                longest = max(longest, state)
                state = self._fallbacks[i][state]
            self._states[i] = state
        return longest
