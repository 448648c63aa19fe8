"""Section 8 of the law: n, best_of, the ranking and the order of choices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gnomon.reference.completion import prepare
from gnomon.reference.engine import Done, Engine, Event, JobRequest, Token
from gnomon.reference.errors import InvalidRequest
from gnomon.reference.request import CompletionRequest
from gnomon.reference.response import Choice, Completion
from gnomon.reference.tokenizer import Tokenizer
from helpers.fake import EOT, FAKE_VOCAB, FakeEngine, StubJob, always, hashed_logits


def ask(engine: Engine, tokenizer: Tokenizer, prompt: object = "ab", **fields: object) -> Completion:
    request = CompletionRequest.from_fields({"model": "fake", "prompt": prompt, "logprobs": 0, **fields})
    return prepare(request, engine, tokenizer, "fake").whole()


class Dictated:
    """An engine whose candidates are given: for each, the pairs (id, log-probability) it samples."""

    vocab_size, context, eos_ids, fingerprint = FAKE_VOCAB, 64, frozenset({EOT}), "dictated"

    def __init__(self, *candidates: Sequence[tuple[int, float]]) -> None:
        self.candidates = candidates

    def submit(self, request: JobRequest) -> DictatedJob:
        assert request.candidates == len(self.candidates)
        return DictatedJob(self.candidates, len(request.prompts))


class DictatedJob(StubJob):
    def __init__(self, candidates: Sequence[Sequence[tuple[int, float]]], prompts: int) -> None:
        self.candidates, self.prompts = candidates, prompts

    def events(self) -> Iterator[Event]:
        for j in range(self.prompts):
            for c in reversed(range(len(self.candidates))):
                for v, logprob in self.candidates[c]:
                    yield Token(j, c, v, logprob, ())
                yield Done(j, c)


def order(tokenizer: Tokenizer, *candidates: Sequence[tuple[int, float]], n: int, max_tokens: int = 16) -> list[str]:
    """The texts of the n best, in order."""
    answer = ask(Dictated(*candidates), tokenizer, n=n, best_of=len(candidates), max_tokens=max_tokens)
    return [choice.text for choice in answer.choices]


A, B, C, D = 97, 98, 99, 100


# ---- the ranking


def test_the_highest_mean_log_probability_comes_first(tokenizer: Tokenizer) -> None:
    """Sums would rank c first, b last: −3, −4, −2; means are −1, −2, −2. So a, then b before c by number."""
    candidates = ([(A, -1.0)] * 3 + [(EOT, -1.0)], [(B, -2.0), (EOT, -2.0)], [(EOT, -2.0)])
    assert order(tokenizer, *candidates, n=2) == ["aaa", "b"]
    assert order(tokenizer, *candidates[::-1], n=2) == ["aaa", ""]


def test_equal_scores_are_ranked_by_the_candidates_number(tokenizer: Tokenizer) -> None:
    candidates = [[(v, -0.5), (EOT, -0.5)] for v in (D, C, B, A)]
    assert order(tokenizer, *candidates, n=3) == ["d", "c", "b"]


def test_the_end_token_counts_in_the_mean(tokenizer: Tokenizer) -> None:
    """Without it b would win: −0.1 against −1. With it: (−0.1 − 9) / 2 against −1."""
    assert order(tokenizer, [(B, -0.1), (EOT, -9.0)], [(A, -1.0), (EOT, -1.0)], n=1) == ["a"]


def test_tokens_cut_off_by_a_stop_string_count_in_the_mean(tokenizer: Tokenizer) -> None:
    candidates = ([(B, -0.1), (ord("."), -9.0)], [(A, -1.0), (ord("."), -1.0)])
    answer = ask(Dictated(*candidates), tokenizer, n=1, best_of=2, stop=".")
    assert [choice.text for choice in answer.choices] == ["a"]


def test_the_mean_is_a_float64_sum_in_order(tokenizer: Tokenizer) -> None:
    """Ten times −0.1 sums to −0.9999999999999999 in order, so that mean is above −0.1; exactly summed it would be a
    tie, and a would be first by its number."""
    assert order(tokenizer, [(A, -0.1), (EOT, -0.1)], [(B, -0.1)] * 10, n=1, max_tokens=10) == ["b" * 10]


def test_an_empty_candidate_scores_0(tokenizer: Tokenizer) -> None:
    answer = ask(FakeEngine(hashed_logits), tokenizer, n=2, best_of=4, max_tokens=0)
    assert [(choice.index, choice.text, choice.finish_reason) for choice in answer.choices] == [
        (0, "", "length"),
        (1, "", "length"),
    ]
    assert order(tokenizer, [(A, -0.5), (EOT, -0.5)], [], n=1) == [""]


def test_with_as_many_candidates_as_choices_they_are_not_ranked(tokenizer: Tokenizer) -> None:
    candidates = [[(v, lp), (EOT, lp)] for v, lp in ((A, -3.0), (B, -1.0), (C, -2.0))]
    assert order(tokenizer, *candidates, n=3) == ["a", "b", "c"]
    assert order(tokenizer, *candidates, n=2) == ["b", "c"]


def mean(choice: Choice) -> float:
    assert choice.logprobs is not None
    total = 0.0
    for value in choice.logprobs.token_logprobs:
        assert value is not None
        total += value
    return total / max(len(choice.logprobs.token_logprobs), 1)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    seed=st.integers(-(2**63), 2**63 - 1),
    n=st.integers(1, 4),
    more=st.integers(0, 4),
    temperature=st.sampled_from([0, 0.5, 1, 2]),
    stop=st.sampled_from([None, ["e", "\ufffd"]]),
    prompts=st.sampled_from(["ab", ["ab", "é"], [[1, 2], [1, 2], [3]]]),
)
def test_best_of_is_the_n_request_sorted_by_mean(
    engine: Engine,
    tokenizer: Tokenizer,
    seed: int,
    n: int,
    more: int,
    temperature: float,
    stop: object,
    prompts: object,
) -> None:
    """Exact: the candidates are those of the request with n = best_of, so ranking can be repeated outside. A ranking
    by anything else agrees on the best of up to eight with odds near 1 in 8 an example."""
    fields = {"seed": seed, "temperature": temperature, "stop": stop, "max_tokens": 5}
    wide = ask(engine, tokenizer, prompts, n=n + more, **fields)
    best = ask(engine, tokenizer, prompts, n=n, best_of=n + more, **fields)
    count = len(wide.choices) // (n + more)
    assert [choice.index for choice in best.choices] == list(range(count * n))
    for j in range(count):
        candidates = list(wide.choices[j * (n + more) : (j + 1) * (n + more)])
        if more:
            candidates.sort(key=lambda choice: (-mean(choice), choice.index))
        expected = [(choice.text, choice.logprobs, choice.finish_reason) for choice in candidates[:n]]
        returned = best.choices[j * n : (j + 1) * n]
        assert [(choice.text, choice.logprobs, choice.finish_reason) for choice in returned] == expected
    assert best.usage == wide.usage


# ---- n and the order of choices


@pytest.mark.parametrize("best_of", [None, 0, 3])
def test_best_of_null_0_and_n_are_the_n_request(engine: Engine, tokenizer: Tokenizer, best_of: object) -> None:
    plain = ask(engine, tokenizer, seed=2, n=3)
    assert ask(engine, tokenizer, seed=2, n=3, best_of=best_of).choices == plain.choices


def test_best_of_below_n_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidRequest) as error:
        ask(FakeEngine(hashed_logits), tokenizer, n=3, best_of=2)
    assert (error.value.status, error.value.param) == (400, "best_of")


def test_best_of_above_n_is_refused_with_stream_and_equal_is_not(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidRequest) as error:
        ask(FakeEngine(hashed_logits), tokenizer, n=2, best_of=3, stream=True)
    assert (error.value.status, error.value.param) == (400, "best_of")
    for best_of in (None, 0, 2):
        ask(FakeEngine(hashed_logits), tokenizer, n=2, best_of=best_of, stream=True, max_tokens=0)


def test_choices_are_sorted_by_prompt_and_rank_with_dense_indices(tokenizer: Tokenizer) -> None:
    """Prompts of 1, 2 and 3 tokens read the script x y z from its beginning, second and third token."""
    engine = FakeEngine(always(*b"xyz"))
    answer = ask(engine, tokenizer, ["a", "ab", "abc"], n=2, best_of=4, temperature=0, max_tokens=1)
    assert [(c.index, c.text) for c in answer.choices] == list(enumerate(["x", "x", "y", "y", "z", "z"]))


def test_128_choices_are_legal(tokenizer: Tokenizer) -> None:
    answer = ask(FakeEngine(hashed_logits), tokenizer, n=128, max_tokens=1, seed=0)
    assert [choice.index for choice in answer.choices] == list(range(128))


def test_greedy_choices_are_equal_and_best_of_returns_the_first(engine: Engine, tokenizer: Tokenizer) -> None:
    many = ask(engine, tokenizer, temperature=0, n=4, max_tokens=6).choices
    best = ask(engine, tokenizer, temperature=0, n=2, best_of=4, max_tokens=6).choices
    assert len({(choice.text, str(choice.logprobs)) for choice in [*many, *best]}) == 1


def test_a_discarded_candidate_is_counted(tokenizer: Tokenizer) -> None:
    answer = ask(Dictated([(A, -1.0), (EOT, -1.0)], [(B, -2.0)] * 7 + [(EOT, -9.0)]), tokenizer, n=1, best_of=2)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 2 + 8
