"""Sections 3 and 10 of the law, seeds and choices: how one candidate begins, goes on and ends, and what is answered."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gnomon.reference.completion import EngineFailed, prepare
from gnomon.reference.engine import Engine
from gnomon.reference.errors import InvalidRequest, ModelNotFound
from gnomon.reference.prng import fresh_seed
from gnomon.reference.request import CompletionRequest
from gnomon.reference.response import Choice, Completion, Usage
from gnomon.reference.tokenizer import Tokenizer, load_tokenizer
from helpers.fake import EOT, FAKE_VOCAB, PRE, FakeEngine, always, hashed_logits

EVEN: NDArray[np.float64] = np.zeros(FAKE_VOCAB)


def ask(engine: Engine, tokenizer: Tokenizer, prompt: object = "ab", **fields: object) -> Completion:
    request = CompletionRequest.from_fields({"model": "fake", "prompt": prompt, **fields})
    return prepare(request, engine, tokenizer, "fake").whole()


def usage(answer: Completion) -> Usage:
    assert answer.usage is not None
    return answer.usage


def labels(choice: Choice) -> tuple[str, ...]:
    assert choice.logprobs is not None
    return choice.logprobs.tokens


def but_index(choice: Choice) -> tuple[object, ...]:
    return choice.text, choice.logprobs, choice.finish_reason


# ---- 3: one candidate


def test_every_step_runs_the_model_on_the_prompt_and_all_sampled_tokens(tokenizer: Tokenizer) -> None:
    runs: list[list[int]] = []

    def logits_of(tokens: Sequence[int]) -> NDArray[np.float64]:
        runs.append(list(tokens))
        return always(*b"xyz", prompt=2)(tokens)

    ask(FakeEngine(logits_of), tokenizer, max_tokens=4, temperature=0)
    assert [bytes(run) for run in runs] == [b"ab", b"abx", b"abxy", b"abxyz"]


def test_max_tokens_ends_a_candidate_with_length(tokenizer: Tokenizer) -> None:
    answer = ask(FakeEngine(always(*b"xyz", prompt=2)), tokenizer, max_tokens=5, temperature=0)
    assert but_index(answer.choices[0]) == ("xyzxy", None, "length")
    assert usage(answer).completion_tokens == 5


def test_max_tokens_is_16_if_left_out(tokenizer: Tokenizer) -> None:
    answer = ask(FakeEngine(always(*b"x")), tokenizer, temperature=0)
    assert answer.choices[0].text == "x" * 16


def test_max_tokens_0_samples_nothing_and_ends_with_length(tokenizer: Tokenizer) -> None:
    engine = FakeEngine(hashed_logits)
    answer = ask(engine, tokenizer, max_tokens=0, logprobs=3, n=2)
    assert [(choice.text, choice.finish_reason, labels(choice)) for choice in answer.choices] == [
        ("", "length", ())
    ] * 2
    assert usage(answer) == Usage(2, 0, 0)
    assert engine.calls == 0


def test_the_end_token_is_counted_and_in_the_arrays_and_adds_no_text(tokenizer: Tokenizer) -> None:
    engine = FakeEngine(always(ord("x"), EOT, ord("y"), prompt=2))
    answer = ask(engine, tokenizer, temperature=0, logprobs=0)
    choice = answer.choices[0]
    assert (choice.text, choice.finish_reason, labels(choice)) == ("x", "stop", ("x", "<|endoftext|>"))
    assert usage(answer).completion_tokens == 2
    assert engine.calls == 2


def test_an_end_token_adds_no_text_even_if_the_tokenizer_has_bytes_for_it(tokenizer: Tokenizer) -> None:
    """An end-of-sequence id of the model's files may be no special token of the tokenizer's."""
    engine = FakeEngine(always(*b"x.y", prompt=2), eos_ids=frozenset({ord(".")}))
    for stop in (None, "."):
        choice = ask(engine, tokenizer, temperature=0, logprobs=0, stop=stop).choices[0]
        assert (choice.text, choice.finish_reason, labels(choice)) == ("x", "stop", ("x", "."))


def test_the_end_token_on_the_last_allowed_step_is_a_stop(tokenizer: Tokenizer) -> None:
    answer = ask(FakeEngine(always(ord("x"), EOT, prompt=2)), tokenizer, temperature=0, max_tokens=2)
    assert answer.choices[0].finish_reason == "stop"


def test_every_end_id_of_the_engine_ends_a_candidate(tokenizer: Tokenizer) -> None:
    for end in (EOT, PRE):
        engine = FakeEngine(always(ord("x"), end, ord("y"), prompt=2), eos_ids=frozenset({EOT, PRE}))
        assert but_index(ask(engine, tokenizer, temperature=0).choices[0]) == ("x", None, "stop")


def test_an_end_token_in_the_prompt_ends_nothing(tokenizer: Tokenizer) -> None:
    answer = ask(FakeEngine(always(*b"xy")), tokenizer, [EOT], temperature=0, max_tokens=3)
    assert but_index(answer.choices[0]) == ("xyx", None, "length")


def test_a_candidate_is_made_for_its_first_event_and_none_for_what_only_waits(tokenizer: Tokenizer) -> None:
    """Thousands may wait, each of a dozen lists, and be given up."""
    request = CompletionRequest.from_fields({"model": "fake", "prompt": ["a", "b"], "n": 2, "max_tokens": 3})
    run = prepare(request, FakeEngine(always(1)), tokenizer, "fake")
    assert run._candidates == {}
    assert run.usage == Usage(2, 0, 0)
    assert not run.is_complete
    pieces = run.chunks()
    next(pieces)
    assert list(run._candidates) == [(0, 0)]
    assert not run.is_complete
    list(pieces)
    assert list(run._candidates) == [(j, c) for j in range(2) for c in range(2)]
    assert run.is_complete


def test_a_special_token_that_is_no_end_token_goes_on(tokenizer: Tokenizer) -> None:
    answer = ask(FakeEngine(always(ord("x"), PRE, ord("y"), prompt=2)), tokenizer, temperature=0, max_tokens=3)
    assert but_index(answer.choices[0]) == ("xy", None, "length")


def test_bytes_still_pending_at_the_end_become_a_replacement_character(tokenizer: Tokenizer) -> None:
    for script, reason in (([ord("x"), 0xE7, 0x95], "length"), ([ord("x"), 0xE7, EOT], "stop")):
        answer = ask(FakeEngine(always(*script, prompt=2)), tokenizer, temperature=0, max_tokens=3)
        assert but_index(answer.choices[0]) == ("x\ufffd", None, reason)


def test_the_prompts_pending_bytes_are_not_completed_by_the_completion(tokenizer: Tokenizer) -> None:
    answer = ask(FakeEngine(always(0xA9, ord("x"), prompt=2)), tokenizer, [ord("a"), 0xC3], temperature=0, max_tokens=2)
    assert answer.choices[0].text == "\ufffdx"


# ---- 3: logits that are not finite


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_end_the_request_with_a_server_error(tokenizer: Tokenizer, poison: float) -> None:
    def logits_of(tokens: Sequence[int]) -> NDArray[np.float64]:
        logits = hashed_logits(tokens)
        logits[7] = poison if len(tokens) > 4 else 0.0
        return logits

    for fields in ({"max_tokens": 6}, {"prompt": "abcdef", "max_tokens": 0, "echo": True, "logprobs": 0}):
        with pytest.raises(EngineFailed) as error:
            ask(FakeEngine(logits_of, eos_ids=frozenset()), tokenizer, **{"prompt": "ab", "seed": 1, **fields})
        assert (error.value.status, error.value.type) == (500, "server_error")


def test_logits_that_are_not_finite_touch_no_neighbour(tokenizer: Tokenizer) -> None:
    """Two requests are read in turns on one engine; one meets NaN at its third token."""

    def logits_of(tokens: Sequence[int]) -> NDArray[np.float64]:
        return EVEN * (np.nan if tokens[0] == ord("!") and len(tokens) > 3 else 1.0) + hashed_logits(tokens)

    engine = FakeEngine(logits_of, eos_ids=frozenset())
    alone = ask(engine, tokenizer, "ab", seed=3, max_tokens=8).choices[0].text
    neighbour, poisoned = (
        prepare(
            CompletionRequest.from_fields(
                {"model": "fake", "prompt": prompt, "seed": 3, "max_tokens": 8, "stream": True}
            ),
            engine,
            tokenizer,
            "fake",
        ).chunks()
        for prompt in ("ab", "!b")
    )
    text = next(neighbour).choices[0].text
    next(poisoned)
    with pytest.raises(EngineFailed):
        list(poisoned)
    assert text + "".join(chunk.choices[0].text for chunk in neighbour) == alone


# ---- seeds and choices


def test_the_same_seed_gives_the_same_choices(engine: Engine, tokenizer: Tokenizer) -> None:
    first, second = (ask(engine, tokenizer, seed=-1, n=3, logprobs=5, echo=True) for _ in range(2))
    assert json.dumps(first.to_json()["choices"]) == json.dumps(second.to_json()["choices"])
    assert first.system_fingerprint == second.system_fingerprint


def test_choice_1_of_2_is_choice_1_of_4(engine: Engine, tokenizer: Tokenizer) -> None:
    two, four = (ask(engine, tokenizer, seed=7, n=n, logprobs=1).choices for n in (2, 4))
    assert two == four[:2]


def test_choices_of_one_request_differ(engine: Engine, tokenizer: Tokenizer) -> None:
    """16 tokens, none with a probability near 1: two choices agree with odds below 1e-9. (And the seed is fixed.)"""
    choices = ask(engine, tokenizer, seed=7, n=4, logprobs=0).choices
    assert len({labels(choice) for choice in choices}) == 4


def test_choice_1_of_seed_1_is_not_choice_0_of_seed_2(engine: Engine, tokenizer: Tokenizer) -> None:
    choices = {
        labels(choice) for seed in range(4) for choice in ask(engine, tokenizer, seed=seed, n=3, logprobs=0).choices
    }
    assert len(choices) == 12


def test_seeds_that_differ_in_their_high_or_sign_bits_only_differ(tokenizer: Tokenizer) -> None:
    engine = FakeEngine(lambda _: EVEN, eos_ids=frozenset())
    seeds = (1, 1 + 2**32, -1, 2**63 - 1, -(2**63), 0)
    assert len({labels(ask(engine, tokenizer, seed=seed, logprobs=0).choices[0]) for seed in seeds}) == 6


@pytest.mark.parametrize("fields", [{}, {"seed": None}])
def test_without_a_seed_answers_differ(
    tokenizer: Tokenizer, fields: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even draws from 270 ids: two of five answers of 16 tokens agree with odds below 1e-37."""
    monkeypatch.setattr("gnomon.reference.completion.fresh_seed", fresh_seed)  # as users have it
    engine = FakeEngine(lambda _: EVEN, eos_ids=frozenset())
    assert len({labels(ask(engine, tokenizer, logprobs=0, **fields).choices[0]) for _ in range(5)}) == 5


def test_temperature_0_gives_equal_choices_whatever_the_seed(engine: Engine, tokenizer: Tokenizer) -> None:
    answers = [ask(engine, tokenizer, temperature=0, n=3, logprobs=2, **seed) for seed in ({}, {"seed": 1})]
    assert len({json.dumps([c.text, c.to_json()["logprobs"]]) for a in answers for c in a.choices}) == 1


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    seed=st.integers(-(2**63), 2**63 - 1),
    fields=st.fixed_dictionaries(
        {
            "max_tokens": st.integers(0, 6),
            "temperature": st.sampled_from([0, 0.3, 1, 2]),
            "top_p": st.sampled_from([0, 0.5, 1]),
            "frequency_penalty": st.sampled_from([-2, 0, 1.5]),
            "presence_penalty": st.sampled_from([-1, 0, 2]),
            "logit_bias": st.sampled_from([{}, {"97": 4, "266": -100}]),
        }
    ),
)
def test_more_choices_change_none_of_the_first(tokenizer: Tokenizer, seed: int, fields: dict[str, object]) -> None:
    """Exact: the candidate's number is in the random key, and nothing of the others is."""
    engine = FakeEngine(hashed_logits)
    few, many = (ask(engine, tokenizer, seed=seed, n=n, logprobs=1, **fields).choices for n in (2, 5))
    assert few == many[:2]


def test_penalties_count_a_candidates_own_tokens_and_not_the_prompt(tokenizer: Tokenizer) -> None:
    """x leads by 1. A prompt full of x does not hinder the first x; the first x, at a penalty of 2, hinders the second;
    y and z follow, and only then are all three equally often there, so that x leads again."""
    logits = np.full(FAKE_VOCAB, -50.0)
    logits[[ord("x"), ord("y"), ord("z")]] = 3, 2, 1.5
    for name in ("frequency_penalty", "presence_penalty"):
        for echo in (False, True):
            engine = FakeEngine(lambda _: logits)
            answer = ask(engine, tokenizer, "xxx", n=2, temperature=0, max_tokens=4, echo=echo, **{name: 2})
            assert [choice.text for choice in answer.choices] == [("xxx" if echo else "") + "xyzx"] * 2


def test_the_bias_moves_the_end_token_too(tokenizer: Tokenizer) -> None:
    engine = FakeEngine(always(ord("x"), EOT, prompt=2))
    answer = ask(engine, tokenizer, temperature=0, max_tokens=4, logit_bias={str(EOT): -100})
    assert answer.choices[0].finish_reason == "length"
    answer = ask(engine, tokenizer, temperature=0, max_tokens=4, logit_bias={str(EOT): 100})
    assert but_index(answer.choices[0]) == ("", None, "stop")


# ---- 10: the answer


def test_the_answer_has_the_published_form(tokenizer: Tokenizer) -> None:
    before = int(time.time())
    answer = ask(FakeEngine(always(*b"xy", prompt=2)), tokenizer, temperature=0, max_tokens=2)
    body = answer.to_json()
    assert re.fullmatch(r"cmpl-\w{8,}", body.pop("id"))
    assert before <= body["created"] <= time.time()
    assert isinstance(body.pop("created"), int)
    assert body == {
        "object": "text_completion",
        "model": "fake",
        "choices": [{"index": 0, "text": "xy", "logprobs": None, "finish_reason": "length"}],
        "usage": {
            "prompt_tokens": 2,
            "completion_tokens": 2,
            "total_tokens": 4,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
        "system_fingerprint": f"fake-{tokenizer.fingerprint}",
    }


def test_two_answers_have_two_ids(tokenizer: Tokenizer) -> None:
    engine = FakeEngine(hashed_logits)
    assert len({ask(engine, tokenizer, max_tokens=0).id for _ in range(20)}) == 20


def test_the_body_is_one_line_of_ascii(tokenizer: Tokenizer) -> None:
    answer = ask(FakeEngine(always(*"é\n\u2028😀\x00".encode())), tokenizer, "a", temperature=0, max_tokens=11)
    body = answer.to_bytes()
    assert body.isascii()
    assert len(body.splitlines()) == 1
    assert json.loads(body) == answer.to_json()
    assert json.loads(body)["choices"][0]["text"] == "é\n\u2028😀\x00"


@pytest.mark.parametrize(
    ("fields", "completion_tokens"),
    [
        ({}, 3), ({"n": 4}, 12), ({"n": 2, "best_of": 5}, 15), ({"echo": True}, 3), ({"best_of": 0}, 3),
        ({"echo": True, "logprobs": 2, "n": 2}, 6), ({"max_tokens": 0, "n": 5}, 0), ({"stop": "y", "n": 2}, 4),
    ],
)  # fmt: skip
def test_usage_counts_every_prompt_once_and_the_tokens_of_all_candidates(
    tokenizer: Tokenizer, fields: dict[str, object], completion_tokens: int
) -> None:
    """The model writes x y <|endoftext|>; discarded candidates of best_of are among the counted."""
    engine = FakeEngine(always(ord("x"), ord("y"), EOT, prompt=2))
    answer = ask(engine, tokenizer, ["ab", "cd"], **{"temperature": 0, **fields})
    assert usage(answer) == Usage(4, 2 * completion_tokens, 0)
    assert usage(answer).to_json()["total_tokens"] == 4 + 2 * completion_tokens


def test_the_answer_carries_the_engines_and_the_tokenizers_fingerprint(engine: Engine, tokenizer: Tokenizer) -> None:
    assert ask(engine, tokenizer, max_tokens=1).system_fingerprint == f"{engine.fingerprint}-{tokenizer.fingerprint}"


# ---- what only the model can refuse


def test_an_unknown_model_is_not_found(tokenizer: Tokenizer) -> None:
    engine = FakeEngine(hashed_logits)
    request = CompletionRequest.from_fields({"model": "other", "prompt": "ab"})
    with pytest.raises(ModelNotFound) as error:
        prepare(request, engine, tokenizer, "fake")
    assert error.value.status == 404
    body = error.value.to_json()["error"]
    assert (body["code"], body["type"], body["param"]) == ("model_not_found", "invalid_request_error", "model")
    assert "other" in body["message"]
    assert engine.calls == 0


def test_a_bias_for_an_id_beyond_the_vocabulary_is_refused_by_its_key(tokenizer: Tokenizer) -> None:
    engine = FakeEngine(hashed_logits)
    ask(engine, tokenizer, max_tokens=0, logit_bias={str(FAKE_VOCAB - 1): 1})
    for v in (FAKE_VOCAB, 50256):
        with pytest.raises(InvalidRequest) as error:
            ask(engine, tokenizer, logit_bias={"3": 1, str(v): 1})
        assert (error.value.status, error.value.param) == (400, f"logit_bias.{v}")
        assert str(FAKE_VOCAB) in error.value.message
    assert engine.calls == 0


def test_nothing_is_generated_before_the_answer_is_read(tokenizer: Tokenizer) -> None:
    engine = FakeEngine(hashed_logits)
    prepare(CompletionRequest.from_fields({"model": "fake", "prompt": "ab"}), engine, tokenizer, "fake")
    assert engine.calls == 0


def test_a_real_models_tokenizer_is_the_fake_one(model_directory: Path, tokenizer: Tokenizer) -> None:
    """So that one fixture serves both engines of this file."""
    assert load_tokenizer(model_directory, FAKE_VOCAB).labels == tokenizer.labels
